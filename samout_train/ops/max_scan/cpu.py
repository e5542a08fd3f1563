"""The fused running maximum on the CPU, in float32 and bfloat16. Needs numba.

A task is one sequence and a share of its channels; it walks through time with the maxima in the first-level cache, and
the loop over channels runs in vectors. The backward pass takes blocks of rows from the last to the first and computes
the maxima of a block again from the carry before it. "Is a new maximum" is the local test d_t == m_t or d_t is NaN.
"""

# B batch, T time, D width, P packed: the streams side by side, N blocks of rows

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

from samout_train.ops.max_scan.forms import CODES
from samout_train.ops.max_scan.operator import ROWS_A_CARRY
from samout_train.ops.numba_call import call, num_threads

SCAN, V8 = CODES["scan"], CODES["v8"]
ROWS = ROWS_A_CARRY["cpu"]
LINE = 64  # bytes of a cache line
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
    given = (packed_BTP, packed_BTP[:1, :1] if decay_BTD is None else decay_BTD, decay_BTD is not None, CODES[form])
    call(_forward, num_threads(), *given, state_BD, y_BTD, last_BD, carries_BND, _parts(y_BTD))


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
    given = (packed_BTP, packed_BTP[:1, :1] if decay_BTD is None else decay_BTD, decay_BTD is not None, CODES[form])
    grad_decay_BTD = grad_decay_BTD.view(1, 1, 0) if decay_BTD is None else grad_decay_BTD
    grads = (grad_y_BTD, grad_last_BD, grad_packed_BTP, grad_state_BD, grad_decay_BTD)
    call(_backward, num_threads(), *given, carries_BND, *grads, _parts(grad_y_BTD))


def _parts(y_BTD: Tensor) -> int:
    """Into how many tasks the channels of a sequence are cut, so that all threads have the same number of tasks."""
    batch, _, width = y_BTD.shape
    even = num_threads() // math.gcd(batch, num_threads())
    return max(1, min(even, width // LEAST_CHANNELS), -(-width // MOST_CHANNELS))


@intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def _bits_of_float(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


def _widen(value: Any) -> Any:
    """A value of an array in float32."""


@overload(_widen)
def _widen_compiled(value: Any) -> Any:
    if value == types.uint16:  # bfloat16 is the upper half of float32

        def of_bfloat16(value: Any) -> Any:
            return _float_of_bits(np.uint32(value) << np.uint32(16))

        return of_bfloat16

    def as_it_is(value: Any) -> Any:
        return value

    return as_it_is


def _narrow(value: Any, array: Any) -> Any:
    """A float32 as `array` holds it: to bfloat16 the nearest, of two the even one."""


@overload(_narrow)
def _narrow_compiled(value: Any, array: Any) -> Any:
    if array.dtype == types.uint16:

        def to_bfloat16(value: Any, array: Any) -> Any:
            bits = _bits_of_float(np.float32(value))
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            return np.uint16(np.uint32(0x7FC0) if value != value else rounded)

        return to_bfloat16

    def as_it_is(value: Any, array: Any) -> Any:
        return value

    return as_it_is


@intrinsic
def _prefetch_line(typing_context: Any, address: Any) -> Any:
    """Asks for the cache line at an address; one that is not there is no error."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep_in_all_levels, data = number(0), number(3), number(1)
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), read, keep_in_all_levels, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@numba.njit(cache=True, error_model="numpy")
def _prefetch_row(rows: Any, b: int, t: int, start: int, stop: int, width: int, channels: int) -> None:
    """`channels` of every `width` values from `start` to `stop` of one row, where there is such a row."""
    if 0 <= t < rows.shape[1]:
        row = rows[b, t].ctypes.data
        for stream in range(start, stop, width):
            for j in range(0, channels, LINE // rows.itemsize):
                _prefetch_line(row + (stream + j) * rows.itemsize)


@numba.njit(cache=True, error_model="numpy")
def _maximum(before: Any, d: Any, a: Any, j: int, has_decay: bool) -> Any:
    x = _widen(d[j])
    faded = before + _widen(a[j]) if has_decay else before
    return x if (x >= faded) or (x != x) else faded


@numba.njit(cache=True, error_model="numpy")
def _advance(before: Any, d: Any, a: Any, has_decay: bool, m: Any) -> None:
    """One step of the recurrence for some channels."""
    for j in range(len(m)):
        m[j] = _maximum(before[j], d, a, j, has_decay)


@numba.njit(cache=True, error_model="numpy")
def _advance_and_mix(form: int, first: Any, c: Any, d: Any, a: Any, has_decay: bool, m: Any, y: Any) -> None:
    """One step of the recurrence, in `m`, and one row of y."""
    if form == SCAN:
        for j in range(len(m)):
            m[j] = _maximum(m[j], d, a, j, has_decay)
            y[j] = _narrow(m[j], y)
    elif form == V8:
        for j in range(len(m)):
            now = _maximum(m[j], d, a, j, has_decay)
            m[j] = now
            y[j] = _narrow((_widen(first[j]) * now + _widen(c[j])) * now, y)
    else:
        for j in range(len(m)):
            now = _maximum(m[j], d, a, j, has_decay)
            m[j] = now
            y[j] = _narrow((now + _widen(c[j])) * now + _widen(first[j]), y)


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _forward(
    packed: Any, decay: Any, has_decay: bool, form: int, state: Any, y: Any, last: Any, carries: Any, parts: int
) -> None:
    batch, time, width = y.shape
    second, from_d = 0 if form == SCAN else width, packed.shape[2] - width
    for task in numba.prange(batch * parts):
        b, part = task // parts, task % parts
        low, high = part * width // parts, (part + 1) * width // parts
        m = state[b, low:high].copy()
        for t in range(time):
            if t % ROWS == 0:
                carries[b, t // ROWS, low:high] = m
            _prefetch_row(packed, b, t + AHEAD, low, packed.shape[2], width, high - low)
            if has_decay:
                _prefetch_row(decay, b, t + AHEAD, low, width, width, high - low)
            row = packed[b, t]
            a = decay[b, t, low:high] if has_decay else row[low:high]
            first, c, d = row[low:high], row[second + low : second + high], row[from_d + low : from_d + high]
            _advance_and_mix(form, first, c, d, a, has_decay, m, y[b, t, low:high])
        last[b, low:high] = m


@numba.njit(cache=True, error_model="numpy")
def _mix_gradients(
    form: int, first: Any, c: Any, d: Any, m: Any, g: Any, carry: Any, grad_first: Any, grad_c: Any, grad_d: Any
) -> None:
    """One row of gradients from that of y, `g`, and that of the maximum from later rows, `carry`, which goes on."""
    zero, two = np.float32(0), np.float32(2)
    if form == SCAN:
        for j in range(len(m)):
            x, r = _widen(d[j]), carry[j] + _widen(g[j])
            is_new = (x == m[j]) or (x != x)
            grad_d[j] = _narrow(r if is_new else zero, grad_d)
            carry[j] = zero if is_new else r
    elif form == V8:
        for j in range(len(m)):
            x, grad = _widen(d[j]), _widen(g[j]) * m[j]
            r = carry[j] + (two * grad * _widen(first[j]) + _widen(g[j]) * _widen(c[j]))
            is_new = (x == m[j]) or (x != x)
            grad_d[j] = _narrow(r if is_new else zero, grad_d)
            carry[j] = zero if is_new else r
            grad_first[j] = _narrow(grad * m[j], grad_first)
            grad_c[j] = _narrow(grad, grad_c)
    else:
        for j in range(len(m)):
            x, r = _widen(d[j]), carry[j] + _widen(g[j]) * (two * m[j] + _widen(c[j]))
            is_new = (x == m[j]) or (x != x)
            grad_d[j] = _narrow(r if is_new else zero, grad_d)
            carry[j] = zero if is_new else r
            grad_first[j] = g[j]
            grad_c[j] = _narrow(_widen(g[j]) * m[j], grad_c)


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _backward(
    packed: Any,
    decay: Any,
    has_decay: bool,
    form: int,
    carries: Any,
    grad_y: Any,
    grad_last: Any,
    grad_packed: Any,
    grad_state: Any,
    grad_decay: Any,
    parts: int,
) -> None:
    batch, time, width = grad_y.shape
    second, from_d = 0 if form == SCAN else width, packed.shape[2] - width
    for task in numba.prange(batch * parts):
        b, part = task // parts, task % parts
        low, high = part * width // parts, (part + 1) * width // parts
        carry, maxima = grad_last[b, low:high].copy(), np.empty((ROWS + 1, high - low), np.float32)
        for block in range(carries.shape[1] - 1, -1, -1):
            start, stop = block * ROWS, min(block * ROWS + ROWS, time)
            maxima[0] = carries[b, block, low:high]
            for t in range(start, stop):
                a = decay[b, t, low:high] if has_decay else packed[b, t, low:high]
                d = packed[b, t, from_d + low : from_d + high]
                _prefetch_row(packed, b, t + AHEAD, from_d + low, packed.shape[2], width, high - low)
                _advance(maxima[t - start], d, a, has_decay, maxima[t - start + 1])
            for t in range(stop - 1, start - 1, -1):
                _prefetch_row(packed, b, t - AHEAD, low, from_d, width, high - low)
                _prefetch_row(grad_y, b, t - AHEAD, low, width, width, high - low)
                row, grads, m, g = packed[b, t], grad_packed[b, t], maxima[t - start + 1], grad_y[b, t, low:high]
                d, grad_d = row[from_d + low : from_d + high], grads[from_d + low : from_d + high]
                first, grad_first = row[low:high], grads[low:high]
                c, grad_c = row[second + low : second + high], grads[second + low : second + high]
                _mix_gradients(form, first, c, d, m, g, carry, grad_first, grad_c, grad_d)
                if has_decay:
                    grad_a = grad_decay[b, t, low:high]
                    for j in range(high - low):
                        grad_a[j] = _narrow(carry[j], grad_a)
        grad_state[b, low:high] = carry
