"""The base of tasks: sources that draw their rows from a seed, and count only answers."""

# R rows, T time

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samout_train.config import Positive, Problem, Range
from samout_train.data.source import LabelledRows, Source, problems_of

Ids = NDArray[np.integer[Any]]
# Maps a generator, the number of rows and their length to inputs and labels, (R, T) each.
Draw = Callable[[np.random.Generator, int, int], tuple[Ids, Ids]]
IGNORED = -100  # the label of positions without an answer
TRAIN, VALIDATION, TEST = range(3)


@dataclass(kw_only=True)
class Task(ABC):
    """A task: the settings that all tasks share, and the methods that define its rows.

    Args:
        seq_len: Tokens T in a row of training and validation.
        test_lengths: Lengths of rows to test at.
        num_sequences: Rows of an epoch; each epoch has new ones.
        num_test_sequences: Rows of the validation split and of each test.
        seed: Seed of all rows.
    """

    test_by: ClassVar[str] = "length"  # the tested quantity, in the name of each test

    seq_len: Annotated[int, Positive]
    test_lengths: list[Annotated[int, Positive]]
    num_sequences: Annotated[int, Positive]
    num_test_sequences: Annotated[int, Range(100)]
    seed: int

    @property
    @abstractmethod
    def num_ids(self) -> int:
        """Return the number of token ids V."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Return the accuracy of guessing."""

    @abstractmethod
    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return training rows and their answers, (R, T) each; positions without an answer are IGNORED."""

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return test rows for a value, such as a length, and their answers, (R, T) each."""
        return self.draw(generator, num_rows, value)

    def tested_at(self) -> Sequence[int]:
        """Return the values to test at, one test each."""
        return self.test_lengths

    def test_row(self, value: int) -> int:
        """Return the length of the test rows for a value."""
        return value

    @classmethod
    def problems(cls, settings: Mapping[str, Any], name: str) -> list[Problem]:
        """Return the problems between the settings of a YAML; see `problems_of`."""
        return problems_of(cls, settings, name)

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of settings that are valid one by one."""
        return self.length_problems(name, least=1, reason="a token")

    def length_problems(self, name: str, *, least: int, reason: str, even: bool = False) -> list[Problem]:
        """Return the problems of the lengths of rows; see the function `length_problems`."""
        return length_problems(vars(self), name, least=least, reason=reason, even=even)

    def source(self) -> Source:
        """Return the source, with a test for each value of `tested_at`."""
        return task(
            self.draw,
            draw_test=self.draw_test,
            vocab_size=self.num_ids,
            chance=self.chance,
            seq_len=self.seq_len,
            test_lengths=self.tested_at(),
            test_by=self.test_by,
            test_row=self.test_row,
            num_sequences=self.num_sequences,
            num_test_sequences=self.num_test_sequences,
            seed=self.seed,
        )


def task(
    draw: Draw,
    *,
    vocab_size: int,
    chance: float,
    seq_len: int,
    test_lengths: Sequence[int],
    num_sequences: int,
    num_test_sequences: int,
    seed: int,
    draw_test: Draw | None = None,
    test_by: str = "length",
    test_row: Callable[[int], int] = lambda length: length,
) -> Source:
    """Return a source of one task.

    Args:
        draw: Draws training and validation rows.
        vocab_size: Number of ids V.
        chance: The accuracy of guessing.
        seq_len: Length T of training and validation rows.
        test_lengths: The values to test at, one test each.
        num_sequences: Rows of an epoch; each epoch has new ones.
        num_test_sequences: Rows of the validation split and of each test.
        seed: Seed of all rows.
        draw_test: Draws the rows of tests, given the tested value in place of the length; None for `draw`.
        test_by: The tested quantity, in the name of each test.
        test_row: Maps a tested value to the length of the test's rows.

    Returns:
        A source with a test for each of `test_lengths`, named such as `length_256`.
    """

    def tested_at(value: int) -> DrawnRows:
        drawn = partial(_drawn_at, draw_test or draw, value)
        return DrawnRows(drawn, num_rows=num_test_sequences, seq_len=test_row(value), seed=(seed, TEST, value))

    return Source(
        vocab_size=vocab_size,
        pad_id=None,
        ignore_index=IGNORED,
        train=DrawnRows(draw, num_rows=num_sequences, seq_len=seq_len, seed=(seed, TRAIN)),
        validation=DrawnRows(draw, num_rows=num_test_sequences, seq_len=seq_len, seed=(seed, VALIDATION)),
        vocabulary=None,
        floor_nats=None,
        description={
            "vocabulary": vocab_size,
            "rows an epoch": num_sequences,
            "test rows": num_test_sequences,
            "chance": f"{chance:.2%}",
        },
        tests={f"{test_by}_{value}": tested_at(value) for value in test_lengths},
        chance=chance,
    )


class DrawnRows:
    """Rows drawn from a seed when first used. Each epoch has new rows, so that a model cannot memorise them.

    Args:
        draw: Draws the rows of an epoch.
        num_rows: Rows of an epoch.
        seq_len: Length T of a row.
        seed: Seed of the rows, together with the epoch.
    """

    def __init__(self, draw: Draw, *, num_rows: int, seq_len: int, seed: tuple[int, ...]) -> None:
        self.draw, self.seed = draw, seed
        self.num_rows = self.num_windows = num_rows
        self.seq_len = seq_len
        self._epochs: dict[int, LabelledRows] = {}

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return rows of an epoch, (R, 2 T) int64."""
        return self._drawn(epoch).take(indices, epoch)

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows of the first epoch, (R, 2 T) int64."""
        return self._drawn(0).windows(start, stop)

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]

    def _drawn(self, epoch: int) -> LabelledRows:
        if epoch not in self._epochs:
            # A batch may hold the end of one epoch and the start of the next.
            for old in self._epochs.keys() - {epoch - 1}:
                del self._epochs[old]
            generator = np.random.default_rng((*self.seed, epoch))
            inputs_RT, labels_RT = self.draw(generator, self.num_rows, self.seq_len)
            self._epochs[epoch] = LabelledRows(
                torch.from_numpy(inputs_RT.astype(np.int32)), torch.from_numpy(labels_RT.astype(np.int32))
            )
        return self._epochs[epoch]


def _drawn_at(draw: Draw, value: int, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
    """Return test rows from a `draw` that takes the tested value in place of the length."""
    return draw(generator, num_rows, value)


def last_answer_only(draw: Draw) -> Draw:
    """Return a function that draws the same rows with only the last answer, which depends on the whole row.

    Args:
        draw: Draws rows that end with an answer.
    """

    def drawn(generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        inputs_RT, labels_RT = draw(generator, num_rows, seq_len)
        last_RT = np.full_like(labels_RT, IGNORED)
        last_RT[:, -1] = labels_RT[:, -1]
        return inputs_RT, last_RT

    return drawn


def length_problems(
    settings: Mapping[str, Any], name: str, *, least: int, reason: str, even: bool = False
) -> list[Problem]:
    """Return the problems of the lengths of a task's rows.

    Args:
        settings: Settings with `seq_len` and `test_lengths`, each above 0.
        name: The key of this group of settings, such as `data`.
        least: The shortest possible row.
        reason: What the shortest row contains, for the message.
        even: Whether lengths must be even.
    """
    given = [("seq_len", settings["seq_len"]), *(("test_lengths", length) for length in settings["test_lengths"])]
    found = []
    for key, length in given:
        if length < least:
            fix = f"set it to {least} or more"
            found.append(Problem(f"{name}.{key}", str(length), text=f"a row needs {reason}", fix=fix))
    for key, length in given:
        if even and length >= least and length % 2:
            fix = f"set it to {length - 1} or {length + 1}"
            found.append(Problem(f"{name}.{key}", str(length), text="a row has two halves", fix=fix))
    if len(set(settings["test_lengths"])) < len(settings["test_lengths"]):
        given_twice = str(settings["test_lengths"])
        found.append(Problem(f"{name}.test_lengths", given_twice, text="has a value twice", fix="remove one"))
    return found
