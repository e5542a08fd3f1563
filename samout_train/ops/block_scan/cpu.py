"""Run the recurrence of max-plus blocks on the CPU, in float32 and bfloat16. Needs numba.

A task is one sequence and a share of its blocks; it walks through time with the states in the first-level cache. The
backward pass takes ROWS rows at a time, from the last to the first, and recomputes their states from the carry before
them. numba compiles each block size, with and without a temperature, on first use and caches it on disk.

Arrays of one row have `size` lines of the share's blocks. Loops over blocks are vectorised.
"""

# B batch, T time, P packed: the streams side by side, N entries a block, G blocks, D = N G, R blocks of rows

import math
from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.block_scan.operator import ROWS_A_CARRY
from samout_train.ops.block_scan.pairs import (
    gradients_of_pairs,
    larger,
    output_of_pairs,
    step_of_pairs,
    step_with_shares,
)
from samout_train.ops.numba_support import (
    call,
    compiled,
    narrow,
    num_threads,
    prefetch_row,
    vector_exp,
    vector_log,
    widen,
)

ROWS = ROWS_A_CARRY
AHEAD = 2  # rows to prefetch: far enough to hide the latency, near enough to stay in the first-level cache
LEAST_BLOCKS, MOST_BLOCKS = 16, 256  # of a task: one vector, and the most whose ROWS rows fit the second-level cache


def forward(
    packed_BTP: Tensor,
    state_BNG: Tensor,
    temperature: Tensor | None,
    y_BTD: Tensor,
    last_BNG: Tensor,
    carries_BRNG: Tensor,
) -> None:
    """Fill y_BTD, last_BNG and carries_BRNG, the state before every ROWS rows."""
    size = (0,) * state_BNG.shape[1]
    threads = num_threads(packed_BTP.numel())
    given = (size, packed_BTP, state_BNG, _optional(temperature))
    call(_forward, threads, *given, y_BTD, last_BNG, carries_BRNG, _parts(state_BNG, threads))


def backward(
    packed_BTP: Tensor,
    carries_BRNG: Tensor,
    temperature: Tensor | None,
    grad_y_BTD: Tensor,
    grad_last_BNG: Tensor,
    grad_packed_BTP: Tensor,
    grad_state_BNG: Tensor,
) -> None:
    """Fill the last two."""
    size = (0,) * grad_last_BNG.shape[1]
    threads = num_threads(packed_BTP.numel())
    given = (size, packed_BTP, carries_BRNG, _optional(temperature), grad_y_BTD, grad_last_BNG)
    call(_backward, threads, *given, grad_packed_BTP, grad_state_BNG, _parts(grad_last_BNG, threads))


def _optional(temperature: Tensor | None) -> np.float32 | None:
    """Return the temperature; None for the hard maximum, which is compiled separately."""
    value = 0.0 if temperature is None else float(temperature)
    return np.float32(value) if value else None


def _parts(state_BNG: Tensor, threads: int) -> int:
    """Return the number of tasks per sequence that gives all threads the same number of tasks."""
    batch, _, blocks = state_BNG.shape
    even = threads // math.gcd(batch, threads)
    return max(1, min(even, blocks // LEAST_BLOCKS), -(-blocks // MOST_BLOCKS))


@compiled(parallel=True)
def _forward(size: Any, packed: Any, state: Any, temperature: Any, y: Any, last: Any, carries: Any, parts: int) -> None:
    blocks = state.shape[2]
    for task in numba.prange(len(y) * parts):
        b, part = task // parts, task % parts
        low, high = part * blocks // parts, (part + 1) * blocks // parts
        _forward_share(size, packed, state, temperature, y, last, carries, b, low, high)


@compiled(error_model="numpy")
def _forward_share(
    size: Any,
    packed: Any,
    state: Any,
    temperature: Any,
    y: Any,
    last: Any,
    carries: Any,
    b: int,
    low: int,
    high: int,
) -> None:
    n, blocks, time = len(size), state.shape[2], y.shape[1]
    width = n * blocks
    m, after = np.empty((n, high - low), np.float32), np.empty((n, high - low), np.float32)
    mean, top = np.empty(high - low, np.float32), np.empty(high - low, np.float32)
    total, v = np.empty(high - low, np.float32), np.empty(n * (high - low), np.float32)
    for i in range(n):
        for g in range(high - low):
            m[i, g] = state[b, i, low + g]
    for t in range(time):
        if t % ROWS == 0:
            for i in range(n):
                for g in range(high - low):
                    carries[b, t // ROWS, i, low + g] = m[i, g]
        prefetch_row(packed, b, t + AHEAD, low, packed.shape[2], blocks, high - low)
        if n == 2:
            step_of_pairs(packed[b, t], 2 * width + low, blocks, temperature, m, after)
            m, after = after, m
            output_of_pairs(packed[b, t], low, blocks, m, v, y[b, t])
            continue
        _step(size, packed[b, t], 2 * width + low, blocks, temperature, m, after, top, total)
        m, after = after, m
        _mean(size, m, mean)
        for i in range(n):
            start = i * blocks + low
            _output(packed[b, t], start, width, m[i], mean, y[b, t, start : start + high - low])
    for i in range(n):
        for g in range(high - low):
            last[b, i, low + g] = m[i, g]


@compiled(error_model="numpy")
def _output(row: Any, start: int, width: int, m: Any, mean: Any, y: Any) -> None:
    """Compute y = (e v + c) v for one entry of each block; in `row`, e lies at `start` and c one `width` later."""
    e, c = row[start : start + len(m)], row[start + width : start + width + len(m)]
    for g in range(len(m)):
        v = m[g] - mean[g]
        y[g] = narrow((widen(e[g]) * v + widen(c[g])) * v, y)


@compiled(error_model="numpy")
def _mean(size: Any, m: Any, mean: Any) -> None:
    for g in range(len(mean)):
        mean[g] = m[0, g]
    for i in range(1, len(size)):
        for g in range(len(mean)):
            mean[g] += m[i, g]
    share = np.float32(1) / np.float32(len(size))
    for g in range(len(mean)):
        mean[g] *= share


@compiled(error_model="numpy")
def _step(
    size: Any, row: Any, start: int, blocks: int, temperature: Any, m: Any, after: Any, top: Any, total: Any
) -> None:
    """Make one step of the recurrence, from `m` to `after`; the logits of the share lie in `row` from `start` on."""
    n, count = len(size), len(top)
    for i in range(n):
        first = start + i * n * blocks
        _normaliser(size, row, first, blocks, temperature, top, total)
        best = after[i]
        logits = row[first : first + count]
        for g in range(count):
            best[g] = (widen(logits[g]) - top[g]) + m[0, g]
        for j in range(1, n):
            logits = row[first + j * blocks : first + j * blocks + count]
            for g in range(count):
                best[g] = larger((widen(logits[g]) - top[g]) + m[j, g], best[g])
        if temperature is not None:
            total[:] = np.float32(0)
            for j in range(n):
                logits = row[first + j * blocks : first + j * blocks + count]
                for g in range(count):
                    total[g] += vector_exp(((widen(logits[g]) - top[g]) + m[j, g] - best[g]) / temperature)
            for g in range(count):
                best[g] += temperature * vector_log(total[g])


@compiled(error_model="numpy")
def _normaliser(size: Any, row: Any, first: int, blocks: int, temperature: Any, top: Any, total: Any) -> None:
    """Compute the maximum of a row of L in each block, at the temperature."""
    count = len(top)
    logits = row[first : first + count]
    for g in range(count):
        top[g] = widen(logits[g])
    for j in range(1, len(size)):
        logits = row[first + j * blocks : first + j * blocks + count]
        for g in range(count):
            top[g] = larger(widen(logits[g]), top[g])
    if temperature is not None:
        total[:] = np.float32(0)
        for j in range(len(size)):
            logits = row[first + j * blocks : first + j * blocks + count]
            for g in range(count):
                total[g] += vector_exp((widen(logits[g]) - top[g]) / temperature)
        for g in range(count):
            top[g] += temperature * vector_log(total[g])


@compiled(parallel=True)
def _backward(
    size: Any,
    packed: Any,
    carries: Any,
    temperature: Any,
    grad_y: Any,
    grad_last: Any,
    grad_packed: Any,
    grad_state: Any,
    parts: int,
) -> None:
    n, blocks = len(size), grad_last.shape[2]
    for task in numba.prange(len(grad_y) * parts):
        b, part = task // parts, task % parts
        low, high = part * blocks // parts, (part + 1) * blocks // parts
        carry = np.empty((n, high - low), np.float32)
        for i in range(n):
            for g in range(high - low):
                carry[i, g] = grad_last[b, i, low + g]
        if n == 2:
            _backward_pairs(packed, carries, temperature, grad_y, grad_packed, carry, b, low)
        else:
            _backward_share(size, packed, carries, temperature, grad_y, grad_packed, carry, b, low)
        for i in range(n):
            for g in range(high - low):
                grad_state[b, i, low + g] = carry[i, g]


@compiled(error_model="numpy")
def _backward_pairs(
    packed: Any, carries: Any, temperature: Any, grad_y: Any, grad_packed: Any, carry: Any, b: int, low: int
) -> None:
    """Compute what `_backward_share` does, for blocks of two entries."""
    count, blocks, time = carry.shape[1], carries.shape[3], grad_y.shape[1]
    states, v = np.empty((ROWS + 1, 2, count), np.float32), np.empty(2 * count, np.float32)
    of_state, over_row = np.empty((ROWS, 2, count), np.float32), np.empty((ROWS, 2, count), np.float32)
    for rows in range(carries.shape[1] - 1, -1, -1):
        start, stop = rows * ROWS, min(rows * ROWS + ROWS, time)
        for i in range(2):
            for g in range(count):
                states[0, i, g] = carries[b, rows, i, low + g]
        for t in range(start, stop):
            prefetch_row(packed, b, t + AHEAD, 4 * blocks + low, packed.shape[2], blocks, count)
            now = t - start
            kept = states[now], states[now + 1], of_state[now], over_row[now]
            step_with_shares(packed[b, t], 4 * blocks + low, blocks, temperature, *kept)
        for t in range(stop - 1, start - 1, -1):
            prefetch_row(packed, b, t - AHEAD, low, 4 * blocks, blocks, count)
            prefetch_row(grad_y, b, t - AHEAD, low, 2 * blocks, blocks, count)
            now = t - start
            gradients_of_pairs(
                packed[b, t],
                grad_packed[b, t],
                grad_y[b, t],
                low,
                blocks,
                states[now + 1],
                of_state[now],
                over_row[now],
                carry,
                v,
            )


@compiled(error_model="numpy")
def _backward_share(
    size: Any,
    packed: Any,
    carries: Any,
    temperature: Any,
    grad_y: Any,
    grad_packed: Any,
    carry: Any,
    b: int,
    low: int,
) -> None:
    """Compute, for every ROWS rows, first the states, then the gradients from the last row to the first."""
    n, count, blocks, time = len(size), carry.shape[1], carries.shape[3], grad_y.shape[1]
    width = n * blocks
    states = np.empty((ROWS + 1, n, count), np.float32)
    top, total, mean = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    before = np.empty((n, count), np.float32)
    for rows in range(carries.shape[1] - 1, -1, -1):
        start, stop = rows * ROWS, min(rows * ROWS + ROWS, time)
        for i in range(n):
            for g in range(count):
                states[0, i, g] = carries[b, rows, i, low + g]
        for t in range(start, stop):
            now = t - start
            row, first = packed[b, t], 2 * width + low
            _step(size, row, first, blocks, temperature, states[now], states[now + 1], top, total)
        for t in range(stop - 1, start - 1, -1):
            m = states[t - start + 1]
            _mean(size, m, mean)
            for i in range(n):
                first = i * blocks + low
                _output_gradients(packed[b, t], grad_packed[b, t], grad_y[b, t], first, width, m[i], mean, before[i])
            _mean(size, before, mean)
            for i in range(n):
                for g in range(count):
                    carry[i, g] += before[i, g] - mean[g]
                    before[i, g] = np.float32(0)
            _step_gradients(
                size,
                packed[b, t],
                grad_packed[b, t],
                2 * width + low,
                blocks,
                temperature,
                states[t - start],
                m,
                carry,
                before,
                top,
                total,
            )
            carry, before = before, carry
    # `carry` and `before` change places at each row: after an odd number, the caller's array is now `before`.
    if time % 2:
        for i in range(n):
            for g in range(count):
                before[i, g] = carry[i, g]


@compiled(error_model="numpy")
def _output_gradients(
    row: Any, grad_row: Any, grad_y: Any, start: int, width: int, m: Any, mean: Any, grad_v: Any
) -> None:
    """Compute the gradients of e and c of one entry of each block, and of v."""
    count = len(m)
    e, c = row[start : start + count], row[start + width : start + width + count]
    grad_e, grad_c = grad_row[start : start + count], grad_row[start + width : start + width + count]
    given = grad_y[start : start + count]
    for g in range(count):
        v = m[g] - mean[g]
        grad = widen(given[g]) * v
        grad_v[g] = np.float32(2) * grad * widen(e[g]) + widen(given[g]) * widen(c[g])
        grad_e[g] = narrow(grad * v, grad_e)
        grad_c[g] = narrow(grad, grad_c)


@compiled(error_model="numpy")
def _step_gradients(
    size: Any,
    row: Any,
    grad_row: Any,
    start: int,
    blocks: int,
    temperature: Any,
    m: Any,
    after: Any,
    carry: Any,
    before: Any,
    top: Any,
    total: Any,
) -> None:
    """Compute the gradients of the logits from those of the later state; add up the earlier state's in `before`."""
    n, count = len(size), len(top)
    for i in range(n):
        first = start + i * n * blocks
        _normaliser(size, row, first, blocks, temperature, top, total)
        if temperature is None:
            _hard_gradients(size, row, grad_row, first, blocks, m, after[i], carry[i], before, top)
        else:
            for j in range(n):
                at = first + j * blocks
                logits, grads = row[at : at + count], grad_row[at : at + count]
                for g in range(count):
                    x = widen(logits[g]) - top[g]
                    of_row = vector_exp(x / temperature)
                    of_state = vector_exp((x + m[j, g] - after[i, g]) / temperature)
                    before[j, g] += carry[i, g] * of_state
                    grads[g] = narrow(carry[i, g] * (of_state - of_row), grads)


@compiled(error_model="numpy")
def _hard_gradients(
    size: Any,
    row: Any,
    grad_row: Any,
    first: int,
    blocks: int,
    m: Any,
    after: Any,
    carry: Any,
    before: Any,
    top: Any,
) -> None:
    """Give the gradients of the row's and the state's maximum to the first of equal entries."""
    count = len(top)
    top_is_free, state_is_free = np.ones(count, np.float32), np.ones(count, np.float32)
    for j in range(len(size)):
        at = first + j * blocks
        logits, grads = row[at : at + count], grad_row[at : at + count]
        for g in range(count):
            x = widen(logits[g])
            is_top, is_state = (x == top[g]) or (x != x), ((x - top[g]) + m[j, g] == after[g]) or (x != x)
            of_row = top_is_free[g] if is_top else np.float32(0)
            of_state = state_is_free[g] if is_state else np.float32(0)
            top_is_free[g] -= of_row
            state_is_free[g] -= of_state
            before[j, g] += carry[g] * of_state
            grads[g] = narrow(carry[g] * (of_state - of_row), grads)
