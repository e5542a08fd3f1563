"""The forward pass on CUDA: row by row in one warp, in chunks of time that run side by side."""

# D width, P packed: the streams side by side

import triton
import triton.language as tl

from samout_train.ops.max_scan.forms import CODES
from samout_train.ops.max_scan.triton_rows import channels_of, later_of, load_rows, store_row

SCAN, V8 = tl.constexpr(CODES["scan"]), tl.constexpr(CODES["v8"])


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
    """What a chunk makes of the maximum before it: max(m + decays, maxima)."""
    channels, inside = channels_of(D, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = chunk * rows
    m, total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for t in range(start, tl.minimum(start + rows, time), ROWS):
        left = tl.where(inside, time - t, 0)
        d_rows = load_rows(packed + (b * time + t) * P + P - D + channels, P, left, float("-inf"), ROWS, False)
        if HAS_DECAY:
            a_rows = load_rows(decay + (b * time + t) * D + channels, D, left, 0.0, ROWS, False)
        for j in tl.static_range(ROWS):
            if HAS_DECAY:
                m, total = m + a_rows[j], total + a_rows[j]
            m = later_of(m, d_rows[j])
    place = (b * tl.num_programs(1) + chunk) * D + channels
    tl.store(maxima + place, m, mask=inside)
    tl.store(decays + place, total, mask=inside)


@triton.jit
def chunk_starts(state, maxima, decays, starts, chunks, D: tl.constexpr, BLOCK: tl.constexpr):
    """The maximum before each chunk, from the first to the last."""
    channels, inside = channels_of(D, BLOCK)
    b = tl.program_id(1)
    m = tl.load(state + b * D + channels, mask=inside)
    for chunk in range(chunks):
        place = (b * chunks + chunk) * D + channels
        tl.store(starts + place, m, mask=inside)
        m = later_of(m + tl.load(decays + place, mask=inside), tl.load(maxima + place, mask=inside))


@triton.jit
def _forward_tile(
    m,
    packed,
    decay,
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
    P: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """ROWS rows of y; returns the maximum after them."""
    at = (b * time + t) * P + channels
    d_rows = load_rows(packed + at + P - D, P, left, float("-inf"), ROWS, WHOLE)
    if HAS_DECAY:
        a_rows = load_rows(decay + (b * time + t) * D + channels, D, left, 0.0, ROWS, WHOLE)
    if FORM != SCAN:
        first_rows = load_rows(packed + at, P, left, 0.0, ROWS, WHOLE)
        c_rows = load_rows(packed + at + D, P, left, 0.0, ROWS, WHOLE)
    tl.store(carries + (b * tl.cdiv(time, ROWS) + t // ROWS) * D + channels, m, mask=left > 0)
    for j in tl.static_range(ROWS):
        if HAS_DECAY:
            m = m + a_rows[j]
        m = later_of(m, d_rows[j])
        out = m
        if FORM == V8:
            out = (first_rows[j] * m + c_rows[j]) * m
        elif FORM != SCAN:
            out = (m + c_rows[j]) * m + first_rows[j]
        store_row(y + (b * time + t + j) * D + channels, out, j, left, WHOLE)
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
    FORM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one sequence, BLOCK channels."""
    channels, inside = channels_of(D, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    m = tl.load(starts + (b * tl.num_programs(1) + chunk) * D + channels, mask=inside, other=0.0)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    whole = start + (stop - start) // ROWS * ROWS
    for t in range(start, whole, ROWS):
        left = tl.where(inside, ROWS, 0)
        m = _forward_tile(
            m, packed, decay, y, carries, t, left, channels, b, time, FORM, HAS_DECAY, D, P, ROWS, D % BLOCK == 0
        )
    if whole < stop:
        left = tl.where(inside, stop - whole, 0)
        m = _forward_tile(
            m, packed, decay, y, carries, whole, left, channels, b, time, FORM, HAS_DECAY, D, P, ROWS, False
        )
    if stop == time:
        tl.store(last + b * D + channels, m, mask=inside)
