"""Reversing: symbols, a separator, and the same symbols from the last to the first, to be predicted.

Source: Deletang et al., Neural Networks and the Chomsky Hierarchy (arXiv 2207.02098), section 4: a task for a
stack. Departure: here each answer is the next input, as in the task `copy`.
"""

# R rows, T time

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samout_train.config import validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import Ids
from samout_train.data.tasks.copy import Copy


@validated
@dataclass(kw_only=True)
class Reverse(Copy):
    """A row is n symbols, the separator (1), the last n - 1 symbols in reverse order, and blanks (0).

    For example, n = 3 and T = 8:

        row      4  7  2  1  2  7  0  0
        answers  -  -  -  2  7  4  -  -

    Lengths and settings are the same as for `copy`.
    """

    def symbol_of(self, answer_RT: Ids, lengths_R1: NDArray[np.int64]) -> Ids:
        """Return which symbol of the string each answer is, (R, T): the first answer is the last symbol."""
        return lengths_R1 - 1 - answer_RT


reverse = source_function(Reverse)
