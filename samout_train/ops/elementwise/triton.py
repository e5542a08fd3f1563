"""Elementwise parts of a layer in Triton's language: residual and norm, rotary positions, decays. Called by cuda.py."""

# D width, N positions, P pairs of a head

import triton
import triton.language as tl

from samout_train.ops.samout_layer.triton import dropout_factors


@triton.jit
def add_norm_row(
    x,
    branch,
    weight,
    bias,
    seed,
    total,
    y,
    statistics,
    positions,
    kept,
    threshold,
    eps,
    ADDS: tl.constexpr,
    DROPS: tl.constexpr,
    CENTRES: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store one position of x + dropout(branch), its norm, 1 / deviation and mean; with CENTRES, it is a LayerNorm."""
    n, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    at, inside = n * D, columns < D
    z = tl.load(x + at + columns, mask=inside, other=0.0)
    if ADDS:
        added = tl.load(branch + at + columns, mask=inside, other=0.0).to(tl.float32)
        if DROPS:
            added = added * dropout_factors(tl.load(seed), at + columns, kept, threshold)
        z += added
        tl.store(total + at + columns, z, mask=inside)
    if CENTRES:
        mean = tl.sum(z, 0) / D
        tl.store(statistics + positions + n, mean)
        z = tl.where(inside, z - mean, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(z * z, 0) / D + eps)
    tl.store(statistics + n, inverse)
    out = z * inverse * tl.load(weight + columns, mask=inside, other=0.0)
    if CENTRES:
        out += tl.load(bias + columns, mask=inside, other=0.0)
    tl.store(y + at + columns, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_row_gradients(
    total,
    weight,
    statistics,
    seed,
    grad_total,
    grad_y,
    grad_x,
    grad_branch,
    partial,
    positions,
    kept,
    threshold,
    HAS_GRAD_TOTAL: tl.constexpr,
    ADDS: tl.constexpr,
    DROPS: tl.constexpr,
    CENTRES: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the gradients of some positions of x and branch, and this program's row of sums for weight and bias."""
    program, columns = tl.program_id(0), tl.arange(0, BLOCK)
    inside = columns < D
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    for_weight, for_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for position in range(program, positions, tl.num_programs(0)):
        at = position * tl.full((), D, tl.int64)
        z = tl.load(total + at + columns, mask=inside, other=0.0)
        g = tl.load(grad_y + at + columns, mask=inside, other=0.0).to(tl.float32)
        if CENTRES:
            z = tl.where(inside, z - tl.load(statistics + positions + position), 0.0)
            for_bias += g
        inverse = tl.load(statistics + position)
        unit = z * inverse
        for_weight += g * unit
        scaled = g * scale
        through = scaled - unit * (tl.sum(scaled * unit, 0) / D)
        if CENTRES:
            through -= tl.sum(scaled, 0) / D
        through *= inverse
        if HAS_GRAD_TOTAL:
            through += tl.load(grad_total + at + columns, mask=inside, other=0.0)
        tl.store(grad_x + at + columns, through, mask=inside)
        if ADDS:
            if DROPS:
                through *= dropout_factors(tl.load(seed), at + columns, kept, threshold)
            tl.store(grad_branch + at + columns, through.to(grad_branch.dtype.element_ty), mask=inside)
    row = partial + program * ((1 + CENTRES) * D)
    tl.store(row + columns, for_weight, mask=inside)
    if CENTRES:
        tl.store(row + D + columns, for_bias, mask=inside)


@triton.jit
def _cos_and_sin(position, pair, P: tl.constexpr):
    """Return cosine and sine of position * 10,000^(-p / P), for a column of positions and a row of pairs p.

    Angles are whole numbers of 2^-64 turns. Overflow drops whole turns, so angles are exact at any position.
    """
    rate = tl.exp2(pair.to(tl.float64) * (-13.287712379549449 / P))  # log2(10,000)
    step = (rate * 2935890503282001226.0).to(tl.int64)  # 2^64 / (2 pi)
    angle = position.to(tl.int64)[:, None] * step[None, :]
    turns = (angle >> 32).to(tl.float32) * 2.3283064365386963e-10  # from -1/2 to 1/2
    quarter = tl.floor(turns * 4 + 0.5)
    r = (turns - quarter * 0.25) * 6.283185307179586
    square = r * r
    sine = r + r * square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    cosine = 1 + square * (-0.5 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    is_odd, is_half = (quarter == 1) | (quarter == -1), (quarter == 2) | (quarter == -2)
    cos, sin = tl.where(is_odd, sine, cosine), tl.where(is_odd, cosine, sine)
    return tl.where(is_half | (quarter == 1), -cos, cos), tl.where(is_half | (quarter == -1), -sin, sin)


@triton.jit
def _head(x, row, pair, inside, time, along_b, along_t, along_h, H: tl.constexpr, P: tl.constexpr):
    """Load both halves of heads; rows are ordered by sequence, token and head."""
    token, head = row // H, row % H
    start = (token // time) * along_b + (token % time) * along_t + head * along_h
    at = start[:, None] + pair[None, :]
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    return first, tl.load(x + at + P, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _turn(first, second, weight, plain, y, at, pair, inside, cos, sin, eps, NORMS, KEEPS, P: tl.constexpr):
    """Store heads turned, with NORMS after their RMSNorm; with KEEPS, also store them before they are turned."""
    if NORMS:
        inverse = 1 / tl.sqrt(tl.sum(first * first + second * second, 1) / (2 * P) + eps)[:, None]
        # Rounded before turning, like a key that is kept for later tokens.
        first = (first * inverse * tl.load(weight + pair, mask=pair < P)[None, :]).to(y.dtype.element_ty)
        second = (second * inverse * tl.load(weight + P + pair, mask=pair < P)[None, :]).to(y.dtype.element_ty)
        if KEEPS:
            tl.store(plain + at, first, mask=inside)
            tl.store(plain + at + P, second, mask=inside)
        first, second = first.to(tl.float32), second.to(tl.float32)
    tl.store(y + at, (first * cos - second * sin).to(y.dtype.element_ty), mask=inside)
    tl.store(y + at + P, (first * sin + second * cos).to(y.dtype.element_ty), mask=inside)


@triton.jit
def turn_rows(
    q,
    k,
    q_weight,
    k_weight,
    q_turned,
    k_turned,
    k_plain,
    rows,
    time,
    q_along_b,
    q_along_t,
    q_along_h,
    k_along_b,
    k_along_t,
    k_along_h,
    eps,
    NORMS: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Store ROWS heads of queries and of keys, turned by their positions, and the keys before turning."""
    row, pair = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PAIRS)
    inside = (row < rows)[:, None] & (pair < P)[None, :]
    cos, sin = _cos_and_sin(row // H % time, pair, P)
    at = row[:, None] * (2 * P) + pair[None, :]
    first, second = _head(q, row, pair, inside, time, q_along_b, q_along_t, q_along_h, H, P)
    _turn(first, second, q_weight, k_plain, q_turned, at, pair, inside, cos, sin, eps, NORMS, False, P)
    first, second = _head(k, row, pair, inside, time, k_along_b, k_along_t, k_along_h, H, P)
    _turn(first, second, k_weight, k_plain, k_turned, at, pair, inside, cos, sin, eps, NORMS, True, P)


@triton.jit
def _turn_back(grad, grad_plain, at, inside, cos, sin, HAS_PLAIN, P: tl.constexpr):
    """Return the gradients of both halves before they were turned."""
    g_first = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    g_second = tl.load(grad + at + P, mask=inside, other=0.0).to(tl.float32)
    first, second = g_first * cos + g_second * sin, g_second * cos - g_first * sin
    if HAS_PLAIN:
        first += tl.load(grad_plain + at, mask=inside, other=0.0).to(tl.float32)
        second += tl.load(grad_plain + at + P, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _halves(weight, pair, P: tl.constexpr):
    """Load both halves of a weight of heads, as rows."""
    first = tl.load(weight + pair, mask=pair < P, other=0.0)[None, :].to(tl.float32)
    return first, tl.load(weight + P + pair, mask=pair < P, other=0.0)[None, :].to(tl.float32)


@triton.jit
def _through_norm(first, second, g_first, g_second, w_first, w_second, grad, at, inside, eps, NORMS, P: tl.constexpr):
    """Store the gradients of both halves, with NORMS through RMSNorm; return those of its weights by row."""
    for_first, for_second = g_first * first, g_second * second
    if NORMS:
        inverse = 1 / tl.sqrt(tl.sum(first * first + second * second, 1) / (2 * P) + eps)[:, None]
        for_first, for_second = for_first * inverse, for_second * inverse
        mean = (tl.sum(for_first * w_first + for_second * w_second, 1) / (2 * P))[:, None]
        g_first = (g_first * w_first - first * inverse * mean) * inverse
        g_second = (g_second * w_second - second * inverse * mean) * inverse
    tl.store(grad + at, g_first.to(grad.dtype.element_ty), mask=inside)
    tl.store(grad + at + P, g_second.to(grad.dtype.element_ty), mask=inside)
    return for_first, for_second


@triton.jit
def turn_row_gradients(
    q,
    k,
    q_weight,
    k_weight,
    grad_q_turned,
    grad_k_turned,
    grad_k_plain,
    grad_q,
    grad_k,
    partial,
    rows,
    time,
    q_along_b,
    q_along_t,
    q_along_h,
    k_along_b,
    k_along_t,
    k_along_h,
    eps,
    HAS_PLAIN: tl.constexpr,
    NORMS: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Store the gradients of some heads of queries and keys, and this program's row of sums for both weights."""
    program, pair = tl.program_id(0), tl.arange(0, PAIRS)
    q_first, q_second = _halves(q_weight, pair, P)
    k_first, k_second = _halves(k_weight, pair, P)
    to_q_first, to_q_second = tl.zeros((ROWS, PAIRS), tl.float32), tl.zeros((ROWS, PAIRS), tl.float32)
    to_k_first, to_k_second = tl.zeros((ROWS, PAIRS), tl.float32), tl.zeros((ROWS, PAIRS), tl.float32)
    for start in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & (pair < P)[None, :]
        cos, sin = _cos_and_sin(row // H % time, pair, P)
        at = row[:, None] * (2 * P) + pair[None, :]
        g_first, g_second = _turn_back(grad_q_turned, grad_q_turned, at, inside, cos, sin, False, P)
        first, second = _head(q, row, pair, inside, time, q_along_b, q_along_t, q_along_h, H, P)
        given = (first, second, g_first, g_second, q_first, q_second)
        first, second = _through_norm(*given, grad_q, at, inside, eps, NORMS, P)
        to_q_first, to_q_second = to_q_first + first, to_q_second + second
        g_first, g_second = _turn_back(grad_k_turned, grad_k_plain, at, inside, cos, sin, HAS_PLAIN, P)
        first, second = _head(k, row, pair, inside, time, k_along_b, k_along_t, k_along_h, H, P)
        given = (first, second, g_first, g_second, k_first, k_second)
        first, second = _through_norm(*given, grad_k, at, inside, eps, NORMS, P)
        to_k_first, to_k_second = to_k_first + first, to_k_second + second
    if NORMS:
        own = partial + program * (4 * P) + pair
        tl.store(own, tl.sum(to_q_first, 0), mask=pair < P)
        tl.store(own + P, tl.sum(to_q_second, 0), mask=pair < P)
        tl.store(own + 2 * P, tl.sum(to_k_first, 0), mask=pair < P)
        tl.store(own + 3 * P, tl.sum(to_k_second, 0), mask=pair < P)


@triton.jit
def minus_softplus_elements(z, y, count, BLOCK: tl.constexpr):
    """Store -softplus(z) = -(max(z, 0) + log(1 + exp(-|z|))) of BLOCK elements."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    given = tl.load(z + place, mask=inside, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(given))
    # 1 + small is rounded; the second factor corrects for this (Kahan), so that small decays stay exact.
    total = 1 + small
    logarithm = tl.where(total == 1, small, tl.log(total) * (small / tl.where(total == 1, 1.0, total - 1)))
    out = -(tl.where(given > 0, given, 0.0) + logarithm)
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def minus_softplus_element_gradients(z, grad, grad_z, count, BLOCK: tl.constexpr):
    """Store the gradients of BLOCK elements."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    given = tl.load(z + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_z + place, (-g * tl.sigmoid(given)).to(grad_z.dtype.element_ty), mask=inside)
