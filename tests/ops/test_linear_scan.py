"""The elementwise linear recurrence: its blocks and its kernel against the loop, states, gradients, the operator."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from samout_train.ops import use_kernels
from samout_train.ops.linear_scan import linear_scan
from samout_train.ops.linear_scan.reference import by_blocks, serial

LENGTHS = [1, 2, 3, 16, 17, 150]


def inputs(time: int, width: int = 37, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(time)
    a, x = (torch.randn(3, time, width, generator=draw, dtype=torch.float64) for _ in range(2))
    state = torch.randn(3, width, generator=draw, dtype=torch.float64)
    return [each.to(dtype).requires_grad_() for each in (a.sigmoid(), x, state)]


def gradients(h: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    upstream = torch.randn(h.shape, generator=draw, dtype=torch.float64).to(h.dtype)
    return torch.autograd.grad(h, given, upstream)


@pytest.fixture(params=["reference", "fused"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    use_kernels(request.param)
    yield request.param
    use_kernels("auto")


def test_matches_a_list_worked_out_by_hand() -> None:
    a, x = torch.tensor([0.5, 0.5, 0.0, 2.0]).view(1, 4, 1), torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1)
    h, last = linear_scan(a, x, torch.tensor([[4.0]]))
    assert h.flatten().tolist() == [3.0, 3.5, 3.0, 10.0] and last.tolist() == [[10.0]]


@pytest.mark.parametrize("time", LENGTHS)
def test_blocks_are_the_loop_with_all_gradients_in_float64(time: int) -> None:
    given = inputs(time)
    got, wanted = by_blocks(*given), serial(*given)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients(got, given), gradients(wanted, given), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("time", LENGTHS)
def test_float32_is_the_loop_in_float64_to_its_rounding(time: int, kernels: str) -> None:
    given, exact = inputs(time, dtype=torch.float32), inputs(time)
    got, last = linear_scan(*given)
    wanted = serial(*exact)
    assert torch.equal(last, got[:, -1])
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(got, given), gradients(wanted, exact), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_computed_in_float32(kernels: str) -> None:
    a, x, state = inputs(40, dtype=torch.bfloat16)
    h, last = linear_scan(a, x, state)
    wanted, _ = linear_scan(a.float(), x.float(), state.float())
    assert h.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert torch.equal(h, wanted.bfloat16()) and torch.equal(last, wanted[:, -1])


def test_pieces_with_a_carried_state_are_the_whole(kernels: str) -> None:
    a, x, state = inputs(50, dtype=torch.float32)
    whole, last = linear_scan(a, x, state)
    carried, found = state, []
    for piece_a, piece_x in zip(a.split([1, 20, 1, 28], 1), x.split([1, 20, 1, 28], 1), strict=True):
        h, carried = linear_scan(piece_a, piece_x, carried)
        found.append(h)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(carried, last, rtol=1e-5, atol=1e-6)


def test_without_gradients_the_bits_are_the_same() -> None:
    given = inputs(30, dtype=torch.float32)
    wanted, _ = linear_scan(*given)
    with torch.no_grad():
        assert torch.equal(linear_scan(*given)[0], wanted)


@pytest.mark.slow
def test_torch_accepts_the_operator() -> None:
    from samout_train.ops.linear_scan import operator

    torch.library.opcheck(operator._linear_scan, inputs(9, dtype=torch.float32))
    a, x, state = (each.detach() for each in inputs(9, dtype=torch.float32))
    torch.library.opcheck(operator._linear_scan_backward, (a, x, state, x))


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"state_BD \(1, 4\) must be \(2, 3\) for an input \(2, 5, 3\)"):
        linear_scan(x, x, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"a_BTD \(2, 4, 3\) and x_BTD \(2, 5, 3\) must be equal"):
        linear_scan(x[:, :4], x)
    with pytest.raises(ValueError, match="T at least 1"):
        linear_scan(x[:, :0], x[:, :0])
