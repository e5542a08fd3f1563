"""Induction heads: what followed a mark once is the answer when the mark comes again, at the end.

Source: Gu and Dao, Mamba (arXiv 2312.00752), section 4.1.2: a vocabulary of 16, one mark.
"""

# R rows, T time

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np

from samout_train.config import Positive, Range, Size, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.tasks.base import IGNORED, Ids, length_problems, task

MARK, FIRST_SYMBOL = 0, 1


def induction_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong between settings that are right by themselves."""
    return length_problems(settings, name, least=3, reason="the mark, a symbol and the mark again")


@checked_by(induction_problems)
@validated
def induction(
    *,
    num_symbols: Annotated[int, Range(2, Size.high)],
    seq_len: Annotated[int, Positive],
    test_lengths: list[Annotated[int, Positive]],
    num_sequences: Annotated[int, Positive],
    num_test_sequences: Annotated[int, Range(100)],
    seed: int,
) -> Source:
    """A row is any symbols, with the mark at one place and at the end; the answer there is what followed it.

    Args:
        num_symbols: Different symbols, beside the mark (0).
        seq_len: Tokens in a row T, from 3.
        test_lengths: Lengths of rows to test at.
        num_sequences: Rows of an epoch.
        num_test_sequences: Rows to validate on, and of each test.
        seed: Decides all rows.
    """
    return task(
        partial(draw_induction, num_symbols=num_symbols),
        vocab_size=FIRST_SYMBOL + num_symbols,
        chance=1 / num_symbols,
        seq_len=seq_len,
        test_lengths=test_lengths,
        num_sequences=num_sequences,
        num_test_sequences=num_test_sequences,
        seed=seed,
    )


def draw_induction(generator: np.random.Generator, num_rows: int, seq_len: int, *, num_symbols: int) -> tuple[Ids, Ids]:
    """Rows and their answers, (R, T) each."""
    inputs_RT = FIRST_SYMBOL + generator.integers(num_symbols, size=(num_rows, seq_len))
    mark_R = generator.integers(seq_len - 2, size=num_rows)
    rows_R = np.arange(num_rows)
    inputs_RT[rows_R, mark_R] = inputs_RT[:, -1] = MARK
    answers_RT = np.full_like(inputs_RT, IGNORED)
    answers_RT[:, -1] = inputs_RT[rows_R, mark_R + 1]
    return inputs_RT, answers_RT
