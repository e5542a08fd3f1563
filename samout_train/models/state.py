"""States of any model: tensors (batch first) and numbers in NamedTuples, tuples, lists and dictionaries.

The models here return NamedTuples where a state has parts, and recognise them by their type. Mixers and models of one's
own may return any of these containers.

`torch.save` writes a state, and `torch.load(weights_only=True)` reads it; for that, a NamedTuple of one's own is
registered as those here are. `compact_state` first: a state may be a view of something larger, as a maximum is the last
of a sequence's, and a key-value cache that goes on has room for more. Earlier versions saved dictionaries with the
fields of `LayerState` and `KeyValueCache`; models go on from those, too.

The cache is what attention keeps, and the one state here that grows with the sequence.
"""

# B batch, D width, H heads, K width per head (of a convolution: tokens back), T time of what is new, S time of what
# there is room for

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST_ROOM = 256


class LayerState(NamedTuple):
    """The state of a layer that has a convolution.

    Args:
        mixer: Its mixer's; None at the start of a sequence.
        tokens_BKD: Its convolution's: the last inputs; None at the start of a sequence.
    """

    mixer: Any
    tokens_BKD: Tensor | None


class KeyValueCache(NamedTuple):
    """One layer's keys and values.

    Args:
        keys_BHSK: Keys; behind `length` there may be room, which the call that goes on writes into.
        values_BHSK: Values.
        length: How many of them count.
        written: 0-d int64 on the CPU, shared by all states that share the room: how many are written there.
    """

    keys_BHSK: Tensor
    values_BHSK: Tensor
    length: int
    written: Tensor


torch.serialization.add_safe_globals([LayerState, KeyValueCache])


def as_layer_state(state: Any) -> LayerState:
    """Return the state of a layer that has a convolution: as it is, of an earlier version, or of the mixer alone."""
    if isinstance(state, LayerState):
        return state
    if isinstance(state, dict):
        return LayerState(**state)
    return LayerState(state, None)


def as_cache(state: Any) -> KeyValueCache | None:
    """Return the state of an attention: as it is, of an earlier version, or None at the start of a sequence."""
    if isinstance(state, dict):
        return KeyValueCache(**state)
    cache: KeyValueCache | None = state
    return cache


def length_of(cache: KeyValueCache | None) -> int:
    """Return the tokens that a cache counts; 0 at the start of a sequence."""
    if cache is None:
        return 0
    return cache.length


def map_state(function: Callable[[Tensor], Tensor], state: Any, *, with_room: bool = False) -> Any:
    """Return the same state with a function applied to each tensor that has a batch.

    Args:
        function: From (B, ...) to a tensor.
        state: As a model returned it. Its 0-d tensors, which belong to no sequence, are copied.
        with_room: Whether the function sees the room behind a cache, too; else it is left out.
    """
    if isinstance(state, Tensor):
        if state.ndim:
            return function(state)
        return state.clone()
    if isinstance(state, KeyValueCache) and not with_room:
        state = without_room(state)
    if isinstance(state, dict):
        return {key: map_state(function, part, with_room=with_room) for key, part in state.items()}
    if not isinstance(state, list | tuple):
        return state
    parts = [map_state(function, part, with_room=with_room) for part in state]
    if hasattr(state, "_fields"):  # a NamedTuple takes its fields one by one
        return type(state)(*parts)
    return type(state)(parts)


def repeat_state(state: Any, times: int) -> Any:
    """Return the state of each sequence `times` over, one copy behind the other: (B, ...) becomes (times B, ...)."""
    return map_state(lambda part: part.repeat_interleave(times, dim=0), state)


def state_to(state: Any, device: torch.device | str) -> Any:
    """Return a copy of the state on a device, which may be the same one: neither knows what the other goes on with."""
    return map_state(lambda part: part.to(device, copy=True), state)


def compact_state(state: Any) -> Any:
    """Return a copy that holds what the state needs and no more: what to save."""
    return map_state(lambda part: part.clone(), state)


def state_bytes(state: Any) -> int:
    """Return the bytes of what counts, in tensors that have a batch: what grows with the sequence, if anything."""
    total = 0

    def count(part: Tensor) -> Tensor:
        nonlocal total
        total += part.numel() * part.element_size()
        return part

    map_state(count, state)
    return total


def held_bytes(state: Any) -> int:
    """Return the bytes that a state keeps from being freed: with a cache's room, and what it is a view of."""
    storages: dict[int, int] = {}

    def hold(part: Tensor) -> Tensor:
        storage = part.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return part

    map_state(hold, state, with_room=True)
    return sum(storages.values())


def refuse_past_the_end(past: int, time: int, max_seq_len: int) -> None:
    """Refuse it where a sequence grows beyond what a cache may hold.

    Args:
        past: Tokens before the call.
        time: Tokens of the call.
        max_seq_len: The most that there may be.

    Raises:
        ValueError: if there are more.
    """
    if past + time > max_seq_len:
        raise ValueError(
            f"{past + time} tokens are more than max_seq_len ({max_seq_len}): set model.max_seq_len to "
            f"{past + time} or more, or give a shorter sequence"
        )


def extended(cache: KeyValueCache | None, keys_BHTK: Tensor, values_BHTK: Tensor, capacity: int) -> KeyValueCache:
    """Return a cache with further keys and values behind it.

    A new sequence's are kept as they are. The first call that goes on makes room for twice as many tokens, later ones
    write into it until it is full; where another call has gone on from the same cache already, gradients are wanted, or
    the room was made in inference mode and must not be written to outside of it, they copy.

    Args:
        cache: What came before; None for a new sequence.
        keys_BHTK: The new keys.
        values_BHTK: The new values.
        capacity: The most that there will be.
    """
    time = keys_BHTK.shape[2]
    if cache is None:
        return _cache(keys_BHTK, values_BHTK, time)
    past = cache.length
    old_keys_BHSK, old_values_BHSK = cache.keys_BHSK[:, :, :past], cache.values_BHSK[:, :, :past]
    if torch.is_grad_enabled():
        return _cache(
            torch.cat([old_keys_BHSK, keys_BHTK], 2), torch.cat([old_values_BHSK, values_BHTK], 2), past + time
        )
    room_is_free = cache.keys_BHSK.shape[2] >= past + time and int(cache.written) == past
    if not room_is_free or (cache.keys_BHSK.is_inference() and not torch.is_inference_mode_enabled()):
        room = min(capacity, max(LEAST_ROOM, 2 * (past + time)))
        cache = _cache(_with_room(old_keys_BHSK, room), _with_room(old_values_BHSK, room), past)
    cache.keys_BHSK[:, :, past : past + time] = keys_BHTK
    cache.values_BHSK[:, :, past : past + time] = values_BHTK
    cache.written.fill_(past + time)
    return KeyValueCache(cache.keys_BHSK, cache.values_BHSK, past + time, cache.written)


def without_room(cache: KeyValueCache) -> KeyValueCache:
    """Return what counts of a cache. It shares memory with it, but has no room, so that nobody writes there."""
    length = cache.length
    return _cache(cache.keys_BHSK[:, :, :length], cache.values_BHSK[:, :, :length], length)


def _cache(keys_BHSK: Tensor, values_BHSK: Tensor, length: int) -> KeyValueCache:
    written = torch.tensor(length)
    return KeyValueCache(keys_BHSK=keys_BHSK, values_BHSK=values_BHSK, length=length, written=written)


def _with_room(part_BHSK: Tensor, room: int) -> Tensor:
    batch, heads, length, width = part_BHSK.shape
    roomy_BHSK = part_BHSK.new_zeros(batch, heads, room, width)
    roomy_BHSK[:, :, :length] = part_BHSK
    return roomy_BHSK
