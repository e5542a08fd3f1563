"""Batches of which no target is counted: the step is left out, and all else is as if they had not been."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samout_train import build_trainer, train
from samout_train.data import MatrixRows
from samout_train.evaluation import Extrapolation, SpreadBatches, in_order
from samout_train.evaluation.lengths import NOTHING_COUNTED
from samout_train.runtime import distributed as processes
from samout_train.training import Trainer
from samout_train.training.step import TrainingStep
from tests.support.evaluation import evaluator_of
from tests.support.marks import mostly_nightly
from tests.support.together import together
from tests.training.test_non_finite import adam_step, make, poisoned, tensors
from tests.training.test_step import PROGRESS, gradients, model, step_of

CPU = torch.device("cpu")
# Rows of one target, of which half are padding.
HALF_EMPTY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("model.dropout=0.1", "data.vocab_size=32", "data.seq_len=1", "data.pad_probability=0.99", "data.batch_size=1"),
    *("data.num_sequences=24", "schedule=constant", "optimizer=adamw"),
]


def counted(step: TrainingStep, steps: int) -> list[int]:
    return [number for number in range(steps) if step.batches.num_targets(number)]


def weights(step: TrainingStep) -> list[Tensor]:
    return [tensor.clone() for tensor in step.model.state_dict().values()]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.slow
def test_such_steps_are_as_if_they_had_not_been() -> None:
    whole, chosen = (build_trainer(HALF_EMPTY).training_step for _ in range(2))
    places = counted(chosen, 20)
    assert 5 <= len(places) <= 15
    get = chosen.batches.get
    chosen.batches.get = lambda step: get(places[step])  # type: ignore[method-assign]
    torch.manual_seed(5)
    losses = [float(whole(PROGRESS)) for _ in range(20)]
    torch.manual_seed(5)
    wanted = [float(chosen(PROGRESS)) for _ in places]
    assert [loss for loss in losses if loss == loss] == wanted
    assert [number for number, loss in enumerate(losses) if loss == loss] == places
    assert equal(tensors(whole), tensors(chosen))
    assert whole.step_count == 20 and whole.empty_steps == whole.steps_left_out() == 20 - len(places)
    assert whole.tokens_seen == chosen.tokens_seen == len(places)
    assert whole.loss == chosen.loss and whole.grad_norm() == chosen.grad_norm()


def seed_where(holds: Callable[[Trainer], bool]) -> int:
    return next(seed for seed in range(99) if holds(build_trainer([*HALF_EMPTY, f"seed={seed}"])))


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_counts_them_tells_once_and_goes_on_to_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*HALF_EMPTY, "checkpoint.every_n_steps=1", "trainer.log_every_n_steps=1"]
    with caplog.at_level(logging.INFO):
        whole, _ = train([*words, "trainer.max_steps=16", f"run_dir={tmp_path / 'whole'}"])
    told = [record.message for record in caplog.records if "its batch has no counted target" in record.message]
    places = counted(build_trainer(words).training_step, 16)
    first = min(set(range(16)) - set(places)) + 1
    assert len(told) == 1 and told[0].startswith(f"step {first} was skipped") and "each is 3" in told[0]
    assert f"{16 - len(places)} steps, whose batches had no counted target" in caplog.text
    assert whole["empty_steps"] == 16 - len(places) and whole["tokens_seen"] == len(places) and whole["steps"] == 16
    found = [line.get("train/empty_steps", 0) for line in lines(tmp_path / "whole")]
    assert found == [sum(step not in places for step in range(made)) for made in range(1, 17)]
    for stop in (first, 9, 16):
        parts, _ = train([*words, f"trainer.max_steps={stop}", f"run_dir={tmp_path / 'parts'}", "resume=auto"])
    for key in ("weights_sha256", "empty_steps", "tokens_seen", "train_loss_nats", "val_loss_nats"):
        assert parts[key] == whole[key], key
    assert [line.get("train/loss_nats") for line in lines(tmp_path / "parts")] == [
        line.get("train/loss_nats") for line in lines(tmp_path / "whole")
    ]


@pytest.mark.slow
def test_a_run_may_begin_with_them_and_have_nothing_else(tmp_path: Path) -> None:
    seed = seed_where(lambda trainer: not counted(trainer.training_step, 1))
    summary, _ = train([*HALF_EMPTY, f"seed={seed}", "trainer.max_steps=1", f"run_dir={tmp_path / 'run'}"])
    assert summary["empty_steps"] == 1 and summary["train_loss_nats"] is None and summary["tokens_seen"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("checks_on_host", [True, False], ids=["at once", "later"])
def test_going_back_to_a_poisoned_step_counts_them_once(checks_on_host: bool) -> None:
    def steps() -> TrainingStep:
        step = adam_step("skip", checks_on_host=checks_on_host)
        rows = step.batches.rows
        assert isinstance(rows, MatrixRows)
        for number in (2, 4, 6):  # the batches before and behind the poisoned one, and a later one
            rows.ids_RT[[index for _, index in step.batches.places(number)], 1:] = 3
        return step

    wanted = steps()
    wanted.skipped_steps = {4}
    make(wanted, 8)
    step = steps()
    with poisoned(step, batch=3, gradient=False):
        make(step, 8)
    assert step.skipped_steps == {4} and step.empty_steps == wanted.empty_steps == 3 and step.steps_left_out() == 4
    assert step.tokens_seen == 4 * 8 * 12 and equal(tensors(step), tensors(wanted))


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "chunk_len"), [(4, None), (8, 5), (1, 3)])
def test_a_part_of_a_batch_without_targets_adds_nothing(accumulate: int, chunk_len: int | None) -> None:
    ids = torch.randint(4, 31, (8, 13), generator=torch.Generator().manual_seed(2))
    ids[:5, 1:], ids[:, 4:8] = 3, 3
    plain, parts = (model().double() for _ in range(2))
    one = step_of(plain, ids=ids)
    many = step_of(parts, ids=ids, accumulate=accumulate)
    torch.testing.assert_close(one(PROGRESS), many(PROGRESS), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(plain), gradients(parts), rtol=1e-6, atol=1e-12)
    chunked = step_of(model().double(), ids=ids, accumulate=accumulate, chunk_len=chunk_len)
    torch.testing.assert_close(chunked(PROGRESS), one.loss, rtol=1e-6, atol=0)
    assert chunked.tokens_seen == one.tokens_seen == 3 * 8 and gradients(chunked.model).isfinite().all()


def of_two_processes(parallel: str) -> dict[str, Any]:
    with processes.joined(CPU):
        words = [*HALF_EMPTY, "data.batch_size=2", "model.dropout=0", f"trainer.parallel={parallel}"]
        step = build_trainer(words).training_step
        own = [step.batches.on_host(number)[1] for number in range(24)]
        losses = [float(step(PROGRESS)) for _ in range(24)]
        return {
            "own": own,
            "losses": losses,
            "empty": step.empty_steps,
            "tokens": step.tokens_seen,
            "weights": [tensor.clone() for tensor in step.shared.weights().values()],
        }


@pytest.mark.slow
@pytest.mark.parametrize("parallel", mostly_nightly(["ddp", "fsdp"], {"ddp"}))
def test_processes_leave_out_what_is_empty_in_all_and_make_what_is_not_so_in_one(parallel: str) -> None:
    alone = build_trainer([*HALF_EMPTY, "data.batch_size=2", "model.dropout=0"]).training_step
    wanted = [float(alone(PROGRESS)) for _ in range(24)]
    first, second = together(2, of_two_processes, parallel)
    shares = set(zip(first["own"], second["own"], strict=True))
    assert shares == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for found in (first, second):
        assert found["losses"] == pytest.approx(wanted, rel=1e-4, nan_ok=True)
        assert found["empty"] == alone.empty_steps == list(zip(first["own"], second["own"], strict=True)).count((0, 0))
        assert found["tokens"] == alone.tokens_seen
        assert equal(found["weights"], first["weights"])
    for one, other in zip(first["weights"], weights(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_an_evaluation_passes_over_them() -> None:
    ids = torch.randint(4, 31, (8, 6), generator=torch.Generator().manual_seed(0))
    ids[2:6, 1:] = 3
    net, read = model(), []
    net.register_forward_pre_hook(lambda module, inputs: read.append(len(inputs[0])))
    rows = MatrixRows(ids)
    found = evaluator_of(net, rows).loss(in_order(rows, 2))
    whole = evaluator_of(net, rows).loss(in_order(rows, 8))
    assert found.empty_batches == 2 and read == [2, 2, 8] and whole.empty_batches == 0
    assert found.num_targets == whole.num_targets == 20
    assert found.loss_nats == pytest.approx(whole.loss_nats, rel=1e-6)


def test_fixed_batches_are_such_that_have_targets() -> None:
    ids = torch.arange(9)[:, None].repeat(1, 3) + 4
    ids[[0, 4, 5, 8], 1:] = 3
    rows = MatrixRows(ids)
    assert [int(batch[0, 0]) - 4 for batch in SpreadBatches(rows, 1, 3)] == [0, 4, 8]
    # The next one that has some; behind the last one comes the first.
    assert [int(batch[0, 0]) - 4 for batch in SpreadBatches(rows, 1, 3, ignore_index=3)] == [1, 6]
    assert len(SpreadBatches(MatrixRows(torch.full((3, 3), 3)), 1, 2, ignore_index=3)) == 2


@pytest.mark.slow
def test_a_run_whose_first_validation_rows_are_empty_ends_with_a_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed = seed_where(lambda trainer: int(trainer.source.validation.windows(0, 1)[0, 1]) == 3)
    words = [*HALF_EMPTY, f"seed={seed}", "trainer.max_steps=2", "trainer.eval_batches=1"]
    with caplog.at_level(logging.INFO):
        summary, _ = train([*words, "trainer.final_eval_batches=1", f"run_dir={tmp_path / 'run'}"])
    assert "nats, on a part of the validation split (trainer.final_eval_batches=1)" in caplog.text
    assert summary["val_loss_nats"] > 0 and summary["best_val_loss_nats"] > 0 and summary["val_batches"] == 1


@pytest.mark.slow
def test_where_all_that_is_read_again_is_empty_it_is_told_before_step_1() -> None:
    words = [*HALF_EMPTY, f"seed={seed_where(lambda trainer: counted(trainer.training_step, 2) == [1])}"]
    with pytest.raises(ValueError, match=r"trainer\.overfit_batches=1: every target .* is 3.* set it higher"):
        build_trainer([*words, "trainer.overfit_batches=1"])
    step = build_trainer([*words, "trainer.overfit_batches=2"]).training_step
    assert [step(PROGRESS).isfinite().item() for _ in range(4)] == [False, True, False, True]


def test_lengths_without_a_counted_target_are_left_out() -> None:
    ignored = MatrixRows(torch.full((2, 5), 3))
    evaluator = evaluator_of(model().double(), ignored)
    text: Extrapolation = evaluator.by_length(np.array([5, *[3] * 40]), [4, 8], 40, trained_length=4)
    assert text.loss_nats == {} and text.left_out == {4: NOTHING_COUNTED, 8: NOTHING_COUNTED}
    rows = evaluator.by_position(ignored, 100, trained_length=4)
    assert rows.loss_nats == {} and rows.left_out == {4: NOTHING_COUNTED} and rows.num_tokens == 0
    assert NOTHING_COUNTED in rows.verdict()[0]
