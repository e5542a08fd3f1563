"""States of any model: tensors (batch first) and numbers in NamedTuples, tuples, lists and dictionaries.

The models of this package return NamedTuples for states with parts and recognise them by type. Custom mixers and models
may return any of these containers.

`torch.save` writes a state, and `torch.load(weights_only=True)` reads it if its NamedTuples are registered, as those
below are. Call `compact_state` before saving: a state may be a view of a larger tensor (a maximum is the last of its
sequence), and a key-value cache may have spare room. Earlier versions saved dictionaries with the fields of
`LayerState` and `KeyValueCache`; models accept those too.

The keys and values of attention are the only state here that grows with the sequence. Sequences of different lengths
can still form one batch (`join_states`). In a NamedTuple with a field `missing_B`, time is dimension 2 of the other
tensors; the first `missing_B` places of a row are padding, which attention must ignore.
"""

# B batch, D width, H heads, K width per head (of a convolution: tokens back), T time of new tokens, S time with room

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_ROOM = 256


class LayerState(NamedTuple):
    """The state of a layer or a mixer that has a convolution.

    Args:
        mixer: The mixer's state; None at the start of a sequence.
        tokens_BKD: The convolution's state, its last inputs; None at the start of a sequence.
    """

    mixer: Any
    tokens_BKD: Tensor | None


class KeyValueCache(NamedTuple):
    """One layer's keys and values.

    Args:
        keys_BHSK: Keys; there may be room after `length`, which the next call writes into.
        values_BHSK: Values.
        length: The number of valid tokens in the longest sequence of a batch.
        written: The number of tokens written, 0-d int64 on the CPU, shared by all states that share the room.
        missing_B: Number of padding places at the start of each sequence; None for no padding.
    """

    keys_BHSK: Tensor
    values_BHSK: Tensor
    length: int
    written: Tensor
    missing_B: Tensor | None = None


torch.serialization.add_safe_globals([LayerState, KeyValueCache])


def as_layer_state(state: Any) -> LayerState:
    """Convert a LayerState, the dictionary of an earlier version, or a mixer's state alone to a LayerState."""
    if isinstance(state, LayerState):
        return state
    if isinstance(state, dict):
        return LayerState(**state)
    return LayerState(state, None)


def as_cache(state: Any) -> KeyValueCache | None:
    """Convert a cache or the dictionary of an earlier version to a cache; None, the start of a sequence, stays None."""
    if isinstance(state, dict):
        return KeyValueCache(**state)
    cache: KeyValueCache | None = state
    return cache


def length_of(cache: KeyValueCache | None) -> int:
    """Return the number of valid tokens in a cache; 0 at the start of a sequence."""
    if cache is None:
        return 0
    return cache.length


def map_state(function: Callable[[Tensor], Tensor], state: Any, *, with_room: bool = False) -> Any:
    """Return the state with a function applied to each tensor that has a batch dimension.

    Args:
        function: Maps (B, ...) to a tensor.
        state: State as a model returned it. Its 0-d tensors belong to no sequence and are copied.
        with_room: Whether the function gets a cache with its spare room; otherwise the room is cut off.
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
    if hasattr(state, "_fields"):  # the constructor of a NamedTuple has one argument per field
        return type(state)(*parts)
    return type(state)(parts)


def repeat_state(state: Any, times: int) -> Any:
    """Return a state with each sequence `times` times, copies next to each other: (B, ...) to (times B, ...)."""
    return map_state(lambda part: part.repeat_interleave(times, dim=0), state)


def join_states(states: Sequence[Any]) -> Any:
    """Join the states of several batches into the state of one batch, in order. It shares no memory with them.

    Raises:
        ValueError: if they do not fit together, such as tensors that grow with the sequence but have no `missing_B`.
    """
    first = states[0]
    if isinstance(first, Tensor):
        if not first.ndim or any(part.shape[1:] != first.shape[1:] for part in states):
            raise ValueError("states of these sequences do not fit together")
        return torch.cat(list(states))
    if hasattr(first, "missing_B"):
        return _joined_with_padding(states)
    if any(type(state) is not type(first) for state in states):
        raise ValueError("states of these sequences have different parts")
    if isinstance(first, dict):
        return {key: join_states([state[key] for state in states]) for key in first}
    if not isinstance(first, list | tuple):
        if any(state != first for state in states):
            raise ValueError("states of these sequences have different numbers")
        return first
    parts = [join_states(beside) for beside in zip(*states, strict=True)]
    if hasattr(first, "_fields"):
        return type(first)(*parts)
    return type(first)(parts)


def take_sequences(state: Any, numbers: Sequence[int]) -> Any:
    """Return a copy of the state of some sequences of a batch, without the padding that all of them share."""

    def taken(part: Tensor) -> Tensor:
        return part.index_select(0, torch.tensor(numbers, dtype=torch.int64, device=part.device))

    return _without_padding(map_state(taken, state))


def _joined_with_padding(states: Sequence[Any]) -> Any:
    """Join growing states into one; shorter sequences are padded at their start."""
    compact = [without_room(state) if isinstance(state, KeyValueCache) else state for state in states]
    lengths = [state[0].shape[2] for state in compact]
    longest = max(lengths)
    missing, joined = [], {}
    for state, length in zip(compact, lengths, strict=True):
        before_B = state.missing_B
        if before_B is None:
            before_B = torch.zeros(state[0].shape[0], dtype=torch.int64, device=state[0].device)
        missing.append(before_B + (longest - length))
    for name, part in compact[0]._asdict().items():
        if isinstance(part, Tensor) and part.ndim > 2:
            parts = [getattr(state, name) for state in compact]
            pads = [F.pad(one, [0, 0, longest - one.shape[2], 0]) for one in parts]
            joined[name] = torch.cat(pads)
    return _without_padding(_padded_as(compact[0], joined, torch.cat(missing)))


def _without_padding(state: Any) -> Any:
    """Cut from the growing parts of a state the padding that all of their sequences share."""
    if hasattr(state, "missing_B"):
        if state.missing_B is None:
            return state
        least = int(state.missing_B.min())
        parts = state._asdict().items()
        cut = {name: part[:, :, least:] for name, part in parts if isinstance(part, Tensor) and part.ndim > 2}
        return _padded_as(state, cut, state.missing_B - least)
    if isinstance(state, dict):
        return {key: _without_padding(part) for key, part in state.items()}
    if not isinstance(state, list | tuple):
        return state
    parts = [_without_padding(part) for part in state]
    if hasattr(state, "_fields"):
        return type(state)(*parts)
    return type(state)(parts)


def _padded_as(state: Any, parts: dict[str, Tensor], missing_B: Tensor) -> Any:
    """Return a growing state of the same kind with other tensors; `missing_B` is None if nothing is missing."""
    missing = missing_B if bool(missing_B.any()) else None
    state = state._replace(**parts, missing_B=missing)
    if isinstance(state, KeyValueCache):
        length = state.keys_BHSK.shape[2]
        state = state._replace(length=length, written=torch.tensor(length))
    return state


def state_to(state: Any, device: torch.device | str) -> Any:
    """Return a copy of the state on a device, even the same one; the two share no memory."""
    return map_state(lambda part: part.to(device, copy=True), state)


def compact_state(state: Any) -> Any:
    """Return a copy for saving, without spare room or views of larger tensors."""
    return map_state(lambda part: part.clone(), state)


def state_bytes(state: Any) -> int:
    """Return the bytes of the valid part of all tensors with a batch dimension."""
    total = 0

    def count(part: Tensor) -> Tensor:
        nonlocal total
        total += part.numel() * part.element_size()
        return part

    map_state(count, state)
    return total


def held_bytes(state: Any) -> int:
    """Return the bytes that a state keeps alive, including a cache's spare room and the tensors behind views."""
    storages: dict[int, int] = {}

    def hold(part: Tensor) -> Tensor:
        storage = part.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return part

    map_state(hold, state, with_room=True)
    return sum(storages.values())


def require_room(past: int, time: int, max_seq_len: int) -> None:
    """Raise ValueError if the `time` tokens of a call, after `past` tokens, exceed `max_seq_len`."""
    if past + time > max_seq_len:
        raise ValueError(
            f"{past + time} tokens are more than max_seq_len ({max_seq_len}): set model.max_seq_len to "
            f"{past + time} or more, or use a shorter sequence"
        )


def extended(cache: KeyValueCache | None, keys_BHTK: Tensor, values_BHTK: Tensor, capacity: int) -> KeyValueCache:
    """Return a cache with new keys and values appended.

    The first call of a sequence keeps its tensors as they are. The next call allocates room for twice as many tokens,
    and later ones write into it until it is full. A call copies instead if another call has already continued from
    the same cache, if gradients are on, or if the room was allocated in inference mode and the call is outside it.

    Args:
        cache: The cache so far; None for a new sequence.
        capacity: Maximum number of tokens in the sequence.
    """
    time = keys_BHTK.shape[2]
    if cache is None:
        return _cache(keys_BHTK, values_BHTK, time)
    past = cache.length
    old_keys_BHSK, old_values_BHSK = cache.keys_BHSK[:, :, :past], cache.values_BHSK[:, :, :past]
    if torch.is_grad_enabled():
        keys_BHSK = torch.cat([old_keys_BHSK, keys_BHTK], 2)
        return _cache(keys_BHSK, torch.cat([old_values_BHSK, values_BHTK], 2), past + time, cache.missing_B)
    room_is_free = cache.keys_BHSK.shape[2] >= past + time and int(cache.written) == past
    if not room_is_free or (cache.keys_BHSK.is_inference() and not torch.is_inference_mode_enabled()):
        room = min(capacity, max(LEAST_ROOM, 2 * (past + time)))
        cache = _cache(_with_room(old_keys_BHSK, room), _with_room(old_values_BHSK, room), past, cache.missing_B)
    cache.keys_BHSK[:, :, past : past + time] = keys_BHTK
    cache.values_BHSK[:, :, past : past + time] = values_BHTK
    cache.written.fill_(past + time)
    return cache._replace(length=past + time)


def without_room(cache: KeyValueCache) -> KeyValueCache:
    """Return the valid part of a cache. It shares memory with the cache but has no room, so no call writes into it."""
    length = cache.length
    return _cache(cache.keys_BHSK[:, :, :length], cache.values_BHSK[:, :, :length], length, cache.missing_B)


def _cache(keys_BHSK: Tensor, values_BHSK: Tensor, length: int, missing_B: Tensor | None = None) -> KeyValueCache:
    return KeyValueCache(keys_BHSK, values_BHSK, length, torch.tensor(length), missing_B)


def padding_of(missing_B: Tensor | None, length: int) -> Tensor | None:
    """Return (B, S), True where a place of a growing state is padding; None without padding.

    Args:
        missing_B: The field of the state.
        length: S, the places of the state plus those of the new tokens.
    """
    if missing_B is None:
        return None
    return torch.arange(length, device=missing_B.device) < missing_B[:, None]


def _with_room(part_BHSK: Tensor, room: int) -> Tensor:
    batch, heads, length, width = part_BHSK.shape
    roomy_BHSK = part_BHSK.new_zeros(batch, heads, room, width)
    roomy_BHSK[:, :, :length] = part_BHSK
    return roomy_BHSK
