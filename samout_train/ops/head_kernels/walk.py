"""Walk through the chunks of a head, with its state matrix in the cache: the loop that all kinds of recurrence share.

A task is one head of one sequence: forward from the first chunk of 16 tokens to the last, backward from the last to
the first. The walk loads the rows of a chunk and stores the results; a kind computes a chunk. Each kind compiles to
machine code with one entry point, which `_run_heads` calls by address, because numba would compile the body of a
parallel loop three times.

While the products of a chunk run, each tile prefetches some lines that the walk reads or writes at the next chunk. With
all prefetches at once, or left to the processor, a fifth to a quarter of the time was spent waiting for memory.
"""

# C tokens of a chunk, K width of a key, V width of a value

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from torch import Tensor

from samout_train.ops.head_kernels.layout import CHUNK
from samout_train.ops.head_kernels.tile_code import INDEX
from samout_train.ops.head_kernels.tiles import (
    append,
    clear_queue,
    inlined,
    inner,
    load,
    matrices_at,
    new_queue,
    padded,
    store,
)
from samout_train.ops.numba_support import _pointer, cache_of, call_at, compiled, num_threads

# The tensors of a kernel, in the order of their addresses: inputs, outputs, kept values, gradients.
Q, K, V, DECAY, BETA, STATE, OUT, LAST, BEFORE, KEPT = range(10)
GRAD_OUT, GRAD_LAST, GRAD_Q, GRAD_K, GRAD_V, GRAD_DECAY, GRAD_BETA, GRAD_STATE = range(10, 18)
TENSORS = 18


class ForwardChunk(NamedTuple):
    """A chunk in the forward pass.

    `here` holds the addresses of its first rows, `step` the strides of rows, and `ahead` the address of the queue that
    its products prefetch from.
    """

    here: Any
    step: Any
    count: Any
    ahead: Any
    keys: Any
    q_CK: Any
    k_CK: Any
    v_CV: Any
    o_CV: Any
    state_KV: Any
    following_KV: Any
    has_state: Any


class BackwardChunk(NamedTuple):
    """A chunk in the backward pass; `is_last` is true if nothing reads the state after it.

    In memory, the keys follow the queries, and the gradients of v follow those of o; see `with_adjacent`.
    """

    here: Any
    step: Any
    count: Any
    ahead: Any
    keys: Any
    q_CK: Any
    k_CK: Any
    v_CV: Any
    grad_o_CV: Any
    grads: Any  # of q, k and v
    state_KV: Any
    grad_state_KV: Any
    has_state: Any
    is_last: Any


class HeadKernel:
    """A function (addresses, strides, task, heads, time, keys, values) as machine code, cached on disk."""

    SIGNATURE = types.void(*[types.int64] * 7)

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    @cached_property
    def _code(self) -> CFunc:
        sig = self.SIGNATURE.args, self.SIGNATURE.return_type
        code = CFunc(self._function, sig, locals={}, options={"error_model": "numpy"})
        if (kept := cache_of(self._function)) is not None:
            code._cache = kept  # type: ignore[attr-defined]
        code.compile()
        return code

    def __call__(self, *tensors: Tensor | None) -> None:
        """Run all heads on tensors (B, H, rows, ...), in the order from Q on; None for a missing tensor."""
        q_BHTK, v_BHTV = tensors[Q], tensors[V]
        assert q_BHTK is not None and v_BHTV is not None
        at, steps = np.zeros(TENSORS, np.int64), np.zeros((TENSORS, 3), np.int64)
        for i, tensor in enumerate(tensors):
            if tensor is not None:
                at[i] = tensor.data_ptr()
                steps[i] = tensor.stride()[:3]
        call_at(_run_heads, num_threads(), self._code.address, at, steps, *q_BHTK.shape, v_BHTV.shape[3])


@intrinsic
def _call(
    typing_context: Any, code: Any, at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any
) -> Any:
    """Call machine code at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [INDEX] * 7).as_pointer()
        builder.call(builder.inttoptr(arguments[0], function), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@compiled(parallel=True)
def _run_heads(code: Any, at: Any, steps: Any, batch: int, heads: int, time: int, keys: int, values: int) -> None:
    for task in numba.prange(batch * heads):
        _call(code, at.ctypes.data, steps.ctypes.data, task, heads, time, keys, values)


@inner
def rows(width: Any) -> Any:
    """Return a row of zeros for each token of a chunk."""
    return np.zeros((CHUNK, width), np.float32)


@inner
def _adjacent_rows(width: Any) -> Any:
    """Return two buffers of rows; the second follows the first in memory."""
    both = np.zeros((2 * CHUNK, width), np.float32)
    return both[:CHUNK], both[CHUNK:]


@inner
def with_adjacent(a: Any) -> Any:
    """Return a buffer and the one that follows it in memory as one matrix."""
    return matrices_at(a.ctypes.data, 1, 2 * len(a), a.shape[1])[0]


@inner
def _own_places(at: Any, steps: Any, task: Any, heads: Any) -> Any:
    """Return the addresses of one head's tensors, 0 for a missing tensor, and the strides of their rows.

    Args:
        at: Address of the addresses.
        steps: Address of the strides along B, H and rows.
        task: Number of the head.
        heads: Heads of a sequence.
    """
    given, strides = numba.carray(_pointer(at), TENSORS, np.int64), numba.carray(_pointer(steps), 3 * TENSORS, np.int64)
    own, step = np.zeros(TENSORS, np.int64), np.zeros(TENSORS, np.int64)
    for i in range(TENSORS):
        if given[i]:
            own[i] = given[i] + 4 * (task // heads * strides[3 * i] + task % heads * strides[3 * i + 1])
            step[i] = strides[3 * i + 2]
    return own, step


@inner
def _fill_here(here: Any, own: Any, step: Any, chunk: Any) -> None:
    """Fill the addresses of the first rows of a chunk."""
    for i in range(TENSORS):
        row = chunk if i == KEPT else chunk * CHUNK
        here[i] = own[i] + 4 * row * step[i]


@inner
def _queue_next(queue: Any, here: Any, step: Any, keys: Any, values: Any) -> None:
    """Fill a queue with the rows of the next chunk in the forward pass."""
    clear_queue(queue)
    for tensor in (Q, K):
        append(queue, here[tensor] + 4 * CHUNK * step[tensor], step[tensor], CHUNK, keys)
    for tensor in (V, OUT):
        append(queue, here[tensor] + 4 * CHUNK * step[tensor], step[tensor], CHUNK, values)


@inner
def _queue_previous(queue: Any, here: Any, step: Any, keys: Any, values: Any, state_KV: Any) -> None:
    """Fill a queue with the next chunk in the backward pass: its state, its other kept values, and its rows."""
    clear_queue(queue)
    append(queue, state_KV.ctypes.data - 4 * state_KV.size, 0, 1, state_KV.size)
    append(queue, here[KEPT] - 4 * step[KEPT], 0, 1, step[KEPT])
    for tensor in (Q, K, GRAD_Q, GRAD_K):
        append(queue, here[tensor] - 4 * CHUNK * step[tensor], step[tensor], CHUNK, keys)
    for tensor in (V, GRAD_OUT, GRAD_V):
        append(queue, here[tensor] - 4 * CHUNK * step[tensor], step[tensor], CHUNK, values)


@inlined
def walk_forward(
    at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any, compute: Any, scratch: Any
) -> None:
    """Compute the outputs of a head and its last state; keep the states before each chunk if a tensor takes them.

    Args:
        at: Address of the tensors' addresses.
        steps: Address of their strides.
        task: Number of the head.
        heads: Heads of a sequence.
        time: Tokens.
        keys: Width of a key.
        values: Width of a value.
        compute: Fills o and the following state of a ForwardChunk; it may overwrite q, k and v.
        scratch: Buffers of `compute`.
    """
    own, step = _own_places(at, steps, task, heads)
    here, queue = np.zeros(TENSORS, np.int64), new_queue()
    wide_keys, wide_values = padded(keys), padded(values)
    q, k, v, o = rows(wide_keys), rows(wide_keys), rows(wide_values), rows(wide_values)
    chunks = (time + CHUNK - 1) // CHUNK
    states = np.zeros((1, wide_keys, wide_values), np.float32)
    if own[BEFORE]:
        states = matrices_at(own[BEFORE], chunks + 1, wide_keys, wide_values)
    has_state = own[STATE] != 0
    states[0] = 0
    if has_state:
        load(states[0], own[STATE], values, keys, values)
    for chunk in range(chunks):
        count = min(CHUNK, time - chunk * CHUNK)
        _fill_here(here, own, step, chunk)
        load(q, here[Q], step[Q], count, keys)
        load(k, here[K], step[K], count, keys)
        load(v, here[V], step[V], count, values)
        state, following = states[min(chunk, len(states) - 1)], states[min(chunk + 1, len(states) - 1)]
        _queue_next(queue, here, step, keys, values)
        if own[BEFORE]:
            append(queue, following.ctypes.data + 4 * following.size, 0, 1, following.size)
        compute(
            ForwardChunk(here, step, count, queue.ctypes.data, keys, q, k, v, o, state, following, has_state), scratch
        )
        store(o, here[OUT], step[OUT], count, values)
        has_state = True
    store(states[-1], own[LAST], values, keys, values)


@inlined
def walk_backward(
    at: Any, steps: Any, task: Any, heads: Any, time: Any, keys: Any, values: Any, compute: Any, scratch: Any
) -> None:
    """Compute the gradients of a head.

    Args:
        at: Address of the tensors' addresses.
        steps: Address of their strides.
        task: Number of the head.
        heads: Heads of a sequence.
        time: Tokens.
        keys: Width of a key.
        values: Width of a value.
        compute: Fills the gradients of q, k and v of a BackwardChunk, turns the gradient of the state after it into
            that of the state before it, and stores its other gradients; it may overwrite q, k and v.
        scratch: Buffers of `compute`.
    """
    own, step = _own_places(at, steps, task, heads)
    here, queue = np.zeros(TENSORS, np.int64), new_queue()
    wide_keys, wide_values = padded(keys), padded(values)
    (q, k), v, (grad_o, grad_v) = _adjacent_rows(wide_keys), rows(wide_values), _adjacent_rows(wide_values)
    grads = rows(wide_keys), rows(wide_keys), grad_v
    chunks = (time + CHUNK - 1) // CHUNK
    states = matrices_at(own[BEFORE], chunks + 1, wide_keys, wide_values)
    grad_state = np.zeros((wide_keys, wide_values), np.float32)
    is_last = own[GRAD_LAST] == 0
    if not is_last:
        load(grad_state, own[GRAD_LAST], values, keys, values)
    for chunk in range(chunks - 1, -1, -1):
        count = min(CHUNK, time - chunk * CHUNK)
        _fill_here(here, own, step, chunk)
        load(q, here[Q], step[Q], count, keys)
        load(k, here[K], step[K], count, keys)
        load(v, here[V], step[V], count, values)
        load(grad_o, here[GRAD_OUT], step[GRAD_OUT], count, values)
        has_state, state = chunk > 0 or own[STATE] != 0, states[chunk]
        _queue_previous(queue, here, step, keys, values, state)
        given = BackwardChunk(
            here, step, count, queue.ctypes.data, keys, q, k, v, grad_o, grads, state, grad_state, has_state, is_last
        )
        compute(given, scratch)
        store(grads[0], here[GRAD_Q], step[GRAD_Q], count, keys)
        store(grads[1], here[GRAD_K], step[GRAD_K], count, keys)
        store(grads[2], here[GRAD_V], step[GRAD_V], count, values)
        is_last = False
    if own[GRAD_STATE]:
        store(grad_state, own[GRAD_STATE], values, keys, values)
