"""Copying: symbols, a separator, and the same symbols again, each predicted from those before it.

Source: Jelassi et al., Repeat After Me (arXiv 2402.01032), section 3: strings of 26 letters, of any length up to the
longest.
"""

# R rows, T time, N symbols of the longest string

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np

from samout_train.config import Positive, Range, Size, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.tasks.base import IGNORED, Ids, length_problems, task

BLANK, SEPARATOR, FIRST_SYMBOL = 0, 1, 2


def copy_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong between settings that are right by themselves."""
    return length_problems(settings, name, least=2, reason="a symbol and the separator", even=True)


@checked_by(copy_problems)
@validated
def copy(
    *,
    num_symbols: Annotated[int, Range(2, Size.high)],
    seq_len: Annotated[int, Positive],
    test_lengths: list[Annotated[int, Positive]],
    num_sequences: Annotated[int, Positive],
    num_test_sequences: Annotated[int, Range(100)],
    seed: int,
) -> Source:
    """A row is n symbols, the separator, and the first n - 1 again; blanks fill it.

    The n answers begin at the separator. To learn from, n is any number from 1 to T / 2; in tests it is T / 2.

    Args:
        num_symbols: Different symbols; other ids are blank (0) and separator (1).
        seq_len: Tokens in a row T, an even number.
        test_lengths: Lengths of rows to test at.
        num_sequences: Rows of an epoch.
        num_test_sequences: Rows to validate on, and of each test.
        seed: Decides all rows.
    """
    return task(
        partial(draw_copy, num_symbols=num_symbols, shortest=1),
        draw_test=partial(draw_copy, num_symbols=num_symbols, shortest=None),
        vocab_size=FIRST_SYMBOL + num_symbols,
        chance=1 / num_symbols,
        seq_len=seq_len,
        test_lengths=test_lengths,
        num_sequences=num_sequences,
        num_test_sequences=num_test_sequences,
        seed=seed,
    )


def draw_copy(
    generator: np.random.Generator, num_rows: int, seq_len: int, *, num_symbols: int, shortest: int | None
) -> tuple[Ids, Ids]:
    """Rows and their answers, (R, T) each; strings of `shortest` symbols to T / 2, or all of T / 2 where it is None."""
    longest = seq_len // 2
    lengths_R1 = generator.integers(longest if shortest is None else shortest, longest + 1, size=(num_rows, 1))
    symbols_RN = FIRST_SYMBOL + generator.integers(num_symbols, size=(num_rows, longest))
    place_T = np.arange(seq_len)
    answer_RT = place_T - lengths_R1  # which symbol is the answer
    is_answer_RT = (answer_RT >= 0) & (answer_RT < lengths_R1)
    in_order_RT = np.take_along_axis(symbols_RN, np.clip(answer_RT, 0, longest - 1), axis=1)
    inputs_RT = np.full((num_rows, seq_len), BLANK)
    inputs_RT[:, :longest] = np.where(place_T[:longest] < lengths_R1, symbols_RN, BLANK)
    inputs_RT[:, 1:][is_answer_RT[:, :-1]] = in_order_RT[:, :-1][is_answer_RT[:, :-1]]
    inputs_RT[place_T == 2 * lengths_R1] = BLANK  # the last answer is not read
    np.put_along_axis(inputs_RT, lengths_R1, SEPARATOR, axis=1)
    return inputs_RT, np.where(is_answer_RT, in_order_RT, IGNORED)
