"""Selective copying: symbols scattered among blanks must be repeated in order at the end.

Source: Gu and Dao, Mamba (arXiv 2312.00752), section 4.1.1: 16 symbols out of a vocabulary of 16.
"""

# R rows, T time, N symbols

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from samout_train.config import Positive, Problem, Range, Size, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

BLANK, MARKER, FIRST_SYMBOL = 0, 1, 2


@validated
@dataclass(kw_only=True)
class SelectiveCopy(Task):
    """A row is N symbols at random places among blanks, then N markers. The answers at the markers are the symbols.

    For example, N = 2:

        row      0  4  0  0  3  1  1
        answers  -  -  -  -  -  4  3

    Args:
        num_symbols: Different symbols; other ids are blank (0) and marker (1).
        num_copied: Symbols N in a row, at most T / 2.
    """

    num_symbols: Annotated[int, Range(2, Size.high)]
    num_copied: Annotated[int, Positive]

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
        copied = self.num_copied
        return self.length_problems(name, least=2 * copied, reason=f"2 tokens for each of {name}.num_copied ({copied})")

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        context = seq_len - self.num_copied
        symbols_RN = FIRST_SYMBOL + generator.integers(self.num_symbols, size=(num_rows, self.num_copied))
        places_RN = np.sort(generator.random((num_rows, context)).argsort(axis=1)[:, : self.num_copied], axis=1)
        inputs_RT = np.full((num_rows, seq_len), BLANK)
        np.put_along_axis(inputs_RT, places_RN, symbols_RN, axis=1)
        inputs_RT[:, context:] = MARKER
        answers_RT = np.full_like(inputs_RT, IGNORED)
        answers_RT[:, context:] = symbols_RN
        return inputs_RT, answers_RT


selective_copy = source_function(SelectiveCopy)
