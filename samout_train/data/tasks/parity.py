"""Parity: whether the number of ones so far is odd, the smallest task that needs counting; or a sum modulo m.

Source: Beck et al., xLSTM (arXiv 2405.04517), section 4.1: trained up to a length of 40, tested up to 256. Departure:
the paper has an answer only at the end of a row; here every position of a training row has one, so that a row covers
all lengths up to its own.
"""

# R rows, T time

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from samout_train.config import Problem, Range, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import Ids, Task, last_answer_only


@validated
@dataclass(kw_only=True)
class Parity(Task):
    """A row is bits. The answer at each bit is the parity up to that bit. A test counts only the last answer.

    For example:

        row      1  0  1  1
        answers  1  1  0  1

    Args:
        modulus: The modulus m. For m of 3 or more, a row is numbers below m; the answer is their sum so far modulo m.
    """

    modulus: Annotated[int, Range(2, 97)] = 2

    @property
    def num_ids(self) -> int:
        """Return the number of ids, the modulus."""
        return self.modulus

    @property
    def chance(self) -> float:
        """Return 1 / modulus."""
        return 1 / self.modulus

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths."""
        return self.length_problems(name, least=1, reason="a bit")

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        numbers_RT = generator.integers(self.modulus, size=(num_rows, seq_len))
        return numbers_RT, numbers_RT.cumsum(axis=1) % self.modulus

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with only the last answer."""
        return last_answer_only(self.draw)(generator, num_rows, value)


parity = source_function(Parity)
