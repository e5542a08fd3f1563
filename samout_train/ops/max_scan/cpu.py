"""The fused running maximum on the CPU, in float32 and bfloat16. Needs numba.

A task is one sequence and a share of its channels; it walks through time with the maxima in the first-level cache. The
backward pass takes blocks of rows from the last to the first and computes the maxima of a block again from the carry
before it. A form, with or without decay, is compiled when it is first needed and kept on disk by numba.
"""

# B batch, T time, D width, P packed: the streams side by side, N blocks of rows

import math
from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.max_scan import cpu_rows as rows
from samout_train.ops.max_scan.forms import CODES
from samout_train.ops.max_scan.operator import ROWS_A_CARRY
from samout_train.ops.numba_cache import compiled
from samout_train.ops.numba_call import call, num_threads
from samout_train.ops.numba_values import prefetch_row

SCAN, V8 = CODES["scan"], CODES["v8"]  # as lengths of a tuple, which are known when a kernel is compiled
ROWS = ROWS_A_CARRY["cpu"]
AHEAD = 2  # rows: far enough for memory, near enough to be still in the first-level cache
LEAST_CHANNELS, MOST_CHANNELS = 16, 512  # of a task: a vector, and what the second-level cache holds with ROWS rows


def forward(
    packed_BTP: Tensor,
    state_BD: Tensor,
    decay_BTD: Tensor | None,
    form: str,
    y_BTD: Tensor,
    last_BD: Tensor,
    carries_BND: Tensor,
) -> None:
    """Fills y_BTD, last_BD and carries_BND, the maximum before every ROWS rows."""
    given = (_as_type(form), packed_BTP, decay_BTD, state_BD)
    call(_forward, num_threads(), *given, y_BTD, last_BD, carries_BND, _parts(y_BTD))


def backward(
    packed_BTP: Tensor,
    carries_BND: Tensor,
    decay_BTD: Tensor | None,
    form: str,
    grad_y_BTD: Tensor,
    grad_last_BD: Tensor,
    grad_packed_BTP: Tensor,
    grad_state_BD: Tensor,
    grad_decay_BTD: Tensor,
) -> None:
    """Fills the last three; grad_decay_BTD only where there is a decay."""
    given = (_as_type(form), packed_BTP, decay_BTD, carries_BND, grad_y_BTD, grad_last_BD)
    filled = (grad_packed_BTP, grad_state_BD, None if decay_BTD is None else grad_decay_BTD)
    call(_backward, num_threads(), *given, *filled, _parts(grad_y_BTD))


def _as_type(form: str) -> tuple[int, ...]:
    return (0,) * CODES[form]


def _parts(y_BTD: Tensor) -> int:
    """Into how many tasks the channels of a sequence are cut, so that all threads have the same number of tasks."""
    batch, _, width = y_BTD.shape
    even = num_threads() // math.gcd(batch, num_threads())
    return max(1, min(even, width // LEAST_CHANNELS), -(-width // MOST_CHANNELS))


@compiled()
def _share(parts: int, task: int, width: int) -> tuple[int, int, int]:
    """The sequence of a task, its first channel, and the one after its last."""
    part = task % parts
    return task // parts, part * width // parts, (part + 1) * width // parts


@compiled(parallel=True)
def _forward(form: Any, packed: Any, decay: Any, state: Any, y: Any, last: Any, carries: Any, parts: int) -> None:
    for task in numba.prange(len(y) * parts):
        b, low, high = _share(parts, task, y.shape[2])
        _forward_share(form, packed, decay, state, y, last, carries, b, low, high)


@compiled(error_model="numpy")
def _forward_share(
    form: Any, packed: Any, decay: Any, state: Any, y: Any, last: Any, carries: Any, b: int, low: int, high: int
) -> None:
    time, width, streams = y.shape[1], y.shape[2], packed.shape[2]
    m = np.empty(high - low, np.float32)
    rows.write(state[b, low:high], m)
    for t in range(time):
        if t % ROWS == 0:
            rows.write(m, carries[b, t // ROWS, low:high])
        prefetch_row(packed, b, t + AHEAD, low, streams, width, high - low)
        if decay is not None:
            prefetch_row(decay, b, t + AHEAD, low, width, width, high - low)
        a = None if decay is None else decay[b, t, low:high]
        first, second = packed[b, t, low:high], packed[b, t, low + width : high + width]
        d = packed[b, t, low + streams - width : high + streams - width]
        if len(form) == SCAN:
            rows.scan(d, a, m, y[b, t, low:high])
        elif len(form) == V8:
            rows.v8(first, second, d, a, m, y[b, t, low:high])
        else:
            rows.v1(first, second, d, a, m, y[b, t, low:high])
    rows.write(m, last[b, low:high])


@compiled(parallel=True)
def _backward(
    form: Any,
    packed: Any,
    decay: Any,
    carries: Any,
    grad_y: Any,
    grad_last: Any,
    grad_packed: Any,
    grad_state: Any,
    grad_decay: Any,
    parts: int,
) -> None:
    for task in numba.prange(len(grad_y) * parts):
        b, low, high = _share(parts, task, grad_y.shape[2])
        carry = np.empty(high - low, np.float32)
        rows.write(grad_last[b, low:high], carry)
        _backward_share(form, packed, decay, carries, grad_y, grad_packed, grad_decay, carry, b, low)
        rows.write(carry, grad_state[b, low:high])


@compiled(error_model="numpy")
def _backward_share(
    form: Any,
    packed: Any,
    decay: Any,
    carries: Any,
    grad_y: Any,
    grad_packed: Any,
    grad_decay: Any,
    carry: Any,
    b: int,
    low: int,
) -> None:
    """Of each ROWS rows first the maxima, then the gradients from the last row to the first."""
    time, width, from_d = grad_y.shape[1], grad_y.shape[2], packed.shape[2] - grad_y.shape[2]
    channels, high = len(carry), low + len(carry)
    maxima = np.empty((ROWS + 1, channels), np.float32)
    for block in range(carries.shape[1] - 1, -1, -1):
        start, stop = block * ROWS, min(block * ROWS + ROWS, time)
        rows.write(carries[b, block, low:high], maxima[0])
        for t in range(start, stop):
            prefetch_row(packed, b, t + AHEAD, low + from_d, from_d + width, width, channels)
            a = None if decay is None else decay[b, t, low:high]
            rows.advance(maxima[t - start], packed[b, t, low + from_d : high + from_d], a, maxima[t - start + 1])
        for t in range(stop - 1, start - 1, -1):
            prefetch_row(packed, b, t - AHEAD, low, from_d, width, channels)
            prefetch_row(grad_y, b, t - AHEAD, low, width, width, channels)
            m, g = maxima[t - start + 1], grad_y[b, t, low:high]
            first, grad_first = packed[b, t, low:high], grad_packed[b, t, low:high]
            c, grad_c = packed[b, t, low + width : high + width], grad_packed[b, t, low + width : high + width]
            d, grad_d = packed[b, t, low + from_d : high + from_d], grad_packed[b, t, low + from_d : high + from_d]
            if len(form) == SCAN:
                rows.scan_gradients(d, m, g, carry, grad_d)
            elif len(form) == V8:
                rows.v8_gradients(first, c, d, m, g, carry, grad_first, grad_c, grad_d)
            else:
                rows.v1_gradients(c, d, m, g, carry, grad_first, grad_c, grad_d)
            if decay is not None:
                rows.write(carry, grad_decay[b, t, low:high])
