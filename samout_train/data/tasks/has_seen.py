"""Membership: words, then questions whether a word was among them. Their order does not matter.

The task suits a running maximum, which records that a word occurred but not when.
"""

# R rows, T time, W words, Q questions of a row

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from samout_train.config import Problem, Range, Size, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

NO, YES, FIRST_WORD = 0, 1, 2


@validated
@dataclass(kw_only=True)
class HasSeen(Task):
    """The first half of a row is words; the second half is questions whether a word occurred, yes (1) or no (0).

    The words of a row come from a random half of all words, so that some never occur, however long the row. Half of
    the answers are expected to be yes. T is even.

    For example, W = 8, with words 2 to 9 and their questions 10 to 17:

        row      2  5  2 13 14 10
        answers  -  -  -  1  0  1

    Args:
        num_words: Different words W; each has one id as a word and another as a question.
    """

    num_words: Annotated[int, Range(2, Size.high)]

    chance: ClassVar[float] = 1 / 2

    @property
    def num_ids(self) -> int:
        """Return the number of ids."""
        return FIRST_WORD + 2 * self.num_words

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths."""
        return self.length_problems(name, least=2, reason="a word and a question", even=True)

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        num_words, half = self.num_words, seq_len // 2
        # The words of a row come from the first half of a shuffled list.
        shuffled_RW = generator.permuted(np.tile(np.arange(num_words), (num_rows, 1)), axis=1)
        words_RQ = np.take_along_axis(shuffled_RW, generator.integers(num_words // 2, size=(num_rows, half)), axis=1)
        seen_RW = np.zeros((num_rows, num_words), dtype=bool)
        np.put_along_axis(seen_RW, words_RQ, True, axis=1)
        # Words in random order, but first those that occurred: a question picks one of them, or one of the others.
        order_RW = np.lexsort((generator.random((num_rows, num_words)), ~seen_RW), axis=1)
        num_seen_R1 = seen_RW.sum(axis=1, keepdims=True)
        answers_RQ = generator.integers(2, size=(num_rows, half))
        low_RQ = np.where(answers_RQ == YES, 0, num_seen_R1)
        high_RQ = np.where(answers_RQ == YES, num_seen_R1, num_words)
        asked_RQ = np.take_along_axis(order_RW, generator.integers(low_RQ, high_RQ), axis=1)
        inputs_RT = FIRST_WORD + np.concatenate([words_RQ, num_words + asked_RQ], axis=1)
        return inputs_RT, np.concatenate([np.full_like(answers_RQ, IGNORED), answers_RQ], axis=1)


has_seen = source_function(HasSeen)
