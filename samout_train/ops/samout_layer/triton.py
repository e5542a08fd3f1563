"""The parts of a SamOut layer on CUDA in Triton's language, as cpu.py has them for the CPU. cuda.py calls them."""

# D width, N positions

import triton
import triton.language as tl


@triton.jit
def _places(place, F: tl.constexpr, HALVES: tl.constexpr):
    """Return the places of the elements of `up`; with HALVES, a row of `gate` follows each of its rows of F."""
    return place // F * (2 * F) + place % F if HALVES else place


@triton.jit
def gate_elements(up, gate, y, count, SILU: tl.constexpr, F: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr):
    """Store up * relu(gate) or up * silu(gate) of BLOCK elements. A gate of NaN is not closed."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, at = place < count, _places(place, F, HALVES)
    opened = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    factor = opened * tl.sigmoid(opened) if SILU else tl.where(opened <= 0, 0.0, opened)
    out = given * factor
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gate_element_gradients(
    up,
    gate,
    grad,
    grad_up,
    grad_gate,
    count,
    SILU: tl.constexpr,
    F: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the gradients of BLOCK elements of `up` and `gate`."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, at = place < count, _places(place, F, HALVES)
    opened = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        share = tl.sigmoid(opened)
        to_up, to_gate = g * opened * share, g * given * share * (1 + opened * (1 - share))
    else:
        to_up, to_gate = tl.where(opened <= 0, 0.0, g * opened), tl.where(opened <= 0, 0.0, g * given)
    tl.store(grad_up + at, to_up.to(grad_up.dtype.element_ty), mask=inside)
    tl.store(grad_gate + at, to_gate.to(grad_gate.dtype.element_ty), mask=inside)


@triton.jit
def dropout_factors(seed, places, kept, threshold):
    """Return the dropout factors of elements, the same as in cpu.py: 0, or the scale of kept elements."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    stride = (seed >> 32).to(tl.uint32) | tl.full((), 1, tl.uint32)
    bits = places.to(tl.uint32) * stride + low
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D  # a mixing function of 32 bits (Wellons, "lowbias32")
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    bits = bits ^ (bits >> 16)
    return tl.where(bits.to(tl.int64) < threshold, 0.0, kept)


@triton.jit
def blend_row(
    f,
    x,
    alpha,
    weight,
    bias,
    seed,
    y,
    copy,
    statistics,
    positions,
    kept,
    threshold,
    eps,
    DROPS: tl.constexpr,
    COPIES: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store one position of LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x, its mean and inverse deviation.

    With COPIES, also store it in the precision of `copy`.
    """
    n, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    at, inside, share = n * D, columns < D, tl.load(alpha)
    fed = tl.load(f + at + columns, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(x + at + columns, mask=inside, other=0.0)
    if DROPS:
        fed = fed * dropout_factors(tl.load(seed), at + columns, kept, threshold)
    z = share * fed + (1 - share) * residual
    mean = tl.sum(z, 0) / D
    centred = tl.where(inside, z - mean, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    out = centred * inverse * scale + tl.load(bias + columns, mask=inside, other=0.0) + residual
    tl.store(y + at + columns, out, mask=inside)
    if COPIES:
        tl.store(copy + at + columns, out.to(copy.dtype.element_ty), mask=inside)
    tl.store(statistics + n, mean)
    tl.store(statistics + positions + n, inverse)


@triton.jit
def blend_row_gradients(
    f,
    x,
    alpha,
    weight,
    statistics,
    seed,
    grad,
    grad_copy,
    grad_f,
    grad_x,
    partial,
    positions,
    kept,
    threshold,
    DROPS: tl.constexpr,
    COPIES: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the gradients of some positions, and this program's row of sums for weight, bias and alpha."""
    program, columns = tl.program_id(0), tl.arange(0, BLOCK)
    inside, share = columns < D, tl.load(alpha)
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    for_weight, for_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for_alpha = tl.zeros((BLOCK,), tl.float32)
    for position in range(program, positions, tl.num_programs(0)):
        at = position * tl.full((), D, tl.int64)
        fed = tl.load(f + at + columns, mask=inside, other=0.0).to(tl.float32)
        residual = tl.load(x + at + columns, mask=inside, other=0.0)
        g = tl.load(grad + at + columns, mask=inside, other=0.0).to(tl.float32)
        if COPIES:
            g += tl.load(grad_copy + at + columns, mask=inside, other=0.0).to(tl.float32)
        factor = tl.full((BLOCK,), 1.0, tl.float32)
        if DROPS:
            factor = dropout_factors(tl.load(seed), at + columns, kept, threshold)
        fed = fed * factor
        mean, inverse = tl.load(statistics + position), tl.load(statistics + positions + position)
        unit = tl.where(inside, (share * fed + (1 - share) * residual - mean) * inverse, 0.0)
        for_weight += g * unit
        for_bias += g
        scaled = g * scale
        through = inverse * (scaled - tl.sum(scaled, 0) / D - unit * (tl.sum(scaled * unit, 0) / D))
        tl.store(grad_f + at + columns, (share * through * factor).to(grad_f.dtype.element_ty), mask=inside)
        tl.store(grad_x + at + columns, (1 - share) * through + g, mask=inside)
        for_alpha += tl.where(inside, through * (fed - residual), 0.0)
    row = partial + program * (2 * D + 1)
    tl.store(row + columns, for_weight, mask=inside)
    tl.store(row + D + columns, for_bias, mask=inside)
    tl.store(row + 2 * D, tl.sum(for_alpha, 0))
