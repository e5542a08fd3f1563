"""Keep states of the model after token sequences, so that a continuation does not read them again."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from samout_train.models import compact_state, held_bytes

BYTES_OF_AN_ID = 8


class PrefixStates:
    """Keep states by the tokens before them; the least recently used ones are dropped first.

    Args:
        max_bytes: Limit of all states and their tokens together.

    Attributes:
        num_bytes: Bytes held now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._states: OrderedDict[tuple[int, ...], tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def longest(self, ids: Sequence[int]) -> tuple[int, Any]:
        """Return the longest known sequence that tokens begin with and continue.

        Returns:
            Its length and the state after it; 0 and None if no sequence matches.
        """
        found: tuple[int, ...] = ()
        given = tuple(ids)
        for key in self._states:
            if len(found) < len(key) < len(given) and given[: len(key)] == key:
                found = key
        if not found:
            return 0, None
        self._states.move_to_end(found)
        return len(found), self._states[found][0]

    def keep(self, ids: Sequence[int], state: Any) -> None:
        """Keep a copy of the state after some tokens, unless it is larger than the limit."""
        key = tuple(ids)
        if key in self._states:
            self._states.move_to_end(key)
            return
        state = compact_state(state)
        size = held_bytes(state) + BYTES_OF_AN_ID * len(key)
        if not key or size > self.max_bytes:
            return
        self._states[key] = (state, size)
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            _, (_, freed) = self._states.popitem(last=False)
            self.num_bytes -= freed
