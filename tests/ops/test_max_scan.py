"""The running maximum against a loop, torch.cummax and hand-worked lists."""

import pytest
import torch

from samout_train.ops.max_scan import max_scan

INF = float("inf")


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_matches_a_list_worked_out_by_hand() -> None:
    y, state = max_scan(row(1, 3, 2, -5, 4))
    assert y.flatten().tolist() == [1, 3, 3, 3, 4] and state.tolist() == [[4]]


def test_state_is_the_maximum_before_the_first_token() -> None:
    y, state = max_scan(row(1, 3, 2), torch.tensor([[2.0]]))
    assert y.flatten().tolist() == [2, 3, 3] and state.tolist() == [[3]]


def test_nan_stays_from_where_it_enters() -> None:
    y, state = max_scan(row(1, float("nan"), 2))
    assert y.flatten()[0] == 1 and y.flatten()[1:].isnan().all() and state.isnan().all()


def test_the_latest_of_equal_values_takes_the_gradient() -> None:
    x = row(2, 2, 1, 2).requires_grad_()
    max_scan(x)[0].backward(row(1, 10, 100, 1000))
    assert x.grad is not None and x.grad.flatten().tolist() == [1, 110, 0, 1000]


def test_a_state_takes_the_gradient_of_what_it_wins() -> None:
    x, state = row(1, 5, 2).requires_grad_(), torch.tensor([[3.0]], requires_grad=True)
    max_scan(x, state)[0].backward(row(1, 10, 100))
    assert x.grad is not None and x.grad.flatten().tolist() == [0, 110, 0]
    assert state.grad is not None and state.grad.tolist() == [[1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "time", "width"), [(1, 1, 1), (3, 7, 5), (2, 33, 4)])
def test_chunks_with_carried_state_are_the_whole(dtype: torch.dtype, batch: int, time: int, width: int) -> None:
    generator = torch.Generator().manual_seed(time)
    x = torch.randint(-9, 9, (batch, time, width), generator=generator).to(dtype)  # many ties
    whole, last = max_scan(x)
    assert torch.equal(whole, torch.stack([x[:, : t + 1].amax(1) for t in range(time)], 1)) and whole.dtype == dtype
    for size in (1, 2, 5):
        pieces, state = [], None
        for chunk in x.split(size, dim=1):
            y, state = max_scan(chunk, state)
            pieces.append(y)
        assert state is not None and torch.equal(torch.cat(pieces, 1), whole) and torch.equal(state, last)


def test_one_token_without_gradients_is_the_same_step() -> None:
    x, state = torch.tensor([[[1.0, float("nan"), -2.0, 3.0]]]), torch.tensor([[0.5, 0.0, float("nan"), 3.0]])
    with torch.no_grad():
        y, last = max_scan(x, state)
    wanted = torch.tensor([[[1.0, float("nan"), float("nan"), 3.0]]])
    assert torch.equal(y.nan_to_num(7.0), wanted.nan_to_num(7.0)) and torch.equal(
        last.nan_to_num(7.0), y[:, -1].nan_to_num(7.0)
    )
    assert torch.equal(max_scan(x, state)[0].nan_to_num(7.0), y.nan_to_num(7.0))


def test_gradient_agrees_with_finite_differences() -> None:
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(max_scan, (x, state))


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"state_BD \(1, 4\) must be \(2, 3\) for an input \(2, 5, 3\)"):
        max_scan(torch.zeros(2, 5, 3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="T at least 1"):
        max_scan(torch.zeros(2, 0, 3))
