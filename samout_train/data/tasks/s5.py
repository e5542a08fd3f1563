"""The word problem of S5: the running product of permutations of five things, or another number of things.

Unless TC0 equals NC1, models in TC0, such as Transformers and diagonal state-space models of fixed depth, cannot solve
it at every length.

Source: Merrill et al., The Illusion of State in State-Space Models (arXiv 2404.08819), section 5; swaps of two things:
Siems et al., DeltaProduct (arXiv 2502.10297), section 5.1.
"""

# R rows, T time

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Problem, Range, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import Ids, Task, last_answer_only

Moves = Literal["all", "swaps"]


@validated
@dataclass(kw_only=True)
class S5(Task):
    """A row is permutations. The answer at each is the product up to there. A test counts only the last answer.

    Ids follow the lexical order: 0 is the identity, 1 swaps the last two things, 2 the two before. For example:

        row      1  1  2  0  2
        answers  1  0  2  2  0

    Args:
        moves: The permutations in a row: `all` 120, or the 10 `swaps` of two things and the identity.
        things: The number of things, such as 3 for S3, with 6 permutations and 3 swaps.
    """

    moves: Moves
    things: Annotated[int, Range(2, 6)] = 5

    @property
    def num_ids(self) -> int:
        """Return the number of permutations."""
        return len(elements_of(self.things))

    @property
    def chance(self) -> float:
        """Return 1 / the number of permutations."""
        return 1 / self.num_ids

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths."""
        return self.length_problems(name, least=1, reason="a permutation")

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        elements, product = elements_of(self.things), products(self.things)
        choices = np.arange(len(elements))
        if self.moves == "swaps":
            moved = (elements != elements[0]).sum(axis=1)  # number of things that a permutation moves; a swap moves two
            choices = np.flatnonzero(moved <= 2)
        inputs_RT = generator.choice(choices, size=(num_rows, seq_len))
        answers_RT = inputs_RT.copy()
        for step in range(1, seq_len):
            answers_RT[:, step] = product[answers_RT[:, step - 1], inputs_RT[:, step]]
        return inputs_RT, answers_RT

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with only the last answer."""
        return last_answer_only(self.draw)(generator, num_rows, value)


s5 = source_function(S5)


@cache
def elements_of(things: int) -> NDArray[np.int64]:
    """Return the permutations of n things, (n!, n), in lexical order; the first is the identity."""
    return np.array(list(permutations(range(things))))


@cache
def products(things: int) -> NDArray[np.int64]:
    """Return a table of products, (n!, n!): the row's permutation first, then the column's."""
    elements = elements_of(things)
    digits = things ** np.arange(things)[::-1]
    number = np.zeros(things**things, dtype=np.int64)
    number[elements @ digits] = np.arange(len(elements))
    first_then_second = elements[None, :, :].repeat(len(elements), 0)
    index = elements[:, None, :].repeat(len(elements), 1)
    return number[np.take_along_axis(first_then_second, index, axis=2) @ digits]
