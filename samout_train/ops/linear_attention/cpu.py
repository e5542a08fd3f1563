"""Run linear attention with one decay per head on the CPU, in float32. Needs numba.

A task is one head of one sequence. It walks through chunks of 16 tokens with the state in the cache, forward from the
first chunk to the last, backward from the last to the first:

    P = lower(Q K^T) G;   O = P V + (Q exp(b)) S;   S <- exp(B) S + (K exp(B - b))^T V

The forward pass keeps P and the state before each chunk. Of G = exp(b_i - b_j), see samout_train.ops.head_decay.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.head_decay import load_spans, store_span_gradients
from samout_train.ops.head_layout import CHUNK
from samout_train.ops.linear_attention import cpu_channel
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
from samout_train.ops.numba_support import call_at, compiled, num_threads
from samout_train.ops.tiles import (
    add_lower_product,
    add_lower_transposed,
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
    scale,
    scale_into,
    store,
    transpose,
)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    o: Tensor,
    last: Tensor,
    before: Tensor | None,
    scores: Tensor | None,
) -> None:
    """Fill o and the last state; and for the backward pass the states before each chunk, and the scores."""
    sizes = len(q), *q.shape[1:], v.shape[3]
    kernel = _forward if log_decay.ndim == 3 else cpu_channel.forward
    call_at(kernel, num_threads(), *places(q, k, v, log_decay, state, o, last, before, scores), *sizes)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    has_state: bool,
    before: Tensor,
    scores: Tensor,
    grad_o: Tensor,
    grad_last: Tensor | None,
    *grads: Tensor,
) -> None:
    """Fill the gradients of q, k, v, the log-decay and the state."""
    state = before[:, :, 0] if has_state else None
    sizes = len(q), *q.shape[1:], v.shape[3]
    given = places(q, k, v, log_decay, state, None, None, before, scores, grad_o, grad_last, *grads)
    kernel = _backward if log_decay.ndim == 3 else cpu_channel.backward
    call_at(kernel, num_threads(), *given, *sizes)


@compiled(parallel=True)
def _forward(at: Any, steps: Any, batch: int, heads: int, time: int, keys: int, values: int) -> None:
    for task in numba.prange(batch * heads):
        _forward_head(own_places(at, steps, task // heads, task % heads), steps[:, 2], time, keys, values)


@inner
def _forward_head(at: Any, step: Any, time: int, keys: int, values: int) -> None:
    wide_keys, wide_values = padded(keys), padded(values)
    q, k = np.empty((CHUNK, wide_keys), np.float32), np.empty((CHUNK, wide_keys), np.float32)
    v, o = np.empty((CHUNK, wide_values), np.float32), np.empty((CHUNK, wide_values), np.float32)
    q[:], k[:], v[:] = 0, 0, 0
    columns = np.empty((wide_keys, CHUNK), np.float32)
    scores, between = np.empty((CHUNK, CHUNK), np.float32), np.empty((CHUNK, CHUNK), np.float32)
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
        load_spans(between, since, at[DECAY] + 4 * t * step[DECAY], step[DECAY], count)
        transpose(columns, k)
        fill_product(scores, q, columns)
        multiply(scores, between)
        state, following = states[min(chunk, len(states) - 1)], states[min(chunk + 1, len(states) - 1)]
        if at[SCORES]:
            store(scores, at[SCORES] + 4 * chunk * step[SCORES], CHUNK, CHUNK, CHUNK)
        over = np.float32(0)
        if has_state:
            over = since[-1]
            scale(q, since)
            fill_product(o, q, state)
        else:
            o[:] = 0
        add_lower_product(o, scores, v)
        store(o, at[OUT] + 4 * t * step[OUT], step[OUT], count, values)
        scale(k, between[-1])
        fill_with_outer(following, state, over, k, v)
        has_state = True
    store(states[-1], at[LAST], values, keys, values)


@compiled(parallel=True)
def _backward(at: Any, steps: Any, batch: int, heads: int, time: int, keys: int, values: int) -> None:
    for task in numba.prange(batch * heads):
        _backward_head(own_places(at, steps, task // heads, task % heads), steps[:, 2], time, keys, values)


@inner
def _backward_head(at: Any, step: Any, time: int, keys: int, values: int) -> None:
    wide_keys, wide_values = padded(keys), padded(values)
    q, k, v = _rows(wide_keys), _rows(wide_keys), _rows(wide_values)
    grad_q, grad_k, grad_v, grad_o = _rows(wide_keys), _rows(wide_keys), _rows(wide_values), _rows(wide_values)
    scores, between, grad_scores = _rows(CHUNK), _rows(CHUNK), _rows(CHUNK)
    since, of_since, of_until = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    wide = np.empty((wide_values, CHUNK), np.float32)
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
        load(grad_o, at[GRAD_OUT] + 4 * t * step[GRAD_OUT], step[GRAD_OUT], count, values)
        load(scores, at[SCORES] + 4 * chunk * step[SCORES], CHUNK, CHUNK, CHUNK)
        load_spans(between, since, at[DECAY] + 4 * t * step[DECAY], step[DECAY], count)
        has_state = chunk > 0 or at[STATE] != 0
        of_whole = np.float32(0)
        if has_state and not is_last:
            of_whole = since[-1] * dot(states[chunk].reshape(-1), grad_state.reshape(-1))
        transpose(wide, v)
        _return_from_later(grad_k, grad_v, of_until, grad_state, is_last, k, between[-1], wide, columns, grad_q)
        fill_product(grad_scores, grad_o, wide)
        add_lower_transposed(grad_v, scores, grad_o)
        multiply(scores, grad_scores)  # the gradients of the log-decays between
        multiply(grad_scores, between)
        grad_q[:], of_since[:] = 0, 0
        if has_state:
            transpose(wide, grad_o)
            fill_product(columns, states[chunk], wide)
            transpose(grad_q, columns)
            _scale_and_sum(grad_q, since, q, of_since)
        add_lower_product(grad_q, grad_scores, k)
        add_lower_transposed(grad_k, grad_scores, q)
        store(grad_q, at[GRAD_Q] + 4 * t * step[GRAD_Q], step[GRAD_Q], count, keys)
        store(grad_k, at[GRAD_K] + 4 * t * step[GRAD_K], step[GRAD_K], count, keys)
        store(grad_v, at[GRAD_V] + 4 * t * step[GRAD_V], step[GRAD_V], count, values)
        place = at[GRAD_DECAY] + 4 * t * step[GRAD_DECAY]
        store_span_gradients(scores, of_since, of_until, of_whole, place, step[GRAD_DECAY], count)
        if has_state:
            scale(q, since)
            fill_with_outer(grad_state, grad_state, since[-1], q, grad_o)
        is_last = False
    if at[GRAD_STATE]:
        store(grad_state, at[GRAD_STATE], values, keys, values)


@inner
def _return_from_later(
    grad_k_CK: Any,
    grad_v_CV: Any,
    of_until_C: Any,
    grad_state_KV: Any,
    is_last: Any,
    k_CK: Any,
    until_C: Any,
    values_VC: Any,
    columns_KC: Any,
    spare_CK: Any,
) -> None:
    """Fill the gradients by way of the state after the chunk: of keys, values, and decays until then."""
    if is_last:
        grad_k_CK[:], grad_v_CV[:], of_until_C[:] = 0, 0, 0
        return
    scale_into(spare_CK, k_CK, until_C)
    fill_product(grad_v_CV, spare_CK, grad_state_KV)
    fill_product(columns_KC, grad_state_KV, values_VC)
    transpose(grad_k_CK, columns_KC)
    _scale_and_sum(grad_k_CK, until_C, k_CK, of_until_C)


@inner
def _scale_and_sum(a_CK: Any, factors_C: Any, b_CK: Any, sums_C: Any) -> None:
    """Multiply rows by factors, and fill their products with other rows."""
    scale(a_CK, factors_C)
    for i in range(CHUNK):
        sums_C[i] = dot(a_CK[i], b_CK[i])


@inner
def _rows(width: int) -> Any:
    return np.zeros((CHUNK, width), np.float32)
