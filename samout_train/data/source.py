"""A data source: what it gives to the rest of the program, and rows of token ids that lie in memory."""

# R rows, T time; a row of ids has T + 1: inputs are its first T, targets its last T

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samout_train.config import ConfigError, Problem, checked_by
from samout_train.data.text.documents import LineEnds
from samout_train.data.vocabulary.base import Vocabulary

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data source: what it gives to the rest of the program.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id that fills rows; None where there is none.
        ignore_index: Targets of this value are not counted.
        train: The rows to learn from.
        validation: The rows to judge by.
        vocabulary: Ids to text; None where ids are no text.
        floor_nats: The loss that nothing can beat on the validation rows; None where it is not known.
        description: What was read, for the record: sizes, digest, files.
        labels: Where targets are labels, the name of each, by id; what makes the source has `labelling = True` then.
        tests: Further rows to judge by, by name: those of a task, at other lengths than it is learned at.
        chance: Of a task, the accuracy of guessing; None elsewhere.
        line_ends: How line ends were read, and how those of prompts are: `keep` or `fold`.
        words: Of the validation text, what a perplexity per word divides by; None where that is not its figure.

    Raises:
        ValueError: if there is padding and it would be learned.
    """

    vocab_size: int
    pad_id: int | None
    ignore_index: int
    train: "Rows"
    validation: "Rows"
    vocabulary: Vocabulary | None
    floor_nats: float | None
    description: dict[str, object]
    labels: Sequence[str] | None = None
    tests: Mapping[str, "Rows"] = field(default_factory=dict)
    chance: float | None = None
    line_ends: LineEnds = "keep"
    words: int | None = None

    def __post_init__(self) -> None:
        if self.pad_id is not None and self.pad_id != self.ignore_index:
            raise ValueError(
                f"data.ignore_index ({self.ignore_index}) must be the padding id ({self.pad_id}), or padding is learned"
            )


@runtime_checkable
class SourceSettings(Protocol):
    """The settings of a source, a dataclass with a field for each key of its YAML and for the `seed` of the run."""

    def setting_problems(self, name: str) -> list[Problem]:
        """Return what is wrong between settings that are right by themselves, before anything is built.

        Args:
            name: The key that they stand under, such as `data`.
        """
        ...

    def source(self) -> Source:
        """Return the source."""
        ...


def as_source(made: Source | SourceSettings) -> Source:
    """Return the source that a `_target_` made, or made the settings of."""
    if isinstance(made, SourceSettings):
        return made.source()
    return made


def problems_of(dataclass_type: Callable[..., SourceSettings], settings: Mapping[str, Any], name: str) -> list[Problem]:
    """Return what is wrong between the settings of a data YAML, each right by itself.

    Args:
        dataclass_type: Has a field for each of them; keys of the training loop, which stand beside them, are none.
        settings: Without the seed, which the run gives and no check looks at.
        name: The key that they stand under.
    """
    known = inspect.signature(dataclass_type).parameters
    fields: dict[str, Any] = {"seed": 0}
    for key, value in settings.items():
        if key in known:
            fields[key] = value
    return dataclass_type(**fields).setting_problems(name)


def problems_below(name: str, error: ValueError) -> list[Problem]:
    """Return what an error says of the settings that stand under a key, with that key in front."""
    if not isinstance(error, ConfigError):
        return [Problem(text=f"{name}.{error}")]
    return [replace(problem, key=f"{name}.{problem.key}") for problem in error.problems]


def source_function(dataclass_type: Callable[P, SourceSettings]) -> Callable[P, Source]:
    """Return a function from the fields of a dataclass to the source that they are the settings of."""

    @checked_by(functools.partial(problems_of, dataclass_type))
    @functools.wraps(dataclass_type, updated=())
    def make_source(*args: P.args, **kwargs: P.kwargs) -> Source:
        return dataclass_type(*args, **kwargs).source()

    # Messages list the settings of its own first, then those that it shares.
    parameters = inspect.signature(dataclass_type).parameters
    names = dict.fromkeys([*inspect.get_annotations(dataclass_type), *parameters])
    ordered = [parameters[name] for name in names if name in parameters]
    make_source.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    return make_source


class Rows(Protocol):
    """One split of a source, as rows of seq_len + 1 ids.

    Rows come shuffled in each epoch; those with an attribute `has_own_order` that is true come as their indices count.
    """

    seq_len: int
    num_rows: int
    num_windows: int

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return rows of one epoch for training, (R, T + 1) int64; indices are below num_rows."""
        ...

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop of the num_windows that cover the split once, for evaluation, (R, T + 1) int64."""
        ...

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, (..., T) each, of rows that `take` or `windows` gave."""
        ...


def next_token(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of rows, (..., T) each; the targets are the inputs, one to the left."""
    return ids[..., :-1], ids[..., 1:]


class MatrixRows:
    """Rows that lie in memory as they are.

    Args:
        ids_RT: (R, T + 1) int64.
    """

    split = staticmethod(next_token)

    def __init__(self, ids_RT: Tensor) -> None:
        self.ids_RT = ids_RT
        self.num_rows = self.num_windows = ids_RT.shape[0]
        self.seq_len = ids_RT.shape[1] - 1

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the rows of these indices; the same in each epoch."""
        return self.ids_RT[torch.from_numpy(indices)]

    def windows(self, start: int, stop: int) -> Tensor:
        """Return the rows as they lie."""
        return self.ids_RT[start:stop]


class LabelledRows:
    """Rows in memory in which each position has a label of its own: inputs, and labels behind them.

    Args:
        inputs_RT: Token ids, any integer dtype.
        labels_RT: Labels, the same dtype.
    """

    def __init__(self, inputs_RT: Tensor, labels_RT: Tensor) -> None:
        self.ids_R2T = torch.cat([inputs_RT, labels_RT], dim=1)
        self.num_rows = self.num_windows = inputs_RT.shape[0]
        self.seq_len = inputs_RT.shape[1]

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the rows of these indices, (R, 2 T) int64; the same in each epoch."""
        return self.ids_R2T[torch.from_numpy(indices)].long()

    def windows(self, start: int, stop: int) -> Tensor:
        """Return the rows as they lie, (R, 2 T) int64."""
        return self.ids_R2T[start:stop].long()

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]
