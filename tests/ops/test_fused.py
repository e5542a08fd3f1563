"""The fused kernels against the reference: numba on the CPU, Triton on CUDA or in its interpreter.

Inputs lie on a grid of eighths, so that ties are many and sums exact; outputs are poisoned with NaN before they are
filled. Triton's interpreter needs TRITON_INTERPRET=1 before triton is imported, so a process of its own runs it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from samout_train.ops import kernels, num_streams
from samout_train.ops.max_scan import Form, max_mix, operator, reference
from tests.support.marks import spread

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INF, NAN = float("inf"), float("nan")
# Of the gradients, relative in norm to those of the reference in float64: sums in float32 of up to 1,000 rows, and one
# rounding of each to what is stored.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# The interpreter cuts bfloat16 off instead of rounding it.
CUT_OFF = 2**-7


@dataclass(frozen=True)
class Case:
    """A shape and what is computed on it."""

    batch: int
    time: int
    width: int
    form: Form = "v8"
    has_decay: bool = False
    dtype: torch.dtype = torch.float32

    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Packed streams, state and decay."""
        generator = torch.Generator().manual_seed(self.time)
        packed_shape = (self.batch, self.time, num_streams(self.form) * self.width)
        packed_BTP = torch.randint(-16, 17, packed_shape, generator=generator) / 8
        state_BD = torch.randint(-16, 17, (self.batch, self.width), generator=generator) / 8
        decay_BTD = -torch.randint(0, 4, (self.batch, self.time, self.width), generator=generator) / 8
        decay = decay_BTD.to(self.dtype).to(DEVICE) if self.has_decay else None
        return packed_BTP.to(self.dtype).to(DEVICE), state_BD.to(DEVICE), decay

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of y and of the last state."""
        generator = torch.Generator().manual_seed(self.width)
        grad_y_BTD = torch.randn(self.batch, self.time, self.width, generator=generator).to(self.dtype)
        return grad_y_BTD.to(DEVICE), torch.randn(self.batch, self.width, generator=generator).to(DEVICE)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.cuda] if DEVICE.type == "cuda" else []
FORMS: tuple[Form, ...] = ("v8", "v1", "scan")
DTYPES = [torch.float32, torch.bfloat16] + ([torch.float16] if DEVICE.type == "cuda" or INTERPRETED else [])
# Where each row takes long, a few do: one token, a remainder, several tiles in a width that is no power of two.
LENGTHS = (33,) if INTERPRETED else (1, 2, 63, 64, 1000)
CASES = [
    *(Case(2, time, 11, form, has_decay) for time in LENGTHS for form in FORMS for has_decay in (False, True)),
    *(Case(1, 17, 67, form, True, dtype) for form in FORMS for dtype in DTYPES),
    Case(2, 1, 5, "v8", True),
    Case(1, 40, 64, "v8", False, torch.bfloat16),
]


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if INTERPRETED:
        from samout_train.ops.max_scan import cuda

        monkeypatch.setattr(operator, "kernels_of", lambda package, tensor: Poisoned(cuda))
        monkeypatch.setitem(operator.ROWS_A_CARRY, "cpu", operator.ROWS_A_CARRY["cuda"])
        monkeypatch.setitem(kernels.LIBRARIES, "cpu", kernels.LIBRARIES["cuda"])
    elif DEVICE.type == "cuda":
        from samout_train.ops.max_scan import cuda

        monkeypatch.setattr(operator, "kernels_of", lambda package, tensor: Poisoned(cuda))
    else:
        from samout_train.ops.max_scan import cpu

        monkeypatch.setattr(operator, "kernels_of", lambda package, tensor: Poisoned(cpu))
    kernels.use_kernels("fused")
    yield
    kernels.use_kernels("auto")


class Poisoned:
    """Kernels whose outputs are full of NaN before they run."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def forward(self, *arguments: object) -> None:
        """Packed, state, decay, form, and three outputs."""
        self._run("forward", arguments)

    def backward(self, *arguments: object) -> None:
        """Packed, carries, decay, form, two gradients, and three outputs."""
        self._run("backward", arguments)

    def _run(self, name: str, arguments: tuple[object, ...]) -> None:
        for output in arguments[-3:]:
            assert isinstance(output, Tensor)
            output.fill_(NAN)
        getattr(self.module, name)(*arguments)


def gradients(case: Case, implementation: str, dtype: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """(y, last) and the gradients of packed, state and decay; on `dtype` instead of the case's."""
    inputs = [each.to(dtype or each.dtype).requires_grad_() for each in case.inputs() if each is not None]
    decay = inputs[2] if case.has_decay else None
    if implementation == "fused":
        outputs = max_mix(inputs[0], inputs[1], decay, form=case.form)
    else:
        outputs = reference.max_mix(inputs[0], inputs[1], decay, case.form)
    given = [grad.to(output.dtype) for grad, output in zip(case.gradients(), outputs, strict=True)]
    return list(outputs), list(torch.autograd.grad(outputs, inputs, given))


@pytest.mark.slow
@pytest.mark.parametrize("case", spread(CASES, 6), ids=str)
def test_values_are_those_of_the_reference_and_gradients_those_in_float64(case: Case) -> None:
    outputs, grads = gradients(case, "fused")
    packed_BTP, state_BD, decay_BTD = case.inputs()
    with torch.no_grad():
        without = max_mix(packed_BTP, state_BD, decay_BTD, form=case.form)
    assert all(torch.equal(one, other) for one, other in zip(outputs, without, strict=True))
    expected, _ = gradients(case, "reference")
    for got, want in zip(outputs, expected, strict=True):
        assert got.dtype == want.dtype
        if INTERPRETED and case.dtype == torch.bfloat16:
            torch.testing.assert_close(got, want, rtol=CUT_OFF, atol=CUT_OFF)
        else:
            assert torch.equal(got, want)
    _, exact = gradients(case, "reference", torch.float64)
    for got, want in zip(grads, exact, strict=True):
        assert got.isfinite().all()
        assert (got.double() - want).norm() <= TOLERANCE[case.dtype] * want.norm()


@pytest.mark.parametrize("has_decay", [False, True])
def test_infinities_and_nan_are_those_of_the_reference(has_decay: bool) -> None:
    case = Case(2, 40, 8, "v8", has_decay)
    packed_BTP, state_BD, decay_BTD = case.inputs()
    packed_BTP[0, 3, 17], packed_BTP[0, 30, 17] = NAN, 9.0  # in d: stays, whatever follows
    packed_BTP[0, 5, 18] = INF
    packed_BTP[1, 7:9, 19] = -INF
    state_BD[0, 4], state_BD[1, 5] = -INF, NAN
    packed_BTP[0, 0, 20] = -INF  # ties with the state
    got = max_mix(packed_BTP, state_BD, decay_BTD, form="v8")
    want = reference.max_mix(packed_BTP, state_BD, decay_BTD, "v8")
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.isnan(), other.isnan()) and one.isnan().any()
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("case", spread([Case(2, 50, 11), Case(2, 50, 11, "v1", True)], 2), ids=str)
def test_chunks_with_carried_state_are_the_whole_with_its_gradients(case: Case) -> None:
    inputs = [each.requires_grad_() for each in case.inputs() if each is not None]
    packed_BTP, state_BD = inputs[0], inputs[1]
    pieces, state = [], state_BD
    for start in range(0, 50, 7):
        decay = inputs[2][:, start : start + 7] if case.has_decay else None
        y_BTD, state = max_mix(packed_BTP[:, start : start + 7], state, decay, form=case.form)
        pieces.append(y_BTD)
    grads = torch.autograd.grad((torch.cat(pieces, 1), state), inputs, case.gradients())
    outputs, expected = gradients(case, "fused")
    assert torch.equal(torch.cat(pieces, 1), outputs[0]) and torch.equal(state, outputs[1])
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(
            got, want, rtol=1e-5, atol=1e-5
        )  # the gradient of a maximum is summed in other parts


@pytest.mark.skipif(INTERPRETED, reason="a matter of the machine")
def test_two_runs_have_the_same_bits() -> None:
    case = Case(3, 70, 40, "v8", True)
    first, second = gradients(case, "fused"), gradients(case, "fused")
    assert all(torch.equal(one, other) for one, other in zip(first[0] + first[1], second[0] + second[1], strict=True))


def test_gradients_of_any_layout_are_taken() -> None:
    packed_BTP, state_BD, _ = Case(2, 20, 8).inputs()
    packed_BTP.requires_grad_()
    y_BTD, last_BD = max_mix(packed_BTP, state_BD, form="v8")
    expanded = torch.autograd.grad((y_BTD.sum() + last_BD.sum()), packed_BTP, retain_graph=True)[0]
    ones = torch.autograd.grad((y_BTD, last_BD), packed_BTP, (torch.ones_like(y_BTD), torch.ones_like(last_BD)))[0]
    assert torch.equal(expanded, ones)
    crossed = torch.randn(8, 20, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE).permute(2, 1, 0)
    y_BTD = max_mix(packed_BTP, state_BD, form="v8")[0]
    one = torch.autograd.grad(y_BTD, packed_BTP, crossed, retain_graph=True)[0]
    assert torch.equal(one, torch.autograd.grad(y_BTD, packed_BTP, crossed.contiguous())[0])


@pytest.mark.parametrize("has_decay", spread([True, False], 2))
def test_chunks_of_time_side_by_side_are_one(has_decay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETED and DEVICE.type != "cuda":
        pytest.skip("on the CPU time is not cut")
    from samout_train.ops.max_scan import cuda

    case = Case(2, 40, 11, "v8", has_decay)
    whole = gradients(case, "fused")
    monkeypatch.setattr(cuda, "rows_a_chunk", lambda *sizes: 16)
    cut = gradients(case, "fused")
    assert all(
        torch.equal(one, other) for one, other in zip(whole[0], cut[0], strict=True)
    )  # sums of eighths are exact
    for got, want in zip(cut[1], whole[1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a million rows are for a GPU")
def test_a_million_rows_in_chunks_are_those_of_the_reference() -> None:
    packed_BTP = torch.randn(1, 1_000_000, 3 * 96, device=DEVICE, requires_grad=True)
    y_BTD, last_BD = max_mix(packed_BTP, form="v8")
    state_BD = torch.full((1, 96), -INF, device=DEVICE)
    want = reference.max_mix(packed_BTP, state_BD, None, "v8")
    assert torch.equal(y_BTD, want[0]) and torch.equal(last_BD, want[1])
    grad = torch.autograd.grad(y_BTD.sum(), packed_BTP)[0]
    exact = torch.autograd.grad(want[0].sum(), packed_BTP)[0]
    assert (grad - exact).norm() <= 1e-4 * exact.norm()  # sums over up to a million rows, in float32 on both sides


@pytest.mark.nightly
@pytest.mark.skipif(INTERPRETED, reason="the operator is the same")
def test_it_is_compiled_without_a_break() -> None:
    case = Case(2, 33, 11, "v1", True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(packed_BTP: Tensor, state_BD: Tensor, decay_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return max_mix(packed_BTP, state_BD, decay_BTD, form="v1")

    inputs = [each.requires_grad_() for each in case.inputs() if each is not None]
    outputs = compiled(*inputs)
    want = gradients(case, "fused")
    assert all(torch.equal(got, one) for got, one in zip(outputs, want[0], strict=True))
    grads = torch.autograd.grad(outputs, inputs, case.gradients())
    assert all(torch.equal(got, one) for got, one in zip(grads, want[1], strict=True))


@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="this process runs Triton's kernels already")
@pytest.mark.slow
def test_the_kernels_for_cuda_pass_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", str(Path(__file__))]
    command += ["-m", "not nightly"]
    command += ["-W", "ignore::RuntimeWarning"]  # numpy's, of infinity times zero
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
