"""Parity: whether the ones so far are an odd number. The smallest thing that has to be counted.

Source: Beck et al., xLSTM (arXiv 2405.04517), section 4.1: trained up to a length of 40, tested up to 256. What
differs: there the end of a row is asked about, here in training every place is, so that a row has all lengths up to
its own.
"""

# R rows, T time

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from samout_train.config import Positive, Range, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.tasks.base import Ids, last_answer_only, length_problems, task


def parity_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong between settings that are right by themselves."""
    return length_problems(settings, name, least=1, reason="a bit")


@checked_by(parity_problems)
@validated
def parity(
    *,
    seq_len: Annotated[int, Positive],
    test_lengths: list[Annotated[int, Positive]],
    num_sequences: Annotated[int, Positive],
    num_test_sequences: Annotated[int, Range(100)],
    seed: int,
) -> Source:
    """A row is bits, 0 and 1; the answer at each is the parity of all up to it. A test asks for the last one only.

    Args:
        seq_len: Tokens in a row T.
        test_lengths: Lengths of rows to test at.
        num_sequences: Rows of an epoch.
        num_test_sequences: Rows to validate on, and of each test.
        seed: Decides all rows.
    """
    return task(
        draw_parity,
        draw_test=last_answer_only(draw_parity),
        vocab_size=2,
        chance=1 / 2,
        seq_len=seq_len,
        test_lengths=test_lengths,
        num_sequences=num_sequences,
        num_test_sequences=num_test_sequences,
        seed=seed,
    )


def draw_parity(generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
    """Rows and their answers, (R, T) each."""
    bits_RT = generator.integers(2, size=(num_rows, seq_len))
    return bits_RT, bits_RT.cumsum(axis=1) % 2
