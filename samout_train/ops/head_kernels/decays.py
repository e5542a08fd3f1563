"""Multiply one decay per token over the spans of a chunk inside numba kernels, and sum gradients over spans.

A span's decay is the product of its own factors, so nothing overflows, and a factor of 0 erases all earlier tokens.
"""

# C tokens of a chunk, I and J tokens of the same chunk, K width of a key, V width of a value

from typing import Any

import numba
import numpy as np

from samout_train.ops.head_kernels.tiles import (
    add_multiple,
    clear,
    dot,
    fill_multiple,
    fill_product,
    fill_with_transposed,
    inner,
    reassociated,
    scale,
    scale_into,
    transpose,
)
from samout_train.ops.numba_support import _pointer, vector_exp


@inner
def decay_of(log_decay: Any) -> Any:
    """Return e^x; below the smallest normal float32, 0. NaN stays NaN."""
    value = vector_exp(log_decay)
    return np.float32(0) if log_decay <= np.float32(-87) else value


@inner
def load_spans(between_CC: Any, since_C: Any, address: Any, distance: Any, count: Any) -> None:
    """Fill the decays between tokens, and those since the start of the chunk, from log-decays at an address.

    between[i, j] covers the tokens after j up to i: 1 on the diagonal and 0 above it. The last row is therefore the
    decay until the end of the chunk. since[i] covers the tokens up to i.
    """
    for i in range(len(since_C)):
        since_C[i] = 0
        if i < count:
            since_C[i] = numba.carray(_pointer(address + 4 * i * distance), (1,), np.float32)[0]
    for i in range(len(since_C)):  # a loop of its own, which runs in vectors
        since_C[i] = decay_of(since_C[i])
    for j in range(len(since_C)):
        between_CC[0, j] = 0
    between_CC[0, 0] = 1
    for i in range(1, len(since_C)):
        fill_multiple(between_CC[i], between_CC[i - 1], since_C[i])
        between_CC[i, i] = 1
    for i in range(1, len(since_C)):
        since_C[i] *= since_C[i - 1]


@inner
def store_span_gradients(
    of_between_CC: Any, of_since_C: Any, of_until_C: Any, of_whole: Any, address: Any, distance: Any, count: Any
) -> None:
    """Store the gradient of each log-decay: the sum over all spans that contain its token.

    Args:
        of_between_CC: Gradient times decay of the span of the tokens after j up to i, j < i; overwritten.
        of_since_C: The same for the span of the tokens up to each one; overwritten.
        of_until_C: The same for the span of the tokens after each one.
        of_whole: The same for the whole chunk.
    """
    size = len(of_since_C)
    for i in range(size - 2, -1, -1):
        of_since_C[i] += of_since_C[i + 1]
    begun = of_whole
    for i in range(size):
        of_since_C[i] += begun
        begun += of_until_C[i]
    for i in range(size - 1, 0, -1):
        of_since_C[i] += _sum_before(of_between_CC[i], i)
        add_multiple(of_between_CC[i - 1], of_between_CC[i], np.float32(1))
    for i in range(count):
        numba.carray(_pointer(address + 4 * i * distance), (1,), np.float32)[0] = of_since_C[i]


@reassociated
def _sum_before(a: Any, count: Any) -> Any:
    """Return the sum of the first `count` numbers of a row."""
    total = np.float32(0)
    for j in range(len(a)):
        total += a[j] if j < count else np.float32(0)
    return total


@inner
def gradient_of_whole(since_C: Any, state_KV: Any, grad_state_KV: Any, has_state: Any, is_last: Any) -> Any:
    """Return the gradient of the whole chunk's log-decay, through the state that decays over the chunk."""
    if not has_state or is_last:
        return np.float32(0)
    return since_C[-1] * dot(state_KV.reshape(-1), grad_state_KV.reshape(-1))


@inner
def return_from_later(
    grad_k_CK: Any,
    grad_v_CV: Any,
    of_until_C: Any,
    grad_state_KV: Any,
    is_last: Any,
    k_CK: Any,
    until_C: Any,
    written_VC: Any,
    spare_KC: Any,
    spare_CK: Any,
    ahead: Any,
) -> None:
    """Fill the gradients through the state after the chunk: of keys, written values, and decays until its end."""
    if is_last:
        clear(grad_k_CK)
        clear(grad_v_CV)
        for i in range(len(of_until_C)):
            of_until_C[i] = 0
        return
    scale_into(spare_CK, k_CK, until_C)
    fill_product(grad_v_CV, spare_CK, grad_state_KV, ahead)
    fill_with_transposed(grad_k_CK, grad_state_KV, written_VC, spare_KC, ahead)
    _scale_and_sum(grad_k_CK, until_C, k_CK, of_until_C)


@inner
def return_to_queries(
    grad_q_CK: Any,
    of_since_C: Any,
    state_KV: Any,
    has_state: Any,
    q_CK: Any,
    since_C: Any,
    grad_o_CV: Any,
    spare_VC: Any,
    spare_KC: Any,
    ahead: Any,
) -> None:
    """Fill the gradients through the state before the chunk: of queries, and of decays since its start."""
    if not has_state:
        clear(grad_q_CK)
        for i in range(len(of_since_C)):
            of_since_C[i] = 0
        return
    transpose(spare_VC, grad_o_CV)
    fill_with_transposed(grad_q_CK, state_KV, spare_VC, spare_KC, ahead)
    _scale_and_sum(grad_q_CK, since_C, q_CK, of_since_C)


@inner
def _scale_and_sum(a_CK: Any, factors_C: Any, b_CK: Any, sums_C: Any) -> None:
    """Multiply rows of `a` by factors, and fill `sums` with the dot products of these rows and those of `b`."""
    scale(a_CK, factors_C)
    for i in range(len(sums_C)):
        sums_C[i] = dot(a_CK[i], b_CK[i])
