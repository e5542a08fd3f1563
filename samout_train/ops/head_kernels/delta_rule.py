"""Compute a chunk of the gated delta rule, forward and backward.

The state before a chunk is known, so the right-hand side of the triangular system has only the columns of the values:

    M = lower(K K^T) G;   P = lower(Q K^T) G;   X = (I + strictly lower(beta M))^-1 beta (V - exp(b) K S)
    O = P X + (Q exp(b)) S;   S <- exp(B) S + (K exp(B - b))^T X

The forward pass keeps P, M, X and the state before each chunk. decays.py computes G = exp(b_i - b_j).
"""

# C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import numpy as np

from samout_train.ops.head_kernels.decays import (
    gradient_of_whole,
    load_spans,
    return_from_later,
    store_span_gradients,
)
from samout_train.ops.head_kernels.layout import CHUNK
from samout_train.ops.head_kernels.tile_code import ROWS
from samout_train.ops.head_kernels.tiles import (
    ONE,
    add_lower_product,
    add_lower_transposed,
    add_multiple,
    clear,
    contracted,
    dot,
    fill_multiple,
    fill_product,
    fill_with_outer,
    fill_with_transposed,
    inner,
    load,
    multiply,
    padded,
    product_at,
    scale,
    scale_into,
    store,
    transpose,
)
from samout_train.ops.head_kernels.walk import (
    BETA,
    DECAY,
    GRAD_BETA,
    GRAD_DECAY,
    KEPT,
    HeadKernel,
    rows,
    walk_backward,
    walk_forward,
    with_adjacent,
)

OVERLAP, WRITTEN = 4 * CHUNK * CHUNK, 8 * CHUNK * CHUNK  # offsets of a chunk's M and X from its P, in bytes


@HeadKernel
def forward(at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any) -> None:
    """See samout_train.ops.head_kernels.walk.walk_forward."""
    columns, since = np.zeros((padded(keys), CHUNK), np.float32), np.zeros(CHUNK, np.float32)
    scratch = columns, since, rows(1), rows(CHUNK), rows(CHUNK), rows(CHUNK), rows(CHUNK), rows(padded(values))
    walk_forward(at, steps, task, heads, time, keys, values, _compute, scratch)


@inner
def _compute(given: Any, scratch: Any) -> None:
    here, step, count, ahead, _, q, k, v, o, state, following, has_state = given
    columns, since, beta, between, scores, overlap, lower, x = scratch
    load(beta, here[BETA], step[BETA], count, 1)
    load_spans(between, since, here[DECAY], step[DECAY], count)
    transpose(columns, k)
    fill_product(overlap, k, columns, ahead)
    multiply(overlap, between)
    fill_product(scores, q, columns, ahead)
    multiply(scores, between)
    over = np.float32(0)
    if has_state:
        over = since[-1]
        fill_product(x, k, state, ahead)
        scale(q, since)
        fill_product(o, q, state, ahead)
    else:
        clear(x)
        clear(o)
    for i in range(CHUNK):
        _fill_known(x[i], v[i], beta[i, 0], since[i])
    _fill_lower(lower, overlap, beta)
    _solve(x, lower, ahead)
    add_lower_product(o, scores, x, ahead)
    if here[KEPT]:
        store(scores, here[KEPT], CHUNK, CHUNK, CHUNK)
        store(overlap, here[KEPT] + OVERLAP, CHUNK, CHUNK, CHUNK)
        store(x, here[KEPT] + WRITTEN, x.shape[1], CHUNK, x.shape[1])
    scale(k, between[-1])
    fill_with_outer(following, state, over, k, x, ahead)


@HeadKernel
def backward(at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any) -> None:
    """See samout_train.ops.head_kernels.walk.walk_backward."""
    columns, wide = np.zeros((padded(keys), CHUNK), np.float32), np.zeros((padded(values), CHUNK), np.float32)
    columns_2 = np.zeros((padded(keys), 2 * CHUNK), np.float32)
    wide_2 = np.zeros((padded(values), 2 * CHUNK), np.float32)
    of_readers = columns_2, wide_2, np.zeros((2 * CHUNK, padded(keys)), np.float32)
    of_tokens = np.zeros((3, CHUNK), np.float32), rows(1), rows(1)
    pairs = rows(CHUNK), rows(CHUNK), rows(CHUNK), rows(CHUNK), rows(CHUNK), rows(CHUNK)
    scratch = columns, wide, of_readers, of_tokens, pairs, rows(padded(values)), rows(padded(keys))
    walk_backward(at, steps, task, heads, time, keys, values, _compute_gradients, scratch)


@inner
def _compute_gradients(given: Any, scratch: Any) -> None:
    here, step, count, ahead, _, q, k, v, grad_o, grads, state, grad_state, has_state, is_last = given
    grad_q, grad_k, y = grads
    columns, wide, of_readers, of_tokens, pairs, x, spare = scratch
    of_decays, beta, of_beta = of_tokens
    since, of_since, of_until = of_decays[0], of_decays[1], of_decays[2]
    scores, overlap, between, of_scores, of_overlap, lower = pairs
    load(beta, here[BETA], step[BETA], count, 1)
    load(scores, here[KEPT], CHUNK, CHUNK, CHUNK)
    load(overlap, here[KEPT] + OVERLAP, CHUNK, CHUNK, CHUNK)
    load(x, here[KEPT] + WRITTEN, x.shape[1], CHUNK, x.shape[1])
    load_spans(between, since, here[DECAY], step[DECAY], count)
    of_whole = gradient_of_whole(since, state, grad_state, has_state, is_last)
    transpose(wide, x)
    return_from_later(grad_k, y, of_until, grad_state, is_last, k, between[-1], wide, columns, spare, ahead)
    add_lower_transposed(y, scores, grad_o, ahead)
    _fill_lower(lower, overlap, beta)
    _solve_transposed(y, lower, ahead)
    fill_product(of_scores, grad_o, wide, ahead)
    fill_product(of_overlap, y, wide, ahead)
    _fill_beta(of_beta, y, v, of_overlap, overlap)
    _return_to_readers(
        grad_q, grad_k, of_beta, of_since, state, has_state, q, k, beta, since, grad_o, of_readers, ahead
    )
    _fill_lower(lower, of_overlap, beta)
    for i in range(CHUNK):
        _fill_between(scores[i], of_scores[i], lower[i], overlap[i])
    multiply(of_scores, between)
    multiply(lower, between)
    scale(y, beta[:, 0])
    _return_inside(grad_q, grad_k, of_scores, lower, q, k, ahead)
    if has_state:
        _return_before(grad_state, q, k, since, grad_o, ahead)
    store(of_beta, here[GRAD_BETA], step[GRAD_BETA], count, 1)
    store_span_gradients(scores, of_since, of_until, of_whole, here[GRAD_DECAY], step[GRAD_DECAY], count)


@inner
def _return_to_readers(
    grad_q_CK: Any,
    grad_k_CK: Any,
    of_beta_C1: Any,
    of_since_C: Any,
    state_KV: Any,
    has_state: Any,
    q_CK: Any,
    k_CK: Any,
    beta_C1: Any,
    since_C: Any,
    grad_o_CV: Any,
    scratch: Any,
    ahead: Any,
) -> None:
    """Fill or add the gradients through the state before the chunk: of queries, keys, beta and decays.

    Queries and keys share one product, so that the state is read once.
    """
    if not has_state:
        clear(grad_q_CK)
        for i in range(CHUNK):
            of_since_C[i] = 0
        return
    columns, wide, reads = scratch
    transpose(wide, with_adjacent(grad_o_CV))  # grad_o and y
    fill_with_transposed(reads, state_KV, wide, columns, ahead)
    scale_into(grad_q_CK, reads[:CHUNK], since_C)
    for i in range(CHUNK):
        read = since_C[i] * dot(k_CK[i], reads[CHUNK + i])
        of_beta_C1[i, 0] -= read
        of_since_C[i] = dot(grad_q_CK[i], q_CK[i]) - beta_C1[i, 0] * read
        add_multiple(grad_k_CK[i], reads[CHUNK + i], -beta_C1[i, 0] * since_C[i])


@inner
def _return_before(grad_state_KV: Any, q_CK: Any, k_CK: Any, since_C: Any, grad_o_CV: Any, ahead: Any) -> None:
    """Turn the gradient of the state after the chunk into that of the state before it; overwrites q, k and since."""
    whole = since_C[-1]
    scale(q_CK, since_C)
    for i in range(CHUNK):
        since_C[i] = -since_C[i]
    scale(k_CK, since_C)
    readers, written = with_adjacent(q_CK), with_adjacent(grad_o_CV)
    fill_with_outer(grad_state_KV, grad_state_KV, whole, readers, written, ahead)


@inner
def _return_inside(
    grad_q_CK: Any, grad_k_CK: Any, of_scores_CC: Any, of_overlap_CC: Any, q_CK: Any, k_CK: Any, ahead: Any
) -> None:
    """Add the gradients of queries and keys from pairs of tokens inside the chunk."""
    add_lower_product(grad_q_CK, of_scores_CC, k_CK, ahead)
    add_lower_transposed(grad_k_CK, of_scores_CC, q_CK, ahead)
    add_lower_product(grad_k_CK, of_overlap_CC, k_CK, ahead)
    add_lower_transposed(grad_k_CK, of_overlap_CC, k_CK, ahead)


@inner
def _fill_known(x_V: Any, v_V: Any, beta: Any, since: Any) -> None:
    """Turn the value that a key reads from the state into the right-hand side of its equation."""
    for d in range(len(x_V)):
        x_V[d] = beta * (v_V[d] - since * x_V[d])


@inner
def _fill_lower(lower_CC: Any, overlap_CC: Any, beta_C1: Any) -> None:
    """Fill minus the strictly lower part of the triangular system's matrix; 0 on and above the diagonal.

    Given the gradients of that matrix instead of the overlap, it fills the gradients of the overlap.
    """
    for i in range(CHUNK):
        fill_multiple(lower_CC[i], overlap_CC[i], -beta_C1[i, 0])
        for j in range(i, CHUNK):
            lower_CC[i, j] = 0


@inner
def _solve(x_CV: Any, lower_CC: Any, ahead: Any) -> None:
    """Solve (I - lower) X = B in place, from the first rows to the last."""
    width = x_CV.shape[1]
    for row in range(0, CHUNK, ROWS):
        if row > 0:
            at, a = x_CV.ctypes.data + 4 * row * width, lower_CC.ctypes.data + 4 * row * CHUNK
            product_at(at, at, ONE, width, a, CHUNK, 1, x_CV.ctypes.data, width, ROWS, width, row, ahead)
        for i in range(row + 1, row + ROWS):
            for j in range(row, i):
                add_multiple(x_CV[i], x_CV[j], lower_CC[i, j])


@inner
def _solve_transposed(y_CV: Any, lower_CC: Any, ahead: Any) -> None:
    """Solve (I - lower)^T Y = B in place, from the last rows to the first."""
    width = y_CV.shape[1]
    for row in range(CHUNK - ROWS, -1, -ROWS):
        after = row + ROWS
        if after < CHUNK:
            at, a = y_CV.ctypes.data + 4 * row * width, lower_CC.ctypes.data + 4 * (after * CHUNK + row)
            below = y_CV.ctypes.data + 4 * after * width
            product_at(at, at, ONE, width, a, 1, CHUNK, below, width, ROWS, width, CHUNK - after, ahead)
        for j in range(after - 2, row - 1, -1):
            for i in range(j + 1, after):
                add_multiple(y_CV[j], y_CV[i], lower_CC[i, j])


@inner
def _fill_beta(of_beta_C1: Any, y_CV: Any, v_CV: Any, of_overlap_CC: Any, overlap_CC: Any) -> None:
    """Fill the gradients of beta, without the share of the state before the chunk."""
    for i in range(CHUNK):
        of_beta_C1[i, 0] = dot(y_CV[i], v_CV[i]) - dot(of_overlap_CC[i, :i], overlap_CC[i, :i])


@contracted
def _fill_between(scores_C: Any, of_scores_C: Any, of_overlap_C: Any, overlap_C: Any) -> None:
    """Turn a row of the scores into the gradients of the log-decays between tokens."""
    for j in range(len(scores_C)):
        scores_C[j] = of_scores_C[j] * scores_C[j] + of_overlap_C[j] * overlap_C[j]
