"""Copying the first token: a mark, at any distance, asks for the first symbol of the row.

Source: Hochreiter and Schmidhuber, Long Short-Term Memory (Neural Computation 9(8), 1997), experiment 2, where the last
symbol of a sequence repeats the first. Departures: a mark asks for it, and there are more than two symbols.
"""

# R rows, T time

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Positive, Problem, Range, Size, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

MARK, FIRST_SYMBOL = 0, 1


@validated
@dataclass(kw_only=True)
class CopyFirst(Task):
    """A row is symbols with a mark (0) among them. The answer at the mark is the first symbol.

    For example, at a distance of 4:

        row      5  2  7  7  0  3
        answers  -  -  -  -  5  -

    The mark is at any place but the first. All rows of a test have the same distance, and end with the mark.

    Args:
        num_symbols: Different symbols, not counting the mark.
        test_distances: Places from the first symbol to the mark to test at, such as 16,384.
    """

    test_by: ClassVar[str] = "distance"

    num_symbols: Annotated[int, Range(2, Size.high)]
    test_distances: list[Annotated[int, Positive]]
    test_lengths: list[Annotated[int, Positive]] = field(init=False, default_factory=list)  # tests are at distances

    @property
    def num_ids(self) -> int:
        """Return the number of ids."""
        return FIRST_SYMBOL + self.num_symbols

    @property
    def chance(self) -> float:
        """Return 1 / num_symbols."""
        return 1 / self.num_symbols

    def tested_at(self) -> Sequence[int]:
        """Return the distances."""
        return self.test_distances

    def test_row(self, value: int) -> int:
        """Return the length of rows that end with the mark."""
        return value + 1

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the length and the distances."""
        found = self.length_problems(name, least=2, reason="a symbol and the mark")
        if len(set(self.test_distances)) < len(self.test_distances):
            text = "has one of them twice"
            found.append(Problem(f"{name}.test_distances", str(self.test_distances), text=text, fix="leave that out"))
        return found

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows with any distance."""
        return self._marked(generator, generator.integers(1, seq_len, size=(num_rows, 1)), seq_len)

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with one distance."""
        return self._marked(generator, np.full((num_rows, 1), value), value + 1)

    def _marked(self, generator: np.random.Generator, place_R1: NDArray[np.int64], seq_len: int) -> tuple[Ids, Ids]:
        inputs_RT = FIRST_SYMBOL + generator.integers(self.num_symbols, size=(len(place_R1), seq_len))
        answers_RT = np.full_like(inputs_RT, IGNORED)
        np.put_along_axis(answers_RT, place_R1, inputs_RT[:, :1], axis=1)
        np.put_along_axis(inputs_RT, place_R1, MARK, axis=1)
        return inputs_RT, answers_RT


copy_first = source_function(CopyFirst)
