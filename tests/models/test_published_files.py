"""Published weights as people keep them: the same model, or a sentence with what to do; no code in a file is run."""

import gzip
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model
from samout_train.checkpoint import inspect_path
from samout_train.cli import inspect
from samout_train.data import read_published_vocabulary, read_vocabulary_file
from samout_train.models import load_published, published_state
from tests.support.marks import spread

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
    "twice": lambda s: {"ema": {"model": {n: t.clone() for n, t in s.items()}}, "model": prefixed(s, "module.")},
    "beside a part": lambda s: {"model": s, "embedding": {"em.weight": s["em.weight"] + 1}},
    "in a list": lambda s: [s, {"lr": 1.0}],
    "beside an optimizer": lambda s: {"model": s, "optimizer": of_adam(s), "loss": 0.5, "args": {"lr": 1e-3}},
    "a pickled module": Net,
    "a pickled module in a list": lambda s: [Net(s), 3],
    "a pickled module in a pair": lambda s: (3, Net(s)),
    "a pickled module in parallel": lambda s: nn.DataParallel(Net(s)),
    "a pickled module below a key": lambda s: {"model": Net(s), "epoch": 1},
}


def same(path: Path, state: State, tolerance: float = 0.0) -> bool:
    found = published_state(load_published(path))
    return found.keys() == state.keys() and all(
        torch.allclose(found[name], state[name], rtol=tolerance, atol=tolerance) for name in state
    )


@pytest.mark.parametrize("form", spread(FORMS, 2))
def test_weights_load_in_any_wrapping_and_inspect_calls_them_whole(
    state: State, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pth"
    torch.save(FORMS[form](state), path)
    assert same(path, state)
    assert inspect.inspect([f"path={path}"]) == 0
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
        assert inspect.inspect([f"path={tmp_path / name}"]) == 0


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
    for read in (load_published, lambda it: inspect.inspect([f"path={it}"])):
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
        (lambda s: {"epoch": 3, "lr": 0.1}, "holds no state_dict of a published SamOut (epoch, lr): save them with"),
        (
            lambda s: {n.encode(): t for n, t in s.items()},
            "no state_dict of a published SamOut (b'em.weight', b'decoder",
        ),
        (lambda s: [1, 2], "holds no state_dict of a published SamOut (list): save them with torch.save(net.state_d"),
        (lambda s: s | {"module.em.weight": s["em.weight"]}, "holds em.weight twice, with and without a wrapper"),
        (
            lambda s: prefixed(s, "net.") | {"head.weight": s["head.weight"], "n.em.weight": s["em.weight"]},
            "it holds head.weight, n.em.weight beside net.em.weight, which are not parameters of the published SamOut",
        ),
        (
            lambda s: {"item.weight": torch.zeros(2), **s},
            "item.weight is no parameter of the published SamOut V1 or V8",
        ),
        (lambda s: s | {"em.weight": s["em.weight"].to(torch.int8)}, "em.weight is torch.int8: save weights as float"),
        (lambda s: {n: t.to("meta") for n, t in s.items()}, "em.weight has no values (it is on the device meta). Save"),
        (lambda s: s | {"head.weight": s["head.weight"].to("meta")}, "head.weight has no values (it is on the device"),
        (lambda s: {key: {n: t.to("meta") for n, t in s.items()} for key in "ab"}, "several state_dicts: a, b. Save"),
        (
            lambda s: {n: t.numpy() for n, t in s.items()},
            "em.weight is a NumPy array, not a tensor: save tensors, with",
        ),
        (lambda s: {"net": {n: t.numpy() for n, t in s.items()}}, "em.weight is a NumPy array, not a tensor: save"),
        (
            lambda s: build_model("v8", vocab_size=9, hidden_size=8, num_heads=2, num_layers=1),
            "it is a SamOut of this program, not a published one: export its run with `export run=DIR",
        ),
        (
            lambda s: nn.Linear(2, 3),
            "holds no state_dict of a published SamOut (Linear): save them with torch.save(net.",
        ),
        (
            lambda s: s | {f"decoder_layers.{'1' * 5000}.alpha": torch.zeros(())},
            f"decoder_layers.{'1' * 85}... is no parameter of the published SamOut",
        ),
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
    assert inspect.inspect([f"path={tmp_path / 'net.pth'}"]) == 2 and told in capsys.readouterr().err


def test_an_old_pickled_module_is_refused_as_that_and_a_cut_file_as_damaged(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, cut = tmp_path / "old.pth", tmp_path / "cut.pth"
    torch.save(Net(state), old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"torch\.save\(net\.state_dict\(\), path\)"):
        load_published(old)
    assert inspect.inspect([f"path={old}"]) == 2 and "torch.save(net.state_dict(), path)" in capsys.readouterr().err
    torch.save(state, cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"cut\.pth cannot be used .*: it is cut short or damaged: copy or download it again"
    ):
        load_published(cut)
    assert inspect.inspect([f"path={cut}"]) == 1


def zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("content", "keys", "expression"),
    [
        (lambda s, z: {"ema": {"model": z}, "model": s}, "model, ema.model", "loaded['model']"),
        (
            lambda s, z: {"best": {"model": z}, "last": {"model": s}},
            "best.model, last.model",
            "loaded['best']['model']",
        ),
        (lambda s, z: {"net": s, "model": z}, "net, model", "loaded['net']"),
        (lambda s, z: {"state_dict": s, "model": z}, "state_dict, model", "loaded['model']"),
        (lambda s, z: {"optimizer": {"model": z}, "net": s}, "net, optimizer.model", "loaded['net']"),
        (lambda s, z: {**s, "ema": z}, "the top, ema", "loaded['ema']"),
        (lambda s, z: {"model": Net(s), "ema": [z]}, "model, ema.0", "loaded['ema'][0]"),
        (lambda s, z: {"model": Net(s), "averaged": Net(z)}, "model, averaged", "loaded['model'].state_dict()"),
        (lambda s, z: {**prefixed(z, "ema."), **prefixed(s, "model.")}, "ema, model", "{n.removeprefix('ema.'): t for"),
    ],
)
def test_several_state_dicts_that_differ_are_refused_with_their_keys(
    state: State, tmp_path: Path, content: Any, keys: str, expression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pth"
    torch.save(content(state, zeros(state)), path)
    with pytest.raises(ValueError) as refused:
        load_published(path)
    told = f"it holds several state_dicts: {keys}. Save one of them, such as torch.save({expression}"
    assert told in str(refused.value)
    assert inspect.inspect([f"path={path}"]) == 2 and told in capsys.readouterr().err
    # What is printed does what it says.
    line = str(refused.value).rpartition("torch.save(")[2].removesuffix(", path)")
    meant = eval(line, {"loaded": torch.load(path, weights_only=False)})
    torch.save(meant, path)
    assert same(path, state) or same(path, zeros(state))


def test_the_state_of_an_optimizer_is_no_model(state: State) -> None:
    moments = {"state": {name: {"exp_avg": tensor + 1} for name, tensor in state.items()}}
    loaded = load_published({"optimizer": moments, "last": of_adam(state), "net": state})
    assert all(torch.equal(tensor, state[name]) for name, tensor in published_state(loaded).items())


LAYER = "decoder_layers.0."
SHAPES = {
    "em.weight": "(ids, width)",
    f"{LAYER}ffn.ffn1.weight": "(ffn_size, width)",
    f"{LAYER}ffn.ffn1.bias": "(8,)",
    f"{LAYER}ffn.gate.weight": "(8, 8)",
    f"{LAYER}ffn.ffn2.weight": "(8, 8)",
    f"{LAYER}ffn.ffn2.bias": "(8,)",
    f"{LAYER}self_attention.combined.weight": "(32, 8)",
    f"{LAYER}alpha": "()",
    f"{LAYER}layer_norm.weight": "(8,)",
    "head.weight": "(9, 8)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", spread(SHAPES, 3))
def test_a_parameter_that_is_missing_or_of_another_shape_is_named_as_in_the_file(
    state: State, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, less = tmp_path / "net.pth", {other: tensor for other, tensor in state.items() if other != name}
    wrong = [torch.zeros(()), torch.zeros(16), torch.zeros(2, 3, 4)]
    told = [f"{name} has shape {tuple(tensor.shape)}, must be {SHAPES[name]}" for tensor in wrong]
    cases = [(less | {name: tensor}, words) for tensor, words in zip(wrong, told, strict=True)]
    cases = [case for case in cases if case[0][name].shape != state[name].shape]
    for content, words in [*cases, (less, f"{name} is missing")]:
        with pytest.raises(ValueError) as refused:
            load_published(content)
        assert words in str(refused.value)
        torch.save(content, path)
        code = inspect.inspect([f"path={path}"])
        shown = "".join(capsys.readouterr())
        assert code in (1, 2) and words in shown and "Traceback" not in shown


def test_layers_with_a_gap_and_a_number_of_heads_that_is_none_are_refused(state: State) -> None:
    gap = {name.replace("layers.1.", "layers.999999999."): tensor for name, tensor in state.items()}
    with pytest.raises(ValueError, match=r"decoder_layers\.1 is missing, decoder_layers\.999999999 is there"):
        load_published(gap)
    for num_heads in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"num_heads .* must be a whole number of 1 or more"):
            load_published(state, num_heads=num_heads)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(
    state: State, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{LAYER}ffn.gate.bias"
    torch.save(state | {name: torch.full_like(state[name], value)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite values"):
        load_published(tmp_path / "net.pth")
    assert inspect.inspect([f"path={tmp_path / 'net.pth'}"]) == 1
    assert f"no: {name} holds NaN or infinite values" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["net.pth", "net.SAFETENSORS", "net"])
def test_safetensors_load_under_any_name(state: State, tmp_path: Path, name: str) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file(state, tmp_path / name)
    assert same(tmp_path / name, state) and inspect.inspect([f"path={tmp_path / name}"]) == 0
    torch.save(state, tmp_path / "zip.safetensors")
    assert same(tmp_path / "zip.safetensors", state) and inspect.inspect([f"path={tmp_path / 'zip.safetensors'}"]) == 0


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (b"\n<!DOCTYPE html><html>", 2, "it is a web page and not the file itself: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", 2, "it is a pointer of Git LFS and not the weights: run"),
        (
            gzip.compress(b"weights", mtime=0),
            2,
            "it is compressed (gzip): decompress it first, for example with `gunzip -c",
        ),
        (b"", 2, ""),
        (b"abc", 2, ""),
        (b"PK\x03\x04 and so on", 1, "it is cut short or damaged: copy or download it again"),
    ],
)
def test_what_is_kept_in_place_of_weights_is_named(
    tmp_path: Path, content: bytes, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("net.pth", "net.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as refused:
            load_published(tmp_path / name)
        few = "it has 3 bytes, too few for weights" if content else "it is empty"
        assert (told or f"{few}: copy or download it again") in str(refused.value)
        assert inspect.inspect([f"path={tmp_path / name}"]) == code
        assert told in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps({"a": [1, 2]}).encode(), "it is JSON or other text, and no file of torch.save: give the file of"),
        ("it's naïve text ".encode() * 9, "it is text, and no file of torch.save: give the file of the weights"),
        (pickle.dumps({"a": [1, 2]}), "it is a pickle that torch.save did not write: load it where it was made, and"),
        (b"\1\2\3\4\5", "it is not a file of torch.save: give the file of the weights, or copy or download it again"),
    ],
)
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        load_published(tmp_path / "net.pth")
    assert told in str(refused.value) and "Where it holds more" not in str(refused.value)
    assert inspect.inspect([f"path={tmp_path / 'net.pth'}"]) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_script_is_called_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), tmp_path / "net.pth")
    told = "it is TorchScript, whose code is never run: load it with net = torch.jit.load(path)"
    with pytest.raises(ValueError) as refused:
        load_published(tmp_path / "net.pth")
    assert told in str(refused.value) and "torch.save(net.state_dict(), path)" in str(refused.value)
    assert inspect.inspect([f"path={tmp_path / 'net.pth'}"]) == 2 and told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("net.pth", "voc.pkl", "export.json", "vocabulary.json"):
        os.mkfifo(tmp_path / name)
        told = f"{name} is not a regular file: copy its content to a file, and give that"
        assert inspect.inspect([f"path={tmp_path / name}"]) == 2 and told in capsys.readouterr().err
        with pytest.raises(ValueError, match="is not a regular file: copy its content"):
            load_published(tmp_path / name)
    for read in (read_vocabulary_file, read_published_vocabulary):
        with pytest.raises(ValueError, match="is not a regular file: copy its content"):
            read(tmp_path / "voc.pkl")
    assert inspect.inspect([f"path={tmp_path}"]) == 2
    (tmp_path / "net.pth").rename(tmp_path / "model.pth")
    assert inspect.inspect([f"path={tmp_path}"]) == 2


@pytest.mark.parametrize("name", ["it's.pth", 'a"b.pth'])
def test_the_line_to_use_is_python(state: State, tmp_path: Path, name: str) -> None:
    torch.save(state, tmp_path / "net.pth")
    (tmp_path / "net.pth").rename(tmp_path / name)
    assert inspect_path(tmp_path / name).known
    line = dict(inspect_path(tmp_path / name).rows)["to use"].partition("), and")[0]
    assert eval(line.removeprefix("load_published(")) == str(tmp_path / name)


@pytest.mark.parametrize("size", [15, 40, 1000, -2000, -100, -1])
def test_a_file_that_is_cut_anywhere_is_called_that(state: State, tmp_path: Path, size: int) -> None:
    library = pytest.importorskip("safetensors.torch")
    old, new, third = tmp_path / "old.pth", tmp_path / "new.pth", tmp_path / "net.safetensors"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.save(state, new)
    library.save_file(state, third)
    for path in (old, new, third):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"cut short or damaged.*: copy or download it again"):
            load_published(path)
        assert inspect.inspect([f"path={path}"]) == 1


def test_a_flipped_bit_is_damage(state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, whole = tmp_path / "a.pth", tmp_path / "whole.pth"
    torch.save(state, whole)
    content = bytearray(whole.read_bytes())
    content[content.find(state["head.weight"].numpy().tobytes()) + 2] ^= 0x40
    path.write_bytes(content)
    assert torch.load(path)["head.weight"].isfinite().all(), "torch does not see it"
    with pytest.raises(ValueError, match=r"its record .*/data/\d+ is not what was written: it is damaged"):
        load_published(str(path))
    assert inspect.inspect([f"path={path}"]) == 1 and "it is damaged" in capsys.readouterr().out


def test_a_file_that_was_saved_without_digests_loads(state: State, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(tmp_path / "a.pth", state)
