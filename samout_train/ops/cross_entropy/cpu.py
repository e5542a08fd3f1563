"""Compute the nats of rows of logits and their gradients on the CPU, in float32 and bfloat16. Needs numba.

A task is a row, which stays in the second-level cache for its maximum, its exponentials with their sum, and its
gradients. The exponential is computed here, so that it runs in vectors: a polynomial on [-ln 2 / 2, ln 2 / 2] times a
power of two, accurate to about 2^-23 of its value.
"""

# R rows, V vocabulary

from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.numba_support import (
    ELEMENT,
    array_at,
    as_bits,
    as_float,
    call_either,
    compiled,
    narrow,
    num_threads,
    widen,
)

LANES = 256  # parallel maxima: compilers do not vectorise a single maximum of floats, because of NaN
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
# Adding it leaves the nearest integer in the lowest bits, without a conversion, which would lose NaN.
ROUNDING = np.float32(12_582_912)
LEAST = np.float32(-87)  # its exponential is about the smallest normal number
# Coefficients of the minimax polynomial of (exp(x) - 1 - x) / x^2 (Moshier, Cephes, expf).
C0, C1, C2 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
C3, C4, C5 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)


def nats_and_errors(logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool) -> None:
    """Fill nats_R; with `learns`, overwrite the logits with their gradient.

    Raises:
        IndexError: if a target that is not ignored is not a valid id.
    """
    rows, ids = logits_RV.shape
    wrong = _first_wrong(targets_R.data_ptr(), rows, ids, ignore_index)
    if wrong >= 0:
        raise IndexError(f"target {int(targets_R[wrong])} is out of range: ids are from 0 to {ids - 1}")
    call_either(
        _rows_at,
        num_threads(rows * ids),
        ELEMENT[logits_RV.dtype],
        logits_RV.data_ptr(),
        targets_R.data_ptr(),
        nats_R.data_ptr(),
        rows,
        ids,
        ignore_index,
        learns,
    )


@compiled()
def _first_wrong(targets: int, rows: int, ids: int, ignored: int) -> int:
    """Return the first row whose target is neither an id nor ignored; -1 for none."""
    given = array_at(targets, (rows,), np.int64(0))
    for r in range(rows):
        if not 0 <= given[r] < ids and given[r] != ignored:
            return r
    return -1


@compiled()
def _rows_at(
    element: Any,
    logits: int,
    targets: int,
    nats: int,
    rows: int,
    ids: int,
    ignored: int,
    learns: bool,
    parallel: bool,
) -> None:
    """Run `_rows` on arrays at addresses."""
    _rows(
        array_at(logits, (rows, ids), element),
        array_at(targets, (rows,), np.int64(0)),
        array_at(nats, (rows,), np.float32(0)),
        ignored,
        learns,
        parallel,
    )


@compiled(parallel=True)
def _rows(logits: Any, targets: Any, nats: Any, ignored: int, learns: bool, parallel: bool) -> None:
    if parallel:
        for r in numba.prange(len(logits)):
            _row(logits[r], targets[r], nats[r : r + 1], ignored, learns)
    else:
        for r in range(len(logits)):
            _row(logits[r], targets[r], nats[r : r + 1], ignored, learns)


@compiled()
def _row(logits: Any, target: int, nats: Any, ignored: int, learns: bool) -> None:
    if target == ignored:
        nats[0] = np.float32(0)
        if learns:
            logits[:] = 0  # bfloat16 logits are bits here, and the bits of 0 are 0
        return
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
