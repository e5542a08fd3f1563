"""Max-plus blocks: the fused kernels against the reference, permutations to the bit, and the operator's rules."""

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samout_train.ops.block_scan import block_mix, reference
from samout_train.ops.block_scan.operator import rows_a_carry
from samout_train.ops.numba_support import vector_exp, vector_log
from tests.support.marks import spread

# Relative in norm to float64: sums in float32 of up to 131 rows, and one rounding of each value to what is stored.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def inputs(size: int, *, batch: int = 2, time: int = 131, blocks: int = 21) -> tuple[Tensor, Tensor]:
    """Streams and state on a grid of eighths, so that ties are many and sums exact."""
    generator = torch.Generator().manual_seed(size)
    packed_BTP = torch.randint(-16, 17, (batch, time, (2 + size) * size * blocks), generator=generator) / 8
    return packed_BTP, torch.randint(-16, 17, (batch, size, blocks), generator=generator) / 8


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def both(packed_BTP: Tensor, state_BNG: Tensor, temperature: float, *, exact: bool) -> list[Tensor]:
    """The outputs and the gradients of a fixed sum of them."""
    packed_BTP, state_BNG = packed_BTP.detach().requires_grad_(), state_BNG.detach().requires_grad_()
    if exact:
        outputs = reference.block_mix(packed_BTP, state_BNG, temperature)
    else:
        outputs = block_mix(packed_BTP, state_BNG, torch.tensor(temperature))
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
    of_inputs = torch.autograd.grad(outputs, (packed_BTP, state_BNG), grads)
    return [*(output.detach() for output in outputs), *of_inputs]


# Each size, dtype, and a temperature or none, is a kernel of its own, which takes seconds to compile.
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    ("size", "temperature"),
    [
        *((2, 0.7), (2, 0.0)),  # pairs have loops of their own
        pytest.param(3, 0.7, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in ((2, 0.05), (3, 0.0), (3, 0.05), (5, 0.0), (5, 0.7))
        ),
    ],
)
def test_values_and_gradients_are_those_in_float64(size: int, temperature: float, dtype: torch.dtype) -> None:
    packed_BTP, state_BNG = inputs(size)
    found = both(packed_BTP.to(dtype), state_BNG, temperature, exact=False)
    wanted = both(packed_BTP.double(), state_BNG.double(), temperature, exact=True)
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    for one, other in zip(found, wanted, strict=True):
        assert off(one, other) < TOLERANCE[dtype]
    if not temperature:  # the state is chosen among sums that are exact
        assert torch.equal(found[1].double(), wanted[1])


def test_hard_maxima_follow_an_example_by_hand() -> None:
    # One block of two: the first token lets the entries change places, the second copies the first into both, 1 below
    # for the second's own; e = 0 and c = 1, so y is m less its mean.
    logits = [[0.0, 9.0, 9.0, 0.0], [5.0, 0.0, 2.0, 1.0]]  # L[0,0], L[0,1], L[1,0], L[1,1]
    packed_BTP = torch.tensor([[[0.0, 0.0, 1.0, 1.0, *row] for row in logits]])
    y_BTD, state_BNG = block_mix(packed_BTP, torch.tensor([[[1.0], [3.0]]]))
    assert state_BNG.flatten().tolist() == [3.0, 3.0]
    assert y_BTD.tolist() == [[[1.0, -1.0], [0.0, 0.0]]]


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", spread(TOLERANCE, len(TOLERANCE)))
def test_permutations_give_the_entries_back_bit_for_bit(dtype: torch.dtype) -> None:
    size, time = 3, 2000
    generator = torch.Generator().manual_seed(0)
    start_BNG = torch.randn(1, size, 1, generator=generator)
    orders = list(permutations(range(size)))
    chosen = torch.randint(len(orders), (time,), generator=generator).tolist()
    packed_BTP = torch.zeros(1, time, (2 + size) * size)
    places = list(range(size))
    for t, number in enumerate(chosen):
        for i, j in enumerate(orders[number]):
            packed_BTP[0, t, 2 * size + i * size + j] = 40.0
        places = [places[j] for j in orders[number]]
    _, state_BNG = block_mix(packed_BTP.to(dtype), start_BNG)
    assert torch.equal(state_BNG, start_BNG[:, places])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_hard_state_stays_in_the_range_of_the_first(temperature: float) -> None:
    packed_BTP, state_BNG = inputs(2, time=500)
    _, last_BNG = block_mix(packed_BTP, state_BNG, torch.tensor(temperature))
    if not temperature:
        assert bool((last_BNG.amax(1) <= state_BNG.amax(1)).all() and (last_BNG.amin(1) >= state_BNG.amin(1)).all())
    else:  # the weights of a row add up to one, so a convex mean of exponentials lies between them
        assert bool((last_BNG.amax(1) <= state_BNG.amax(1) + 1e-4).all())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_chunks_with_carried_state_are_the_whole(temperature: float) -> None:
    packed_BTP, state_BNG = inputs(2)
    whole_BTD, last_BNG = block_mix(packed_BTP, state_BNG, torch.tensor(temperature))
    pieces = []
    for piece in packed_BTP.split([1, 63, 67], dim=1):
        y_BTD, state_BNG = block_mix(piece, state_BNG, torch.tensor(temperature))
        pieces.append(y_BTD)
    assert torch.equal(torch.cat(pieces, dim=1), whole_BTD) and torch.equal(state_BNG, last_BNG)


def test_not_a_number_stays_from_where_it_enters() -> None:
    packed_BTP, state_BNG = inputs(2, batch=1, time=9, blocks=2)
    packed_BTP[0, 4, 8] = float("nan")  # L[0, 0] of the first block
    y_BTD, last_BNG = block_mix(packed_BTP, state_BNG)
    assert not y_BTD[0, :4].isnan().any() and last_BNG[0, 0, 0].isnan()
    assert not last_BNG[0, :, 1].isnan().any()


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width of 16"):
        block_mix(torch.zeros(1, 3, 15), torch.zeros(1, 2, 2))


# Entries, temperature or none, rows of a chunk of 11 tokens, blocks, dtype. Two chunks test all six kernels, 33 blocks
# two programs side by side.
CUDA_CASES = [
    (2, 0.7, 8, 5, torch.float32),
    (2, None, 8, 5, torch.float32),
    (2, 0.0, 4, 33, torch.float32),
    (2, 0.7, 16, 33, torch.bfloat16),
    (3, None, 4, 5, torch.bfloat16),
    (3, 0.05, 4, 5, torch.float32),
    (5, 0.7, 6, 5, torch.float32),
    (5, None, 16, 5, torch.float32),
]


def on_cuda(packed_BTP: Tensor, state_BNG: Tensor, temperature: float | None, grads: list[Tensor]) -> list[Tensor]:
    """As `both`, by the kernels for CUDA, into memory full of NaN."""
    from samout_train.ops.block_scan import cuda

    tau = None if temperature is None else torch.tensor(temperature)
    carries = -(-packed_BTP.shape[1] // rows_a_carry("cuda", state_BNG.shape[1]))
    carries_BRNG = torch.full((len(state_BNG), carries, *state_BNG.shape[1:]), torch.nan)
    outputs = [torch.full_like(grad, torch.nan) for grad in grads]
    of_inputs = [torch.full_like(packed_BTP, torch.nan), torch.full_like(state_BNG, torch.nan)]
    cuda.forward(packed_BTP, state_BNG, tau, *outputs, carries_BRNG)
    cuda.backward(packed_BTP, carries_BRNG, tau, *grads, *of_inputs)
    return [*outputs, *of_inputs]


@pytest.mark.skipif(not INTERPRETED, reason="run by the tests below")
@pytest.mark.parametrize(("size", "temperature", "rows", "blocks", "dtype"), CUDA_CASES)
def test_the_kernels_for_cuda_are_the_reference_in_float64(
    size: int, temperature: float | None, rows: int, blocks: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samout_train.ops.block_scan import cuda

    monkeypatch.setattr(cuda, "rows_a_chunk", lambda *sizes: rows)
    packed_BTP, state_BNG = inputs(size, batch=2 if temperature is None else 1, time=11, blocks=blocks)
    wanted = both(packed_BTP.double(), state_BNG.double(), temperature or 0.0, exact=True)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(wanted[0].shape, generator=generator).double().to(dtype)]
    grads.append(torch.randn(wanted[1].shape, generator=generator))
    found = on_cuda(packed_BTP.to(dtype), state_BNG, temperature, grads)
    for one, other in zip(found, wanted, strict=True):
        assert off(one, other) < TOLERANCE[dtype]
    if not temperature:
        assert torch.equal(found[1].double(), wanted[1])


def interpreted(chosen: str) -> str:
    """What pytest prints of the kernels for CUDA in Triton's interpreter, in a process of its own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", str(Path(__file__))]
    command += ["-k", f"kernels_for_cuda_are and {chosen}", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this process runs Triton's kernels already")
def test_a_kernel_for_cuda_passes_in_tritons_interpreter() -> None:
    assert "1 passed" in interpreted("2-0.7-8-5")


@pytest.mark.nightly
@pytest.mark.skipif(INTERPRETED, reason="this process runs Triton's kernels already")
def test_all_kernels_for_cuda_pass_in_tritons_interpreter() -> None:
    assert "7 passed" in interpreted("not 2-0.7-8-5")


def test_exponentials_and_logarithms_are_those_of_torch() -> None:
    below = torch.linspace(-87, 0, 5001)
    found = torch.tensor([vector_exp(x) for x in below.numpy()])
    assert ((found.double() / below.double().exp() - 1).abs() < 3e-7).all()
    above = torch.linspace(1e-3, 64, 5001)
    found = torch.tensor([vector_log(x) for x in above.numpy()])
    wanted = above.double().log()
    assert ((found.double() - wanted).abs() < 3e-7 * wanted.abs().clamp(min=1)).all()
