"""The CUDA kernels in Triton's language: rows, the forward pass, the backward pass.

A program of the forward pass walks row by row in one warp, in chunks of time that run in parallel. A program of the
backward pass takes tiles from the last to the first and recomputes each from the maximum before it. cuda.py calls the
kernels, and tests/ops/test_fused.py compares them with reference.py.
"""

# D width, P packed: the streams side by side

import triton
import triton.language as tl

from samout_train.ops.max_scan.reference import CODES

SCAN, V8 = tl.constexpr(CODES["scan"]), tl.constexpr(CODES["v8"])


@triton.jit
def _channels_of(D: tl.constexpr, BLOCK: tl.constexpr):
    """Return the channels of a program and a mask of those that exist."""
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return channels, channels < D


@triton.jit
def _load_rows(rows, step: tl.constexpr, left, other: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """Return ROWS rows in their stored dtype, from the pointers `rows` on; `other` where fewer are `left`.

    All loads come before stores. Rows are converted to float32 only where they are used, because a conversion waits for
    its load.
    """
    loaded = ()
    for j in tl.static_range(ROWS):
        row = tl.load(rows + j * step) if WHOLE else tl.load(rows + j * step, mask=j < left, other=other)
        loaded = loaded + (row,)
    return loaded


@triton.jit
def _store_row(row_pointers, row, j: tl.constexpr, left, WHOLE: tl.constexpr):
    """Store row j of a tile in the dtype of its pointers, if at least j + 1 rows are `left`."""
    row = row.to(row_pointers.dtype.element_ty)
    if WHOLE:
        tl.store(row_pointers, row)
    else:
        tl.store(row_pointers, row, mask=j < left)


@triton.jit
def _later_of(before, d):
    """Return the maximum of `before` and `d` as torch.cummax does: the later of equal values, and NaN persists."""
    return tl.where((d >= before) | (d != d), d, before)


@triton.jit
def chunk_totals(
    packed,
    decay,
    maxima,
    decays,
    time,
    rows,
    HAS_DECAY: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store a chunk's `maxima` and `decays`, which turn the maximum m before it into max(m + decays, maxima) after."""
    channels, inside = _channels_of(D, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = chunk * rows
    m, total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for t in range(start, tl.minimum(start + rows, time), ROWS):
        left = tl.where(inside, time - t, 0)
        d_rows = _load_rows(packed + (b * time + t) * P + P - D + channels, P, left, float("-inf"), ROWS, False)
        if HAS_DECAY:
            a_rows = _load_rows(decay + (b * time + t) * D + channels, D, left, 0.0, ROWS, False)
        for j in tl.static_range(ROWS):
            if HAS_DECAY:
                m, total = m + a_rows[j].to(tl.float32), total + a_rows[j].to(tl.float32)
            m = _later_of(m, d_rows[j].to(tl.float32))
    place = (b * tl.num_programs(1) + chunk) * D + channels
    tl.store(maxima + place, m, mask=inside)
    tl.store(decays + place, total, mask=inside)


@triton.jit
def chunk_starts(state, maxima, decays, starts, chunks, HAS_STATE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Store the maximum before each chunk, from the first to the last."""
    channels, inside = _channels_of(D, BLOCK)
    b = tl.program_id(1)
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    if HAS_STATE:
        m = tl.load(state + b * D + channels, mask=inside)
    for chunk in range(chunks):
        place = (b * chunks + chunk) * D + channels
        tl.store(starts + place, m, mask=inside)
        m = _later_of(m + tl.load(decays + place, mask=inside), tl.load(maxima + place, mask=inside))


@triton.jit
def _tile_rows(
    packed,
    decay,
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
    """Load ROWS rows of d, then of the first stream and c if the form has them, then of the decay."""
    at = (b * time + t) * P + channels
    loaded = _load_rows(packed + at + P - D, P, left, float("-inf"), ROWS, WHOLE)
    if FORM != SCAN:
        loaded = loaded + _load_rows(packed + at, P, left, 0.0, ROWS, WHOLE)
        loaded = loaded + _load_rows(packed + at + D, P, left, 0.0, ROWS, WHOLE)
    if HAS_DECAY:
        loaded = loaded + _load_rows(decay + (b * time + t) * D + channels, D, left, 0.0, ROWS, WHOLE)
    return loaded


@triton.jit
def _forward_tile(
    m,
    loaded,
    y,
    carries,
    t,
    left,
    channels,
    b,
    time,
    FORM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Store ROWS rows of y, computed from the rows that `_tile_rows` loaded; return the maximum after them."""
    tl.store(carries + (b * tl.cdiv(time, ROWS) + t // ROWS) * D + channels, m, mask=left > 0)
    for j in tl.static_range(ROWS):
        if HAS_DECAY:
            m = m + loaded[len(loaded) - ROWS + j].to(tl.float32)
        m = _later_of(m, loaded[j].to(tl.float32))
        out = m
        if FORM != SCAN:
            first, c = loaded[ROWS + j].to(tl.float32), loaded[2 * ROWS + j].to(tl.float32)
            out = (first * m + c) * m if FORM == V8 else (m + c) * m + first
        _store_row(y + (b * time + t + j) * D + channels, out, j, left, WHOLE)
    return m


@triton.jit
def forward_chunk(
    packed,
    decay,
    starts,
    y,
    last,
    carries,
    time,
    rows,
    HAS_STATE: tl.constexpr,
    FORM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Run the forward pass of one chunk of one sequence for BLOCK channels."""
    channels, inside = _channels_of(D, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    if HAS_STATE:
        m = tl.load(starts + (b * tl.num_programs(1) + chunk) * D + channels, mask=inside, other=0.0)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    whole = start + (stop - start) // ROWS * ROWS
    if start < whole:
        # The loads of a tile are under way while the tile before it is computed.
        left = tl.where(inside, ROWS, 0)
        loaded = _tile_rows(packed, decay, start, left, channels, b, time, FORM, HAS_DECAY, D, P, ROWS, D % BLOCK == 0)
        for t in range(start + ROWS, whole, ROWS):
            ahead = _tile_rows(packed, decay, t, left, channels, b, time, FORM, HAS_DECAY, D, P, ROWS, D % BLOCK == 0)
            m = _forward_tile(
                m, loaded, y, carries, t - ROWS, left, channels, b, time, FORM, HAS_DECAY, D, ROWS, D % BLOCK == 0
            )
            loaded = ahead
        m = _forward_tile(
            m, loaded, y, carries, whole - ROWS, left, channels, b, time, FORM, HAS_DECAY, D, ROWS, D % BLOCK == 0
        )
    if whole < stop:
        left = tl.where(inside, stop - whole, 0)
        place = (b * tl.cdiv(time, ROWS) + whole // ROWS) * D + channels
        tl.store(carries + place, m, mask=inside)
        loaded = _tile_rows(packed, decay, whole, left, channels, b, time, FORM, HAS_DECAY, D, P, ROWS, False)
        # Reading the maximum behind a barrier puts it after all loads. Otherwise ptxas computes with each row before
        # it loads the next one, and their latencies add up.
        tl.debug_barrier()
        m = tl.load(carries + place, mask=inside, other=0.0)
        m = _forward_tile(m, loaded, y, carries, whole, left, channels, b, time, FORM, HAS_DECAY, D, ROWS, False)
    if stop == time:
        tl.store(last + b * D + channels, m, mask=inside)


@triton.jit
def _mix_gradients(
    pointers, m, g, first, c, j: tl.constexpr, left, FORM: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr
):
    """Store the gradients of a row's first two streams; return that of its maximum."""
    grad_c = g * m
    if FORM == V8:
        _store_row(pointers, grad_c * m, j, left, WHOLE)
        grad = 2 * grad_c * first + g * c
    else:
        _store_row(pointers, g, j, left, WHOLE)
        grad = g * (2 * m + c)
    _store_row(pointers + D, grad_c, j, left, WHOLE)
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
    """Store the gradients of ROWS rows, given `r`, the gradient of the maximum after them.

    Return the gradient of the maximum before them, the gradient of the last new maximum, and its row."""
    packed, decay, carries, grad_y, grad_packed, grad_decay = pointers
    at, at_y = (b * time + t) * P + channels, (b * time + t) * D + channels
    d_rows = _load_rows(packed + at + P - D, P, left, float("-inf"), ROWS, WHOLE)
    g_rows = _load_rows(grad_y + at_y, D, left, 0.0, ROWS, WHOLE)
    if HAS_DECAY:
        a_rows = _load_rows(decay + at_y, D, left, 0.0, ROWS, WHOLE)
    if FORM != SCAN:
        first_rows = _load_rows(packed + at, P, left, 0.0, ROWS, WHOLE)
        c_rows = _load_rows(packed + at + D, P, left, 0.0, ROWS, WHOLE)
    # Without a barrier ptxas moves each load to its use, and their latencies add up.
    tl.debug_barrier()
    m = tl.load(carries + (b * tl.cdiv(time, ROWS) + t // ROWS) * D + channels, mask=left > 0, other=0.0)
    m_rows = ()
    for j in tl.static_range(ROWS):
        if HAS_DECAY:
            m = m + a_rows[j].to(tl.float32)
        m = _later_of(m, d_rows[j].to(tl.float32))
        m_rows = m_rows + (m,)
    for j in tl.static_range(ROWS - 1, -1, -1):
        m, d, g = m_rows[j], d_rows[j].to(tl.float32), g_rows[j].to(tl.float32)
        grad = g
        if FORM != SCAN:
            first, c = first_rows[j].to(tl.float32), c_rows[j].to(tl.float32)
            grad = _mix_gradients(grad_packed + at + j * P, m, g, first, c, j, left, FORM, D, WHOLE)
        is_new = (d == m) | (d != d)
        if not WHOLE:  # a row past the end adds nothing; infinity times zero would be NaN
            grad, is_new = tl.where(j < left, grad, 0.0), is_new & (j < left)
        r = r + grad
        kept, newest = tl.where(is_new & (newest < 0), r, kept), tl.where(is_new & (newest < 0), t + j, newest)
        _store_row(grad_packed + at + j * P + P - D, tl.where(is_new, r, 0.0), j, left, WHOLE)
        r = tl.where(is_new, 0.0, r)
        if HAS_DECAY:
            _store_row(grad_decay + at_y + j * D, r, j, left, WHOLE)
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
    HAS_GRAD_LAST: tl.constexpr,
    FORM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Run the backward pass of one chunk of one sequence for BLOCK channels, without the gradients of later chunks."""
    channels, inside = _channels_of(D, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    tiles = (stop - start) // ROWS
    r = tl.zeros((BLOCK,), tl.float32)
    if HAS_GRAD_LAST:
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
    """Store what later chunks add to the gradient of the maximum after each chunk, from the last to the first."""
    channels, inside = _channels_of(D, BLOCK)
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
    """Add the gradient of later chunks to the row of a chunk's last new maximum and to the decays after that row."""
    channels, inside = _channels_of(D, BLOCK)
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
