"""Run the gated delta rule on the CPU, in float32. Needs numba.

A task is one head of one sequence. It walks through chunks of 16 tokens with the state in the cache, forward from the
first chunk to the last, backward from the last to the first. As the state before a chunk is known, the triangular
system has the columns of the values alone:

    M = lower(K K^T) G;   P = lower(Q K^T) G;   X = (I + strictly lower(beta M))^-1 beta (V - exp(b) K S)
    O = P X + (Q exp(b)) S;   S <- exp(B) S + (K exp(B - b))^T X

The forward pass keeps M, P, X and the state before each chunk. Of G = exp(b_i - b_j), see samout_train.ops.head_decay.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.head_decay import load_spans, store_span_gradients
from samout_train.ops.head_layout import CHUNK
from samout_train.ops.numba_support import call_at, compiled, num_threads
from samout_train.ops.tiles import (
    ONE,
    ROWS,
    add_lower_product,
    add_lower_transposed,
    add_outer,
    dot,
    fill_product,
    fill_with_outer,
    inner,
    load,
    matrices_at,
    multiply,
    own_places,
    padded,
    places,
    product_at,
    scale,
    scale_into,
    store,
    transpose,
)

Q, K, V, BETA, DECAY, STATE, OUT, LAST, BEFORE, SCORES, WRITTEN = range(11)
GRAD_OUT, GRAD_LAST, GRAD_Q, GRAD_K, GRAD_V, GRAD_BETA, GRAD_DECAY, GRAD_STATE = range(11, 19)


def forward(*tensors: Tensor | None) -> None:
    """Fill o and the last state; and for the backward pass states, scores and what is written, if they are given.

    Args:
        tensors: As numbered from Q to WRITTEN.
    """
    _run(_forward, tensors)


def backward(*tensors: Tensor | None) -> None:
    """Fill the gradients.

    Args:
        tensors: As numbered from Q to GRAD_STATE; O and LAST are not read.
    """
    _run(_backward, tensors)


def _run(kernel: Any, tensors: tuple[Tensor | None, ...]) -> None:
    q_BHTK, v_BHTV = tensors[Q], tensors[V]
    assert q_BHTK is not None and v_BHTV is not None
    call_at(kernel, num_threads(), *places(*tensors), *q_BHTK.shape, v_BHTV.shape[3])


@compiled(parallel=True)
def _forward(at: Any, steps: Any, batch: int, heads: int, time: int, keys: int, values: int) -> None:
    for task in numba.prange(batch * heads):
        _forward_head(own_places(at, steps, task // heads, task % heads), steps[:, 2], time, keys, values)


@inner
def _forward_head(at: Any, step: Any, time: int, keys: int, values: int) -> None:
    wide_keys, wide_values = padded(keys), padded(values)
    q, k, v, x, o = _rows(wide_keys), _rows(wide_keys), _rows(wide_values), _rows(wide_values), _rows(wide_values)
    columns = np.empty((wide_keys, CHUNK), np.float32)
    scores, overlap, lower, between, beta = _rows(CHUNK), _rows(CHUNK), _rows(CHUNK), _rows(CHUNK), _rows(1)
    since = np.empty(CHUNK, np.float32)
    chunks = (time + CHUNK - 1) // CHUNK
    states = np.zeros((1, wide_keys, wide_values), np.float32)
    if at[BEFORE]:
        states = matrices_at(at[BEFORE], chunks + 1, wide_keys, wide_values)
    has_state = at[STATE] != 0
    states[0] = 0
    if has_state:
        load(states[0], at[STATE], values, keys, values)
    for chunk in range(chunks):
        t = chunk * CHUNK
        count = min(CHUNK, time - t)
        load(q, at[Q] + 4 * t * step[Q], step[Q], count, keys)
        load(k, at[K] + 4 * t * step[K], step[K], count, keys)
        load(v, at[V] + 4 * t * step[V], step[V], count, values)
        load(beta, at[BETA] + 4 * t * step[BETA], step[BETA], count, 1)
        load_spans(between, since, at[DECAY] + 4 * t * step[DECAY], step[DECAY], count)
        transpose(columns, k)
        fill_product(overlap, k, columns)
        multiply(overlap, between)
        fill_product(scores, q, columns)
        multiply(scores, between)
        state, following = states[min(chunk, len(states) - 1)], states[min(chunk + 1, len(states) - 1)]
        over = np.float32(0)
        if has_state:
            over = since[-1]
            fill_product(x, k, state)
            scale(q, since)
            fill_product(o, q, state)
        else:
            x[:], o[:] = 0, 0
        for i in range(CHUNK):
            _fill_known(x[i], v[i], beta[i, 0], since[i])
        _fill_lower(lower, overlap, beta)
        _solve(x, lower)
        add_lower_product(o, scores, x)
        if at[SCORES]:
            store(scores, at[SCORES] + 4 * chunk * step[SCORES], CHUNK, CHUNK, CHUNK)
            store(overlap, at[SCORES] + 4 * (chunk * step[SCORES] + CHUNK * CHUNK), CHUNK, CHUNK, CHUNK)
            store(x, at[WRITTEN] + 4 * chunk * step[WRITTEN], wide_values, CHUNK, wide_values)
        store(o, at[OUT] + 4 * t * step[OUT], step[OUT], count, values)
        scale(k, between[-1])
        fill_with_outer(following, state, over, k, x)
        has_state = True
    store(states[-1], at[LAST], values, keys, values)


@compiled(parallel=True)
def _backward(at: Any, steps: Any, batch: int, heads: int, time: int, keys: int, values: int) -> None:
    for task in numba.prange(batch * heads):
        _backward_head(own_places(at, steps, task // heads, task % heads), steps[:, 2], time, keys, values)


@inner
def _backward_head(at: Any, step: Any, time: int, keys: int, values: int) -> None:
    wide_keys, wide_values = padded(keys), padded(values)
    chunks = (time + CHUNK - 1) // CHUNK
    states = matrices_at(at[BEFORE], chunks + 1, wide_keys, wide_values)
    grad_state = np.zeros((wide_keys, wide_values), np.float32)
    is_last = at[GRAD_LAST] == 0  # nothing reads the state after this chunk
    if not is_last:
        load(grad_state, at[GRAD_LAST], values, keys, values)
    q, k, spare = _rows(wide_keys), _rows(wide_keys), _rows(wide_keys)
    grad_q, grad_k = _rows(wide_keys), _rows(wide_keys)
    v, x, y, grad_o = _rows(wide_values), _rows(wide_values), _rows(wide_values), _rows(wide_values)
    scores, overlap, between = _rows(CHUNK), _rows(CHUNK), _rows(CHUNK)
    of_scores, of_overlap, lower = _rows(CHUNK), _rows(CHUNK), _rows(CHUNK)
    beta, of_beta = _rows(1), _rows(1)
    since, of_since, of_until = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    wide, columns = np.empty((wide_values, CHUNK), np.float32), np.empty((wide_keys, CHUNK), np.float32)
    for chunk in range(chunks - 1, -1, -1):
        t = chunk * CHUNK
        count = min(CHUNK, time - t)
        load(q, at[Q] + 4 * t * step[Q], step[Q], count, keys)
        load(k, at[K] + 4 * t * step[K], step[K], count, keys)
        load(v, at[V] + 4 * t * step[V], step[V], count, values)
        load(beta, at[BETA] + 4 * t * step[BETA], step[BETA], count, 1)
        load(grad_o, at[GRAD_OUT] + 4 * t * step[GRAD_OUT], step[GRAD_OUT], count, values)
        load(scores, at[SCORES] + 4 * chunk * step[SCORES], CHUNK, CHUNK, CHUNK)
        load(overlap, at[SCORES] + 4 * (chunk * step[SCORES] + CHUNK * CHUNK), CHUNK, CHUNK, CHUNK)
        load(x, at[WRITTEN] + 4 * chunk * step[WRITTEN], wide_values, CHUNK, wide_values)
        load_spans(between, since, at[DECAY] + 4 * t * step[DECAY], step[DECAY], count)
        has_state = chunk > 0 or at[STATE] != 0
        of_whole = np.float32(0)
        if has_state and not is_last:
            of_whole = since[-1] * dot(states[chunk].reshape(-1), grad_state.reshape(-1))
        transpose(wide, x)
        _return_from_later(y, grad_k, of_until, grad_state, is_last, k, between[-1], wide, columns, spare)
        add_lower_transposed(y, scores, grad_o)
        _fill_lower(lower, overlap, beta)
        _solve_transposed(y, lower)
        fill_product(of_scores, grad_o, wide)
        fill_product(of_overlap, y, wide)
        _fill_beta(of_beta, y, v, of_overlap, overlap)
        grad_q[:], of_since[:] = 0, 0
        if has_state:
            state = states[chunk]
            _return_to_queries(grad_q, of_since, state, q, since, grad_o, wide, columns)
            _return_to_keys(grad_k, of_beta, of_since, state, k, beta, since, y, wide, columns, spare)
            _return_before(grad_state, q, k, beta, since, y, grad_o, spare)
        for i in range(CHUNK):
            _finish_scores(i, beta[i, 0], between[i], scores[i], overlap[i], of_scores[i], of_overlap[i])
            _fill_multiple(v[i], y[i], beta[i, 0])
        _return_inside(grad_q, grad_k, of_scores, of_overlap, q, k)
        store(grad_q, at[GRAD_Q] + 4 * t * step[GRAD_Q], step[GRAD_Q], count, keys)
        store(grad_k, at[GRAD_K] + 4 * t * step[GRAD_K], step[GRAD_K], count, keys)
        store(v, at[GRAD_V] + 4 * t * step[GRAD_V], step[GRAD_V], count, values)
        store(of_beta, at[GRAD_BETA] + 4 * t * step[GRAD_BETA], step[GRAD_BETA], count, 1)
        place = at[GRAD_DECAY] + 4 * t * step[GRAD_DECAY]
        store_span_gradients(scores, of_since, of_until, of_whole, place, step[GRAD_DECAY], count)
        is_last = False
    if at[GRAD_STATE]:
        store(grad_state, at[GRAD_STATE], values, keys, values)


@inner
def _return_from_later(
    y_CV: Any,
    grad_k_CK: Any,
    of_until_C: Any,
    grad_state_KV: Any,
    is_last: Any,
    k_CK: Any,
    until_C: Any,
    written_VC: Any,
    columns_KC: Any,
    spare_CK: Any,
) -> None:
    """Fill the gradients by way of the state after the chunk: of what is written, of keys, and of decays until then."""
    if is_last:
        y_CV[:], grad_k_CK[:], of_until_C[:] = 0, 0, 0
        return
    scale_into(spare_CK, k_CK, until_C)
    fill_product(y_CV, spare_CK, grad_state_KV)
    fill_product(columns_KC, grad_state_KV, written_VC)
    transpose(grad_k_CK, columns_KC)
    _scale_and_sum(grad_k_CK, until_C, k_CK, of_until_C)


@inner
def _return_to_queries(
    grad_q_CK: Any,
    of_since_C: Any,
    state_KV: Any,
    q_CK: Any,
    since_C: Any,
    grad_o_CV: Any,
    wide_VC: Any,
    columns_KC: Any,
) -> None:
    """Fill the gradients of queries that read the state before the chunk, and of decays since then."""
    transpose(wide_VC, grad_o_CV)
    fill_product(columns_KC, state_KV, wide_VC)
    transpose(grad_q_CK, columns_KC)
    _scale_and_sum(grad_q_CK, since_C, q_CK, of_since_C)


@inner
def _return_to_keys(
    grad_k_CK: Any,
    of_beta_C1: Any,
    of_since_C: Any,
    state_KV: Any,
    k_CK: Any,
    beta_C1: Any,
    since_C: Any,
    y_CV: Any,
    wide_VC: Any,
    columns_KC: Any,
    spare_CK: Any,
) -> None:
    """Add the gradients of keys that read the state before the chunk, and of their beta and decays since then."""
    transpose(wide_VC, y_CV)
    fill_product(columns_KC, state_KV, wide_VC)
    transpose(spare_CK, columns_KC)
    for i in range(CHUNK):
        reads = since_C[i] * dot(k_CK[i], spare_CK[i])
        of_beta_C1[i, 0] -= reads
        of_since_C[i] -= beta_C1[i, 0] * reads
        _add_multiple(grad_k_CK[i], spare_CK[i], -beta_C1[i, 0] * since_C[i])


@inner
def _return_before(
    grad_state_KV: Any, q_CK: Any, k_CK: Any, beta_C1: Any, since_C: Any, y_CV: Any, grad_o_CV: Any, spare_CK: Any
) -> None:
    """Turn the gradient of the state after the chunk into that of the state before it."""
    scale_into(spare_CK, q_CK, since_C)
    fill_with_outer(grad_state_KV, grad_state_KV, since_C[-1], spare_CK, grad_o_CV)
    for i in range(CHUNK):
        _fill_multiple(spare_CK[i], k_CK[i], -beta_C1[i, 0] * since_C[i])
    add_outer(grad_state_KV, spare_CK, y_CV)


@inner
def _return_inside(grad_q_CK: Any, grad_k_CK: Any, of_scores_CC: Any, of_overlap_CC: Any, q_CK: Any, k_CK: Any) -> None:
    """Add the gradients of queries and keys that meet inside of the chunk."""
    add_lower_product(grad_q_CK, of_scores_CC, k_CK)
    add_lower_transposed(grad_k_CK, of_scores_CC, q_CK)
    add_lower_product(grad_k_CK, of_overlap_CC, k_CK)
    add_lower_transposed(grad_k_CK, of_overlap_CC, k_CK)


@inner
def _rows(width: int) -> Any:
    return np.zeros((CHUNK, width), np.float32)


@inner
def _fill_known(x_V: Any, v_V: Any, beta: Any, since: Any) -> None:
    """Turn what a key reads from the state into the right side of its equation."""
    for d in range(len(x_V)):
        x_V[d] = beta * (v_V[d] - since * x_V[d])


@inner
def _fill_lower(lower_CC: Any, overlap_CC: Any, beta_C1: Any) -> None:
    """Fill the matrix of the triangular system without its diagonal, times -1; 0 on and above the diagonal."""
    for i in range(CHUNK):
        for j in range(CHUNK):
            lower_CC[i, j] = -beta_C1[i, 0] * overlap_CC[i, j] if j < i else np.float32(0)


@inner
def _solve(x_CV: Any, lower_CC: Any) -> None:
    """Solve (I - lower) X = B in place, from the first rows to the last."""
    width = x_CV.shape[1]
    for row in range(0, CHUNK, ROWS):
        if row > 0:
            at, a = x_CV.ctypes.data + 4 * row * width, lower_CC.ctypes.data + 4 * row * CHUNK
            product_at(at, at, ONE, width, a, CHUNK, 1, x_CV.ctypes.data, width, ROWS, width, row)
        for i in range(row + 1, row + ROWS):
            for j in range(row, i):
                _add_multiple(x_CV[i], x_CV[j], lower_CC[i, j])


@inner
def _solve_transposed(y_CV: Any, lower_CC: Any) -> None:
    """Solve (I - lower)^T Y = B in place, from the last rows to the first."""
    width = y_CV.shape[1]
    for row in range(CHUNK - ROWS, -1, -ROWS):
        after = row + ROWS
        if after < CHUNK:
            at, a = y_CV.ctypes.data + 4 * row * width, lower_CC.ctypes.data + 4 * (after * CHUNK + row)
            below = y_CV.ctypes.data + 4 * after * width
            product_at(at, at, ONE, width, a, 1, CHUNK, below, width, ROWS, width, CHUNK - after)
        for j in range(after - 2, row - 1, -1):
            for i in range(j + 1, after):
                _add_multiple(y_CV[j], y_CV[i], lower_CC[i, j])


@inner
def _scale_and_sum(a_CK: Any, factors_C: Any, b_CK: Any, sums_C: Any) -> None:
    """Multiply rows by factors, and fill their products with other rows."""
    scale(a_CK, factors_C)
    for i in range(CHUNK):
        sums_C[i] = dot(a_CK[i], b_CK[i])


@inner
def _fill_beta(of_beta_C1: Any, y_CV: Any, v_CV: Any, of_overlap_CC: Any, overlap_CC: Any) -> None:
    """Fill the gradients of beta, without the share of the state before the chunk."""
    for i in range(CHUNK):
        total = dot(y_CV[i], v_CV[i])
        for j in range(i):
            total -= of_overlap_CC[i, j] * overlap_CC[i, j]
        of_beta_C1[i, 0] = total


@inner
def _finish_scores(
    i: Any, beta: Any, between_C: Any, scores_C: Any, overlap_C: Any, of_scores_C: Any, of_overlap_C: Any
) -> None:
    """Turn a row of the gradients of X's products into those of Q K^T and K K^T, and of the log-decays between."""
    for j in range(CHUNK):
        of_overlap = -beta * of_overlap_C[j] if j < i else np.float32(0)
        scores_C[j] = of_scores_C[j] * scores_C[j] + of_overlap * overlap_C[j]
        of_scores_C[j] *= between_C[j]
        of_overlap_C[j] = of_overlap * between_C[j]


@numba.njit(error_model="numpy", no_cpython_wrapper=True, fastmath={"contract"})
def _add_multiple(out_V: Any, a_V: Any, factor: Any) -> None:
    for d in range(len(out_V)):
        out_V[d] += factor * a_V[d]


@inner
def _fill_multiple(out_V: Any, a_V: Any, factor: Any) -> None:
    for d in range(len(out_V)):
        out_V[d] = factor * a_V[d]
