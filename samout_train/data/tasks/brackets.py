"""Brackets of two kinds, nested: the kind of bracket that each closing bracket closes.

Source: the language Dyck-2 of bounded depth, Hewitt et al., RNNs Can Generate Bounded Hierarchical Languages with
Optimal Memory (arXiv 2010.07515). Departure: a closing bracket does not show its kind, because that is the answer.
"""

# R rows, T time, D depth

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from samout_train.config import Positive, Problem, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

NUM_KINDS, CLOSE = 2, 2


@validated
@dataclass(kw_only=True)
class Brackets(Task):
    """A row has opening brackets of kinds 0 and 1 and closing ones (2). The answer at a closing one is its kind.

    For example, ( [ ] ( ) ) [ :

        row      0  1  2  0  2  2  1
        answers  -  -  1  -  0  0  -

    If no bracket is open, the next one opens; at the largest depth, it closes; elsewhere, each has probability 1/2.
    Brackets may still be open at the end.

    Args:
        max_depth: Brackets that can be open at the same time D.
    """

    num_ids: ClassVar[int] = 3
    chance: ClassVar[float] = 1 / NUM_KINDS

    max_depth: Annotated[int, Positive]

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths."""
        return self.length_problems(name, least=2, reason="a bracket that opens and one that closes")

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        kinds_RT = generator.integers(NUM_KINDS, size=(num_rows, seq_len))
        would_open_RT = generator.integers(2, size=(num_rows, seq_len)).astype(bool)
        inputs_RT = np.full((num_rows, seq_len), CLOSE)
        answers_RT = np.full((num_rows, seq_len), IGNORED)
        open_RD = np.zeros((num_rows, self.max_depth), dtype=np.int64)
        depth_R = np.zeros(num_rows, dtype=np.int64)
        for place in range(seq_len):
            opens_R = (depth_R == 0) | (would_open_RT[:, place] & (depth_R < self.max_depth))
            opening, closing = np.flatnonzero(opens_R), np.flatnonzero(~opens_R)
            inputs_RT[opening, place] = kinds_RT[opening, place]
            open_RD[opening, depth_R[opening]] = kinds_RT[opening, place]
            answers_RT[closing, place] = open_RD[closing, depth_R[closing] - 1]
            depth_R += np.where(opens_R, 1, -1)
        return inputs_RT, answers_RT


brackets = source_function(Brackets)
