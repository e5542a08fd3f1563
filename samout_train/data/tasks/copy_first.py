"""Copying the first token: what stood at the very beginning, asked for by a mark, at any distance.

Source: Hochreiter and Schmidhuber, Long Short-Term Memory (Neural Computation 9(8), 1997), experiment 2, where the last
symbol of a sequence is its first one again. What differs: a mark asks for it, and there are more than two symbols.
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
    """A row is symbols with one mark (0) among them; the answer at the mark is the first symbol.

    Such as, at a distance of 4:

        row      5  2  7  7  0  3
        answers  -  -  -  -  5  -

    The mark stands at any place but the first one. A test has rows of one distance, with the mark at their end.

    Args:
        num_symbols: Different symbols, beside the mark.
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
        """Return the share of one symbol."""
        return 1 / self.num_symbols

    def tested_at(self) -> Sequence[int]:
        """Return the distances."""
        return self.test_distances

    def test_row(self, value: int) -> int:
        """Return the length of rows that end with the mark."""
        return value + 1

    def setting_problems(self, name: str) -> list[Problem]:
        """Return what is wrong with the length and the distances."""
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
