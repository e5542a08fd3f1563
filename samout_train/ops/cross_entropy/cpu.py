"""Compute the nats of rows of logits and their gradients on the CPU, in float32 and bfloat16. Needs numba.

A task is a row, which stays in the second-level cache: its maximum, its exponentials with their sum, its gradients. The
exponential is computed here, so that it runs in vectors: a polynomial on [-ln 2 / 2, ln 2 / 2] times a power of two,
right to about 2^-23 of its value.
"""

# R rows, V vocabulary

from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.numba_support import as_bits, as_float, call, compiled, narrow, num_threads, widen

LANES = 256  # parallel maxima: compilers do not vectorise a single maximum of floats, because of NaN
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
# Adding it leaves the nearest integer in the lowest bits, without a conversion, which would lose NaN.
ROUNDING = np.float32(12_582_912)
LEAST = np.float32(-87)  # its exponential is about the smallest normal number
# Coefficients of the minimax polynomial of (exp(x) - 1 - x) / x^2 (Moshier, Cephes, expf).
C0, C1, C2 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
C3, C4, C5 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)


def nats_and_errors(logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool) -> None:
    """Fill nats_R, and the logits with their gradient where something learns.

    Raises:
        IndexError: if a target that is not ignored is not a valid id.
    """
    wrong_R = ((targets_R < 0) | (targets_R >= logits_RV.shape[1])) & (targets_R != ignore_index)
    if wrong_R.any():
        raise IndexError(
            f"target {int(targets_R[wrong_R][0])} is out of range: ids are from 0 to {logits_RV.shape[1] - 1}"
        )
    call(_rows, num_threads(), logits_RV, targets_R, nats_R, ignore_index, learns)


@compiled(parallel=True)
def _rows(logits: Any, targets: Any, nats: Any, ignored: int, learns: bool) -> None:
    for r in numba.prange(len(logits)):
        if targets[r] == ignored:
            nats[r] = np.float32(0)
            if learns:
                logits[r, :] = 0  # of bfloat16 these are bits, and those of 0 are 0
        else:
            _row(logits[r], targets[r], nats[r : r + 1], learns)


@compiled()
def _row(logits: Any, target: int, nats: Any, learns: bool) -> None:
    exponentials = np.empty(len(logits), np.float32)
    largest = _largest(logits)
    total = _exponentials(logits, largest, exponentials)
    nats[0] = np.log(total) + largest - widen(logits[target])
    if learns:
        _errors(exponentials, np.float32(1) / total, logits)
        logits[target] = narrow(exponentials[target] / total - np.float32(1), logits)


@compiled()
def _largest(logits: Any) -> Any:
    """Return the largest logit; NaN is skipped here, and appears again in the exponentials."""
    lanes = np.full(LANES, -np.inf, np.float32)
    whole = len(logits) // LANES * LANES
    for start in range(0, whole, LANES):
        _keep_larger(logits[start : start + LANES], lanes)
    _keep_larger(logits[whole:], lanes[: len(logits) - whole])
    return lanes.max()


@compiled()
def _keep_larger(logits: Any, lanes: Any) -> None:
    for v in range(len(logits)):
        x = widen(logits[v])
        lanes[v] = x if x > lanes[v] else lanes[v]


@compiled(fastmath={"contract"})
def _exp(x: Any) -> Any:
    """Return e^x for x of at most 0."""
    turns = x * LOG2_E + ROUNDING
    whole = turns - ROUNDING
    rest = x - whole * LN2_HIGH - whole * LN2_LOW
    series = C4 + rest * C5
    series = C3 + rest * series
    series = C2 + rest * series
    series = C1 + rest * series
    series = C0 + rest * series
    power = as_float((as_bits(turns) + np.uint32(127)) << np.uint32(23))
    return np.float32(0) if x < LEAST else (series * rest * rest + rest + np.float32(1)) * power


@compiled(fastmath={"reassoc"})
def _exponentials(logits: Any, largest: Any, exponentials: Any) -> Any:
    """Fill `exponentials`; return their sum."""
    total = np.float32(0)
    for v in range(len(logits)):
        value = _exp(widen(logits[v]) - largest)
        exponentials[v] = value
        total += value
    return total


@compiled()
def _errors(exponentials: Any, factor: Any, errors: Any) -> None:
    for v in range(len(errors)):
        errors[v] = narrow(exponentials[v] * factor, errors)
