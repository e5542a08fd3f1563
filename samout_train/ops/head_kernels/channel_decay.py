"""Compute a chunk of linear attention with one decay per key channel, forward and backward.

Inside a chunk of 16 tokens, a key decays from token to token while each later query reads it, so that decays are only
ever multiplied. At the end of the chunk, the key has the decay that the next state needs:

    k'_j <- a_i k'_j;   P_ij = q_i . k'_j   (j < i);   O = P V + (Q exp(b)) S;   S <- exp(B) S + K'^T V

The forward pass keeps P and the state before each chunk.
"""

# C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import numpy as np

from samout_train.ops.head_kernels.decays import decay_of
from samout_train.ops.head_kernels.layout import CHUNK
from samout_train.ops.head_kernels.tiles import (
    add_lower_product,
    add_lower_transposed,
    add_multiple,
    add_outer,
    clear,
    contracted,
    dot,
    fill_product,
    fill_row,
    fill_with_transposed,
    inner,
    load,
    multiply,
    multiply_into,
    multiply_row,
    padded,
    reassociated,
    scale_into,
    store,
    transpose,
)
from samout_train.ops.head_kernels.walk import DECAY, GRAD_DECAY, KEPT, HeadKernel, rows, walk_backward, walk_forward


@HeadKernel
def forward(at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any) -> None:
    """See samout_train.ops.head_kernels.walk.walk_forward."""
    scratch = rows(padded(keys)), rows(CHUNK)
    walk_forward(at, steps, task, heads, time, keys, values, _compute, scratch)


@inner
def _compute(given: Any, scratch: Any) -> None:
    here, step, count, ahead, keys, q, k, v, o, state, following, has_state = given
    decay, scores = scratch
    load(decay, here[DECAY], step[DECAY], count, keys)
    _exponentiate(decay)
    _score(scores, q, k, decay)
    if here[KEPT]:
        store(scores, here[KEPT], CHUNK, CHUNK, CHUNK)
    _accumulate(decay)
    if has_state:
        multiply(q, decay)
        fill_product(o, q, state, ahead)
    else:
        clear(o)
    add_lower_product(o, scores, v, ahead)
    scale_into(following, state, decay[-1])
    add_outer(following, k, v, ahead)


@HeadKernel
def backward(at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any) -> None:
    """See samout_train.ops.head_kernels.walk.walk_backward."""
    wide_keys, wide_values = padded(keys), padded(values)
    by_channel = rows(wide_keys), rows(wide_keys), rows(wide_keys), rows(wide_keys), rows(wide_keys)
    columns, wide = np.zeros((wide_keys, CHUNK), np.float32), np.zeros((wide_values, CHUNK), np.float32)
    scratch = by_channel, columns, wide, rows(CHUNK), rows(CHUNK)
    walk_backward(at, steps, task, heads, time, keys, values, _compute_gradients, scratch)


@inner
def _compute_gradients(given: Any, scratch: Any) -> None:
    here, step, count, ahead, keys, q, k, v, grad_o, grads, state, grad_state, has_state, is_last = given
    grad_q, grad_k, grad_v = grads
    by_channel, columns, wide, scores, grad_scores = scratch
    decay, since, until, grad_decay, walk = by_channel
    load(scores, here[KEPT], CHUNK, CHUNK, CHUNK)
    load(decay, here[DECAY], step[DECAY], count, keys)
    _exponentiate(decay)
    _fill_spans(since, until, decay)
    transpose(wide, v)
    fill_product(grad_scores, grad_o, wide, ahead)
    clear(grad_q)
    clear(grad_k)
    clear(grad_v)
    clear(grad_decay)
    if not is_last:
        _return_from_later(grad_k, grad_v, grad_decay, grad_state, k, until, wide, columns, walk, ahead)
    add_lower_transposed(grad_v, scores, grad_o, ahead)
    if has_state:
        transpose(wide, grad_o)
        fill_with_transposed(grad_q, state, wide, columns, ahead)
        multiply(grad_q, since)
        _add_since(grad_decay, grad_q, q)
    if has_state and not is_last:
        _add_whole(grad_decay, since[-1], state, grad_state)
    _walk_back(grad_q, grad_k, grad_decay, grad_scores, q, k, decay, walk)
    store(grad_decay, here[GRAD_DECAY], step[GRAD_DECAY], count, keys)
    if has_state:
        multiply(q, since)
        scale_into(grad_state, grad_state, since[-1])
        add_outer(grad_state, q, grad_o, ahead)


@inner
def _return_from_later(
    grad_k_CK: Any,
    grad_v_CV: Any,
    grad_decay_CK: Any,
    grad_state_KV: Any,
    k_CK: Any,
    until_CK: Any,
    values_VC: Any,
    spare_KC: Any,
    spare_CK: Any,
    ahead: Any,
) -> None:
    """Fill the gradients through the state after the chunk: of keys, values, and decays until its end."""
    multiply_into(spare_CK, k_CK, until_CK)
    fill_product(grad_v_CV, spare_CK, grad_state_KV, ahead)
    fill_with_transposed(grad_k_CK, grad_state_KV, values_VC, spare_KC, ahead)
    multiply(grad_k_CK, until_CK)
    _add_until(grad_decay_CK, grad_k_CK, k_CK)


@inner
def _add_whole(grad_decay_CK: Any, since_K: Any, state_KV: Any, grad_state_KV: Any) -> None:
    """Add to each token the gradient through the state that decays over the chunk."""
    for d in range(len(since_K)):
        gradient = since_K[d] * dot(state_KV[d], grad_state_KV[d])
        for i in range(CHUNK):
            grad_decay_CK[i, d] += gradient


@inner
def _exponentiate(decay_CK: Any) -> None:
    for i in range(CHUNK):
        for d in range(decay_CK.shape[1]):
            decay_CK[i, d] = decay_of(decay_CK[i, d])


@reassociated
def _score(scores_CC: Any, q_CK: Any, k_CK: Any, decay_CK: Any) -> None:
    """Fill the scores, and let the keys decay until the end of the chunk."""
    for i in range(CHUNK):
        for j in range(i):
            scores_CC[i, j] = _decayed_score(q_CK[i], k_CK[j], decay_CK[i])
        scores_CC[i, i] = dot(q_CK[i], k_CK[i])


@reassociated
def _decayed_score(q_K: Any, k_K: Any, decay_K: Any) -> Any:
    total = np.float32(0)
    for d in range(len(q_K)):
        decayed = k_K[d] * decay_K[d]
        k_K[d] = decayed
        total += q_K[d] * decayed
    return total


@inner
def _fill_spans(since_CK: Any, until_CK: Any, decay_CK: Any) -> None:
    """Fill the decays since the start of the chunk and until its end, for each token."""
    for i in range(CHUNK):
        for d in range(decay_CK.shape[1]):
            since_CK[i, d] = decay_CK[i, d]
    _accumulate(since_CK)
    for d in range(decay_CK.shape[1]):
        until_CK[CHUNK - 1, d] = 1
    for i in range(CHUNK - 1, 0, -1):
        fill_row(until_CK[i - 1], until_CK[i], decay_CK[i])


@inner
def _accumulate(decay_CK: Any) -> None:
    """Turn the decay of each token into the decay since the start of the chunk."""
    for i in range(1, CHUNK):
        multiply_row(decay_CK[i], decay_CK[i - 1])


@inner
def _add_since(grad_decay_CK: Any, grad_q_CK: Any, q_CK: Any) -> None:
    """Add to each token the gradients of the spans that end at it or later."""
    total_K = np.zeros(q_CK.shape[1], np.float32)
    for i in range(CHUNK - 1, -1, -1):
        for d in range(len(total_K)):
            total_K[d] += grad_q_CK[i, d] * q_CK[i, d]
            grad_decay_CK[i, d] += total_K[d]


@inner
def _add_until(grad_decay_CK: Any, grad_k_CK: Any, k_CK: Any) -> None:
    """Add to each token the gradients of the spans that begin before it."""
    total_K = np.zeros(k_CK.shape[1], np.float32)
    for i in range(CHUNK):
        for d in range(len(total_K)):
            grad_decay_CK[i, d] += total_K[d]
            total_K[d] += grad_k_CK[i, d] * k_CK[i, d]


@inner
def _walk_back(
    grad_q_CK: Any,
    grad_k_CK: Any,
    grad_decay_CK: Any,
    grad_scores_CC: Any,
    q_CK: Any,
    k_CK: Any,
    decay_CK: Any,
    walk_CK: Any,
) -> None:
    """Add the gradients through the scores: each key walks forward to the queries, and its gradient walks back."""
    for j in range(CHUNK):
        for d in range(k_CK.shape[1]):
            walk_CK[j, d] = k_CK[j, d]
        add_multiple(grad_q_CK[j], k_CK[j], grad_scores_CC[j, j])
        for i in range(j + 1, CHUNK):
            _step_forward(walk_CK[i], walk_CK[i - 1], decay_CK[i], grad_q_CK[i], grad_scores_CC[i, j])
        gradient_K = walk_CK[j]
        gradient_K[:] = 0
        for i in range(CHUNK - 1, j, -1):
            _step_back(gradient_K, q_CK[i], grad_scores_CC[i, j], grad_decay_CK[i], walk_CK[i], decay_CK[i])
        add_multiple(gradient_K, q_CK[j], grad_scores_CC[j, j])
        add_multiple(grad_k_CK[j], gradient_K, np.float32(1))


@contracted
def _step_forward(walk_K: Any, before_K: Any, decay_K: Any, grad_q_K: Any, grad_score: Any) -> None:
    for d in range(len(walk_K)):
        decayed = before_K[d] * decay_K[d]
        walk_K[d] = decayed
        grad_q_K[d] += grad_score * decayed


@contracted
def _step_back(gradient_K: Any, q_K: Any, grad_score: Any, grad_decay_K: Any, walk_K: Any, decay_K: Any) -> None:
    for d in range(len(gradient_K)):
        gradient = gradient_K[d] + grad_score * q_K[d]
        grad_decay_K[d] += gradient * walk_K[d]
        gradient_K[d] = gradient * decay_K[d]
