"""Published weights as people keep them: the same model, or a sentence with what to do; no code in a file is run."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model
from samout_train.commands import inspect
from samout_train.models.published import load_published, published_state

State = dict[str, Tensor]


class Net(nn.Module):
    """A module with parameters of any dotted names, as a published script's model is."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            *parents, last = name.split(".")
            place: nn.Module = self
            for part in parents:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(tensor.clone()))
        self.register_buffer("positions", torch.arange(4), persistent=False)


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    model = build_model("v8", vocab_size=9, pad_id=3, hidden_size=8, num_heads=2, num_layers=2)
    return {name: tensor.clone() for name, tensor in published_state(model).items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def of_adam(state: State) -> dict[str, Any]:
    net = Net(state)
    optimizer = torch.optim.Adam(net.parameters())
    sum(parameter.sum() for parameter in net.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return optimizer.state_dict()


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "ordered": OrderedDict,
    "parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled in parallel": lambda s: prefixed(s, "module._orig_mod."),
    "parallel in compiled": lambda s: prefixed(s, "_orig_mod.module."),
    "layers compiled": lambda s: {n.replace("layers.0.", "layers.0._orig_mod."): t for n, t in s.items()},
    "partly": lambda s: {("module." + n if "alpha" in n else n): t for n, t in s.items()},
    "of a trainer's module": lambda s: prefixed(s, "net."),
    **{f"below {key}": lambda s, key=key: {key: s, "epoch": 3} for key in ("model", "state_dict", "weights", "net")},
    "below two keys": lambda s: {"checkpoint": {"model_state_dict": prefixed(s, "module.")}, "step": 1},
    "beside averaged ones": lambda s: {"ema": {n: t + 1 for n, t in s.items()}, "model": s},
    "beside an optimizer": lambda s: {"model": s, "optimizer": of_adam(s), "loss": 0.5, "args": {"lr": 1e-3}},
    "a pickled module": Net,
    "a pickled module in parallel": lambda s: nn.DataParallel(Net(s)),
    "a pickled module below a key": lambda s: {"model": Net(s), "epoch": 1},
}


def same(path: Path, state: State, tolerance: float = 0.0) -> bool:
    found = published_state(load_published(path))
    return found.keys() == state.keys() and all(
        torch.allclose(found[name], state[name], rtol=tolerance, atol=tolerance) for name in state
    )


@pytest.mark.parametrize("form", FORMS)
def test_weights_load_in_any_wrapping_and_inspect_calls_them_whole(
    state: State, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pth"
    torch.save(FORMS[form](state), path)
    assert same(path, state)
    assert inspect.main([f"path={path}"]) == 0
    out = capsys.readouterr().out
    assert "weights of the published SamOut V8" in out and "yes, names and shapes are complete" in out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float64, 0.0)])
def test_weights_load_in_any_floating_point_type_as_float32(
    state: State, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "half.pth")
    model = load_published(tmp_path / "half.pth")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert same(tmp_path / "half.pth", state, tolerance)


def test_the_older_format_and_safetensors_load(state: State, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    torch.save(prefixed(state, "module."), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    library.save_file(prefixed(state, "_orig_mod."), tmp_path / "net.safetensors")
    assert same(tmp_path / "old.pth", state) and same(tmp_path / "net.safetensors", state)
    for name in ("old.pth", "net.safetensors"):
        assert inspect.main([f"path={tmp_path / name}"]) == 0


class Touches:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path(self.path).touch, ())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_runs_none(state: State, tmp_path: Path, zipped: bool) -> None:
    ran, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"model": Net(state), "extra": Touches(ran), "command": Executes(f"touch {ran}")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for read in (load_published, lambda it: inspect.main([f"path={it}"])):
        try:
            read(path)
        except ValueError as error:
            assert "torch.save(net.state_dict(), path)" in str(error)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Executes(f"touch {ran}")))
    assert ran.exists(), "an ordinary reader would have run it"


class Executes:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return (os.system, (self.command,))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda s: {"a": s, "b": s}, "holds several state_dicts (a, b): save them with torch.save(net.state_dict(), p"),
        (lambda s: {"epoch": 3, "lr": 0.1}, "holds no state_dict of a published SamOut (epoch, lr): save them with"),
        (lambda s: [1, 2], "holds no state_dict of a published SamOut (list): save them with torch.save(net.state_d"),
        (lambda s: s | {"module.em.weight": s["em.weight"]}, "holds em.weight twice, with wrappers and without"),
        (lambda s: s | {"em.weight": s["em.weight"].to(torch.int8)}, "em.weight is torch.int8: give weights as float"),
        (lambda s: s | {"positions": torch.zeros(4)}, "positions is no parameter of the published SamOut V1 or V8. L"),
    ],
)
def test_what_cannot_be_loaded_is_told_with_what_to_do(
    state: State, tmp_path: Path, content: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content(state), tmp_path / "net.pth")
    with pytest.raises(ValueError) as refused:
        load_published(tmp_path / "net.pth")
    assert told in str(refused.value)
    assert inspect.main([f"path={tmp_path / 'net.pth'}"]) == 2 and told in capsys.readouterr().err


def test_an_old_pickled_module_is_refused_as_that_and_a_cut_file_as_damaged(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, cut = tmp_path / "old.pth", tmp_path / "cut.pth"
    torch.save(Net(state), old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"torch\.save\(net\.state_dict\(\), path\)"):
        load_published(old)
    assert inspect.main([f"path={old}"]) == 2 and "torch.save(net.state_dict(), path)" in capsys.readouterr().err
    torch.save(state, cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match="Copy the file again"):
        load_published(cut)
    assert inspect.main([f"path={cut}"]) == 1
