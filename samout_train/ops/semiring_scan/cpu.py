"""Run the fused scan on the CPU, in float32. Needs numba.

A task is one sequence and a share of its channels; it walks through time with h in the first-level cache, forward
from the first token to the last, backward from the last to the first.
"""

# B batch, T time, D width

import math
from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.numba_support import array_at, call_either, compiled, num_threads

LEAST_CHANNELS, MOST_CHANNELS = 16, 1024  # of a task: one vector; few enough that some rows fit the first-level cache


def forward(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: str, h_BTD: Tensor) -> None:
    """Fill h_BTD."""
    threads = num_threads(h_BTD.numel())
    addresses = (a_BTD.data_ptr(), x_BTD.data_ptr(), state_BD.data_ptr(), h_BTD.data_ptr())
    call_either(_forward_at, threads, *addresses, *h_BTD.shape, semiring == "max_min", _parts(h_BTD, threads))


def backward(
    a_BTD: Tensor,
    x_BTD: Tensor,
    h_BTD: Tensor,
    state_BD: Tensor,
    semiring: str,
    grad_h_BTD: Tensor,
    grad_a_BTD: Tensor,
    grad_x_BTD: Tensor,
    grad_state_BD: Tensor,
) -> None:
    """Fill the last three."""
    threads = num_threads(h_BTD.numel())
    call_either(
        _backward_at,
        threads,
        a_BTD.data_ptr(),
        x_BTD.data_ptr(),
        h_BTD.data_ptr(),
        state_BD.data_ptr(),
        grad_h_BTD.data_ptr(),
        grad_a_BTD.data_ptr(),
        grad_x_BTD.data_ptr(),
        grad_state_BD.data_ptr(),
        *h_BTD.shape,
        semiring == "max_min",
        _parts(h_BTD, threads),
    )


def _parts(h_BTD: Tensor, threads: int) -> int:
    """Return the number of tasks per sequence that gives all threads the same number of tasks."""
    batch, _, width = h_BTD.shape
    even = threads // math.gcd(batch, threads)
    return max(1, min(even, width // LEAST_CHANNELS), -(-width // MOST_CHANNELS))


@compiled()
def _forward_at(
    a: int, x: int, state: int, h: int, batch: int, time: int, width: int, max_min: bool, parts: int, parallel: bool
) -> None:
    """Run `_forward` on arrays at addresses."""
    shape, element = (batch, time, width), np.float32(0)
    _forward(
        array_at(a, shape, element),
        array_at(x, shape, element),
        array_at(state, (batch, width), element),
        array_at(h, shape, element),
        max_min,
        parts,
        parallel,
    )


@compiled()
def _backward_at(
    a: int,
    x: int,
    h: int,
    state: int,
    grad_h: int,
    grad_a: int,
    grad_x: int,
    grad_state: int,
    batch: int,
    time: int,
    width: int,
    max_min: bool,
    parts: int,
    parallel: bool,
) -> None:
    """Run `_backward` on arrays at addresses."""
    shape, element = (batch, time, width), np.float32(0)
    _backward(
        array_at(a, shape, element),
        array_at(x, shape, element),
        array_at(h, shape, element),
        array_at(state, (batch, width), element),
        array_at(grad_h, shape, element),
        array_at(grad_a, shape, element),
        array_at(grad_x, shape, element),
        array_at(grad_state, (batch, width), element),
        max_min,
        parts,
        parallel,
    )


@compiled(parallel=True)
def _forward(a: Any, x: Any, state: Any, h: Any, max_min: bool, parts: int, parallel: bool) -> None:
    if parallel:
        for task in numba.prange(len(h) * parts):
            _forward_task(a, x, state, h, max_min, parts, task)
    else:
        for task in range(len(h) * parts):
            _forward_task(a, x, state, h, max_min, parts, task)


@compiled(error_model="numpy")
def _forward_task(a: Any, x: Any, state: Any, h: Any, max_min: bool, parts: int, task: int) -> None:
    b, part, width = task // parts, task % parts, h.shape[2]
    low, high = part * width // parts, (part + 1) * width // parts
    for t in range(h.shape[1]):
        before = state[b, low:high] if t == 0 else h[b, t - 1, low:high]
        if max_min:
            _advance_max_min(a[b, t, low:high], x[b, t, low:high], before, h[b, t, low:high])
        else:
            _advance(a[b, t, low:high], x[b, t, low:high], before, h[b, t, low:high])


@compiled(error_model="numpy")
def _advance(a: Any, x: Any, before: Any, h: Any) -> None:
    for j in range(len(h)):
        h[j] = a[j] * before[j] + x[j]


@compiled(error_model="numpy")
def _advance_max_min(a: Any, x: Any, before: Any, h: Any) -> None:
    for j in range(len(h)):
        kept = a[j] if a[j] <= before[j] or a[j] != a[j] else before[j]
        h[j] = x[j] if x[j] >= kept or x[j] != x[j] else kept


@compiled(parallel=True)
def _backward(
    a: Any,
    x: Any,
    h: Any,
    state: Any,
    grad_h: Any,
    grad_a: Any,
    grad_x: Any,
    grad_state: Any,
    max_min: bool,
    parts: int,
    parallel: bool,
) -> None:
    if parallel:
        for task in numba.prange(len(h) * parts):
            _backward_task(a, x, h, state, grad_h, grad_a, grad_x, grad_state, max_min, parts, task)
    else:
        for task in range(len(h) * parts):
            _backward_task(a, x, h, state, grad_h, grad_a, grad_x, grad_state, max_min, parts, task)


@compiled(error_model="numpy")
def _backward_task(
    a: Any,
    x: Any,
    h: Any,
    state: Any,
    grad_h: Any,
    grad_a: Any,
    grad_x: Any,
    grad_state: Any,
    max_min: bool,
    parts: int,
    task: int,
) -> None:
    """Go from the last token to the first; `later` is the gradient of h from the tokens after it."""
    b, part, width = task // parts, task % parts, h.shape[2]
    low, high = part * width // parts, (part + 1) * width // parts
    later = np.zeros(high - low, np.float32)
    for t in range(h.shape[1] - 1, -1, -1):
        before = state[b, low:high] if t == 0 else h[b, t - 1, low:high]
        row_a, row_grad = a[b, t, low:high], grad_h[b, t, low:high]
        if max_min:
            row_x = x[b, t, low:high]
            _retreat_max_min(row_a, row_x, before, row_grad, grad_a[b, t, low:high], grad_x[b, t, low:high], later)
        else:
            _retreat(row_a, before, row_grad, grad_a[b, t, low:high], grad_x[b, t, low:high], later)
    grad_state[b, low:high] = later


@compiled(error_model="numpy")
def _retreat(a: Any, before: Any, grad_h: Any, grad_a: Any, grad_x: Any, later: Any) -> None:
    for j in range(len(later)):
        grad = later[j] + grad_h[j]
        grad_x[j] = grad
        grad_a[j] = grad * before[j]
        later[j] = a[j] * grad


@compiled(error_model="numpy")
def _retreat_max_min(a: Any, x: Any, before: Any, grad_h: Any, grad_a: Any, grad_x: Any, later: Any) -> None:
    """Give the whole gradient to whichever of x, a and the earlier h became h."""
    zero = np.float32(0)
    for j in range(len(later)):
        grad = later[j] + grad_h[j]
        is_capped = a[j] <= before[j] or a[j] != a[j]
        kept = a[j] if is_capped else before[j]
        is_new = x[j] >= kept or x[j] != x[j]
        grad_x[j] = grad if is_new else zero
        grad_a[j] = grad if is_capped and not is_new else zero
        later[j] = grad if not is_capped and not is_new else zero
