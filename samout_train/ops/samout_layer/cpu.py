"""The parts of a SamOut layer on the CPU. Needs numba.

    gate(up, gate) = up * relu(gate)                                              in float32 or bfloat16
    blend(f, x)    = LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x          f in float32 or bfloat16

All computation is in float32. The dropout mask follows from a seed and an element's position, for any number of
threads; the backward pass recomputes it instead of loading it.
"""

# B batch, T time, D width, F inner width, N positions, of which ROWS make a task

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from samout_train.ops.numba_support import ELEMENT, array_at, call_either, compiled, narrow, num_threads, widen
from samout_train.ops.samout_layer import dropping

ELEMENTS = 2**14  # elements in a task of the gate
ROWS = 64  # rows in a task of the blend


def gate(up_BTF: Tensor, gate_BTF: Tensor, y_BTF: Tensor) -> None:
    """Fill y_BTF with up * relu(gate)."""
    count = y_BTF.numel()
    addresses = (up_BTF.data_ptr(), gate_BTF.data_ptr(), y_BTF.data_ptr())
    call_either(_gate_at, num_threads(count), ELEMENT[y_BTF.dtype], *addresses, count)


def gate_gradients(
    up_BTF: Tensor, gate_BTF: Tensor, grad_BTF: Tensor, grad_up_BTF: Tensor, grad_gate_BTF: Tensor
) -> None:
    """Fill the last two with the gradients of `up` and `gate`."""
    count = up_BTF.numel()
    call_either(
        _gate_gradients_at,
        num_threads(count),
        ELEMENT[up_BTF.dtype],
        up_BTF.data_ptr(),
        gate_BTF.data_ptr(),
        grad_BTF.data_ptr(),
        grad_up_BTF.data_ptr(),
        grad_gate_BTF.data_ptr(),
        count,
    )


@compiled()
def _gate_at(element: Any, up: int, gate: int, y: int, count: int, parallel: bool) -> None:
    """Run `_gate` on arrays at addresses."""
    shape = (count,)
    _gate(array_at(up, shape, element), array_at(gate, shape, element), array_at(y, shape, element), parallel)


@compiled()
def _gate_gradients_at(
    element: Any, up: int, gate: int, grad: int, grad_up: int, grad_gate: int, count: int, parallel: bool
) -> None:
    """Run `_gate_gradients` on arrays at addresses."""
    _gate_gradients(
        array_at(up, (count,), element),
        array_at(gate, (count,), element),
        array_at(grad, (count,), element),
        array_at(grad_up, (count,), element),
        array_at(grad_gate, (count,), element),
        parallel,
    )


@compiled(parallel=True)
def _gate(up: Any, gate: Any, y: Any, parallel: bool) -> None:
    if parallel:
        for task in numba.prange((len(y) + ELEMENTS - 1) // ELEMENTS):
            low, high = task * ELEMENTS, min(task * ELEMENTS + ELEMENTS, len(y))
            _gate_share(up[low:high], gate[low:high], y[low:high])
    else:
        _gate_share(up, gate, y)


@compiled()
def _gate_share(up: Any, gate: Any, y: Any) -> None:
    for j in range(len(y)):
        opened = widen(gate[j])
        # The comparison is false for NaN, so that a NaN gate is not taken for a closed one.
        y[j] = narrow(widen(up[j]) * (np.float32(0) if opened <= np.float32(0) else opened), y)


@compiled(parallel=True)
def _gate_gradients(up: Any, gate: Any, grad: Any, grad_up: Any, grad_gate: Any, parallel: bool) -> None:
    if parallel:
        for task in numba.prange((len(up) + ELEMENTS - 1) // ELEMENTS):
            low, high = task * ELEMENTS, min(task * ELEMENTS + ELEMENTS, len(up))
            _gate_gradients_share(up[low:high], gate[low:high], grad[low:high], grad_up[low:high], grad_gate[low:high])
    else:
        _gate_gradients_share(up, gate, grad, grad_up, grad_gate)


@compiled()
def _gate_gradients_share(up: Any, gate: Any, grad: Any, grad_up: Any, grad_gate: Any) -> None:
    for j in range(len(up)):
        opened, g = widen(gate[j]), widen(grad[j])
        closed = opened <= np.float32(0)
        grad_up[j] = narrow(np.float32(0) if closed else g * opened, grad_up)
        grad_gate[j] = narrow(np.float32(0) if closed else g * widen(up[j]), grad_gate)


def blend(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
    y_BTD: Tensor,
    statistics: Tensor,
) -> None:
    """Fill y_BTD with LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x, and statistics (2, N): mean, 1 / std."""
    call_either(
        _blend_at,
        num_threads(x_BTD.numel()),
        ELEMENT[f_BTD.dtype],
        f_BTD.data_ptr(),
        x_BTD.data_ptr(),
        *_blending(alpha, dropout, seed),
        weight_D.data_ptr(),
        bias_D.data_ptr(),
        eps,
        y_BTD.data_ptr(),
        statistics.data_ptr(),
        statistics.shape[1],
        weight_D.numel(),
    )


def blend_gradients(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    statistics: Tensor,
    dropout: float,
    seed: Tensor,
    grad_BTD: Tensor,
    grad_f_BTD: Tensor,
    grad_x_BTD: Tensor,
    grad_others: Tensor,
) -> None:
    """Fill the last three; grad_others holds the gradients of weight, bias and alpha, (2 D + 1)."""
    positions = statistics.shape[1]
    tasks = -(-positions // ROWS)
    partial = grad_others.zero_()
    if tasks > 1:
        partial = grad_others.new_zeros(tasks, grad_others.numel())
    call_either(
        _blend_gradients_at,
        num_threads(x_BTD.numel()),
        ELEMENT[f_BTD.dtype],
        f_BTD.data_ptr(),
        x_BTD.data_ptr(),
        *_blending(alpha, dropout, seed),
        weight_D.data_ptr(),
        statistics.data_ptr(),
        grad_BTD.data_ptr(),
        grad_f_BTD.data_ptr(),
        grad_x_BTD.data_ptr(),
        partial.data_ptr(),
        positions,
        weight_D.numel(),
    )
    if tasks > 1:
        torch.sum(partial, 0, out=grad_others)


@compiled()
def _blend_at(
    element: Any,
    f: int,
    x: int,
    alpha: Any,
    dropping: Any,
    weight: int,
    bias: int,
    eps: float,
    y: int,
    statistics: int,
    positions: int,
    width: int,
    parallel: bool,
) -> None:
    """Run `_blend` on arrays at addresses."""
    shape, wide = (positions, width), np.float32(0)
    _blend(
        array_at(f, shape, element),
        array_at(x, shape, wide),
        alpha,
        dropping,
        array_at(weight, (width,), wide),
        array_at(bias, (width,), wide),
        eps,
        array_at(y, shape, wide),
        array_at(statistics, (2, positions), wide),
        parallel,
    )


@compiled()
def _blend_gradients_at(
    element: Any,
    f: int,
    x: int,
    alpha: Any,
    dropping: Any,
    weight: int,
    statistics: int,
    grad: int,
    grad_f: int,
    grad_x: int,
    partial: int,
    positions: int,
    width: int,
    parallel: bool,
) -> None:
    """Run `_blend_gradients` on arrays at addresses."""
    shape, wide = (positions, width), np.float32(0)
    _blend_gradients(
        array_at(f, shape, element),
        array_at(x, shape, wide),
        alpha,
        dropping,
        array_at(weight, (width,), wide),
        array_at(statistics, (2, positions), wide),
        array_at(grad, shape, wide),
        array_at(grad_f, shape, element),
        array_at(grad_x, shape, wide),
        array_at(partial, ((positions + ROWS - 1) // ROWS, 2 * width + 1), wide),
        parallel,
    )


def _blending(alpha: Tensor, dropout: float, seed: Tensor) -> tuple[Any, ...]:
    """Return alpha and, for dropout, the scale of kept elements, the threshold out of 2^32, and the seed's halves."""
    kept, threshold, high, low = 1.0, 0, 0, 0
    if dropout:
        kept, threshold = dropping(dropout)
        high, low = divmod(int(seed), 2**32)
    return np.float32(float(alpha)), (np.float32(kept), np.uint32(threshold), np.uint32(low), np.uint32(high))


@compiled()
def _mixed(bits: Any) -> Any:
    """Return 32 mixed bits (Wellons, "lowbias32")."""
    bits = np.uint32((bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D))
    bits = np.uint32((bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(bits ^ (bits >> np.uint32(16)))


@compiled()
def _factors(dropping: Any, n: int, factors: Any) -> None:
    """Fill the factors of dropout at position n: 0, or the scale of the kept elements."""
    kept, threshold, seed_low, seed_high = dropping
    first, stride = np.uint32(n * len(factors)), np.uint32(seed_high | np.uint32(1))
    for j in range(len(factors)):
        bits = _mixed(np.uint32(np.uint32(np.uint32(first + np.uint32(j)) * stride) + seed_low))
        factors[j] = np.float32(0) if bits < threshold else kept


@compiled()
def _blend_row(f: Any, x: Any, alpha: Any, factors: Any, z: Any) -> None:
    for j in range(len(z)):
        z[j] = alpha * (widen(f[j]) * factors[j]) + (np.float32(1) - alpha) * x[j]


@compiled(fastmath={"reassoc"})
def _mean(z: Any) -> Any:
    total = np.float32(0)
    for j in range(len(z)):
        total += z[j]
    return total / np.float32(len(z))


@compiled(fastmath={"reassoc"})
def _variance(z: Any, mean: Any) -> Any:
    total = np.float32(0)
    for j in range(len(z)):
        total += (z[j] - mean) * (z[j] - mean)
    return total / np.float32(len(z))


@compiled()
def _normalise_row(z: Any, x: Any, mean: Any, inverse: Any, weight: Any, bias: Any, y: Any) -> None:
    for j in range(len(z)):
        y[j] = (z[j] - mean) * inverse * weight[j] + bias[j] + x[j]


@compiled(parallel=True)
def _blend(
    f: Any,
    x: Any,
    alpha: Any,
    dropping: Any,
    weight: Any,
    bias: Any,
    eps: float,
    y: Any,
    statistics: Any,
    parallel: bool,
) -> None:
    tasks = (len(x) + ROWS - 1) // ROWS
    if parallel:
        for task in numba.prange(tasks):
            _blend_rows(f, x, alpha, dropping, weight, bias, np.float32(eps), y, statistics, task * ROWS)
    else:
        for task in range(tasks):
            _blend_rows(f, x, alpha, dropping, weight, bias, np.float32(eps), y, statistics, task * ROWS)


@compiled()
def _blend_rows(
    f: Any, x: Any, alpha: Any, dropping: Any, weight: Any, bias: Any, eps: Any, y: Any, statistics: Any, low: int
) -> None:
    z, factors = np.empty(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    for n in range(low, min(low + ROWS, len(x))):
        if dropping[1] > 0:
            _factors(dropping, n, factors)
        _blend_row(f[n], x[n], alpha, factors, z)
        mean = _mean(z)
        inverse = np.float32(1) / np.sqrt(_variance(z, mean) + eps)
        _normalise_row(z, x[n], mean, inverse, weight, bias, y[n])
        statistics[0, n], statistics[1, n] = mean, inverse


@compiled(fastmath={"reassoc"})
def _through_norm(z: Any, mean: Any, inverse: Any, weight: Any, grad: Any, grad_weight: Any, grad_bias: Any) -> Any:
    """Normalise `z` in place, add to the gradients of weight and bias, and return two means for `_through_blend`."""
    sum_g, sum_gz = np.float32(0), np.float32(0)
    for j in range(len(z)):
        unit = (z[j] - mean) * inverse
        z[j] = unit
        grad_weight[j] += grad[j] * unit
        grad_bias[j] += grad[j]
        g = grad[j] * weight[j]
        sum_g += g
        sum_gz += g * unit
    return sum_g / np.float32(len(z)), sum_gz / np.float32(len(z))


@compiled(fastmath={"reassoc"})
def _through_blend(
    f: Any,
    x: Any,
    alpha: Any,
    factors: Any,
    z: Any,
    inverse: Any,
    weight: Any,
    grad: Any,
    means: Any,
    grad_f: Any,
    grad_x: Any,
) -> Any:
    """Fill the gradients of one row of f and x; return the row's part of alpha's gradient."""
    for_alpha = np.float32(0)
    for j in range(len(z)):
        g = inverse * (grad[j] * weight[j] - means[0] - z[j] * means[1])
        grad_f[j] = narrow(alpha * g * factors[j], grad_f)
        grad_x[j] = (np.float32(1) - alpha) * g + grad[j]
        for_alpha += g * (widen(f[j]) * factors[j] - x[j])
    return for_alpha


@compiled(parallel=True)
def _blend_gradients(
    f: Any,
    x: Any,
    alpha: Any,
    dropping: Any,
    weight: Any,
    statistics: Any,
    grad: Any,
    grad_f: Any,
    grad_x: Any,
    partial: Any,
    parallel: bool,
) -> None:
    if parallel:
        for task in numba.prange(len(partial)):
            _blend_gradients_rows(
                f, x, alpha, dropping, weight, statistics, grad, grad_f, grad_x, partial[task], task * ROWS
            )
    else:
        for task in range(len(partial)):
            _blend_gradients_rows(
                f, x, alpha, dropping, weight, statistics, grad, grad_f, grad_x, partial[task], task * ROWS
            )


@compiled()
def _blend_gradients_rows(
    f: Any,
    x: Any,
    alpha: Any,
    dropping: Any,
    weight: Any,
    statistics: Any,
    grad: Any,
    grad_f: Any,
    grad_x: Any,
    partial: Any,
    low: int,
) -> None:
    width = x.shape[1]
    z, factors = np.empty(width, np.float32), np.ones(width, np.float32)
    for n in range(low, min(low + ROWS, len(x))):
        if dropping[1] > 0:
            _factors(dropping, n, factors)
        _blend_row(f[n], x[n], alpha, factors, z)
        mean, inverse = statistics[0, n], statistics[1, n]
        means = _through_norm(z, mean, inverse, weight, grad[n], partial[:width], partial[width : 2 * width])
        partial[2 * width] += _through_blend(
            f[n], x[n], alpha, factors, z, inverse, weight, grad[n], means, grad_f[n], grad_x[n]
        )
