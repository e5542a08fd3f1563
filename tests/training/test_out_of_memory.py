"""Memory that does not suffice: what is told, and what is saved."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from samout_train.training import MemoryExhaustedError
from samout_train.training.trainer import _smaller_settings, saved_on_error
from tests.faults.numbers import FIXED, happens
from tests.faults.row import SMALL
from tests.support.program import samout
from tests.training.test_step import PROGRESS, model, step_of


def test_the_allocation_that_a_cpu_refuses_is_told() -> None:
    step = step_of(model(), accumulate=2)
    random = torch.get_rng_state()
    step.model.register_forward_hook(lambda net, args, output: torch.empty(10**15))
    saved: list[int] = []
    with pytest.raises(MemoryExhaustedError) as caught, saved_on_error(step, lambda: saved.append(step.step_count)):
        step(PROGRESS)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("out of memory in step 1: ") and "can't allocate memory" in lines[0]
    assert lines[2] == "  batch           8 rows x 12 targets, in 2 micro-steps of 4 rows"
    less = "trainer.accumulate=4, which keeps the batch of 8 rows; or data.batch_size=4; or data.seq_len=6"
    assert lines[3] == f"  needs less      {less}; or trainer.activation_checkpointing=true"
    assert lines[4] == "  saved           the state after step 0: resume=auto continues from it" and saved == [0]
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("accumulate", "smaller"), [(1, 4), (2, 4), (4, 4), (8, None)])
def test_a_smaller_batch_is_one_that_micro_steps_divide(accumulate: int, smaller: int | None) -> None:
    found = [word for word in _smaller_settings(step_of(model(), accumulate=accumulate)) if "batch_size" in word]
    assert found == [f"data.batch_size={smaller}"] * (smaller is not None)


def test_what_failed_within_the_update_is_not_saved() -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            raise MemoryError

    step = step_of(model(), optimizer=lambda net: Failing(net.parameters(), lr=0.1))
    with (
        pytest.raises(MemoryExhaustedError, match="nothing: it failed within the update"),
        saved_on_error(step, pytest.fail),
    ):
        step(PROGRESS)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), saved_on_error(step_of(nn.Linear(1, 1)), pytest.fail):
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "told"), [("loss", "step 3 was not applied"), ("memory", "out of memory in step 3")])
def test_the_program_ends_with_1_and_without_a_traceback(tmp_path: Path, what: str, told: str) -> None:
    done = samout(tmp_path, *SMALL, *FIXED, "run_dir=run", happens(3, what), timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr
    assert told in done.stderr + done.stdout and told in (tmp_path / "run" / "samout_train.log").read_text()
    assert json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_text())["last"] == 2
