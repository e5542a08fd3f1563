"""The elementwise linear recurrence: its blocks and its kernel against the loop, states, gradients, the operator."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samout_train.ops import use_kernels
from samout_train.ops.semiring_scan import Semiring, linear_scan, semiring_scan
from samout_train.ops.semiring_scan.reference import by_blocks, serial

FUSED: list[Semiring] = ["plus_times", "max_min"]  # the kernels of max_plus are those of max_scan
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
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


@pytest.mark.parametrize("semiring", [*FUSED, "max_plus"])
@pytest.mark.parametrize("time", LENGTHS)
def test_blocks_are_the_loop_with_all_gradients_in_float64(time: int, semiring: Semiring) -> None:
    given = inputs(time)
    got, wanted = by_blocks(*given, semiring), serial(*given, semiring)
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


@pytest.mark.parametrize("time", [2, 17, 150])
def test_max_min_is_the_loop_bit_for_bit_with_ties_and_gradients(time: int, kernels: str) -> None:
    draw = torch.Generator().manual_seed(time)
    shapes = [(2, time, 19), (2, time, 19), (2, 19)]
    given = [torch.randint(-6, 7, shape, generator=draw).float().requires_grad_() for shape in shapes]
    upstream = torch.randint(-6, 7, shapes[0], generator=draw).float()  # sums of whole numbers are exact
    got, wanted = semiring_scan(*given, semiring="max_min")[0], serial(*given, "max_min")
    assert torch.equal(got, wanted)
    for one, other in zip(*(torch.autograd.grad(h, given, upstream) for h in (got, wanted)), strict=True):
        assert torch.equal(one, other)


def test_max_min_matches_a_list_worked_out_by_hand_and_keeps_nan(kernels: str) -> None:
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([[5.0, 3.0, inf, -inf, 1.0, 9.0]])[..., None]
    x = torch.tensor([[1.0, 2.0, 1.0, 0.5, nan, 2.0]])[..., None]
    h, last = semiring_scan(a, x, torch.tensor([[4.0]]), semiring="max_min")
    assert h.flatten().tolist()[:4] == [4.0, 3.0, 3.0, 0.5] and h[0, 4:].isnan().all() and last.isnan().all()
    assert semiring_scan(a[:, :1], x[:, :1], semiring="max_min")[1].item() == 1.0


def test_max_plus_is_the_running_maximum_bit_for_bit() -> None:
    from samout_train.ops.max_scan import max_scan

    a, x, state = (each.detach() for each in inputs(20, dtype=torch.float32))
    for got, wanted in zip(semiring_scan(-a, x, state, semiring="max_plus"), max_scan(x, state, -a), strict=True):
        assert torch.equal(got, wanted)


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


@pytest.mark.skipif(not INTERPRETED, reason="run by the test below")
@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("semiring", FUSED)
def test_the_kernels_for_cuda_are_the_loop(semiring: Semiring, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from samout_train.ops.semiring_scan import cuda

    monkeypatch.setattr(cuda, "rows_a_chunk", lambda *sizes: rows)
    draw = torch.Generator().manual_seed(rows)
    shapes = [(2, 21, 67), (2, 21, 67), (2, 67)]
    given = [torch.randint(-6, 7, shape, generator=draw) / 4 for shape in shapes]
    given = [each.requires_grad_() for each in given]
    upstream = torch.randint(-6, 7, shapes[0], generator=draw) / 4
    wanted = serial(*given, semiring)
    h, grads = torch.full_like(wanted, torch.nan), [torch.full_like(each, torch.nan) for each in given]
    detached = [each.detach() for each in given]
    cuda.forward(*detached, semiring, h)
    cuda.backward(detached[0], detached[1], h, detached[2], semiring, upstream, *grads)
    torch.testing.assert_close(h, wanted.detach(), rtol=1e-6, atol=1e-5)
    for got, one in zip(grads, torch.autograd.grad(wanted, given, upstream), strict=True):
        torch.testing.assert_close(got, one, rtol=1e-6, atol=1e-4)
    if semiring == "max_min":
        assert torch.equal(h, wanted)


@pytest.mark.nightly
@pytest.mark.skipif(INTERPRETED, reason="this process runs Triton's kernels already")
def test_the_kernels_for_cuda_pass_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", str(Path(__file__))]
    command += ["-k", "kernels_for_cuda_are", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout[-3000:]


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"state_BD \(1, 4\) must be \(2, 3\) for an input \(2, 5, 3\)"):
        linear_scan(x, x, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"a_BTD \(2, 4, 3\) and x_BTD \(2, 5, 3\) must be equal"):
        linear_scan(x[:, :4], x)
    with pytest.raises(ValueError, match="T at least 1"):
        linear_scan(x[:, :0], x[:, :0])
