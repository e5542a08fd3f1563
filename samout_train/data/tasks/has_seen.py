"""Has it been there: words, then questions whether one of them was among them, in any order.

What a running maximum is made for: it keeps what has been there, and not when.
"""

# R rows, T time, W words, Q questions of a row

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np

from samout_train.config import Positive, Range, Size, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.tasks.base import IGNORED, Ids, length_problems, task

NO, YES, FIRST_WORD = 0, 1, 2


def has_seen_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong between settings that are right by themselves."""
    return length_problems(settings, name, least=2, reason="a word and a question", even=True)


@checked_by(has_seen_problems)
@validated
def has_seen(
    *,
    num_words: Annotated[int, Range(2, Size.high)],
    seq_len: Annotated[int, Positive],
    test_lengths: list[Annotated[int, Positive]],
    num_sequences: Annotated[int, Positive],
    num_test_sequences: Annotated[int, Range(100)],
    seed: int,
) -> Source:
    """A row's first half is words, its second half asks: whether a word was there, yes (1) or no (0).

    The words of a row are drawn from half of all words, another half in each row, so that some were never there however
    long it is. Half of the answers are yes.

    Args:
        num_words: Different words W; each has an id for being there, and another for being asked about.
        seq_len: Tokens in a row T, an even number.
        test_lengths: Lengths of rows to test at.
        num_sequences: Rows of an epoch.
        num_test_sequences: Rows to validate on, and of each test.
        seed: Decides all rows.
    """
    return task(
        partial(draw_has_seen, num_words=num_words),
        vocab_size=FIRST_WORD + 2 * num_words,
        chance=1 / 2,
        seq_len=seq_len,
        test_lengths=test_lengths,
        num_sequences=num_sequences,
        num_test_sequences=num_test_sequences,
        seed=seed,
    )


def draw_has_seen(generator: np.random.Generator, num_rows: int, seq_len: int, *, num_words: int) -> tuple[Ids, Ids]:
    """Rows and their answers, (R, T) each."""
    half = seq_len // 2
    # The words of a row come from the first half of a shuffled list.
    shuffled_RW = generator.permuted(np.tile(np.arange(num_words), (num_rows, 1)), axis=1)
    words_RQ = np.take_along_axis(shuffled_RW, generator.integers(num_words // 2, size=(num_rows, half)), axis=1)
    seen_RW = np.zeros((num_rows, num_words), dtype=bool)
    np.put_along_axis(seen_RW, words_RQ, True, axis=1)
    # Words in any order, those that were there first: a question is one of the first so many, or of the others.
    order_RW = np.lexsort((generator.random((num_rows, num_words)), ~seen_RW), axis=1)
    num_seen_R1 = seen_RW.sum(axis=1, keepdims=True)
    answers_RQ = generator.integers(2, size=(num_rows, half))
    low_RQ, high_RQ = np.where(answers_RQ == YES, 0, num_seen_R1), np.where(answers_RQ == YES, num_seen_R1, num_words)
    asked_RQ = np.take_along_axis(order_RW, generator.integers(low_RQ, high_RQ), axis=1)
    inputs_RT = FIRST_WORD + np.concatenate([words_RQ, num_words + asked_RQ], axis=1)
    return inputs_RT, np.concatenate([np.full_like(answers_RQ, IGNORED), answers_RQ], axis=1)
