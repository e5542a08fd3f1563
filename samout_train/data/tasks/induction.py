"""Induction heads: when a mark occurs again, at the end, the answer is the symbol that followed it before.

Source: Gu and Dao, Mamba (arXiv 2312.00752), section 4.1.2: a vocabulary of 16, one mark.
"""

# R rows, T time

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from samout_train.config import Problem, Range, Size, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

MARK, FIRST_SYMBOL = 0, 1


@validated
@dataclass(kw_only=True)
class Induction(Task):
    """A row is random symbols with a mark at one place and at the end. The answer is the symbol after the first mark.

    For example:

        row      3  0  5  2  0
        answers  -  -  -  -  5

    Args:
        num_symbols: Different symbols, not counting the mark (0).
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
        return self.length_problems(name, least=3, reason="the mark, a symbol and the mark again")

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        inputs_RT = FIRST_SYMBOL + generator.integers(self.num_symbols, size=(num_rows, seq_len))
        mark_R = generator.integers(seq_len - 2, size=num_rows)
        rows_R = np.arange(num_rows)
        inputs_RT[rows_R, mark_R] = inputs_RT[:, -1] = MARK
        answers_RT = np.full_like(inputs_RT, IGNORED)
        answers_RT[:, -1] = inputs_RT[rows_R, mark_R + 1]
        return inputs_RT, answers_RT


induction = source_function(Induction)
