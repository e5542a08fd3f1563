"""A needle in a haystack: the words after a mark must be repeated after a later mark.

Source: the passkey test of Mohtashami and Jaggi, Landmark Attention (arXiv 2305.16300), section 4.2, with random words
in place of text.
"""

# R rows, T time, N words of the needle

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Positive, Problem, Range, Size, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

MARK, FIRST_WORD = 0, 1


@validated
@dataclass(kw_only=True)
class Needle(Task):
    """A row is random words, a mark and N words, random words, and the mark and the first N - 1 of these words again.

    The N answers begin at the second mark, which is N + 1 to T - N places after the first mark.

    For example, N = 2 and a distance of 4:

        row      4  0  3  6  1  0  3
        answers  -  -  -  -  -  3  6

    Args:
        num_words: Different words, not counting the mark (0).
        needle_words: Words N of the needle.
        seq_len: Tokens T in a row, at least 2 N + 1.
        test_distances: Distances between the marks to test at, at least N + 1. The rows of a test are longer than T if
            its distance needs it.
    """

    test_by: ClassVar[str] = "distance"

    num_words: Annotated[int, Range(2, Size.high)]
    needle_words: Annotated[int, Positive]
    seq_len: Annotated[int, Positive]
    test_distances: list[Annotated[int, Positive]]
    test_lengths: list[Annotated[int, Positive]] = field(init=False, default_factory=list)  # tests are at distances

    @property
    def num_ids(self) -> int:
        """Return the number of ids."""
        return FIRST_WORD + self.num_words

    @property
    def chance(self) -> float:
        """Return 1 / num_words."""
        return 1 / self.num_words

    def tested_at(self) -> Sequence[int]:
        """Return the distances."""
        return self.test_distances

    def test_row(self, value: int) -> int:
        """Return the length of rows with room for a distance."""
        return max(self.seq_len, value + self.needle_words)

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the length and the distances."""
        words, distances = self.needle_words, self.test_distances
        reason = f"the mark and the {words} words of {name}.needle_words, twice"
        found = self.length_problems(name, least=2 * words + 1, reason=reason)
        for distance in distances:
            if distance <= words:
                text = f"the mark occurs again after the {words} words of {name}.needle_words"
                fix = f"set it to {words + 1} or more"
                found.append(Problem(f"{name}.test_distances", str(distance), text=text, fix=fix))
        if len(set(distances)) < len(distances):
            text = "has a value twice"
            found.append(Problem(f"{name}.test_distances", str(distances), text=text, fix="remove one"))
        return found

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows with random distances."""
        words_RT = self._words(generator, num_rows, seq_len)
        least, most = self.needle_words + 1, seq_len - self.needle_words
        return self._marked(words_RT, generator.integers(least, most + 1, size=(num_rows, 1)))

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with one distance."""
        words_RT = self._words(generator, num_rows, self.test_row(value))
        return self._marked(words_RT, np.full((num_rows, 1), value))

    def _words(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> NDArray[np.int64]:
        return FIRST_WORD + generator.integers(self.num_words, size=(num_rows, seq_len))

    def _marked(self, inputs_RT: NDArray[np.int64], distance_R1: NDArray[np.int64]) -> tuple[Ids, Ids]:
        """Return rows with both marks and the needle inserted, and their answers."""
        second = inputs_RT.shape[1] - self.needle_words
        first_R1 = second - distance_R1
        needle_RN = np.take_along_axis(inputs_RT, first_R1 + 1 + np.arange(self.needle_words), axis=1)
        np.put_along_axis(inputs_RT, first_R1, MARK, axis=1)
        inputs_RT[:, second] = MARK
        inputs_RT[:, second + 1 :] = needle_RN[:, :-1]
        answers_RT = np.full_like(inputs_RT, IGNORED)
        answers_RT[:, second:] = needle_RN
        return inputs_RT, answers_RT


needle = source_function(Needle)
