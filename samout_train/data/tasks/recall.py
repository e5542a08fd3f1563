"""Multi-query associative recall: pairs of key and value, then the keys again, at gaps drawn from a power law.

Source: Arora et al., Zoology: Measuring and Improving Recall in Efficient Language Models (arXiv 2312.04927), section
4.1 and appendix A; rows have the distribution of the program published with it. Departure: each epoch has new rows,
while that program draws 100,000 rows once.
"""

# R rows, T time, P pairs, G gaps

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Positive, Problem, Size, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

BLANK = 0
MANY = 1000  # from this many numbers on, drawing a few by shuffling all takes too long


@validated
@dataclass(kw_only=True)
class Recall(Task):
    """A row is P pairs, then each key once more. The answer at a repeated key is its value.

    Keys are ids from 1 to V / 2 - 1 and values from V / 2; within a row, keys and values are distinct. After the pairs,
    every second place can hold a key: gap 0, 1, 2, ... has a probability in proportion to (gap + 1) ** (power - 1).
    Other places hold random ids or blanks (0). T is even and at least 4 P. With V = 8, P = 2, T = 12 and blanks:

        row      3  5  1  7  1  0  0  0  3  0  0  0
        answers  -  -  -  -  7  -  -  -  5  -  -  -

    Args:
        vocab_size: Number of ids V.
        num_pairs: Pairs P in a row.
        power: 1 makes all gaps equally probable; values nearer to 0 favour short gaps.
        filler: Content of other places after the pairs: `any` id, or `blank` as in the published figure 2.
    """

    vocab_size: Annotated[int, Size]
    num_pairs: Annotated[int, Size]
    power: Annotated[float, Positive]
    filler: Literal["any", "blank"] = "any"

    @property
    def num_ids(self) -> int:
        """Return the number of ids."""
        return self.vocab_size

    @property
    def chance(self) -> float:
        """Return 1 / the number of values."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths and the number of pairs."""
        pairs, num_keys = self.num_pairs, self.vocab_size // 2 - 1
        reason = f"4 tokens for each of {name}.num_pairs ({pairs})"
        found = self.length_problems(name, least=4 * pairs, reason=reason, even=True)
        if pairs > num_keys:
            text = f"{name}.vocab_size ({self.vocab_size}) has {max(0, num_keys)} keys"
            fix = f"set it to {2 * pairs + 2} or more"
            found.append(Problem(f"{name}.num_pairs", str(pairs), text=text, fix=fix))
        return found

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        vocab_size, num_pairs = self.vocab_size, self.num_pairs
        first_value, context = vocab_size // 2, 2 * num_pairs
        keys_RP = 1 + distinct(generator, num_rows, num_pairs, first_value - 1)
        values_RP = first_value + distinct(generator, num_rows, num_pairs, vocab_size - first_value)
        weights_G = np.arange(1, (seq_len - context) // 2 + 1) ** (self.power - 1)
        # The largest values of log weight plus Gumbel noise are a weighted draw of gaps without replacement.
        scores_RG = np.log(weights_G) + generator.gumbel(size=(num_rows, len(weights_G)))
        gaps_RP = np.argsort(-scores_RG, axis=1)[:, :num_pairs]
        inputs_RT = generator.integers(vocab_size, size=(num_rows, seq_len))
        if self.filler == "blank":
            inputs_RT[:] = BLANK
        inputs_RT[:, 0:context:2], inputs_RT[:, 1:context:2] = keys_RP, values_RP
        answers_RT = np.full_like(inputs_RT, IGNORED)
        np.put_along_axis(inputs_RT, context + 2 * gaps_RP, keys_RP, axis=1)
        np.put_along_axis(answers_RT, context + 2 * gaps_RP, values_RP, axis=1)
        return inputs_RT, answers_RT


recall = source_function(Recall)


def distinct(generator: np.random.Generator, num_rows: int, count: int, below: int) -> NDArray[np.int64]:
    """Return rows of `count` distinct numbers from 0 to `below` - 1, uniformly distributed, (R, count)."""
    if count * count > below and below >= MANY and 2 * count <= below:
        return _redrawn(generator, num_rows, count, below)
    if count * count > below:  # most draws would have repetitions
        return generator.permuted(np.tile(np.arange(below), (num_rows, 1)), axis=1)[:, :count]
    drawn = generator.integers(below, size=(num_rows, count))
    while len(again := np.flatnonzero((np.diff(np.sort(drawn, axis=1), axis=1) == 0).any(axis=1))):
        drawn[again] = generator.integers(below, size=(len(again), count))
    return drawn


def _redrawn(generator: np.random.Generator, num_rows: int, count: int, below: int) -> NDArray[np.int64]:
    """Draw numbers, and draw each repeated number again until all numbers of a row are distinct.

    Only equality decides which places are drawn again, not the numbers themselves. So all distinct rows stay equally
    probable.
    """
    drawn = generator.integers(below, size=(num_rows, count))
    rows = np.arange(num_rows)
    while len(rows):
        order = np.argsort(drawn[rows], axis=1, kind="stable")
        in_order = np.take_along_axis(drawn[rows], order, axis=1)
        again, places = np.nonzero(in_order[:, 1:] == in_order[:, :-1])
        drawn[rows[again], order[again, places + 1]] = generator.integers(below, size=len(again))
        rows = rows[np.unique(again)]
    return drawn
