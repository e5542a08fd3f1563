"""A profile of a few steps: what is written, that its parts add up, and that it changes nothing."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import samout_train
from samout_train import train
from samout_train.runtime import StopRequestedError
from samout_train.training.profiler import KINDS, STEP, operations, table
from tests.support.marks import mostly_nightly
from tests.support.signal_after import signal_after

SOURCES = Path(samout_train.__file__).parent
TINY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=2"),
    *("data.seq_len=9", "data.num_sequences=20", "data.batch_size=8", "model.dropout=0.1", "data.vocab_size=32"),
]
ROW = re.compile(r"^(\S.*?) {2,}([\d.]+) +([\d.]+)%", re.MULTILINE)


def run(run_dir: Path, *overrides: str) -> dict[str, Any]:
    summary, _ = train([*TINY, f"run_dir={run_dir}", *overrides])
    return summary


def log_of(run_dir: Path) -> str:
    return (run_dir / "samout_train.log").read_text()


@pytest.mark.slow
def test_a_profile_is_written_and_its_parts_add_up_to_the_step(tmp_path: Path) -> None:
    run(tmp_path, "trainer.profile=true", "trainer.max_steps=12", "trainer.accumulate=2")
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {"steps.pt.trace.json", "table.txt"}
    events = json.loads((tmp_path / "profile" / "steps.pt.trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event.get("name") == STEP]
    assert len(steps) == 5
    text = (tmp_path / "profile" / "table.txt").read_text()
    assert text.startswith("steps 6 to 10 on cpu: ") and "the mean of 5\n" in text
    by_kind, by_operation = text.split("\n\n")[1:]
    shares = {name: float(share) for name, _, share in ROW.findall(by_kind)}
    whole_share = shares.pop("whole")
    assert list(shares) == [
        *("matrix products", "mixer", "elementwise and norm", "embedding and loss", "optimizer", "other")
    ]
    assert whole_share == 100 and sum(shares.values()) == pytest.approx(100, abs=0.04)  # of six roundings to 0.01
    assert all(share > 0 for share in shares.values())
    milliseconds = {name: float(value) for name, value, _ in ROW.findall(by_kind)}
    # The steps' own beginnings and ends, in microseconds, of the trace.
    assert milliseconds["whole"] == pytest.approx(sum(step["dur"] for step in steps) / 5000, abs=0.002)
    assert len(by_operation.splitlines()) == 16
    # Two micro-steps, two layers, forward and backward.
    assert re.search(r"^samout_train::max_mix .* 4.0  mixer$", by_operation, re.MULTILINE)
    assert all(line in log_of(tmp_path) for line in text.splitlines() if line)


@pytest.mark.slow
def test_a_profiled_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "trainer.max_steps=12")
    profiled = run(tmp_path / "profiled", "trainer.max_steps=12", "trainer.profile=true")
    assert plain["weights_sha256"] == profiled["weights_sha256"]
    assert not (tmp_path / "plain" / "profile").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "wanted"),
    [(5, "nothing was profiled: the run made 5 steps"), (7, "the mean of 2 (fewer steps than 5, since the run ended)")],
)
def test_a_shorter_run_says_what_was_profiled(tmp_path: Path, steps: int, wanted: str) -> None:
    run(tmp_path, "trainer.profile=true", f"trainer.max_steps={steps}")
    assert wanted in log_of(tmp_path)
    assert (tmp_path / "profile").exists() == (steps > 5)


@pytest.mark.nightly
@pytest.mark.parametrize("stop_after", mostly_nightly([3, 7], {7}))
def test_a_run_that_is_stopped_among_the_profiled_steps_goes_on_and_profiles_anew(
    tmp_path: Path, stop_after: int
) -> None:
    settings = ["trainer.profile=true", "trainer.max_steps=20"]
    whole = run(tmp_path / "whole", *settings)
    stop = signal_after(stop_after)
    with pytest.raises(StopRequestedError):
        run(tmp_path / "stopped", *settings, stop)
    assert not (tmp_path / "stopped" / "profile").exists()
    assert "nothing was written: the run was stopped" in log_of(tmp_path / "stopped")
    assert run(tmp_path / "stopped", *settings, "resume=auto")["weights_sha256"] == whole["weights_sha256"]
    table_text = (tmp_path / "stopped" / "profile" / "table.txt").read_text()
    assert table_text.startswith(f"steps {stop_after + 6} to {stop_after + 10} on cpu")


@pytest.mark.slow
def test_a_profile_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file where the folder would be")
    assert run(tmp_path, "trainer.profile=true", "trainer.max_steps=10")["steps"] == 10
    assert "the profile cannot be written to" in log_of(tmp_path)


def event(name: str, start: float, end: float, *, kernels: dict[str, float], thread: int = 1, above: Any = None) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name="CPU"),
        is_async=False,
        thread=thread,
        time_range=SimpleNamespace(start=start, end=end),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels.items()],
        cpu_parent=above,
    )


def test_on_cuda_kernels_of_the_steps_count_whatever_thread_launched_them() -> None:
    step = event(STEP, 0, 100, kernels={STEP: 900.0, "launched by no operation": 10.0})
    update = event("Optimizer.step#AdamW.step", 60, 90, kernels={}, above=step)
    events = [
        *(step, update),
        event("aten::mm", 10, 20, kernels={"gemm": 300.0}, above=step),
        event("aten::mm", 30, 40, kernels={"gemm": 500.0}, thread=2),
        event("aten::add_", 70, 80, kernels={"add": 90.0}, above=update),
        event("aten::mm", 200, 210, kernels={"gemm": 7000.0}),  # of an evaluation between two steps
    ]
    found = {operation.name: operation for operation in operations(events, torch.device("cuda"))}
    assert (found["aten::mm"].microseconds, found["aten::mm"].calls) == (800.0, 2)
    assert found["aten::add_"].kind == "optimizer" and found[STEP].microseconds == 10.0
    assert table(events, torch.device("cuda"))[0] == "0.900 ms a step of work of the device, the mean of 1"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("samout_train::max_mix_backward", "mixer"),
        ("samout_train::blended", "elementwise and norm"),
        ("GeneratedBackwardFor_samout_train_gated_defaultBackward", "elementwise and norm"),
        ("GeneratedBackwardFor_samout_train_head_recurrence_defaultBackward", "mixer"),
        ("aten::_fused_adam_", "optimizer"),
        ("aten::nll_loss_forward", "embedding and loss"),
        ("aten::view", "other"),
    ],
)
def test_an_operation_counts_as_what_it_is(name: str, kind: str) -> None:
    step = event(STEP, 0, 100, kernels={})
    events = [step, event(name, 10, 20, kernels={"a kernel": 10.0}, above=step)]
    assert {operation.name: operation.kind for operation in operations(events, torch.device("cuda"))}[name] == kind


def test_each_operator_of_the_project_has_a_kind() -> None:
    for path in (SOURCES / "ops").rglob("*.py"):
        for name in re.findall(r'custom_op\("(samout_train::\w+)"', path.read_text("utf-8")):
            assert any(re.search(pattern, name) for pattern in KINDS.values()), name
