"""Selective copying: symbols scattered among blanks, to be said in their order at the end.

Source: Gu and Dao, Mamba (arXiv 2312.00752), section 4.1.1: 16 symbols out of a vocabulary of 16.
"""

# R rows, T time, N symbols

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np

from samout_train.config import Positive, Range, Size, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.tasks.base import IGNORED, Ids, length_problems, task

BLANK, MARKER, FIRST_SYMBOL = 0, 1, 2


def selective_copy_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong between settings that are right by themselves."""
    copied = settings["num_copied"]
    return length_problems(
        settings, name, least=2 * copied, reason=f"2 tokens for each of {name}.num_copied ({copied})"
    )


@checked_by(selective_copy_problems)
@validated
def selective_copy(
    *,
    num_symbols: Annotated[int, Range(2, Size.high)],
    num_copied: Annotated[int, Positive],
    seq_len: Annotated[int, Positive],
    test_lengths: list[Annotated[int, Positive]],
    num_sequences: Annotated[int, Positive],
    num_test_sequences: Annotated[int, Range(100)],
    seed: int,
) -> Source:
    """A row is N symbols at any places among blanks, then N markers; the answers there are the symbols in their order.

    Args:
        num_symbols: Different symbols; other ids are blank (0) and marker (1).
        num_copied: Symbols N in a row.
        seq_len: Tokens in a row T, from 2 N.
        test_lengths: Lengths of rows to test at.
        num_sequences: Rows of an epoch.
        num_test_sequences: Rows to validate on, and of each test.
        seed: Decides all rows.
    """
    return task(
        partial(draw_selective_copy, num_symbols=num_symbols, num_copied=num_copied),
        vocab_size=FIRST_SYMBOL + num_symbols,
        chance=1 / num_symbols,
        seq_len=seq_len,
        test_lengths=test_lengths,
        num_sequences=num_sequences,
        num_test_sequences=num_test_sequences,
        seed=seed,
    )


def draw_selective_copy(
    generator: np.random.Generator, num_rows: int, seq_len: int, *, num_symbols: int, num_copied: int
) -> tuple[Ids, Ids]:
    """Rows and their answers, (R, T) each."""
    context = seq_len - num_copied
    symbols_RN = FIRST_SYMBOL + generator.integers(num_symbols, size=(num_rows, num_copied))
    places_RN = np.sort(generator.random((num_rows, context)).argsort(axis=1)[:, :num_copied], axis=1)
    inputs_RT = np.full((num_rows, seq_len), BLANK)
    np.put_along_axis(inputs_RT, places_RN, symbols_RN, axis=1)
    inputs_RT[:, context:] = MARKER
    answers_RT = np.full_like(inputs_RT, IGNORED)
    answers_RT[:, context:] = symbols_RN
    return inputs_RT, answers_RT
