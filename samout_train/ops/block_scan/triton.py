"""Run max-plus blocks on CUDA in Triton's language.

A lane owns one block and walks through a chunk of time row by row, with its entries and ROWS rows of all streams in
registers. cuda.py lists the passes in order. Each program reads the temperature from the device, so that the host does
not wait and the kernel does not change with it; at 0 the maxima and their gradients are the hard ones.
"""

# N entries a block, G blocks, V vectors of G in a row of the packed streams: e and c of N each, L of N N

import triton
import triton.language as tl

FAR = tl.constexpr(-1e30)  # start of entries outside a program's column: differences of infinities would be NaN


@triton.jit
def _heat(temperature, SOFT: tl.constexpr):
    """Return the temperature and its inverse; at 0, an inverse so large that only equal entries count."""
    tau = 0.0
    if SOFT:
        tau = tl.load(temperature).to(tl.float32)
    return tau, 1.0 / tl.maximum(tau, 1e-30)


@triton.jit
def _lanes(COLUMNS: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr):
    """Return the blocks of a program, the same for COLUMNS programs, and which of them exist."""
    blocks = tl.program_id(0) // COLUMNS * BLOCK + tl.arange(0, BLOCK)
    return blocks, blocks < G


@triton.jit
def _load(pointers, inside, COUNT: tl.constexpr, G: tl.constexpr):
    loaded = ()
    for number in tl.static_range(COUNT):
        loaded = loaded + (tl.load(pointers + number * G, mask=inside, other=0.0),)
    return loaded


@triton.jit
def _store(pointers, vectors, inside, COUNT: tl.constexpr, G: tl.constexpr):
    for number in tl.static_range(COUNT):
        tl.store(pointers + number * G, vectors[number], mask=inside)


@triton.jit
def _load_rows(rows, left, COUNT: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    """Return COUNT vectors of each of ROWS rows, 0 where fewer rows are `left`; all loads are under way together."""
    loaded = ()
    for row in tl.static_range(ROWS):
        loaded = loaded + _load(rows + row * COUNT * G, row < left, COUNT, G)
    return loaded


@triton.jit
def _maximum(terms, heat, N: tl.constexpr, SOFT: tl.constexpr):
    """Return the largest of N terms, at the temperature; NaN persists."""
    best = terms[0]
    for j in tl.static_range(1, N):
        best = tl.where((terms[j] > best) | (terms[j] != terms[j]), terms[j], best)
    if SOFT:
        tau, inverse = heat
        total = tl.exp((terms[0] - best) * inverse)
        for j in tl.static_range(1, N):
            total += tl.exp((terms[j] - best) * inverse)
        best += tau * tl.log(total)
    return best


@triton.jit
def _step(loaded, FIRST: tl.constexpr, m, heat, N: tl.constexpr, SOFT: tl.constexpr):
    """Return the state after a row whose logits begin at FIRST of what is loaded, and the row-normalised logits."""
    after, steps = (), ()
    for i in tl.static_range(N):
        logits = ()
        for j in tl.static_range(N):
            logits = logits + (loaded[FIRST + i * N + j].to(tl.float32),)
        top = _maximum(logits, heat, N, SOFT)
        terms = ()
        for j in tl.static_range(N):
            steps = steps + (logits[j] - top,)
            terms = terms + (steps[i * N + j] + m[j],)
        after = after + (_maximum(terms, heat, N, SOFT),)
    return after, steps


@triton.jit
def _kept(is_row, after, before, N: tl.constexpr):
    """Return `after`, or `before` where the row does not exist."""
    kept = ()
    for i in tl.static_range(N):
        kept = kept + (tl.where(is_row, after[i], before[i]),)
    return kept


@triton.jit
def _mean(entries, FIRST: tl.constexpr, N: tl.constexpr):
    total = entries[FIRST]
    for i in tl.static_range(1, N):
        total += entries[FIRST + i]
    return total * (1.0 / N)


@triton.jit
def block_maps(
    packed, temperature, maps, time, rows,
    SOFT: tl.constexpr, N: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a column of a chunk's matrix: the state after it, starting from one entry at 0 and the others far below."""
    V: tl.constexpr = (2 + N) * N
    blocks, inside = _lanes(N, G, BLOCK)
    column = tl.program_id(0) % N
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heat = _heat(temperature, SOFT)
    m = ()
    for i in tl.static_range(N):
        m = m + (tl.full((BLOCK,), 0.0, tl.float32) + tl.where(column == i, 0.0, FAR),)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    for t in range(start, stop, ROWS):
        left = tl.where(inside, stop - t, 0)
        loaded = _load_rows(packed + (b * time + t) * V * G + blocks, left, V, G, ROWS)
        for row in tl.static_range(ROWS):
            after = _step(loaded, row * V + 2 * N, m, heat, N, SOFT)[0]
            m = _kept(row < left, after, m, N)
    place = ((b * tl.num_programs(1) + chunk) * N + column) * N * G + blocks
    _store(maps + place, m, inside, N, G)


@triton.jit
def block_starts(
    state, temperature, maps, starts, chunks,
    SOFT: tl.constexpr, N: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the state before each chunk, from the first to the last."""
    blocks, inside = _lanes(1, G, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    heat = _heat(temperature, SOFT)
    m = _load(state + b * N * G + blocks, inside, N, G)
    for chunk in range(chunks):
        place = (b * chunks + chunk) * N * G
        _store(starts + place + blocks, m, inside, N, G)
        columns = _load(maps + place * N + blocks, inside, N * N, G)
        after = ()
        for i in tl.static_range(N):
            terms = ()
            for j in tl.static_range(N):
                terms = terms + (columns[j * N + i] + m[j],)
            after = after + (_maximum(terms, heat, N, SOFT),)
        m = after


@triton.jit
def block_forward(
    packed, temperature, starts, y, last, carries, time, rows,
    SOFT: tl.constexpr, N: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the forward pass of one chunk of one sequence, from the state before it, for BLOCK blocks."""
    V: tl.constexpr = (2 + N) * N
    blocks, inside = _lanes(1, G, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heat = _heat(temperature, SOFT)
    m = _load(starts + (b * tl.num_programs(1) + chunk) * N * G + blocks, inside, N, G)
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    for t in range(start, stop, ROWS):
        left = tl.where(inside, stop - t, 0)
        loaded = _load_rows(packed + (b * time + t) * V * G + blocks, left, V, G, ROWS)
        _store(carries + (b * tl.cdiv(time, ROWS) + t // ROWS) * N * G + blocks, m, inside, N, G)
        for row in tl.static_range(ROWS):
            after = _step(loaded, row * V + 2 * N, m, heat, N, SOFT)[0]
            mean = _mean(after, 0, N)
            at = y + (b * time + t + row) * N * G + blocks
            for i in tl.static_range(N):
                e, c = loaded[row * V + i].to(tl.float32), loaded[row * V + N + i].to(tl.float32)
                v = after[i] - mean
                tl.store(at + i * G, ((e * v + c) * v).to(y.dtype.element_ty), mask=row < left)
            m = _kept(row < left, after, m, N)
    if stop == time:
        _store(last + b * N * G + blocks, m, inside, N, G)


@triton.jit
def _share(below, free, heat, SOFT: tl.constexpr):
    """Return a term's share of a maximum's gradient; `below` is term - maximum. If hard, the first of equals has it."""
    share = tl.where((below == 0.0) | (below != below), free, 0.0)
    if SOFT:
        tau, inverse = heat
        share = tl.where(tau > 0.0, tl.exp(below * inverse), share)
    return share


@triton.jit
def _output_gradients(
    grads, loaded, after, pointers, is_row,
    ROW: tl.constexpr, N: tl.constexpr, G: tl.constexpr, STORES: tl.constexpr,
):  # fmt: skip
    """Return the gradients of a row's state through its output; store those of e and c."""
    V: tl.constexpr = (2 + N) * N
    mean = _mean(after, (ROW + 1) * N, N)
    of_v, of_m = (), ()
    for i in tl.static_range(N):
        e, c = loaded[ROW * V + i].to(tl.float32), loaded[ROW * V + N + i].to(tl.float32)
        g, v = grads[ROW * N + i].to(tl.float32), after[(ROW + 1) * N + i] - mean
        grad_c = g * v
        of_v = of_v + (2.0 * grad_c * e + g * c,)
        if STORES:
            tl.store(pointers + i * G, (grad_c * v).to(pointers.dtype.element_ty), mask=is_row)
            tl.store(pointers + (N + i) * G, grad_c.to(pointers.dtype.element_ty), mask=is_row)
    mean = _mean(of_v, 0, N)
    for i in tl.static_range(N):
        of_m = of_m + (of_v[i] - mean,)
    return of_m


@triton.jit
def _step_gradients(
    later, states, steps, pointers, is_row, heat,
    ROW: tl.constexpr, N: tl.constexpr, G: tl.constexpr, SOFT: tl.constexpr, STORES: tl.constexpr,
):  # fmt: skip
    """Return the gradients of the state before a row from those after it; store those of the logits."""
    before = ()
    for j in tl.static_range(N):
        before = before + (tl.zeros_like(later[j]),)
    for i in tl.static_range(N):
        of_row_left, of_state_left = tl.full(later[i].shape, 1.0, tl.float32), tl.full(later[i].shape, 1.0, tl.float32)
        added = ()
        for j in tl.static_range(N):
            step = steps[(ROW * N + i) * N + j]
            of_row = _share(step, of_row_left, heat, SOFT)
            of_state = _share(step + states[ROW * N + j] - states[(ROW + 1) * N + i], of_state_left, heat, SOFT)
            of_row_left, of_state_left = of_row_left - of_row, of_state_left - of_state
            added = added + (before[j] + later[i] * of_state,)
            if STORES:
                grad = later[i] * (of_state - of_row)
                tl.store(pointers + (2 * N + i * N + j) * G, grad.to(pointers.dtype.element_ty), mask=is_row)
        before = added
    return before


@triton.jit
def _backward_rows(
    later, of_output, pointers, heat, blocks, inside, chunk, b, time, rows,
    SOFT: tl.constexpr, N: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, STORES: tl.constexpr,
):  # fmt: skip
    """Return the gradients of the state before a chunk from those after it; store those of the streams.

    A tile's states are recomputed from the carry before it. Without `of_output`, outputs add nothing.
    """
    V: tl.constexpr = (2 + N) * N
    packed, carries, grad_y, grad_packed = pointers
    start = chunk * rows
    stop = tl.minimum(start + rows, time)
    tiles = tl.cdiv(stop - start, ROWS)
    for back in range(tiles):
        t = start + (tiles - 1 - back) * ROWS
        left = tl.where(inside, stop - t, 0)
        at = (b * time + t) * V * G + blocks
        loaded = _load_rows(packed + at, left, V, G, ROWS)
        grads = _load_rows(grad_y + (b * time + t) * N * G + blocks, left, N, G, ROWS)
        m = _load(carries + (b * tl.cdiv(time, ROWS) + t // ROWS) * N * G + blocks, inside, N, G)
        states, steps = m, ()
        for row in tl.static_range(ROWS):
            m, of_row = _step(loaded, row * V + 2 * N, m, heat, N, SOFT)
            states, steps = states + m, steps + of_row
        for row in tl.static_range(ROWS - 1, -1, -1):
            to, is_row = grad_packed + at + row * V * G, row < left
            of_m = _output_gradients(grads, loaded, states, to, is_row, row, N, G, STORES)
            total = ()
            for i in tl.static_range(N):
                total = total + (later[i] + (of_m[i] if STORES else tl.where(of_output, of_m[i], 0.0)),)
            before = _step_gradients(total, states, steps, to, is_row, heat, row, N, G, SOFT, STORES)
            later = _kept(is_row, before, later, N)
    return later


@triton.jit
def block_gradient_maps(
    packed, temperature, carries, grad_y, maps, time, rows,
    SOFT: tl.constexpr, N: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a row of a chunk's map from the gradients after it to those before it; the last is what its outputs add."""
    blocks, inside = _lanes(N + 1, G, BLOCK)
    column = tl.program_id(0) % (N + 1)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    later = ()
    for i in tl.static_range(N):
        later = later + (tl.full((BLOCK,), 0.0, tl.float32) + tl.where(column == i, 1.0, 0.0),)
    pointers, heat = (packed, carries, grad_y, packed), _heat(temperature, SOFT)
    before = _backward_rows(
        later, column == N, pointers, heat, blocks, inside, chunk, b, time, rows, SOFT, N, G, ROWS, False
    )
    place = ((b * tl.num_programs(1) + chunk) * (N + 1) + column) * N * G + blocks
    _store(maps + place, before, inside, N, G)


@triton.jit
def block_gradient_starts(grad_last, maps, laters, chunks, N: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr):
    """Store the gradients of the state after each chunk, from the last to the first."""
    blocks, inside = _lanes(1, G, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    later = _load(grad_last + b * N * G + blocks, inside, N, G)
    for back in range(chunks):
        place = (b * chunks + chunks - 1 - back) * N * G
        _store(laters + place + blocks, later, inside, N, G)
        lines = _load(maps + place * (N + 1) + blocks, inside, (N + 1) * N, G)
        before = ()
        for j in tl.static_range(N):
            total = lines[N * N + j]
            for i in tl.static_range(N):
                total += later[i] * lines[i * N + j]
            before = before + (total,)
        later = before


@triton.jit
def block_backward(
    packed, temperature, carries, grad_y, laters, grad_packed, grad_state, time, rows,
    SOFT: tl.constexpr, N: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the backward pass of one chunk of one sequence, from the gradients after it, for BLOCK blocks."""
    blocks, inside = _lanes(1, G, BLOCK)
    chunk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    later = _load(laters + (b * tl.num_programs(1) + chunk) * N * G + blocks, inside, N, G)
    pointers, heat = (packed, carries, grad_y, grad_packed), _heat(temperature, SOFT)
    before = _backward_rows(later, True, pointers, heat, blocks, inside, chunk, b, time, rows, SOFT, N, G, ROWS, True)
    if chunk == 0:
        _store(grad_state + b * N * G + blocks, before, inside, N, G)
