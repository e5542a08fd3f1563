"""States of any model, which are lists, tuples and dictionaries of tensors (batch first) and numbers.

`torch.save` writes one, and `torch.load(weights_only=True)` reads it. `compact_state` first: a state may be a view of
something larger, as a maximum is the last of a sequence's, and a key-value cache that goes on has room for more.
"""

# B batch

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from samout_train.models.key_value_cache import is_cache, without_room


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The same state with a function applied to each tensor that has a batch; room behind a cache is left out.

    Args:
        function: From (B, ...) to a tensor.
        state: As a model returned it. Its 0-d tensors, which belong to no sequence, are copied.
    """
    if isinstance(state, Tensor):
        return function(state) if state.ndim else state.clone()
    if isinstance(state, dict):
        parts = without_room(state) if is_cache(state) else state
        return {key: map_state(function, part) for key, part in parts.items()}
    if isinstance(state, list | tuple):
        return type(state)(map_state(function, part) for part in state)
    return state


def repeat_state(state: Any, times: int) -> Any:
    """The state of each sequence `times` over, one copy behind the other: (B, ...) becomes (times B, ...)."""
    return map_state(lambda part: part.repeat_interleave(times, dim=0), state)


def state_to(state: Any, device: torch.device | str) -> Any:
    """A copy of the state on a device, which may be the same one: neither knows what the other goes on with."""
    return map_state(lambda part: part.to(device, copy=True), state)


def compact_state(state: Any) -> Any:
    """A copy that holds what the state needs and no more: what to save."""
    return map_state(lambda part: part.clone(), state)


def state_bytes(state: Any) -> int:
    """Bytes of what counts, in tensors that have a batch: what grows with the sequence, where something does."""
    return sum(part.numel() * part.element_size() for part in _tensors(map_state(lambda part: part, state)))


def held_bytes(state: Any) -> int:
    """Bytes of the memory that a state keeps from being freed: with a cache's room, and what it is a view of."""
    storages = [part.untyped_storage() for part in _tensors(state)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        if state.ndim:
            yield state
        return
    if isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)
