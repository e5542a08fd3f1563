"""The fused cross-entropy against the reference in float64: numba on the CPU, Triton on CUDA or in its interpreter.

Triton's interpreter needs TRITON_INTERPRET=1 before triton is imported, so a process of its own runs it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samout_train.ops import kernels, nats_and_errors
from samout_train.ops.cross_entropy import operator, reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.cuda] if DEVICE.type == "cuda" else []
INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.bfloat16] + ([torch.float16] if DEVICE.type == "cuda" or INTERPRETED else [])
# Of the errors, relative in norm: float32 sums of some thousand exponentials, each right to some 2^-23; of the others
# one rounding to what is stored, which the interpreter does by cutting bfloat16 off.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8, torch.float16: 2**-11}
# A width below a block of the kernel, and one of several blocks with a remainder.
WIDTHS = (50, 4500)
IGNORED = 3


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if INTERPRETED or DEVICE.type == "cuda":
        from samout_train.ops.cross_entropy import cuda

        monkeypatch.setattr(operator, "kernels_of", lambda package, tensor: cuda)
        monkeypatch.setitem(kernels.LIBRARIES, "cpu", kernels.LIBRARIES["cuda"])
    kernels.use_kernels("fused")
    yield
    kernels.use_kernels("auto")


def inputs(width: int, dtype: torch.dtype, ignored: int = IGNORED, rows: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(width)
    logits_RV = 4 * torch.randn(rows, width, generator=generator)
    targets_R = torch.randint(4, width, (rows,), generator=generator)
    targets_R[::4] = ignored
    targets_R[1] = width - 1
    return logits_RV.to(dtype).to(DEVICE), targets_R.to(DEVICE)


def fused_and_exact(logits_RV: Tensor, targets_R: Tensor, ignored: int = IGNORED) -> tuple[Tensor, ...]:
    """Nats and errors of the kernel, whose output was full of NaN, and of the reference in float64."""
    errors_RV, exact_RV = logits_RV.clone(), logits_RV.double()
    nats_R, exact_R = torch.full((len(targets_R),), NAN, device=DEVICE), exact_RV.new_empty(len(targets_R))
    nats_and_errors(errors_RV, targets_R, nats_R, ignored)
    reference.nats_and_errors(exact_RV, targets_R, exact_R, ignored, True)
    return nats_R, errors_RV, exact_R, exact_RV


@pytest.mark.parametrize("ignored", [IGNORED, -100])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nats_and_errors_are_those_in_float64(dtype: torch.dtype, width: int, ignored: int) -> None:
    nats_R, errors_RV, exact_R, exact_RV = fused_and_exact(*inputs(width, dtype, ignored), ignored)
    torch.testing.assert_close(nats_R.double(), exact_R, rtol=2e-6, atol=2e-6)
    assert float((errors_RV.double() - exact_RV).norm() / exact_RV.norm()) < TOLERANCE[dtype]
    assert not errors_RV[::4].any() and not nats_R[::4].any()


def test_the_reference_has_the_gradients_of_torch() -> None:
    logits_RV, targets_R = inputs(50, torch.float64)
    logits_RV.requires_grad_()
    wanted = torch.nn.functional.cross_entropy(logits_RV, targets_R, ignore_index=IGNORED, reduction="sum")
    (gradient_RV,) = torch.autograd.grad(wanted, logits_RV)
    errors_RV, nats_R = logits_RV.detach().clone(), logits_RV.new_empty(len(targets_R)).detach()
    reference.nats_and_errors(errors_RV, targets_R, nats_R, IGNORED, True)
    torch.testing.assert_close(nats_R.sum(), wanted.detach())
    torch.testing.assert_close(errors_RV, gradient_RV)


def test_the_gradients_of_a_row_add_up_to_nothing() -> None:
    logits_RV, targets_R = inputs(4500, torch.float32)
    errors_RV = fused_and_exact(logits_RV, targets_R)[1]
    assert float(errors_RV.double().sum(1).abs().max()) < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 80.0, 1e30])
def test_logits_of_any_size_have_finite_errors(scale: float) -> None:
    logits_RV, targets_R = inputs(50, torch.float32)
    nats_R, errors_RV, exact_R, exact_RV = fused_and_exact(logits_RV * scale, targets_R)
    torch.testing.assert_close(nats_R.double(), exact_R, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(errors_RV.double(), exact_RV, rtol=1e-4, atol=1e-6)


def test_an_id_that_is_impossible_takes_no_gradient_and_what_is_not_finite_stays_so() -> None:
    logits_RV, targets_R = inputs(50, torch.float32)
    logits_RV[1, :40] = -INF
    logits_RV[2, 7] = NAN
    logits_RV[3, 7] = INF
    logits_RV[5, :] = -INF
    logits_RV[4, 7] = NAN  # ignored
    nats_R, errors_RV, exact_R, _ = fused_and_exact(logits_RV, targets_R)
    assert not errors_RV[1, :40].any() and nats_R[1].isfinite()
    assert not nats_R[[2, 3, 5]].isfinite().any() and not exact_R[[2, 3, 5]].isfinite().any()
    assert nats_R[4] == 0 and not errors_RV[4].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_learning_the_nats_have_the_same_bits(dtype: torch.dtype) -> None:
    logits_RV, targets_R = inputs(4500, dtype)
    wanted_R = fused_and_exact(logits_RV, targets_R)[0]
    nats_R = torch.full_like(wanted_R, NAN)
    nats_and_errors(logits_RV, targets_R, nats_R, IGNORED, learns=False)
    assert torch.equal(nats_R, wanted_R)


def test_a_target_that_is_no_id_is_not_passed_over() -> None:
    logits_RV, targets_R = inputs(50, torch.float32)
    targets_R[1] = 50
    nats_R = torch.zeros(len(targets_R), device=DEVICE)
    if INTERPRETED or DEVICE.type == "cuda":
        nats_and_errors(logits_RV, targets_R, nats_R, IGNORED)
        assert nats_R[1].isnan() and nats_R[2].isfinite()
    else:
        with pytest.raises(IndexError, match="target 50 "):
            nats_and_errors(logits_RV, targets_R, nats_R, IGNORED)


@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="this process runs Triton's kernel already")
@pytest.mark.nightly
def test_the_kernel_for_cuda_passes_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", str(Path(__file__))]
    command += ["-W", "ignore::RuntimeWarning"]  # numpy's, of infinity less infinity
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def test_targets_of_another_dtype_and_logits_in_pieces_are_refused() -> None:
    logits_RV, targets_R = inputs(50, torch.float32)
    nats_R = torch.zeros(len(targets_R), device=DEVICE)
    with pytest.raises(ValueError, match=r"targets_R \(torch\.int32\) must be torch\.int64"):
        nats_and_errors(logits_RV, targets_R.int(), nats_R, IGNORED)
    with pytest.raises(ValueError, match=r"must be contiguous: call \.contiguous\(\)"):
        nats_and_errors(logits_RV[:, :40], targets_R, nats_R, IGNORED)
