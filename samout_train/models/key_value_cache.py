"""Keys and values of what attention has seen: its state, which grows with the sequence."""

# B batch, H heads, T time of what is new, S time of what there is room for, K width per head

from typing import Any, TypedDict, TypeGuard

import torch
from torch import Tensor

LEAST_ROOM = 256


class KeyValueCache(TypedDict):
    """One layer's keys and values, in plain containers, so that a state can be saved like any other.

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


def refuse_past_the_end(past: int, time: int, max_seq_len: int) -> None:
    """Says so where a sequence grows beyond what a cache may hold.

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
    """A cache with further keys and values behind it.

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
    past = cache["length"]
    old_keys_BHSK, old_values_BHSK = cache["keys_BHSK"][:, :, :past], cache["values_BHSK"][:, :, :past]
    if torch.is_grad_enabled():
        return _cache(
            torch.cat([old_keys_BHSK, keys_BHTK], 2), torch.cat([old_values_BHSK, values_BHTK], 2), past + time
        )
    room_is_free = cache["keys_BHSK"].shape[2] >= past + time and int(cache["written"]) == past
    if not room_is_free or (cache["keys_BHSK"].is_inference() and not torch.is_inference_mode_enabled()):
        room = min(capacity, max(LEAST_ROOM, 2 * (past + time)))
        cache = _cache(_with_room(old_keys_BHSK, room), _with_room(old_values_BHSK, room), past)
    cache["keys_BHSK"][:, :, past : past + time] = keys_BHTK
    cache["values_BHSK"][:, :, past : past + time] = values_BHTK
    cache["written"].fill_(past + time)
    return KeyValueCache(
        keys_BHSK=cache["keys_BHSK"],
        values_BHSK=cache["values_BHSK"],
        length=past + time,
        written=cache["written"],
    )


def is_cache(part: Any) -> TypeGuard[KeyValueCache]:
    """Whether a part of a state is a cache."""
    return isinstance(part, dict) and part.keys() == KeyValueCache.__annotations__.keys()


def without_room(cache: KeyValueCache) -> KeyValueCache:
    """What counts of a cache. It shares memory with it, but has no room, so that nobody writes there."""
    length = cache["length"]
    return _cache(cache["keys_BHSK"][:, :, :length], cache["values_BHSK"][:, :, :length], length)


def _cache(keys_BHSK: Tensor, values_BHSK: Tensor, length: int) -> KeyValueCache:
    written = torch.tensor(length)
    return KeyValueCache(keys_BHSK=keys_BHSK, values_BHSK=values_BHSK, length=length, written=written)


def _with_room(part_BHSK: Tensor, room: int) -> Tensor:
    batch, heads, length, width = part_BHSK.shape
    roomy_BHSK = part_BHSK.new_zeros(batch, heads, room, width)
    roomy_BHSK[:, :, :length] = part_BHSK
    return roomy_BHSK
