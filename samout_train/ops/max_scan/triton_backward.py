"""The backward pass on CUDA: tiles from the last to the first, each computed again from the maximum before it."""

# D width, P packed: the streams side by side

import triton
import triton.language as tl

from samout_train.ops.max_scan.forms import CODES
from samout_train.ops.max_scan.triton_rows import channels_of, later_of, load_rows, store_row

SCAN, V8 = tl.constexpr(CODES["scan"]), tl.constexpr(CODES["v8"])


@triton.jit
def _mix_gradients(
    pointers, m, g, first, c, j: tl.constexpr, left, FORM: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr
):
    """Stores the gradients of a row's first two streams; returns that of its maximum."""
    grad_c = g * m
    if FORM == V8:
        store_row(pointers, grad_c * m, j, left, WHOLE)
        grad = 2 * grad_c * first + g * c
    else:
        store_row(pointers, g, j, left, WHOLE)
        grad = g * (2 * m + c)
    store_row(pointers + D, grad_c, j, left, WHOLE)
    return grad


@triton.jit
def _backward_tile(
    r,
    kept,
    newest,
    pointers,
    t,
    left,
    channels,
    b,
    time,
    FORM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Gradients of ROWS rows, from `r`, the gradient of the maximum after them; returns that of the maximum before
    them, and the last row that held a new maximum with what it was given."""
    packed, decay, carries, grad_y, grad_packed, grad_decay = pointers
    at, at_y = (b * time + t) * P + channels, (b * time + t) * D + channels
    d_rows = load_rows(packed + at + P - D, P, left, float("-inf"), ROWS, WHOLE)
    g_rows = load_rows(grad_y + at_y, D, left, 0.0, ROWS, WHOLE)
    if HAS_DECAY:
        a_rows = load_rows(decay + at_y, D, left, 0.0, ROWS, WHOLE)
    if FORM != SCAN:
        first_rows = load_rows(packed + at, P, left, 0.0, ROWS, WHOLE)
        c_rows = load_rows(packed + at + D, P, left, 0.0, ROWS, WHOLE)
    m = tl.load(carries + (b * tl.cdiv(time, ROWS) + t // ROWS) * D + channels, mask=left > 0, other=0.0)
    m_rows = ()
    for j in tl.static_range(ROWS):
        if HAS_DECAY:
            m = m + a_rows[j]
        m = later_of(m, d_rows[j])
        m_rows = m_rows + (m,)
    for j in tl.static_range(ROWS - 1, -1, -1):
        m, d, g = m_rows[j], d_rows[j], g_rows[j]
        grad = g
        if FORM != SCAN:
            grad = _mix_gradients(grad_packed + at + j * P, m, g, first_rows[j], c_rows[j], j, left, FORM, D, WHOLE)
        is_new = (d == m) | (d != d)
        if not WHOLE:  # a row that is not there adds nothing, whatever infinity times zero is
            grad, is_new = tl.where(j < left, grad, 0.0), is_new & (j < left)
        r = r + grad
        kept, newest = tl.where(is_new & (newest < 0), r, kept), tl.where(is_new & (newest < 0), t + j, newest)
        store_row(grad_packed + at + j * P + P - D, tl.where(is_new, r, 0.0), j, left, WHOLE)
        r = tl.where(is_new, 0.0, r)
        if HAS_DECAY:
            store_row(grad_decay + at_y + j * D, r, j, left, WHOLE)
    return r, kept, newest


@triton.jit
def backward_chunk(
    packed,
    decay,
    carries,
    grad_y,
    grad_last,
    grad_packed,
    grad_decay,
    outs,
    kepts,
    news,
    time,
    rows,
    FORM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one sequence, BLOCK channels, as if nothing came after it but the end."""
    channels, inside = channels_of(D, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    tiles = (stop - start) // ROWS
    r = tl.load(grad_last + b * D + channels, mask=channels < tl.where(stop == time, D, 0), other=0.0)
    kept, newest = tl.zeros((BLOCK,), tl.float32), tl.full((BLOCK,), -1, tl.int32)
    pointers = (packed, decay, carries, grad_y, grad_packed, grad_decay)
    if start + tiles * ROWS < stop:
        t = start + tiles * ROWS
        left = tl.where(inside, stop - t, 0)
        r, kept, newest = _backward_tile(
            r, kept, newest, pointers, t, left, channels, b, time, FORM, HAS_DECAY, D, P, ROWS, False
        )
    for tile in range(tiles):
        t = start + (tiles - 1 - tile) * ROWS
        left = tl.where(inside, ROWS, 0)
        r, kept, newest = _backward_tile(
            r, kept, newest, pointers, t, left, channels, b, time, FORM, HAS_DECAY, D, P, ROWS, D % BLOCK == 0
        )
    place = (b * tl.num_programs(1) + chunk) * D + channels
    tl.store(outs + place, r, mask=inside)
    tl.store(kepts + place, kept, mask=inside)
    tl.store(news + place, newest, mask=inside)


@triton.jit
def chunk_gradients(outs, news, laters, grad_state, chunks, D: tl.constexpr, BLOCK: tl.constexpr):
    """What later chunks add to the gradient of the maximum after each chunk, from the last to the first."""
    channels, inside = channels_of(D, BLOCK)
    b = tl.program_id(1)
    later = tl.zeros((BLOCK,), tl.float32)
    for back in range(chunks):
        place = (b * chunks + chunks - 1 - back) * D + channels
        tl.store(laters + place, later, mask=inside)
        through = tl.where(tl.load(news + place, mask=inside, other=0) < 0, later, 0.0)
        later = tl.load(outs + place, mask=inside, other=0.0) + through
    tl.store(grad_state + b * D + channels, later, mask=inside)


@triton.jit
def add_later(
    grad_packed,
    grad_decay,
    kepts,
    news,
    laters,
    time,
    rows,
    HAS_DECAY: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds it where it ends up: in the row of the last new maximum, and to the decays behind that row."""
    channels, inside = channels_of(D, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = (b * (tl.num_programs(1) + 1) + chunk) * D + channels
    later, newest = tl.load(laters + place, mask=inside, other=0.0), tl.load(news + place, mask=inside, other=-1)
    given = (tl.load(kepts + place, mask=inside, other=0.0) + later).to(grad_packed.dtype.element_ty)
    rewritten = (b * time + newest) * P + P - D + channels
    tl.store(grad_packed + rewritten, given, mask=inside & (newest >= 0))
    if HAS_DECAY:
        stop = (chunk + 1) * rows
        first = tl.maximum(tl.min(tl.where(inside, newest, stop)), chunk * rows - 1) + 1
        for t in range(first, stop):
            pointers = grad_decay + (b * time + t) * D + channels
            touched = inside & (t > newest)
            old = tl.load(pointers, mask=touched, other=0.0).to(tl.float32)
            tl.store(pointers, (old + later).to(grad_decay.dtype.element_ty), mask=touched)
