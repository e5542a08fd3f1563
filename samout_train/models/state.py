"""States of any model, which are lists, tuples and dictionaries of tensors (batch first) and numbers.

`torch.save` writes one, and `torch.load(weights_only=True)` reads it.
"""

# B batch

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The same state with a function applied to each tensor that has a batch.

    Args:
        function: From (B, ...) to a tensor.
        state: As a model returned it. Its 0-d tensors, which belong to no sequence, are copied.
    """
    if isinstance(state, Tensor):
        return function(state) if state.ndim else state.clone()
    if isinstance(state, dict):
        return {key: map_state(function, part) for key, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map_state(function, part) for part in state)
    return state


def repeat_state(state: Any, times: int) -> Any:
    """The state of each sequence `times` over, one copy behind the other: (B, ...) becomes (times B, ...)."""
    return map_state(lambda part: part.repeat_interleave(times, dim=0), state)


def state_to(state: Any, device: torch.device | str) -> Any:
    """The state on another device."""
    return map_state(lambda part: part.to(device), state)


def state_bytes(state: Any) -> int:
    """Bytes of all tensors that have a batch."""
    total = 0

    def count(part: Tensor) -> Tensor:
        nonlocal total
        total += part.numel() * part.element_size()
        return part

    map_state(count, state)
    return total
