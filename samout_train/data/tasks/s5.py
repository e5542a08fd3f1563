"""The word problem of S5: what permutations of five things come to, one after another.

No model with a fixed number of layers that computes in parallel without a state of its own kind can do it at any
length, unless TC0 equals NC1.

Source: Merrill et al., The Illusion of State in State-Space Models (arXiv 2404.08819), section 5; moves that swap two:
Siems et al., DeltaProduct (arXiv 2502.10297), section 5.1.
"""

# R rows, T time

from collections.abc import Mapping
from functools import cache, partial
from itertools import permutations
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Positive, Range, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.tasks.base import Ids, last_answer_only, length_problems, task

Moves = Literal["all", "swaps"]
THINGS = 5


def s5_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong between settings that are right by themselves."""
    return length_problems(settings, name, least=1, reason="a permutation")


@checked_by(s5_problems)
@validated
def s5(
    *,
    moves: Moves,
    seq_len: Annotated[int, Positive],
    test_lengths: list[Annotated[int, Positive]],
    num_sequences: Annotated[int, Positive],
    num_test_sequences: Annotated[int, Range(100)],
    seed: int,
) -> Source:
    """A row is permutations; the answer at each is the product of all up to it. A test asks for the last one only.

    Args:
        moves: Which permutations a row is made of: `all` 120, or the 10 `swaps` of two things and the identity.
        seq_len: Tokens in a row T.
        test_lengths: Lengths of rows to test at.
        num_sequences: Rows of an epoch.
        num_test_sequences: Rows to validate on, and of each test.
        seed: Decides all rows.
    """
    elements = elements_of_s5()
    draw = partial(draw_s5, moves=moves)
    return task(
        draw,
        draw_test=last_answer_only(draw),
        vocab_size=len(elements),
        chance=1 / len(elements),
        seq_len=seq_len,
        test_lengths=test_lengths,
        num_sequences=num_sequences,
        num_test_sequences=num_test_sequences,
        seed=seed,
    )


def draw_s5(generator: np.random.Generator, num_rows: int, seq_len: int, *, moves: Moves) -> tuple[Ids, Ids]:
    """Rows and their answers, (R, T) each."""
    elements, product = elements_of_s5(), products()
    moved = (elements != elements[0]).sum(axis=1)  # by each of them; a swap moves two
    choices = np.arange(len(elements)) if moves == "all" else np.flatnonzero(moved <= 2)
    inputs_RT = generator.choice(choices, size=(num_rows, seq_len))
    answers_RT = inputs_RT.copy()
    for step in range(1, seq_len):
        answers_RT[:, step] = product[answers_RT[:, step - 1], inputs_RT[:, step]]
    return inputs_RT, answers_RT


@cache
def elements_of_s5() -> NDArray[np.int64]:
    """Where each of five things goes, for each permutation in the order of their names: (120, 5); the first is none."""
    return np.array(list(permutations(range(THINGS))))


@cache
def products() -> NDArray[np.int64]:
    """The number of the permutation that does first the one and then the other: (120, 120)."""
    elements = elements_of_s5()
    digits = THINGS ** np.arange(THINGS)[::-1]
    number = np.zeros(THINGS**THINGS, dtype=np.int64)
    number[elements @ digits] = np.arange(len(elements))
    first_then_second = elements[None, :, :].repeat(len(elements), 0)
    index = elements[:, None, :].repeat(len(elements), 1)
    return number[np.take_along_axis(first_then_second, index, axis=2) @ digits]
