"""Compute a chunk of linear attention with one decay per token, forward and backward:

    P = lower(Q K^T) G;   O = P V + (Q exp(b)) S;   S <- exp(B) S + (K exp(B - b))^T V

The forward pass keeps P and the state before each chunk. decays.py computes G = exp(b_i - b_j).
"""

# C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import numpy as np

from samout_train.ops.head_kernels.decays import (
    gradient_of_whole,
    load_spans,
    return_from_later,
    return_to_queries,
    store_span_gradients,
)
from samout_train.ops.head_kernels.layout import CHUNK
from samout_train.ops.head_kernels.tiles import (
    add_lower_product,
    add_lower_transposed,
    clear,
    fill_product,
    fill_with_outer,
    inner,
    load,
    multiply,
    padded,
    scale,
    store,
    transpose,
)
from samout_train.ops.head_kernels.walk import DECAY, GRAD_DECAY, KEPT, HeadKernel, rows, walk_backward, walk_forward


@HeadKernel
def forward(at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any) -> None:
    """See samout_train.ops.head_kernels.walk.walk_forward."""
    columns, since = np.zeros((padded(keys), CHUNK), np.float32), np.zeros(CHUNK, np.float32)
    scratch = columns, since, rows(CHUNK), rows(CHUNK)
    walk_forward(at, steps, task, heads, time, keys, values, _compute, scratch)


@inner
def _compute(given: Any, scratch: Any) -> None:
    here, step, count, ahead, _, q, k, v, o, state, following, has_state = given
    columns, since, scores, between = scratch
    load_spans(between, since, here[DECAY], step[DECAY], count)
    transpose(columns, k)
    fill_product(scores, q, columns, ahead)
    multiply(scores, between)
    if here[KEPT]:
        store(scores, here[KEPT], CHUNK, CHUNK, CHUNK)
    over = np.float32(0)
    if has_state:
        over = since[-1]
        scale(q, since)
        fill_product(o, q, state, ahead)
    else:
        clear(o)
    add_lower_product(o, scores, v, ahead)
    scale(k, between[-1])
    fill_with_outer(following, state, over, k, v, ahead)


@HeadKernel
def backward(at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any) -> None:
    """See samout_train.ops.head_kernels.walk.walk_backward."""
    columns, wide = np.zeros((padded(keys), CHUNK), np.float32), np.zeros((padded(values), CHUNK), np.float32)
    of_decays = np.zeros((3, CHUNK), np.float32)
    scratch = columns, wide, of_decays, rows(CHUNK), rows(CHUNK), rows(CHUNK)
    walk_backward(at, steps, task, heads, time, keys, values, _compute_gradients, scratch)


@inner
def _compute_gradients(given: Any, scratch: Any) -> None:
    here, step, count, ahead, _, q, k, v, grad_o, grads, state, grad_state, has_state, is_last = given
    grad_q, grad_k, grad_v = grads
    columns, wide, of_decays, scores, between, grad_scores = scratch
    since, of_since, of_until = of_decays[0], of_decays[1], of_decays[2]
    load(scores, here[KEPT], CHUNK, CHUNK, CHUNK)
    load_spans(between, since, here[DECAY], step[DECAY], count)
    of_whole = gradient_of_whole(since, state, grad_state, has_state, is_last)
    transpose(wide, v)
    return_from_later(grad_k, grad_v, of_until, grad_state, is_last, k, between[-1], wide, columns, grad_q, ahead)
    fill_product(grad_scores, grad_o, wide, ahead)
    add_lower_transposed(grad_v, scores, grad_o, ahead)
    multiply(scores, grad_scores)  # the gradients of the log-decays between
    multiply(grad_scores, between)
    return_to_queries(grad_q, of_since, state, has_state, q, since, grad_o, wide, columns, ahead)
    add_lower_product(grad_q, grad_scores, k, ahead)
    add_lower_transposed(grad_k, grad_scores, q, ahead)
    store_span_gradients(scores, of_since, of_until, of_whole, here[GRAD_DECAY], step[GRAD_DECAY], count)
    if has_state:
        scale(q, since)
        fill_with_outer(grad_state, grad_state, since[-1], q, grad_o, ahead)
