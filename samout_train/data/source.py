"""The interface of data sources to the rest of the program, and rows of token ids in memory."""

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
    """A data source, as the rest of the program sees it.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id that fills rows; None for no padding.
        ignore_index: Targets of this value are not counted.
        train: The training rows.
        validation: The validation rows.
        vocabulary: The vocabulary; None if the ids do not represent text.
        floor_nats: The lowest possible loss on the validation rows, in nats per target; None if unknown.
        description: A record of the data: sizes, digest, files.
        labels: The name of each label, by id, if targets are labels. Then the source's function has `labelling = True`.
        tests: Further rows to evaluate on, by name, such as a task's at other lengths.
        chance: For a task, the accuracy of guessing; None for other sources.
        line_ends: Treatment of line ends in text and prompts: `keep` or `fold`.
        words: Words of the validation text, the divisor of its perplexity per word; None if it has no such figure.
        document_id: The id that begins a document within a row. There, `parts_of` splits the row, and the model starts
            without a state. None if a row is read as one sequence.

    Raises:
        ValueError: if padding would be learned.
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
    document_id: int | None = None

    def __post_init__(self) -> None:
        if self.pad_id is not None and self.pad_id != self.ignore_index:
            raise ValueError(
                f"data.ignore_index ({self.ignore_index}) must be the padding id ({self.pad_id}), or padding is learned"
            )


@runtime_checkable
class SourceSettings(Protocol):
    """The settings of a source: a dataclass with a field for each key of its YAML and for the run's `seed`."""

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of settings that are each valid alone, before anything is built.

        Args:
            name: The key of this group of settings, such as `data`.
        """
        ...

    def source(self) -> Source:
        """Return the source."""
        ...


def as_source(made: Source | SourceSettings) -> Source:
    """Return a source from the object that a `_target_` built: the source itself or its settings."""
    if isinstance(made, SourceSettings):
        return made.source()
    return made


def problems_of(dataclass_type: Callable[..., SourceSettings], settings: Mapping[str, Any], name: str) -> list[Problem]:
    """Return the problems of a data YAML whose settings are each valid alone.

    Args:
        dataclass_type: The dataclass of the settings. The YAML also has keys of the training loop, which are no fields.
        settings: The settings without the seed; no check depends on the seed.
        name: The key of this group of settings.
    """
    known = inspect.signature(dataclass_type).parameters
    fields: dict[str, Any] = {"seed": 0}
    for key, value in settings.items():
        if key in known:
            fields[key] = value
    return dataclass_type(**fields).setting_problems(name)


def problems_below(name: str, error: ValueError) -> list[Problem]:
    """Return the problems of an error about a group of settings, with the group's key in front."""
    if not isinstance(error, ConfigError):
        return [Problem(text=f"{name}.{error}")]
    return [replace(problem, key=f"{name}.{problem.key}") for problem in error.problems]


def source_function(dataclass_type: Callable[P, SourceSettings]) -> Callable[P, Source]:
    """Return a function that builds a source from the fields of its settings' dataclass."""

    @checked_by(functools.partial(problems_of, dataclass_type))
    @functools.wraps(dataclass_type, updated=())
    def make_source(*args: P.args, **kwargs: P.kwargs) -> Source:
        return dataclass_type(*args, **kwargs).source()

    # Messages then list the dataclass's own settings before inherited ones.
    parameters = inspect.signature(dataclass_type).parameters
    names = dict.fromkeys([*inspect.get_annotations(dataclass_type), *parameters])
    ordered = [parameters[name] for name in names if name in parameters]
    make_source.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    return make_source


class Rows(Protocol):
    """One split of a source, as rows of seq_len + 1 ids.

    Each epoch shuffles the rows, unless they have a true attribute `has_own_order`; then they are read by index.
    """

    seq_len: int
    num_rows: int
    num_windows: int

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return rows of one epoch for training, (R, T + 1) int64; indices are from 0 to num_rows - 1."""
        ...

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1 of the num_windows rows that cover the split once, (R, T + 1) int64."""
        ...

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, (..., T) each, of rows from `take` or `windows`."""
        ...


def next_token(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of rows, (..., T) each; the targets are the inputs shifted left by one."""
    return ids[..., :-1], ids[..., 1:]


class MatrixRows:
    """Rows in memory, (R, T + 1) int64, the same in each epoch."""

    split = staticmethod(next_token)

    def __init__(self, ids_RT: Tensor) -> None:
        self.ids_RT = ids_RT
        self.num_rows = self.num_windows = ids_RT.shape[0]
        self.seq_len = ids_RT.shape[1] - 1

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the rows of these indices, (R, T + 1)."""
        return self.ids_RT[torch.from_numpy(indices)]

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1, (R, T + 1)."""
        return self.ids_RT[start:stop]


class LabelledRows:
    """Rows in memory with a label for each position, as T inputs followed by T labels.

    Args:
        inputs_RT: Token ids of any integer dtype.
        labels_RT: Labels of the same dtype.
    """

    def __init__(self, inputs_RT: Tensor, labels_RT: Tensor) -> None:
        self.ids_R2T = torch.cat([inputs_RT, labels_RT], dim=1)
        self.num_rows = self.num_windows = inputs_RT.shape[0]
        self.seq_len = inputs_RT.shape[1]

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the rows of these indices, (R, 2 T) int64; the same in each epoch."""
        return self.ids_R2T[torch.from_numpy(indices)].long()

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1, (R, 2 T) int64."""
        return self.ids_R2T[start:stop].long()

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]
