"""One token through a SamOut layer on the CPU: the cores share the weights and read each once. Needs numba.

    u = mixer(x);  y = LayerNorm(alpha * (down (up u * relu(gate u))) + (1 - alpha) * x);  x + y

The three products depend on each other, so the threads synchronise three times a layer.
"""

# B batch, D width, F inner width of the feed-forward, P width of the projections

from typing import Any

import numba
import numpy as np
from torch import Tensor, nn

from samout_train.ops.numba_support import array_at, call_at, compiled, num_threads


def samout_step(
    x_BD: Tensor,
    state_BD: Tensor,
    projection_PD: Tensor,
    scale: float | None,
    up: nn.Linear,
    gate: nn.Linear,
    down: nn.Linear,
    norm: nn.LayerNorm,
    alpha: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the layer's output and its next state, both (B, D).

    Args:
        x_BD: Input, float32 on the CPU.
        state_BD: Maximum so far, float32.
        projection_PD: The projections a, b, c, d of V8, or a, b, c of V1, stacked.
        scale: Scale of V1's maximum; None for V8.
        up: The feed-forward's matrix from D to F. gate (under the relu) also maps D to F, and down maps F to D.
        alpha: Share of the feed-forward's output, a scalar.
    """
    x_BD, state_BD = x_BD.contiguous(), state_BD.contiguous()
    output_BD, next_BD = x_BD.new_empty(x_BD.shape), x_BD.new_empty(x_BD.shape)
    tensors = (
        x_BD,
        state_BD,
        projection_PD,
        up.weight,
        up.bias,
        gate.weight,
        gate.bias,
        down.weight,
        down.bias,
        norm.weight,
        norm.bias,
        output_BD,
        next_BD,
    )
    contiguous = [tensor.contiguous() for tensor in tensors]
    sizes = (*x_BD.shape, len(up.weight), len(projection_PD))
    threads = num_threads(projection_PD.numel())
    if scale is None:
        scale = -1.0
    addresses = [tensor.data_ptr() for tensor in contiguous]
    call_at(_step_at, threads, *addresses, *sizes, alpha.item(), norm.eps, scale, threads)
    return output_BD, next_BD


@compiled()
def _step_at(
    x: int,
    state: int,
    projection: int,
    up: int,
    up_bias: int,
    gate: int,
    gate_bias: int,
    down: int,
    down_bias: int,
    norm: int,
    norm_bias: int,
    output: int,
    next_state: int,
    batch: int,
    width: int,
    inner: int,
    projected: int,
    alpha: float,
    eps: float,
    scale: float,
    parts: int,
) -> None:
    """Run `_step` on arrays at addresses."""
    element, inwards = np.float32(0), (inner, width)
    _step(
        array_at(x, (batch, width), element),
        array_at(state, (batch, width), element),
        array_at(projection, (projected, width), element),
        array_at(up, inwards, element),
        array_at(up_bias, (inner,), element),
        array_at(gate, inwards, element),
        array_at(gate_bias, (inner,), element),
        array_at(down, (width, inner), element),
        array_at(down_bias, (width,), element),
        array_at(norm, (width,), element),
        array_at(norm_bias, (width,), element),
        alpha,
        eps,
        scale,
        array_at(output, (batch, width), element),
        array_at(next_state, (batch, width), element),
        parts,
    )


# Reassociation lets sums run in vectors. NaN and infinity keep their meaning.
@compiled(fastmath={"reassoc", "contract"}, error_model="numpy")
def _dot(row: Any, x: Any) -> Any:
    total = np.float32(0)
    for k in range(len(x)):
        total += row[k] * x[k]
    return total


@compiled(error_model="numpy")
def _normalise(y: Any, x: Any, norm: Any, bias: Any, eps: float) -> None:
    """Replace y by x + LayerNorm(y). If this were inlined, numba would split its sums over threads."""
    centred = y - y.mean()
    factor = np.float32(1 / np.sqrt((centred * centred).mean() + eps))
    for j in range(len(y)):
        y[j] = x[j] + centred[j] * factor * norm[j] + bias[j]


@compiled(parallel=True, error_model="numpy")
def _step(
    x: Any,
    state: Any,
    projection: Any,
    up: Any,
    up_bias: Any,
    gate: Any,
    gate_bias: Any,
    down: Any,
    down_bias: Any,
    norm: Any,
    norm_bias: Any,
    alpha: float,
    eps: float,
    scale: float,
    output: Any,
    next_state: Any,
    parts: int,
) -> None:
    batch, width = x.shape
    inner, is_v1 = len(up), scale >= 0
    mixed, hidden = np.empty((batch, width), np.float32), np.empty((batch, inner), np.float32)
    share, rest, factor = np.float32(alpha), np.float32(1 - alpha), np.float32(scale)
    for part in numba.prange(parts):
        for j in range(part * width // parts, (part + 1) * width // parts):
            for i in range(batch):
                a, b = _dot(projection[j], x[i]), _dot(projection[width + j], x[i])
                c = _dot(projection[2 * width + j], x[i])
                d = (a + b) * factor
                if not is_v1:
                    d = _dot(projection[3 * width + j], x[i])
                m = d if (d >= state[i, j]) or (d != d) else state[i, j]
                next_state[i, j] = m
                mixed[i, j] = ((a + b) * m + c) * m
                if is_v1:
                    mixed[i, j] = (m + c) * m + b
    for part in numba.prange(parts):
        for j in range(part * inner // parts, (part + 1) * inner // parts):
            for i in range(batch):
                opened = _dot(gate[j], mixed[i]) + gate_bias[j]
                if opened < 0:
                    opened = np.float32(0)
                hidden[i, j] = (_dot(up[j], mixed[i]) + up_bias[j]) * opened
    for part in numba.prange(parts):
        for j in range(part * width // parts, (part + 1) * width // parts):
            for i in range(batch):
                output[i, j] = share * (_dot(down[j], hidden[i]) + down_bias[j]) + rest * x[i, j]
    for i in range(batch):
        _normalise(output[i], x[i], norm, norm_bias, eps)
