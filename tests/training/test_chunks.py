"""Rows learned a chunk at a time: the loss of whole rows, the gradient cut at chunks, the memory of one chunk."""

import json
from pathlib import Path

import pytest
import torch

from samout_train import build_model, build_trainer
from samout_train.data import MatrixRows
from samout_train.evaluation import in_order
from samout_train.models import cross_entropy_sum
from tests.support.evaluation import evaluator_of
from tests.support.marks import mostly_nightly
from tests.support.program import samout

CPU = torch.device("cpu")
SIZES = ["data=random", "model.dropout=0", "data.batch_size=4", "device=cpu", "trainer.clip_grad_norm=null"]


def ids_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(4, 40, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(["v8", "maxplus", "mingru", "lstm", "transformer"], {"v8"}))
@pytest.mark.parametrize("chunk_len", [1, 7, 49, 60])
def test_a_chunked_step_is_the_hand_made_one(name: str, chunk_len: int) -> None:
    words = [f"model={name}", "model.hidden_size=24", *SIZES]
    trainer = build_trainer([*words, f"trainer.chunk_len={chunk_len}"])
    whole, by_hand = build_trainer(words), build_trainer(words)
    loss = trainer.step()
    batch = by_hand.training_step.batches.get(0)
    inputs_RT, targets_RT = batch.ids_RT[:, :-1], batch.ids_RT[:, 1:]
    state, total = None, torch.zeros(())
    by_hand.model.train()
    for start in range(0, inputs_RT.shape[1], chunk_len):
        logits_RTV, state = by_hand.model(inputs_RT[:, start : start + chunk_len], state)
        nats = cross_entropy_sum(logits_RTV, targets_RT[:, start : start + chunk_len], 3) / batch.num_targets
        nats.backward()
        total += nats.detach()
        state = detached(state)
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, whole.step(), rtol=1e-5, atol=0)
    for (of, one), other in zip(trainer.model.named_parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=of)


def detached(state: object) -> object:
    if isinstance(state, torch.Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {key: detached(part) for key, part in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_make"):  # a NamedTuple
        return type(state)._make(map(detached, state))
    if isinstance(state, list | tuple):
        return type(state)(map(detached, state))
    return state


def test_an_evaluation_in_chunks_is_one_of_whole_rows() -> None:
    rows = MatrixRows(ids_of(5, 30))
    rows.ids_RT[2:, 20:] = 3
    model = build_model("maxplus", vocab_size=40, hidden_size=24, num_layers=2)
    found = [evaluator_of(model, rows, chunk_len=length).loss(in_order(rows, 2)) for length in (None, 1, 8, 29, 100)]
    for one in found[1:]:
        assert one.num_targets == found[0].num_targets
        assert one.loss_nats == pytest.approx(found[0].loss_nats, rel=1e-6)


def test_state_health_in_chunks_is_that_of_whole_rows() -> None:
    model = build_model("v8", vocab_size=40, hidden_size=24, num_heads=4, num_layers=2)
    ids = ids_of(9, 40)
    whole, chunked = (evaluator_of(model, MatrixRows(ids), chunk_len=length).state_health(ids) for length in (None, 6))
    for name, layer in whole.items():
        assert layer.norm == pytest.approx(chunked[name].norm) and layer.moved_share == chunked[name].moved_share


def test_a_model_that_sees_the_future_is_not_learned_in_chunks() -> None:
    words = [
        "experiment=hello_rnn",
        "model.bidirectional=true",
        "model.head=linear",
        "device=cpu",
        "trainer.chunk_len=5",
    ]
    with pytest.raises(ValueError, match=r"trainer.chunk_len \(5\): this model sees the whole sequence"):
        build_trainer(words)


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_row(tmp_path: Path) -> None:
    peaks = {}
    words = ["model=v8", "model.hidden_size=64", "model.num_heads=4", "model.num_layers=2", "device=cpu"]
    words += ["data=python_source", "data.vocabulary=bytes", "data.batch_size=1", "trainer.chunk_len=4096"]
    # At the end, loss by length reads longer text of a run of short rows than of one of long rows.
    words += ["trainer.max_steps=2", "trainer.eval_batches=1", "trainer.final_eval_batches=1", "~callbacks.lengths"]
    for length in (4096, 262_144, 1_048_576):
        done = samout(tmp_path, *words, f"data.seq_len={length}", f"run_dir=of_{length}", timeout=300)
        assert done.returncode == 0, done.stderr
        peaks[length] = json.loads((tmp_path / f"of_{length}" / "summary.json").read_text("utf-8"))["peak_memory_bytes"]
    assert peaks[262_144] < 1.1 * peaks[4096], peaks
    # A million ids are eight megabytes each time that they are there: cut from the text, as a batch, as a window.
    assert peaks[1_048_576] < 1.1 * peaks[4096] + 12 * 8 * 2**20, peaks
