"""Run linear attention with one decay per key channel on the CPU, in float32. Needs numba.

A task is one head of one sequence, as in cpu.py. Inside a chunk of 16 tokens a key decays from token to token while
each later query reads it, so that only decays themselves are multiplied. At the end of the chunk it has decayed until
there, as the next state needs it:

    k'_j <- a_i k'_j;   P_ij = q_i . k'_j   (j < i);   O = P V + (Q exp(b)) S;   S <- exp(B) S + K'^T V
"""

# C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import numba
import numpy as np

from samout_train.ops.head_decay import decay_of
from samout_train.ops.head_layout import CHUNK
from samout_train.ops.linear_attention.places import (
    BEFORE,
    DECAY,
    GRAD_DECAY,
    GRAD_K,
    GRAD_LAST,
    GRAD_OUT,
    GRAD_Q,
    GRAD_STATE,
    GRAD_V,
    LAST,
    OUT,
    SCORES,
    STATE,
    K,
    Q,
    V,
)
from samout_train.ops.numba_support import compiled
from samout_train.ops.tiles import (
    add_lower_product,
    add_lower_transposed,
    add_outer,
    dot,
    fill_product,
    inner,
    load,
    matrices_at,
    multiply,
    own_places,
    padded,
    scale_into,
    store,
    transpose,
)


@compiled(parallel=True)
def forward(at: Any, steps: Any, batch: int, heads: int, time: int, keys: int, values: int) -> None:
    """See samout_train.ops.linear_attention.cpu.forward."""
    for task in numba.prange(batch * heads):
        _forward_head(own_places(at, steps, task // heads, task % heads), steps[:, 2], time, keys, values)


@inner
def _forward_head(at: Any, step: Any, time: int, keys: int, values: int) -> None:
    wide_keys, wide_values = padded(keys), padded(values)
    q, k, decay = _rows(wide_keys), _rows(wide_keys), _rows(wide_keys)
    v, o, scores = _rows(wide_values), _rows(wide_values), _rows(CHUNK)
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
        load(decay, at[DECAY] + 4 * t * step[DECAY], step[DECAY], count, keys)
        _exponentiate(decay)
        _score(scores, q, k, decay)
        state, following = states[min(chunk, len(states) - 1)], states[min(chunk + 1, len(states) - 1)]
        if at[SCORES]:
            store(scores, at[SCORES] + 4 * chunk * step[SCORES], CHUNK, CHUNK, CHUNK)
        for i in range(1, CHUNK):
            for d in range(wide_keys):
                decay[i, d] *= decay[i - 1, d]
        if has_state:
            multiply(q, decay)
            fill_product(o, q, state)
        else:
            o[:] = 0
        add_lower_product(o, scores, v)
        store(o, at[OUT] + 4 * t * step[OUT], step[OUT], count, values)
        scale_into(following, state, decay[-1])
        add_outer(following, k, v)
        has_state = True
    store(states[-1], at[LAST], values, keys, values)


@compiled(parallel=True)
def backward(at: Any, steps: Any, batch: int, heads: int, time: int, keys: int, values: int) -> None:
    """See samout_train.ops.linear_attention.cpu.backward."""
    for task in numba.prange(batch * heads):
        _backward_head(own_places(at, steps, task // heads, task % heads), steps[:, 2], time, keys, values)


@inner
def _backward_head(at: Any, step: Any, time: int, keys: int, values: int) -> None:
    wide_keys, wide_values = padded(keys), padded(values)
    q, k, decay, since, until = (
        _rows(wide_keys),
        _rows(wide_keys),
        _rows(wide_keys),
        _rows(wide_keys),
        _rows(wide_keys),
    )
    grad_q, grad_k, grad_decay, walk = _rows(wide_keys), _rows(wide_keys), _rows(wide_keys), _rows(wide_keys)
    v, grad_v, grad_o = _rows(wide_values), _rows(wide_values), _rows(wide_values)
    scores, grad_scores = _rows(CHUNK), _rows(CHUNK)
    columns_v, columns_o = np.empty((wide_values, CHUNK), np.float32), np.empty((wide_values, CHUNK), np.float32)
    columns = np.empty((wide_keys, CHUNK), np.float32)
    chunks = (time + CHUNK - 1) // CHUNK
    states = matrices_at(at[BEFORE], chunks + 1, wide_keys, wide_values)
    grad_state = np.zeros((wide_keys, wide_values), np.float32)
    is_last = at[GRAD_LAST] == 0  # nothing reads the state after this chunk
    if not is_last:
        load(grad_state, at[GRAD_LAST], values, keys, values)
    for chunk in range(chunks - 1, -1, -1):
        t = chunk * CHUNK
        count = min(CHUNK, time - t)
        load(q, at[Q] + 4 * t * step[Q], step[Q], count, keys)
        load(k, at[K] + 4 * t * step[K], step[K], count, keys)
        load(v, at[V] + 4 * t * step[V], step[V], count, values)
        load(decay, at[DECAY] + 4 * t * step[DECAY], step[DECAY], count, keys)
        load(grad_o, at[GRAD_OUT] + 4 * t * step[GRAD_OUT], step[GRAD_OUT], count, values)
        load(scores, at[SCORES] + 4 * chunk * step[SCORES], CHUNK, CHUNK, CHUNK)
        _exponentiate(decay)
        _fill_spans(since, until, decay)
        state, has_state = states[chunk], chunk > 0 or at[STATE] != 0
        transpose(columns_v, v)
        fill_product(grad_scores, grad_o, columns_v)
        grad_q[:], grad_k[:], grad_v[:], grad_decay[:] = 0, 0, 0, 0
        if not is_last:
            _return_from_later(grad_k, grad_v, grad_decay, grad_state, k, until, columns_v, columns, walk)
        add_lower_transposed(grad_v, scores, grad_o)
        if has_state:
            transpose(columns_o, grad_o)
            fill_product(columns, state, columns_o)
            transpose(grad_q, columns)
            multiply(grad_q, since)
            _add_since(grad_decay, grad_q, q)
        if has_state and not is_last:
            for d in range(keys):
                grad_decay[:, d] += since[-1, d] * dot(state[d], grad_state[d])
        _walk_back(grad_q, grad_k, grad_decay, grad_scores, q, k, decay, walk)
        store(grad_q, at[GRAD_Q] + 4 * t * step[GRAD_Q], step[GRAD_Q], count, keys)
        store(grad_k, at[GRAD_K] + 4 * t * step[GRAD_K], step[GRAD_K], count, keys)
        store(grad_v, at[GRAD_V] + 4 * t * step[GRAD_V], step[GRAD_V], count, values)
        store(grad_decay, at[GRAD_DECAY] + 4 * t * step[GRAD_DECAY], step[GRAD_DECAY], count, keys)
        if has_state:
            multiply(q, since)
            scale_into(grad_state, grad_state, since[-1])
            add_outer(grad_state, q, grad_o)
        is_last = False
    if at[GRAD_STATE]:
        store(grad_state, at[GRAD_STATE], values, keys, values)


@inner
def _return_from_later(
    grad_k_CK: Any,
    grad_v_CV: Any,
    grad_decay_CK: Any,
    grad_state_KV: Any,
    k_CK: Any,
    until_CK: Any,
    values_VC: Any,
    columns_KC: Any,
    spare_CK: Any,
) -> None:
    """Fill the gradients by way of the state after the chunk: of keys, values, and decays until then."""
    spare_CK[:] = k_CK
    multiply(spare_CK, until_CK)
    fill_product(grad_v_CV, spare_CK, grad_state_KV)
    fill_product(columns_KC, grad_state_KV, values_VC)
    transpose(grad_k_CK, columns_KC)
    multiply(grad_k_CK, until_CK)
    _add_until(grad_decay_CK, grad_k_CK, k_CK)


@inner
def _rows(width: int) -> Any:
    return np.zeros((CHUNK, width), np.float32)


@inner
def _exponentiate(decay_CK: Any) -> None:
    for i in range(CHUNK):
        for d in range(decay_CK.shape[1]):
            decay_CK[i, d] = decay_of(decay_CK[i, d])


@numba.njit(error_model="numpy", no_cpython_wrapper=True, fastmath={"reassoc", "contract"})
def _score(scores_CC: Any, q_CK: Any, k_CK: Any, decay_CK: Any) -> None:
    """Fill the scores, while the keys decay until the end of the chunk."""
    for i in range(CHUNK):
        for j in range(i):
            scores_CC[i, j] = _decayed_score(q_CK[i], k_CK[j], decay_CK[i])
        scores_CC[i, i] = dot(q_CK[i], k_CK[i])


@numba.njit(error_model="numpy", no_cpython_wrapper=True, fastmath={"reassoc", "contract"})
def _decayed_score(q_K: Any, k_K: Any, decay_K: Any) -> Any:
    total = np.float32(0)
    for d in range(len(q_K)):
        decayed = k_K[d] * decay_K[d]
        k_K[d] = decayed
        total += q_K[d] * decayed
    return total


@inner
def _fill_spans(since_CK: Any, until_CK: Any, decay_CK: Any) -> None:
    """Fill the decays over the tokens up to one, and over the tokens after it."""
    since_CK[0], until_CK[-1] = decay_CK[0], 1
    for i in range(1, CHUNK):
        for d in range(decay_CK.shape[1]):
            since_CK[i, d] = since_CK[i - 1, d] * decay_CK[i, d]
    for i in range(CHUNK - 2, -1, -1):
        for d in range(decay_CK.shape[1]):
            until_CK[i, d] = until_CK[i + 1, d] * decay_CK[i + 1, d]


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
    """Add the gradients by the scores: each key walks forward to the queries, and its gradient walks back."""
    for j in range(CHUNK):
        walk_CK[j] = k_CK[j]
        _add_multiple(grad_q_CK[j], k_CK[j], grad_scores_CC[j, j])
        for i in range(j + 1, CHUNK):
            _step_forward(walk_CK[i], walk_CK[i - 1], decay_CK[i], grad_q_CK[i], grad_scores_CC[i, j])
        gradient_K = walk_CK[j]
        gradient_K[:] = 0
        for i in range(CHUNK - 1, j, -1):
            _step_back(gradient_K, q_CK[i], grad_scores_CC[i, j], grad_decay_CK[i], walk_CK[i], decay_CK[i])
        _add_multiple(gradient_K, q_CK[j], grad_scores_CC[j, j])
        _add_multiple(grad_k_CK[j], gradient_K, np.float32(1))


@numba.njit(error_model="numpy", no_cpython_wrapper=True, fastmath={"contract"})
def _add_multiple(out_K: Any, a_K: Any, factor: Any) -> None:
    for d in range(len(out_K)):
        out_K[d] += factor * a_K[d]


@numba.njit(error_model="numpy", no_cpython_wrapper=True, fastmath={"contract"})
def _step_forward(walk_K: Any, before_K: Any, decay_K: Any, grad_q_K: Any, grad_score: Any) -> None:
    for d in range(len(walk_K)):
        decayed = before_K[d] * decay_K[d]
        walk_K[d] = decayed
        grad_q_K[d] += grad_score * decayed


@numba.njit(error_model="numpy", no_cpython_wrapper=True, fastmath={"contract"})
def _step_back(gradient_K: Any, q_K: Any, grad_score: Any, grad_decay_K: Any, walk_K: Any, decay_K: Any) -> None:
    for d in range(len(gradient_K)):
        gradient = gradient_K[d] + grad_score * q_K[d]
        grad_decay_K[d] += gradient * walk_K[d]
        gradient_K[d] = gradient * decay_K[d]
