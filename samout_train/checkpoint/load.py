"""Load the models and vocabularies that runs and the published scripts saved."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from samout_train.checkpoint.error import CheckpointError
from samout_train.checkpoint.files import find_checkpoint, read_checkpoint
from samout_train.config import ConfigError, Problem, build, check_model, saved_node
from samout_train.data import LineEnds, Vocabulary, read_published_vocabulary, read_vocabulary_file, vocabulary_from
from samout_train.models import choose_once
from samout_train.runtime import home_path

WeightsName = Literal["last", "ema"]


@dataclass(frozen=True)
class LoadedRun:
    """A trained model. `model, vocabulary = load_run(path)` unpacks the two most needed fields.

    Args:
        checkpoint: The file that it was read from.
        step: Steps that it was trained.
        model: The model in evaluation mode, on the CPU.
        vocabulary: Its vocabulary; None if it was trained on ids that are not text.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None for no padding.
        model_node: The `model` of its configuration.
        line_ends: Treatment of line ends in its text and in prompts.
        data_node: The `data` of its configuration; empty if that is unknown.
    """

    checkpoint: Path
    step: int
    model: nn.Module
    vocabulary: Vocabulary | None
    vocab_size: int
    pad_id: int | None
    model_node: dict[str, Any]
    line_ends: LineEnds = "keep"
    data_node: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[nn.Module | Vocabulary | None]:
        yield from (self.model, self.vocabulary)

    def require_vocabulary(self) -> Vocabulary:
        """Return the vocabulary.

        Raises:
            ValueError: if the model was not trained on text.
        """
        if self.vocabulary is None:
            raise ValueError(f"{self.checkpoint} was not trained on text: choose a run that was")
        return self.vocabulary


def load_run(path: str | Path, *, weights: WeightsName = "last") -> LoadedRun:
    """Load the model of a run's last checkpoint, or of a given one.

    Args:
        path: A run directory, or a checkpoint in one.
        weights: `last`, or `ema` for their average, which a run with `trainer.ema` has.

    Raises:
        ValueError: if there is no checkpoint, it has no such weights, or the run's configuration is missing, cannot be
            built or does not fit.
        CheckpointError: if the checkpoints are damaged.
    """
    checkpoint = find_checkpoint(path)
    content = read_checkpoint(checkpoint)
    try:
        tensors, step, vocab_size, pad_id = (content[key] for key in ("model", "step", "vocab_size", "pad_id"))
        if weights == "ema" and "ema" in content:
            tensors = averaged(tensors, content["ema"]["weights"])
        vocabulary = None
        if content["vocabulary"] is not None:
            vocabulary = vocabulary_from(content["vocabulary"])
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError.of_file(checkpoint, f"it is not a complete checkpoint ({error!r:.100})") from error
    if weights == "ema" and "ema" not in content:
        fix = "set weights=last, or train with trainer.ema"
        raise ConfigError(Problem("weights", "ema", text=f"{checkpoint} has no average of the weights", fix=fix))
    saved = checkpoint.parent.parent / ".hydra" / "config.yaml"
    node, model = model_of(saved, checkpoint, tensors, vocab_size=vocab_size, pad_id=pad_id)
    choose_once(model)
    line_ends = content.get("line_ends", "keep")
    return LoadedRun(checkpoint, step, model, vocabulary, vocab_size, pad_id, node, line_ends, data_of(saved))


def averaged(weights: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state with averages in place of weights, under every name of a shared weight.

    Args:
        weights: All tensors of the state.
        averages: Averages by the names of the model's parameters.
    """
    places = {}
    for name, average in averages.items():
        places[_place(weights[name])] = average
    state = {}
    for name, tensor in weights.items():
        state[name] = averages.get(name, places.get(_place(tensor), tensor)).to(tensor.dtype)
    return state


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def data_of(saved: Path) -> dict[str, Any]:
    """Return the `data` of a saved configuration; empty if it has none."""
    try:
        return saved_node(saved, "data")
    except ConfigError:
        return {}


def model_of(
    saved: Path, file: Path, weights: Mapping[str, Tensor], *, vocab_size: int, pad_id: int | None
) -> tuple[dict[str, Any], nn.Module]:
    """Build the model of a saved configuration and load its weights.

    Args:
        saved: The configuration's file.
        file: The file of the weights, for messages.
        weights: Weights by the names of the model's state_dict.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None for no padding.

    Returns:
        The `model` of the configuration, and the model in evaluation mode.

    Raises:
        ConfigError: if the configuration is missing, invalid, or belongs to another model.
    """
    node = saved_node(saved)
    if found := check_model(node):
        raise ConfigError(*(Problem(str(saved), text=str(problem)) for problem in found))
    try:
        model: nn.Module = build(node, vocab_size=vocab_size, pad_id=pad_id)
        model.load_state_dict(weights)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{saved}: its model is not that of {file.name} ({reason}): restore what the run wrote"
        ) from error
    return node, model.eval()


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Load the vocabulary of a run or an export, or a pickled one of the published kind, without running code.

    Args:
        path: A run directory, a checkpoint (`.pt`), a pickled vocabulary, or the `vocabulary.json` of an export.

    Raises:
        ValueError: if there is none at the path, or the run was trained on ids that are not text.
        CheckpointError: if the run's checkpoints are damaged.
    """
    if (file := home_path(path)).is_file() and file.suffix == ".json":
        return read_vocabulary_file(file)
    if file.is_file() and file.suffix != ".pt":
        return read_published_vocabulary(file)
    state = read_checkpoint(find_checkpoint(path)).get("vocabulary")
    if state is None:
        raise ValueError(f"{path} was trained on ids that are not text, so it has no vocabulary")
    return vocabulary_from(state)
