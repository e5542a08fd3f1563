"""The compiled training step: the weights of the plain one, plain checkpoints, and what it needs of the machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from samout_train import build_trainer, train
from samout_train.cli.train import train as main
from samout_train.models import loss as losses
from samout_train.runtime import compile_problem, has_cpp_compiler
from samout_train.training import Trainer

TINY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=32", "model.num_heads=4", "model.num_layers=2"),
    *("data.seq_len=9", "data.batch_size=8", "model.dropout=0"),
]
COMPILED = "trainer.compile=true"
# A compiled sum is in another order. Ten steps of Adam carry that into the weights: 1.2e-6 was measured.
TOLERANCE = 1e-5
# torch's own import of its compiler warns.
IMPORT_WARNING = "ignore:.torch.jit.script_method:DeprecationWarning"


@pytest.fixture
def compiler() -> None:
    torch._dynamo.utils.counters.clear()
    if not has_cpp_compiler():
        pytest.skip("no C++ compiler")


def compiling(function: Callable[..., None]) -> Callable[..., None]:
    for mark in (pytest.mark.usefixtures("compiler"), pytest.mark.filterwarnings(IMPORT_WARNING)):
        function = mark(function)
    return function


def steps(*overrides: str, count: int = 10) -> Trainer:
    made = build_trainer([*TINY, *overrides])
    for _ in range(count):
        made.step()
    return made


BOTH = ["trainer.accumulate=2", "trainer.activation_checkpointing=true"]


@pytest.mark.nightly
@compiling
@pytest.mark.parametrize(
    "extra",
    [[], ["kernels=reference"], ["trainer.accumulate=2"], ["trainer.activation_checkpointing=true"], BOTH],
    ids=["plain", "reference", "accumulate", "activation_checkpointing", "both"],
)
def test_ten_compiled_steps_come_to_the_weights_of_ten_plain_ones(extra: list[str]) -> None:
    plain, other = steps(*extra), steps(*extra, COMPILED)
    wanted = plain.model.state_dict()
    weights = other.model.state_dict()
    assert weights.keys() == wanted.keys(), "names are the plain ones"
    for name, weight in weights.items():
        assert float((weight - wanted[name]).abs().max()) < TOLERANCE, name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "the whole model is one graph"


@pytest.mark.nightly
@compiling
def test_a_compiled_model_can_do_without_all_of_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = steps().model.state_dict()
    monkeypatch.setattr(losses, "MOST_LOGITS", 1000)
    for name, weight in steps(COMPILED).model.state_dict().items():
        assert float((weight - wanted[name]).abs().max()) < TOLERANCE, name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.nightly
@compiling
def test_compiled_steps_in_bf16_learn_as_plain_ones() -> None:
    plain, other = (float(steps("precision=bf16", *extra).training_step.loss) for extra in ([], [COMPILED]))
    assert other == pytest.approx(plain, rel=1e-2)  # bfloat16 keeps 8 bits


@pytest.mark.nightly
@compiling
def test_compiled_layers_that_are_computed_again_keep_less() -> None:
    def kept_bytes(*overrides: str) -> int:
        made, sizes = steps(COMPILED, "model.num_layers=4", *overrides, count=1), []

        def keep(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            made.step()
        return sum(sizes)

    assert kept_bytes("trainer.activation_checkpointing=true") < 0.8 * kept_bytes()


@pytest.mark.nightly
@compiling
def test_a_compiled_run_says_how_long_it_took_and_is_continued_by_a_plain_one(tmp_path: Path) -> None:
    summary, _ = train([*TINY, COMPILED, "trainer.max_steps=3", f"run_dir={tmp_path / 'run'}"])
    log = (tmp_path / "run" / "samout_train.log").read_text()
    assert log.count("compile     the first step compiles the model") == 1
    assert log.count("s, compilation included") == 1
    further, _ = train([*TINY, "trainer.max_steps=6", f"run_dir={tmp_path / 'run'}", "resume=auto"])
    whole, _ = train([*TINY, "trainer.max_steps=6", f"run_dir={tmp_path / 'whole'}"])
    assert summary["steps"] == 3 and further["val_loss_nats"] == pytest.approx(whole["val_loss_nats"], rel=TOLERANCE)


def test_what_is_missing_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("samout_train.runtime.device.has_cpp_compiler", lambda: False)
    assert main([*TINY, COMPILED]) == 2
    assert "trainer.compile=true: needs a C++ compiler for the CPU, and torch finds none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_python_headers_and_triton_are_asked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samout_train.runtime.device.has_cpp_compiler", lambda: True)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert "Python.h, which is not there: install Python's headers" in str(compile_problem(torch.device("cpu")))
    (tmp_path / "Python.h").touch()
    assert compile_problem(torch.device("cpu")) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs triton for CUDA" in str(compile_problem(torch.device("cuda")))
