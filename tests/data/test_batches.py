"""Rows, windows and batches against lists worked out by hand."""

import numpy as np
import pytest
import torch

from samout_train.data import Batches, MatrixRows, Rows, TokenRows
from samout_train.evaluation import SpreadBatches, in_order

CPU = torch.device("cpu")


def batches(rows: Rows, batch_size: int, *, seed: int = 0, overfit_batches: int = 0) -> Batches:
    return Batches(rows, batch_size=batch_size, seed=seed, ignore_index=3, device=CPU, overfit_batches=overfit_batches)


def tokens(count: int) -> np.ndarray:
    return np.arange(10, 10 + count, dtype=np.uint16)


@pytest.mark.parametrize("count", [6, 7, 10, 11, 12, 50, 53])
def test_windows_show_every_token_but_the_first_as_a_target_once(count: int) -> None:
    rows = TokenRows(tokens(count), seq_len=5, seed=0)
    for rows_per_batch in (1, 3, 100):
        pieces = list(in_order(rows, rows_per_batch))
        ids = torch.cat(pieces)
        assert len(ids) == rows.num_windows and ids.shape[1] == 6
        targets = ids[:, 1:].flatten()
        assert targets[: count - 1].tolist() == list(range(11, 10 + count))
        assert (targets[count - 1 :] == 3).all()
        inputs = ids[:, :-1].flatten()
        assert inputs[: count - 1].tolist() == list(range(10, 10 + count - 1))


@pytest.mark.parametrize("count", [6, 7, 10, 11, 23, 50, 53])
def test_rows_of_an_epoch_do_not_overlap_and_stay_inside(count: int) -> None:
    rows = TokenRows(tokens(count), seq_len=5, seed=1)
    firsts = set()
    for epoch in range(20):
        ids = rows.take(np.arange(rows.num_rows), epoch)
        targets = ids[:, 1:].flatten().tolist()
        assert targets == list(range(targets[0], targets[0] + len(targets)))
        assert ids[0, 0] >= 10 and targets[-1] < 10 + count
        firsts.add(int(ids[0, 0]))
    assert len(firsts) == min(5, count - 5 * rows.num_rows)  # other epochs cut at other places, where there is room


def test_a_stream_shorter_than_a_row_is_refused_with_a_length_that_fits() -> None:
    with pytest.raises(ValueError, match=r"data.seq_len \(5\) needs 6 tokens.*has 5: set data.seq_len to 4 or less"):
        TokenRows(tokens(5), seq_len=5, seed=0)


def test_every_row_comes_once_an_epoch_and_epochs_differ() -> None:
    rows = MatrixRows(torch.arange(14).view(7, 2) + 10)
    made = batches(rows, 3)
    order = torch.cat([made.on_host(step)[0] for step in range(7)])[:, 0].tolist()  # 21 rows: three epochs
    epochs = [order[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(10, 24, 2)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    rows = TokenRows(tokens(500), seq_len=5, seed=0)
    made = batches(rows, 8)
    forward = [made.on_host(step)[0] for step in range(40)]
    again = batches(rows, 8)
    for step in (39, 3, 17, 0):
        assert torch.equal(again.on_host(step)[0], forward[step])
    assert not torch.equal(batches(rows, 8, seed=1).on_host(0)[0], forward[0])


def test_batches_are_the_same_however_many_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TokenRows(tokens(500), seq_len=5, seed=0)
    together = batches(rows, 8)
    monkeypatch.setattr("samout_train.data.batches.TARGETS_DRAWN_TOGETHER", 1)
    alone = batches(rows, 8)
    for step in (0, 1, 11, 12, 40):
        assert torch.equal(together.on_host(step)[0], alone.on_host(step)[0])


@pytest.mark.slow
def test_a_batch_may_be_larger_than_an_epoch() -> None:
    rows = MatrixRows(torch.tensor([[10, 11], [12, 13]]))
    assert sorted(batches(rows, 5).on_host(0)[0][:, 0].tolist()) in ([10, 10, 10, 12, 12], [10, 10, 12, 12, 12])


def test_overfitting_repeats_the_first_batches() -> None:
    made = batches(MatrixRows(torch.arange(40).view(20, 2) + 10), 4, overfit_batches=2)
    for step in range(2, 9):
        assert torch.equal(made.on_host(step)[0], made.on_host(step % 2)[0])
    assert not torch.equal(made.on_host(0)[0], made.on_host(1)[0])


def test_counted_targets_leave_out_the_ignored() -> None:
    rows = MatrixRows(torch.tensor([[3, 9, 3, 9]]))
    assert batches(rows, 1).get(0).num_targets == 2


def test_fixed_batches_are_spread_over_the_split() -> None:
    rows = MatrixRows(torch.arange(22).view(11, 2))
    assert [int(batch[0, 0]) for batch in SpreadBatches(rows, 2, 3)] == [0, 8, 20]  # batches 0, 2.5 rounded to even, 5
    assert len(SpreadBatches(rows, 2, 100)) == len(SpreadBatches(rows, 2, 9 * 10**18)) == 6
    assert torch.equal(torch.cat(list(SpreadBatches(rows, 2, 100))), rows.ids_RT)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_cuda_are_those_of_the_host() -> None:
    rows = TokenRows(tokens(500), seq_len=5, seed=0)
    device = torch.device("cuda")
    made = Batches(rows, batch_size=8, seed=0, ignore_index=3, device=device, overfit_batches=0)
    for step in range(20):
        got = made.get(step)
        made.prepare(step + 1)
        assert got.ids_RT.is_cuda and torch.equal(got.ids_RT.cpu(), made.on_host(step)[0])
