"""Documents packed in rows: in training, in evaluation and in reports, each is read as it would be alone."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model, build_trainer
from samout_train.checkpoint import as_begun, other_settings
from samout_train.config import compose_config
from samout_train.data import SOS_ID, MatrixRows, Part
from samout_train.evaluation import calm_rows, in_order
from samout_train.models import cross_entropy_sum, evaluating
from samout_train.runtime import distributed
from samout_train.training.callbacks.samples import prompts_from
from samout_train.training.step import TrainingStep
from tests.support.evaluation import evaluator_of

CPU = torch.device("cpu")


def rows_of_documents(rows: int = 4, length: int = 31) -> Tensor:
    ids = torch.randint(4, 40, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[0, [3, 4, 20]] = ids[1, 11] = ids[3, 29] = SOS_ID
    return ids


def documents_in(inputs_RT: Tensor, targets_RT: Tensor) -> list[tuple[Tensor, Tensor]]:
    found = []
    for inputs_T, targets_T in zip(inputs_RT, targets_RT, strict=True):
        starts = sorted({0, *(inputs_T == SOS_ID).nonzero()[:, 0].tolist()})
        for start, stop in zip(starts, [*starts[1:], len(inputs_T)], strict=True):
            found.append((inputs_T[None, start:stop], targets_T[None, start:stop]))
    return found


def nats_in_chunks(model: nn.Module, inputs_1T: Tensor, targets_1T: Tensor, chunk_len: int) -> Tensor:
    state: Any = None
    total = torch.zeros(())
    for start in range(0, inputs_1T.shape[1], chunk_len):
        logits_1TV, state = model(inputs_1T[:, start : start + chunk_len], state)
        state = [part.detach() for part in state]
        total = total + cross_entropy_sum(logits_1TV, targets_1T[:, start : start + chunk_len], 3)
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "chunk_len"), [(1, None), (2, 7)])
def test_a_step_on_packed_rows_is_that_on_each_document_alone(
    tmp_path: Path, accumulate: int, chunk_len: int | None
) -> None:
    path = tmp_path / "documents.jsonl"
    texts = ["abcdefgh" * 9, "b", "cab" * 5, "", "fade" * 12, "gab" * 2] * 7
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    words = ["model=gru", "model.hidden_size=12", "model.num_layers=1", "model.dropout=0", "device=cpu", "threads=1"]
    words += ["data=jsonl", f"data.path={path}", "data.seq_len=40", "data.batch_size=6", "trainer.clip_grad_norm=null"]
    trainer = build_trainer([*words, f"trainer.accumulate={accumulate}", f"trainer.chunk_len={chunk_len or 'null'}"])
    by_hand = build_trainer(words)
    batch = by_hand.training_step.batches.get(0)
    documents = documents_in(batch.ids_RT[:, :-1], batch.ids_RT[:, 1:])
    assert len(documents) > 10
    loss = torch.zeros(())
    by_hand.model.train()
    for inputs_1T, targets_1T in documents:
        loss = loss + nats_in_chunks(by_hand.model, inputs_1T, targets_1T, chunk_len or 40) / batch.num_targets
    loss.backward()
    torch.testing.assert_close(trainer.step(), loss.detach(), rtol=1e-5, atol=0)
    for (of, one), other in zip(trainer.model.named_parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7, msg=of)


@pytest.mark.parametrize("chunk_len", [None, 7])
def test_an_evaluation_of_packed_rows_is_that_of_each_document_alone(chunk_len: int | None) -> None:
    model = build_model("maxplus", vocab_size=40, hidden_size=12, num_heads=2, num_layers=2)
    rows = MatrixRows(rows_of_documents())
    with evaluating(model):
        nats = [cross_entropy_sum(model(one)[0], wanted, 3) for one, wanted in documents_in(*rows.split(rows.ids_RT))]
    packed = evaluator_of(model, rows, chunk_len=chunk_len, document_id=SOS_ID)
    found = packed.loss(in_order(rows, 3))
    assert (found.nats, found.num_targets) == (pytest.approx(float(sum(nats)), rel=1e-6), 4 * 30)
    across = evaluator_of(model, rows).loss(in_order(rows, 3))
    assert abs(across.nats - found.nats) > 1e-3


def test_the_loss_by_length_counts_positions_from_the_start_of_a_document() -> None:
    model = build_model("maxplus", vocab_size=40, hidden_size=12, num_heads=2, num_layers=2)
    stream = rows_of_documents().flatten()
    evaluator = evaluator_of(model, MatrixRows(rows_of_documents()), document_id=SOS_ID)
    found = evaluator.by_length(np.asarray(stream), [30], 120, trained_length=12)
    nats, first = [], []
    with evaluating(model):
        for one, wanted in documents_in(stream[:120].view(4, 30), stream[1:121].view(4, 30)):
            nats.append(float(cross_entropy_sum(model(one)[0], wanted, 3)))
            first.append(float(cross_entropy_sum(model(one[:, :1])[0], wanted[:, :1], 3)))
    assert found.loss_nats[30] == pytest.approx(sum(nats) / 120, rel=1e-5)
    assert found.by_position[0] == (1, 1, pytest.approx(sum(first) / len(first), rel=1e-5))
    assert found.state_norm == {} and len(first) == 4 + 4


def test_prompts_end_and_rows_for_state_health_are_filled_where_a_document_begins() -> None:
    rows = MatrixRows(torch.tensor([[5, 6, SOS_ID, 7, 8], [SOS_ID, 5, 6, 7, SOS_ID]]))
    assert prompts_from(rows, 2, 4, SOS_ID) == [[5, 6], [SOS_ID, 5, 6, 7]]
    assert prompts_from(rows, 2, 4) == [[5, 6, SOS_ID, 7], [SOS_ID, 5, 6, 7]]
    assert calm_rows(rows, 2, 3, SOS_ID).tolist() == [[5, 6, 3, 3], [SOS_ID, 5, 6, 7]]


def test_processes_with_shards_of_a_model_call_it_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [Part(torch.ones(2, 9), torch.ones(2, 9)), Part(torch.ones(1, 4), torch.ones(1, 4))]
    batches = SimpleNamespace(document_id=SOS_ID, ignore_index=3, device=CPU, parts=lambda *_, **__: parts)
    step: Any = SimpleNamespace(
        batches=batches, accumulate=1, chunk_len=4, compile=False, shared=SimpleNamespace(is_sharded=True)
    )
    monkeypatch.setattr(distributed, "largest", lambda number: number + 2)  # 3 calls and 1 here, 6 there
    made = TrainingStep._parts(step, torch.ones(3, 10))
    assert [part.targets_NL.tolist() for part in made[:2]] == [[[3]], [[3]]] and made[2:] == parts


def test_a_run_of_an_earlier_version_keeps_the_state_over_documents(tmp_path: Path) -> None:
    words = ["data=jsonl", "data.path=a.jsonl", f"run_dir={tmp_path}"]
    composed = compose_config(words)
    assert composed.config["data"]["reset_at_documents"] is True
    saved = tmp_path / ".hydra" / "config.yaml"
    saved.parent.mkdir()
    assert as_begun(tmp_path, composed) is composed
    saved.write_text(composed.yaml, "utf-8")
    assert as_begun(tmp_path, composed) is composed
    earlier = composed.yaml.replace("  reset_at_documents: true\n", "")
    assert earlier != composed.yaml
    saved.write_text(earlier, "utf-8")
    begun = as_begun(tmp_path, composed)
    assert begun.config["data"] == composed.config["data"] | {"reset_at_documents": False}
    assert "reset_at_documents: false" in begun.yaml
    assert other_settings(tmp_path, composed.config, ["data"]) == []
