"""The causal convolution on CUDA in Triton's language. cuda.py calls the kernels.

A program owns some channels of a tile of rows, unrolled in registers, with the rows before it that its convolution
reaches. For gradients a program walks over tiles, and also has the rows after each.
"""

# D width, K rows that an output takes together, T rows of the output, S of the input: the first S - T precede it

import triton
import triton.language as tl


@triton.jit
def _rows(x, first, along, rows, channels, inside, COUNT: tl.constexpr):
    """Return COUNT rows from `first` on in their stored dtype, 0 where there are none."""
    loaded = ()
    for j in tl.static_range(COUNT):
        place = tl.full(channels.shape, 0, tl.int32) + (first + j)
        exists = inside & (place >= 0) & (place < rows)
        loaded = loaded + (tl.load(x + place.to(tl.int64) * along + channels, mask=exists, other=0.0),)
    return loaded


@triton.jit
def _taps(weight, channels, inside, K: tl.constexpr):
    """Return the kernel of each channel, (D, K) in memory, from the earliest row to the last."""
    taps = ()
    for j in tl.static_range(K):
        taps = taps + (tl.load(weight + channels * K + j, mask=inside, other=0.0),)
    return taps


@triton.jit
def _before_silu(rows, taps, start, i: tl.constexpr, K: tl.constexpr):
    total = start
    for j in tl.static_range(K):
        total += rows[i + j].to(tl.float32) * taps[j]
    return total


@triton.jit
def convolution_rows(
    whole,
    weight,
    bias,
    y,
    time,
    lead,
    along_b,
    along_t,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store ROWS rows of one sequence."""
    channels, b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(2).to(tl.int64)
    inside, first = channels < D, tl.program_id(1) * ROWS
    rows = _rows(whole + b * along_b, first + lead - K + 1, along_t, time + lead, channels, inside, ROWS + K - 1)
    taps, start = _taps(weight, channels, inside, K), tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + channels, mask=inside, other=0.0)
    for i in tl.static_range(ROWS):
        out = _before_silu(rows, taps, start, i, K)
        if SILU:
            out = out * tl.sigmoid(out)
        exists = inside & (tl.full((BLOCK,), 0, tl.int32) + (first + i) < time)
        tl.store(y + (b * time + first + i) * D + channels, out.to(y.dtype.element_ty), mask=exists)


@triton.jit
def convolution_row_gradients(
    whole,
    weight,
    bias,
    grad_y,
    grad_whole,
    partial,
    batch,
    time,
    lead,
    along_b,
    along_t,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the gradients of some tiles of the input, and their sums for weight (D, K) and bias (D)."""
    channels, program = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside, tiles = channels < D, tl.cdiv(time + lead, ROWS)
    taps, start = _taps(weight, channels, inside, K), tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + channels, mask=inside, other=0.0)
    sums = ()
    for _ in tl.static_range(K + 1):
        sums = sums + (tl.zeros((BLOCK,), tl.float32),)
    for tile in range(program, batch * tiles, tl.num_programs(1)):
        b, first = (tile // tiles).to(tl.int64), tile % tiles * ROWS
        rows = _rows(whole + b * along_b, first - K + 1, along_t, time + lead, channels, inside, ROWS + 2 * K - 2)
        grads = _rows(grad_y + b * time * D, first - lead, D, time, channels, inside, ROWS + K - 1)
        through = ()
        for i in tl.static_range(ROWS + K - 1):
            g = grads[i].to(tl.float32)
            if SILU:
                before = _before_silu(rows, taps, start, i, K)
                share = tl.sigmoid(before)
                g = g * share * (1 + before * (1 - share))
            through = through + (g,)
        for i in tl.static_range(ROWS):
            sums = _with_row(sums, rows, through, i, K)
            out = tl.zeros((BLOCK,), tl.float32)
            for j in tl.static_range(K):
                out += through[i + K - 1 - j] * taps[j]
            exists = inside & (tl.full((BLOCK,), 0, tl.int32) + (first + i) < time + lead)
            place = (b * (time + lead) + first + i) * D
            tl.store(grad_whole + place + channels, out.to(grad_whole.dtype.element_ty), mask=exists)
    own = partial + program * ((K + 1) * D)
    for j in tl.static_range(K):
        tl.store(own + channels * K + j, sums[j], mask=inside)
    tl.store(own + D * K + channels, sums[K], mask=inside)


@triton.jit
def _with_row(sums, rows, through, i: tl.constexpr, K: tl.constexpr):
    """Add the contribution of row i of a tile to the gradients of the taps and of the bias."""
    added = ()
    for j in tl.static_range(K):
        added = added + (sums[j] + through[i] * rows[i + j].to(tl.float32),)
    return added + (sums[K] + through[i],)
