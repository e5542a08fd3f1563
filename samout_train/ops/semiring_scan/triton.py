"""Scan elementwise on CUDA in Triton's language, over (+, *) and (max, min).

A program steps row by row through a chunk of time, BLOCK channels in one warp. Chunks run in parallel: a chunk maps the
h before it to product * h + total. A pass over each chunk computes both, and a pass over the chunks gives the h before
each. For either semiring, the backward pass is a linear scan in reversed time. The share `through` of a gradient passes
to the token before: a, or 1 if the minimum and the maximum let h through.
"""

# D width

import triton
import triton.language as tl


@triton.jit
def _product(a, h, MAX_MIN: tl.constexpr):
    return tl.where((a <= h) | (a != a), a, h) if MAX_MIN else a * h


@triton.jit
def _sum(kept, x, MAX_MIN: tl.constexpr):
    return tl.where((x >= kept) | (x != x), x, kept) if MAX_MIN else kept + x


@triton.jit
def _load_rows(rows, D: tl.constexpr, left, ROWS: tl.constexpr):
    """Return ROWS rows from the pointers `rows` on, 0 where fewer are `left`; all loads are under way together."""
    loaded = ()
    for j in tl.static_range(ROWS):
        loaded = loaded + (tl.load(rows + j * D, mask=j < left, other=0.0),)
    return loaded


@triton.jit
def scan_totals(
    a, x, products, totals, time, rows,
    MAX_MIN: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the map of a chunk from the h before it: the sum of `totals` and the product of `products` and h."""
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    product = tl.full((BLOCK,), float("inf") if MAX_MIN else 1.0, tl.float32)
    total = tl.full((BLOCK,), float("-inf") if MAX_MIN else 0.0, tl.float32)
    for t in range(start, stop, ROWS):
        at = (b * time + t) * D + channels
        left = tl.where(channels < D, stop - t, 0)
        a_rows, x_rows = _load_rows(a + at, D, left, ROWS), _load_rows(x + at, D, left, ROWS)
        for j in tl.static_range(ROWS):
            product = tl.where(j < left, _product(a_rows[j], product, MAX_MIN), product)
            total = tl.where(j < left, _sum(_product(a_rows[j], total, MAX_MIN), x_rows[j], MAX_MIN), total)
    place = (b * tl.num_programs(1) + chunk) * D + channels
    tl.store(products + place, product, mask=channels < D)
    tl.store(totals + place, total, mask=channels < D)


@triton.jit
def scan_starts(
    state, products, totals, starts, last, chunks,
    MAX_MIN: tl.constexpr, BACKWARD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store h before each chunk, and after the last; with BACKWARD, go from the last chunk to the first."""
    channels, b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    h = tl.load(state + b * D + channels, mask=channels < D, other=0.0)
    for step in range(chunks):
        chunk = chunks - 1 - step if BACKWARD else step
        place = (b * chunks + chunk) * D + channels
        tl.store(starts + place, h, mask=channels < D)
        product = tl.load(products + place, mask=channels < D, other=0.0)
        total = tl.load(totals + place, mask=channels < D, other=0.0)
        h = _sum(_product(product, h, MAX_MIN), total, MAX_MIN)
    tl.store(last + b * D + channels, h, mask=channels < D)


@triton.jit
def scan_forward(
    a, x, starts, h, time, rows,
    MAX_MIN: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store h of a chunk, from h before it."""
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = (b * tl.num_programs(1) + chunk) * D + channels
    now = tl.load(starts + place, mask=channels < D, other=0.0)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    for t in range(start, stop, ROWS):
        at = (b * time + t) * D + channels
        left = tl.where(channels < D, stop - t, 0)
        a_rows, x_rows = _load_rows(a + at, D, left, ROWS), _load_rows(x + at, D, left, ROWS)
        for j in tl.static_range(ROWS):
            now = _sum(_product(a_rows[j], now, MAX_MIN), x_rows[j], MAX_MIN)
            tl.store(h + at + j * D, now, mask=j < left)


@triton.jit
def _shares(a, x, before, MAX_MIN: tl.constexpr):
    """Return the shares of a gradient of h that x, a and h before the token get."""
    if MAX_MIN:
        is_capped = (a <= before) | (a != a)
        kept = tl.where(is_capped, a, before)
        is_new = (x >= kept) | (x != x)
        of_x, of_a = tl.where(is_new, 1.0, 0.0), tl.where(is_capped & ~is_new, 1.0, 0.0)
        return of_x, of_a, 1.0 - of_x - of_a
    return tl.full(a.shape, 1.0, tl.float32), before, a


@triton.jit
def _backward_tile(
    a, x, h, state, grad_h, t, start, stop, b, time, channels,
    MAX_MIN: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Return a tile's rows of a, x, the gradient of h and the h before each row, and how many rows are left."""
    at = (b * time + t) * D + channels
    left = tl.where(channels < D, stop - t, 0)
    a_rows, grads = _load_rows(a + at, D, left, ROWS), _load_rows(grad_h + at, D, left, ROWS)
    x_rows = a_rows
    if MAX_MIN:
        x_rows = _load_rows(x + at, D, left, ROWS)
    pointers = tl.where(t == 0, state + b * D + channels, h + at - D)
    befores = (tl.load(pointers, mask=left > 0, other=0.0),)
    befores = befores + _load_rows(h + at, D, left, ROWS - 1)
    return a_rows, x_rows, grads, befores, left


@triton.jit
def scan_gradient_totals(
    a, x, h, state, grad_h, products, totals, time, rows,
    MAX_MIN: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a chunk's map from the gradient that later tokens give its last h to that of the h before the chunk."""
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    product, total = tl.full((BLOCK,), 1.0, tl.float32), tl.zeros((BLOCK,), tl.float32)
    for back in range(tl.cdiv(stop - start, ROWS)):
        t = start + (tl.cdiv(stop - start, ROWS) - 1 - back) * ROWS
        a_rows, x_rows, grads, befores, left = _backward_tile(
            a, x, h, state, grad_h, t, start, stop, b, time, channels, MAX_MIN, D, ROWS
        )
        for j in tl.static_range(ROWS - 1, -1, -1):
            _, _, through = _shares(a_rows[j], x_rows[j], befores[j], MAX_MIN)
            total = tl.where(j < left, (total + grads[j]) * through, total)
            product = tl.where(j < left, product * through, product)
    place = (b * tl.num_programs(1) + chunk) * D + channels
    tl.store(products + place, product, mask=channels < D)
    tl.store(totals + place, total, mask=channels < D)


@triton.jit
def scan_backward(
    a, x, h, state, grad_h, starts, grad_a, grad_x, time, rows,
    MAX_MIN: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the gradients of a and x in a chunk, given the gradient that later tokens give its last h."""
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = (b * tl.num_programs(1) + chunk) * D + channels
    later = tl.load(starts + place, mask=channels < D, other=0.0)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    for back in range(tl.cdiv(stop - start, ROWS)):
        t = start + (tl.cdiv(stop - start, ROWS) - 1 - back) * ROWS
        a_rows, x_rows, grads, befores, left = _backward_tile(
            a, x, h, state, grad_h, t, start, stop, b, time, channels, MAX_MIN, D, ROWS
        )
        at = (b * time + t) * D + channels
        for j in tl.static_range(ROWS - 1, -1, -1):
            of_x, of_a, through = _shares(a_rows[j], x_rows[j], befores[j], MAX_MIN)
            grad = later + grads[j]
            tl.store(grad_x + at + j * D, of_x * grad, mask=j < left)
            tl.store(grad_a + at + j * D, of_a * grad, mask=j < left)
            later = tl.where(j < left, through * grad, later)
