"""The fused running maximum on the CPU, in float32 and bfloat16. Needs numba.

A task is one sequence and a share of its channels; it walks through time with the maxima in the first-level cache. The
backward pass takes blocks of rows from the last to the first and recomputes the maxima of a block from the carry before
it. numba compiles a form, with or without decay, on first use and caches it on disk.

Functions of one row get a share of its channels: the streams of the form, the decay `a` or None, the maximum `m`, y.
Their loops over channels are vectorised. "Is a new maximum" is the local test d_t == m_t or d_t is NaN.
"""

# B batch, T time, D width, P packed: the streams side by side, N blocks of rows

import math
from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.max_scan.operator import ROWS_A_CARRY
from samout_train.ops.max_scan.reference import CODES
from samout_train.ops.numba_support import (
    ELEMENT,
    array_at,
    call_either,
    compiled,
    narrow,
    num_threads,
    prefetch_row,
    widen,
)

SCAN, V8 = CODES["scan"], CODES["v8"]  # lengths of a tuple: its type tells numba the form at compile time
ROWS = ROWS_A_CARRY["cpu"]
_TYPES = {form: (0,) * code for form, code in CODES.items()}
AHEAD = 2  # rows to prefetch: far enough to hide the latency, near enough to stay in the first-level cache
# Channels of a task: one vector, and the most whose ROWS rows fit the second-level cache.
LEAST_CHANNELS, MOST_CHANNELS = 16, 512


def forward(
    packed_BTP: Tensor,
    state_BD: Tensor | None,
    decay_BTD: Tensor | None,
    form: str,
    y_BTD: Tensor,
    last_BD: Tensor,
    carries_BND: Tensor,
) -> None:
    """Fill y_BTD, last_BD and carries_BND, the maximum before every ROWS rows."""
    batch, time, width = y_BTD.shape
    threads = num_threads(packed_BTP.numel())
    call_either(
        _forward_at,
        threads,
        _TYPES[form],
        ELEMENT[packed_BTP.dtype],
        packed_BTP.data_ptr(),
        None if decay_BTD is None else decay_BTD.data_ptr(),
        0 if state_BD is None else state_BD.data_ptr(),
        y_BTD.data_ptr(),
        last_BD.data_ptr(),
        carries_BND.data_ptr(),
        batch,
        time,
        width,
        packed_BTP.shape[2],
        _parts(batch, width, threads),
    )


def backward(
    packed_BTP: Tensor,
    carries_BND: Tensor,
    decay_BTD: Tensor | None,
    form: str,
    grad_y_BTD: Tensor,
    grad_last_BD: Tensor | None,
    grad_packed_BTP: Tensor,
    grad_state_BD: Tensor,
    grad_decay_BTD: Tensor,
) -> None:
    """Fill the last three; grad_decay_BTD only if there is a decay."""
    batch, time, width = grad_y_BTD.shape
    threads = num_threads(packed_BTP.numel())
    call_either(
        _backward_at,
        threads,
        _TYPES[form],
        ELEMENT[packed_BTP.dtype],
        packed_BTP.data_ptr(),
        None if decay_BTD is None else decay_BTD.data_ptr(),
        carries_BND.data_ptr(),
        grad_y_BTD.data_ptr(),
        0 if grad_last_BD is None else grad_last_BD.data_ptr(),
        grad_packed_BTP.data_ptr(),
        grad_state_BD.data_ptr(),
        None if decay_BTD is None else grad_decay_BTD.data_ptr(),
        batch,
        time,
        width,
        packed_BTP.shape[2],
        _parts(batch, width, threads),
    )


def _parts(batch: int, width: int, threads: int) -> int:
    """Return the number of tasks per sequence that gives all threads the same number of tasks."""
    even = threads // math.gcd(batch, threads)
    return max(1, min(even, width // LEAST_CHANNELS), -(-width // MOST_CHANNELS))


@compiled()
def _forward_at(
    form: Any,
    element: Any,
    packed: int,
    decay: Any,
    state: int,
    y: int,
    last: int,
    carries: int,
    batch: int,
    time: int,
    width: int,
    streams: int,
    parts: int,
    parallel: bool,
) -> None:
    """Run `_forward` on arrays at addresses. Address 0 of the state stands for minus infinity."""
    _forward(
        form,
        array_at(packed, (batch, time, streams), element),
        array_at(decay, (batch, time, width), element),
        _or_full(state, (batch, width), -np.inf),
        array_at(y, (batch, time, width), element),
        array_at(last, (batch, width), np.float32(0)),
        array_at(carries, (batch, (time + ROWS - 1) // ROWS, width), np.float32(0)),
        parts,
        parallel,
    )


@compiled()
def _backward_at(
    form: Any,
    element: Any,
    packed: int,
    decay: Any,
    carries: int,
    grad_y: int,
    grad_last: int,
    grad_packed: int,
    grad_state: int,
    grad_decay: Any,
    batch: int,
    time: int,
    width: int,
    streams: int,
    parts: int,
    parallel: bool,
) -> None:
    """Run `_backward` on arrays at addresses. Address 0 of the last maximum's gradient stands for zeros."""
    _backward(
        form,
        array_at(packed, (batch, time, streams), element),
        array_at(decay, (batch, time, width), element),
        array_at(carries, (batch, (time + ROWS - 1) // ROWS, width), np.float32(0)),
        array_at(grad_y, (batch, time, width), element),
        _or_full(grad_last, (batch, width), 0.0),
        array_at(grad_packed, (batch, time, streams), element),
        array_at(grad_state, (batch, width), np.float32(0)),
        array_at(grad_decay, (batch, time, width), element),
        parts,
        parallel,
    )


@compiled()
def _or_full(address: int, shape: tuple[int, int], value: float) -> Any:
    """Return the float32 array at an address; for address 0, a new one filled with `value`."""
    if address:
        return array_at(address, shape, np.float32(0))
    return np.full(shape, np.float32(value))


@compiled()
def _share(parts: int, task: int, width: int) -> tuple[int, int, int]:
    """Return the sequence of a task, its first channel, and the channel after its last."""
    part = task % parts
    return task // parts, part * width // parts, (part + 1) * width // parts


@compiled(parallel=True)
def _forward(
    form: Any, packed: Any, decay: Any, state: Any, y: Any, last: Any, carries: Any, parts: int, parallel: bool
) -> None:
    if parallel:
        for task in numba.prange(len(y) * parts):
            _forward_task(form, packed, decay, state, y, last, carries, parts, task)
    else:
        for task in range(len(y) * parts):
            _forward_task(form, packed, decay, state, y, last, carries, parts, task)


@compiled(error_model="numpy")
def _forward_task(
    form: Any, packed: Any, decay: Any, state: Any, y: Any, last: Any, carries: Any, parts: int, task: int
) -> None:
    b, low, high = _share(parts, task, y.shape[2])
    time, width, streams = y.shape[1], y.shape[2], packed.shape[2]
    m = np.empty(high - low, np.float32)
    _write(state[b, low:high], m)
    for t in range(time):
        if t % ROWS == 0:
            _write(m, carries[b, t // ROWS, low:high])
        prefetch_row(packed, b, t + AHEAD, low, streams, width, high - low)
        if decay is not None:
            prefetch_row(decay, b, t + AHEAD, low, width, width, high - low)
        a = None if decay is None else decay[b, t, low:high]
        first, second = packed[b, t, low:high], packed[b, t, low + width : high + width]
        d = packed[b, t, low + streams - width : high + streams - width]
        if len(form) == SCAN:
            _scan(d, a, m, y[b, t, low:high])
        elif len(form) == V8:
            _v8(first, second, d, a, m, y[b, t, low:high])
        else:
            _v1(first, second, d, a, m, y[b, t, low:high])
    _write(m, last[b, low:high])


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
    parallel: bool,
) -> None:
    if parallel:
        for task in numba.prange(len(grad_y) * parts):
            _backward_task(
                form, packed, decay, carries, grad_y, grad_last, grad_packed, grad_state, grad_decay, parts, task
            )
    else:
        for task in range(len(grad_y) * parts):
            _backward_task(
                form, packed, decay, carries, grad_y, grad_last, grad_packed, grad_state, grad_decay, parts, task
            )


@compiled(error_model="numpy")
def _backward_task(
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
    task: int,
) -> None:
    """Compute, for each block of ROWS rows, the maxima, then the gradients from the last row to the first."""
    b, low, high = _share(parts, task, grad_y.shape[2])
    time, width, from_d = grad_y.shape[1], grad_y.shape[2], packed.shape[2] - grad_y.shape[2]
    channels = high - low
    carry = np.empty(channels, np.float32)
    _write(grad_last[b, low:high], carry)
    maxima = np.empty((ROWS + 1, channels), np.float32)
    for block in range(carries.shape[1] - 1, -1, -1):
        start, stop = block * ROWS, min(block * ROWS + ROWS, time)
        _write(carries[b, block, low:high], maxima[0])
        for t in range(start, stop):
            prefetch_row(packed, b, t + AHEAD, low + from_d, from_d + width, width, channels)
            a = None if decay is None else decay[b, t, low:high]
            _advance(maxima[t - start], packed[b, t, low + from_d : high + from_d], a, maxima[t - start + 1])
        for t in range(stop - 1, start - 1, -1):
            prefetch_row(packed, b, t - AHEAD, low, from_d, width, channels)
            prefetch_row(grad_y, b, t - AHEAD, low, width, width, channels)
            m, g = maxima[t - start + 1], grad_y[b, t, low:high]
            first, grad_first = packed[b, t, low:high], grad_packed[b, t, low:high]
            c, grad_c = packed[b, t, low + width : high + width], grad_packed[b, t, low + width : high + width]
            d, grad_d = packed[b, t, low + from_d : high + from_d], grad_packed[b, t, low + from_d : high + from_d]
            if len(form) == SCAN:
                _scan_gradients(d, m, g, carry, grad_d)
            elif len(form) == V8:
                _v8_gradients(first, c, d, m, g, carry, grad_first, grad_c, grad_d)
            else:
                _v1_gradients(c, d, m, g, carry, grad_first, grad_c, grad_d)
            if decay is not None:
                _write(carry, grad_decay[b, t, low:high])
    _write(carry, grad_state[b, low:high])


@compiled(error_model="numpy")
def _maximum(before: Any, d: Any, a: Any, j: int) -> Any:
    x = widen(d[j])
    faded = before if a is None else before + widen(a[j])
    return x if (x >= faded) or (x != x) else faded


@compiled(error_model="numpy")
def _advance(before: Any, d: Any, a: Any, m: Any) -> None:
    """Make one step of the recurrence, from `before` to `m`."""
    for j in range(len(m)):
        m[j] = _maximum(before[j], d, a, j)


@compiled(error_model="numpy")
def _write(values: Any, out: Any) -> None:
    """Write float32 values in the precision of `out`."""
    for j in range(len(out)):
        out[j] = narrow(values[j], out)


@compiled(error_model="numpy")
def _scan(d: Any, a: Any, m: Any, y: Any) -> None:
    """Advance `m` by one step of the recurrence, in place, and write y."""
    for j in range(len(m)):
        now = _maximum(m[j], d, a, j)
        m[j] = now
        y[j] = narrow(now, y)


@compiled(error_model="numpy")
def _v8(e: Any, c: Any, d: Any, a: Any, m: Any, y: Any) -> None:
    """Advance `m` by one step of the recurrence, in place, and write y."""
    for j in range(len(m)):
        now = _maximum(m[j], d, a, j)
        m[j] = now
        y[j] = narrow((widen(e[j]) * now + widen(c[j])) * now, y)


@compiled(error_model="numpy")
def _v1(b: Any, c: Any, d: Any, a: Any, m: Any, y: Any) -> None:
    """Advance `m` by one step of the recurrence, in place, and write y."""
    for j in range(len(m)):
        now = _maximum(m[j], d, a, j)
        m[j] = now
        y[j] = narrow((now + widen(c[j])) * now + widen(b[j]), y)


@compiled(error_model="numpy")
def _scan_gradients(d: Any, m: Any, g: Any, carry: Any, grad_d: Any) -> None:
    """Write the gradients, given that of y, `g`, and that of the maximum from later rows, `carry`; update `carry`."""
    for j in range(len(m)):
        x, r = widen(d[j]), carry[j] + widen(g[j])
        is_new = (x == m[j]) or (x != x)
        grad_d[j] = narrow(r if is_new else np.float32(0), grad_d)
        carry[j] = np.float32(0) if is_new else r


@compiled(error_model="numpy")
def _v8_gradients(e: Any, c: Any, d: Any, m: Any, g: Any, carry: Any, grad_e: Any, grad_c: Any, grad_d: Any) -> None:
    """Write the gradients; see `_scan_gradients`."""
    for j in range(len(m)):
        x, grad = widen(d[j]), widen(g[j]) * m[j]
        r = carry[j] + (np.float32(2) * grad * widen(e[j]) + widen(g[j]) * widen(c[j]))
        is_new = (x == m[j]) or (x != x)
        grad_d[j] = narrow(r if is_new else np.float32(0), grad_d)
        carry[j] = np.float32(0) if is_new else r
        grad_e[j] = narrow(grad * m[j], grad_e)
        grad_c[j] = narrow(grad, grad_c)


@compiled(error_model="numpy")
def _v1_gradients(c: Any, d: Any, m: Any, g: Any, carry: Any, grad_b: Any, grad_c: Any, grad_d: Any) -> None:
    """Write the gradients; see `_scan_gradients`."""
    for j in range(len(m)):
        x, r = widen(d[j]), carry[j] + widen(g[j]) * (np.float32(2) * m[j] + widen(c[j]))
        is_new = (x == m[j]) or (x != x)
        grad_d[j] = narrow(r if is_new else np.float32(0), grad_d)
        carry[j] = np.float32(0) if is_new else r
        grad_b[j] = g[j]
        grad_c[j] = narrow(widen(g[j]) * m[j], grad_c)
