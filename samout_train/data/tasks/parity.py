"""Parity: whether the number of ones so far is odd. The smallest task that needs counting.

Source: Beck et al., xLSTM (arXiv 2405.04517), section 4.1: trained up to a length of 40, tested up to 256. Departure:
the paper has an answer at the end of a row only; here every position of a training row has one, so that a row covers
all lengths up to its own.
"""

# R rows, T time

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from samout_train.config import Problem, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import Ids, Task, last_answer_only


@validated
@dataclass(kw_only=True)
class Parity(Task):
    """A row is bits; the answer at each is the parity of the bits up to it. A test counts the last answer only.

    For example:

        row      1  0  1  1
        answers  1  1  0  1
    """

    num_ids: ClassVar[int] = 2
    chance: ClassVar[float] = 1 / 2

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths."""
        return self.length_problems(name, least=1, reason="a bit")

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        bits_RT = generator.integers(2, size=(num_rows, seq_len))
        return bits_RT, bits_RT.cumsum(axis=1) % 2

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with the last answer only."""
        return last_answer_only(self.draw)(generator, num_rows, value)


parity = source_function(Parity)
