"""Copying: symbols, a separator, and the same symbols again. Each copy is predicted from the tokens before it.

Source: Jelassi et al., Repeat After Me (arXiv 2402.01032), section 3: strings of 26 letters, of any length up to the
longest.
"""

# R rows, T time, N symbols of the longest string

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Problem, Range, Size, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

BLANK, SEPARATOR, FIRST_SYMBOL = 0, 1, 2


@validated
@dataclass(kw_only=True)
class Copy(Task):
    """A row is n symbols, the separator, the first n - 1 symbols again, and blanks.

    With n = 3 and T = 8:

        row      4  7  2  1  4  7  0  0
        answers  -  -  -  4  7  2  -  -

    The n answers begin at the separator. In training, n is uniform from 1 to T / 2; in tests it is T / 2. T is even.

    Args:
        num_symbols: Different symbols; other ids are blank (0) and separator (1).
    """

    num_symbols: Annotated[int, Range(2, Size.high)]

    @property
    def num_ids(self) -> int:
        """Return the number of ids."""
        return FIRST_SYMBOL + self.num_symbols

    @property
    def chance(self) -> float:
        """Return 1 / num_symbols."""
        return 1 / self.num_symbols

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths."""
        return self.length_problems(name, least=2, reason="a symbol and the separator", even=True)

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows with strings of any length up to the longest."""
        return self._copied(generator, generator.integers(1, seq_len // 2 + 1, size=(num_rows, 1)), seq_len)

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with the longest strings only."""
        return self._copied(generator, np.full((num_rows, 1), value // 2), value)

    def symbol_of(self, answer_RT: Ids, lengths_R1: NDArray[np.int64]) -> Ids:
        """Return which symbol of the string each answer is, (R, T), from 0."""
        return answer_RT

    def _copied(self, generator: np.random.Generator, lengths_R1: NDArray[np.int64], seq_len: int) -> tuple[Ids, Ids]:
        longest = seq_len // 2
        symbols_RN = FIRST_SYMBOL + generator.integers(self.num_symbols, size=(len(lengths_R1), longest))
        place_T = np.arange(seq_len)
        answer_RT = place_T - lengths_R1  # index of the symbol that is the answer
        is_answer_RT = (answer_RT >= 0) & (answer_RT < lengths_R1)
        wanted_RT = self.symbol_of(answer_RT, lengths_R1)
        in_order_RT = np.take_along_axis(symbols_RN, np.clip(wanted_RT, 0, longest - 1), axis=1)
        inputs_RT = np.full((len(lengths_R1), seq_len), BLANK)
        inputs_RT[:, :longest] = np.where(place_T[:longest] < lengths_R1, symbols_RN, BLANK)
        inputs_RT[:, 1:][is_answer_RT[:, :-1]] = in_order_RT[:, :-1][is_answer_RT[:, :-1]]
        inputs_RT[place_T == 2 * lengths_R1] = BLANK  # the last answer is not an input
        np.put_along_axis(inputs_RT, lengths_R1, SEPARATOR, axis=1)
        return inputs_RT, np.where(is_answer_RT, in_order_RT, IGNORED)


copy = source_function(Copy)
