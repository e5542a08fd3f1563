"""A needle in a haystack: words that stood behind a mark, to be said again far behind it.

Source: the passkey test of Mohtashami and Jaggi, Landmark Attention (arXiv 2305.16300), section 4.2, with words drawn
at random in the place of text.
"""

# R rows, T time, N words of the needle

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np

from samout_train.config import Positive, Range, Size, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.tasks.base import IGNORED, Ids, length_problems, task

MARK, FIRST_WORD = 0, 1


def needle_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong between settings that are right by themselves."""
    words = settings["needle_words"]
    lengths = {"seq_len": settings["seq_len"], "test_lengths": []}
    found = length_problems(
        lengths, name, least=2 * words + 1, reason=f"the mark and the {words} words of {name}.needle_words, twice"
    )
    distances = settings["test_distances"]
    found += [
        f"{name}.test_distances={distance}: the mark comes again behind the {words} words of {name}.needle_words: set "
        f"it to {words + 1} or more"
        for distance in distances
        if distance <= words
    ]
    if len(set(distances)) < len(distances):
        found.append(f"{name}.test_distances={distances}: has one of them twice: leave that out")
    return found


@checked_by(needle_problems)
@validated
def needle(
    *,
    num_words: Annotated[int, Range(2, Size.high)],
    needle_words: Annotated[int, Positive],
    seq_len: Annotated[int, Positive],
    test_distances: list[Annotated[int, Positive]],
    num_sequences: Annotated[int, Positive],
    num_test_sequences: Annotated[int, Range(100)],
    seed: int,
) -> Source:
    """A row is any words, a mark with N words behind it, any words, and the mark with the first N - 1 of them again.

    The N answers begin at the second mark, which is N + 1 to T - N places behind the first.

    Args:
        num_words: Different words, beside the mark (0).
        needle_words: Words N of the needle.
        seq_len: Tokens in a row T, from 2 N + 1.
        test_distances: Places from mark to mark to test at, from N + 1; where a row of T is too short for one, the rows
            of that test are as long as they must be.
        num_sequences: Rows of an epoch.
        num_test_sequences: Rows to validate on, and of each test.
        seed: Decides all rows.
    """

    def draw_test(generator: np.random.Generator, num_rows: int, distance: int) -> tuple[Ids, Ids]:
        return draw_needle(generator, num_rows, test_row(distance), num_words, needle_words, distance)

    def test_row(distance: int) -> int:
        return max(seq_len, distance + needle_words)

    return task(
        partial(draw_needle, num_words=num_words, needle_words=needle_words),
        draw_test=draw_test,
        vocab_size=FIRST_WORD + num_words,
        chance=1 / num_words,
        seq_len=seq_len,
        test_lengths=test_distances,
        test_by="distance",
        test_row=test_row,
        num_sequences=num_sequences,
        num_test_sequences=num_test_sequences,
        seed=seed,
    )


def draw_needle(
    generator: np.random.Generator,
    num_rows: int,
    seq_len: int,
    num_words: int,
    needle_words: int,
    distance: int | None = None,
) -> tuple[Ids, Ids]:
    """Rows and their answers, (R, T) each; `distance` from mark to mark is drawn, too, where it is None."""
    inputs_RT = FIRST_WORD + generator.integers(num_words, size=(num_rows, seq_len))
    if distance is None:
        distance_R1 = generator.integers(needle_words + 1, seq_len - needle_words + 1, size=(num_rows, 1))
    else:
        distance_R1 = np.full((num_rows, 1), distance)
    second = seq_len - needle_words
    first_R1 = second - distance_R1
    needle_RN = np.take_along_axis(inputs_RT, first_R1 + 1 + np.arange(needle_words), axis=1)
    np.put_along_axis(inputs_RT, first_R1, MARK, axis=1)
    inputs_RT[:, second] = MARK
    inputs_RT[:, second + 1 :] = needle_RN[:, :-1]
    answers_RT = np.full_like(inputs_RT, IGNORED)
    answers_RT[:, second:] = needle_RN
    return inputs_RT, answers_RT
