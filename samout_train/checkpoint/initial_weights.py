"""Load initial weights of a new run (`init_from`) from a run, a checkpoint, an export, or another program's file.

Only weights are loaded; optimizer, schedule, step and random states are new. The vocabulary must be the same, or extend
the old one by appended ids. Embedding and head then get new rows after the loaded ones.
"""

# V vocabulary

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samout_train.checkpoint.error import CheckpointError
from samout_train.checkpoint.export import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    export_damage,
    read_manifest,
    read_vocabulary,
    read_weights,
)
from samout_train.checkpoint.files import find_checkpoint, has_manifest, read_checkpoint
from samout_train.checkpoint.run_directory import scalars
from samout_train.checkpoint.state import weights_sha256
from samout_train.config import ConfigError, Problem, saved_node
from samout_train.data import Characters, Vocabulary, vocabulary_from
from samout_train.models import published_tensors, read_content, rename_published, tensors_by_place
from samout_train.runtime import home_path

NAMED = 4
EMBEDDINGS = ("em.weight", "embedding.weight")


@dataclass(frozen=True)
class InitialWeights:
    """Weights to begin a run with.

    Args:
        path: The path as given.
        by_place: Tensors by name, for each place in the file, since a file may hold more than one model.
        vocabulary: The vocabulary that they were trained with; None if unknown, or if ids are not text.
        model_node: The `model` of their configuration; empty if unknown.
    """

    path: str
    by_place: dict[str, dict[str, Tensor]]
    vocabulary: Vocabulary | None = None
    model_node: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """The result of loading initial weights.

    Args:
        loaded: Names of the model's tensors that were loaded, fully or partly.
        new: Names of the model's tensors that the file lacks.
        unused: Names in the file that the model lacks.
        grown: Names in `loaded` with new rows after the loaded ones.
        new_tokens: The tokens of the new rows.
        sha256: Digest of the file's tensors, as by `weights_sha256`.
    """

    loaded: list[str]
    new: list[str]
    unused: list[str]
    grown: list[str]
    new_tokens: list[str]
    sha256: str

    def __str__(self) -> str:
        """Return the counts, and the names behind those that are not 0."""
        total = len(self.loaded) + len(self.new)
        text = f"loaded {len(self.loaded)} of {total} tensors, {len(self.new)} new, {len(self.unused)} unused"
        if self.new:
            text += f"; new: {_listed(self.new)}"
        if self.unused:
            text += f"; unused: {_listed(self.unused)}"
        if self.grown:
            text += f"; {len(self.new_tokens)} new rows in {' and '.join(self.grown)}: {_listed(self.new_tokens)}"
        return text


def read_initial_weights(path: str | Path) -> InitialWeights:
    """Read the weights of a run, a checkpoint, an export, or a file of torch.save or safetensors, without running code.

    Raises:
        ConfigError: if the path does not exist or cannot be read.
        CheckpointError: if it is a damaged run or checkpoint.
    """
    place = home_path(path)
    if not str(path) or not place.exists():
        raise _problem(path, "is not there", "give a run directory, a checkpoint, an export or a file of weights")
    try:
        if (folder := _export_of(place)) is not None:
            return _of_export(path, folder)
        if place.is_dir() or has_manifest(place):
            return _of_checkpoint(path, find_checkpoint(place))
        return _of_file(path, place)
    except ConfigError:
        raise
    except ValueError as error:  # its text ends with a remedy
        raise _problem(path, f"cannot be used: {error}", "") from error
    except OSError as error:
        raise _problem(path, f"cannot be used: {error}", "give a file of weights") from error


def _export_of(place: Path) -> Path | None:
    """Return the export that a path is, or is a file of; None if neither. Other files may lie beside an export."""
    if (place / MANIFEST).is_file():
        return place
    folder = place.parent
    if not (folder / MANIFEST).is_file():
        return None
    own = [MANIFEST, *WEIGHTS.values()]
    with suppress(ValueError):  # a damaged export is reported for the names that each one has
        own = [MANIFEST, *read_manifest(folder)["files"]]
    if place.name in own:
        return folder
    return None


def _of_export(path: str | Path, folder: Path) -> InitialWeights:
    if reason := export_damage(folder):
        raise _problem(path, reason, "export it again")
    note = read_manifest(folder)
    tensors = read_weights(folder / WEIGHTS[note["format"]], note["format"])
    return InitialWeights(str(path), {"the top": tensors}, read_vocabulary(folder), _model_node(folder / CONFIG))


def _of_checkpoint(path: str | Path, checkpoint: Path) -> InitialWeights:
    content = read_checkpoint(checkpoint)
    try:
        tensors = dict(content["model"])
        vocabulary = _vocabulary(content["vocabulary"])
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError.of_file(checkpoint, f"it is not a complete checkpoint ({error!r:.100})") from error
    node = _model_node(checkpoint.parent.parent / ".hydra" / "config.yaml")
    return InitialWeights(str(path), {"model": tensors}, vocabulary, node)


def _of_file(path: str | Path, file: Path) -> InitialWeights:
    content = read_content(file)
    by_place = tensors_by_place(content)
    if any(name.endswith(EMBEDDINGS[0]) for tensors in by_place.values() for name in tensors):
        by_place = {"the top": rename_published(published_tensors(content))}
    vocabulary = None
    if isinstance(content, Mapping) and isinstance(content.get("vocabulary"), Mapping):  # a checkpoint without a run
        vocabulary = _vocabulary(content["vocabulary"])
    return InitialWeights(str(path), by_place, vocabulary)


def _vocabulary(state: Any) -> Vocabulary | None:
    if state is None:
        return None
    return vocabulary_from(state)


def _model_node(config: Path) -> dict[str, Any]:
    try:
        return saved_node(config)
    except ConfigError:  # the node only improves a message
        return {}


def added_tokens(weights: InitialWeights, vocabulary: Vocabulary | None) -> list[str]:
    """Return the tokens that the data's vocabulary appends to the weights' vocabulary.

    Args:
        weights: The initial weights.
        vocabulary: The data's vocabulary; None if its ids are not text.

    Raises:
        ConfigError: if the vocabulary neither equals nor extends that of the weights.
    """
    before = weights.vocabulary
    if before is None or vocabulary is None:
        if before is not None:
            raise _problem(weights.path, "was trained on text, and the ids of this data are not text", "give it text")
        return []
    if before.state_dict() == vocabulary.state_dict():
        return []
    fix = "leave data.vocabulary_path out, so that the vocabulary of the weights is taken and extended"
    if not isinstance(before, Characters) or not isinstance(vocabulary, Characters):
        fix = "give the data that vocabulary"
    elif vocabulary.tokens[: len(before)] == before.tokens and vocabulary.spellings == before.spellings:
        return vocabulary.tokens[len(before) :]
    sizes = f"{before.name} of {len(before)} ids, and this data has {vocabulary.name} of {len(vocabulary)}"
    raise _problem(weights.path, f"has another vocabulary than this data: {sizes}", fix)


def load_initial_weights(
    model: nn.Module, weights: InitialWeights, *, vocabulary: Vocabulary | None, model_node: Mapping[str, Any]
) -> Loaded:
    """Load initial weights into a model; tensors that they lack keep their values.

    Args:
        model: The model, built for the data.
        weights: The initial weights.
        vocabulary: The data's vocabulary.
        model_node: The `model` of the run's configuration, for a message.

    Raises:
        ConfigError: if a shape differs, a value is not finite, no name matches, or the vocabulary does not fit; nothing
            is loaded then.
    """
    new_tokens = added_tokens(weights, vocabulary)
    own = model.state_dict()
    given = _best(weights, own)
    wrong: list[str] = []
    grown: list[str] = []
    loaded = [name for name in own if name in given]
    for name in loaded:
        here, there = own[name], given[name]
        has_new_rows = bool(new_tokens) and here.ndim == there.ndim and here.shape[1:] == there.shape[1:]
        if here.shape == there.shape:
            pass
        elif has_new_rows and len(here) == len(there) + len(new_tokens):
            grown.append(name)
        else:
            wrong.append(f"{name} is {_shape(there)} there and {_shape(here)} in this model")
        if not there.isfinite().all():
            raise _problem(weights.path, f"{name} holds NaN or infinite values", "take weights from before")
    if wrong:
        raise _problem(
            weights.path, f"is of another model: {_listed(wrong)}", _same_model(weights, model_node, own, given)
        )
    with torch.no_grad():
        for name in loaded:
            target = own[name]
            if name in grown:
                target = target[: len(given[name])]
            target.copy_(given[name])
    return Loaded(
        loaded=loaded,
        new=[name for name in own if name not in given],
        unused=[name for name in given if name not in own],
        grown=grown,
        new_tokens=new_tokens,
        sha256=weights_sha256(given),
    )


def _best(weights: InitialWeights, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the group of tensors that shares the most names with the model."""
    matches = {}
    for place, tensors in weights.by_place.items():
        matches[place] = len(own.keys() & tensors.keys())
    most = max(matches.values(), default=0)
    if not most:
        names = [name for tensors in weights.by_place.values() for name in tensors]
        held = "it holds no tensors"
        if names:
            held = f"it has {_listed(names)}"
        text = f"no tensor of it is one of this model: {held}; the model has {_listed(list(own))}"
        raise _problem(weights.path, text, "choose the model that it was made with")
    best = [place for place, count in matches.items() if count == most]
    first = weights.by_place[best[0]]
    for place in best[1:]:
        if weights_sha256(weights.by_place[place]) != weights_sha256(first):
            text = f"holds several models: {', '.join(best)}"
            raise _problem(weights.path, text, "save the one that is meant with torch.save(net.state_dict(), path)")
    return first


def _same_model(
    weights: InitialWeights, node: Mapping[str, Any], own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> str:
    """Return the settings with which the model would match the weights."""
    there, here = scalars(weights.model_node), scalars(node)
    words = []
    for key, value in there.items():
        if key in here and here[key] != value and not key.endswith("_target_"):
            words.append(f"model.{key}={value}")
    if words:
        return f"set {' '.join(words)}"
    for name in EMBEDDINGS:
        if name in own and name in given and own[name].shape[1:] == given[name].shape[1:]:
            return f"give the vocabulary of its {len(given[name])} ids as data.vocabulary_path"
    return "choose the model and the sizes that it was made with"


def _problem(path: str | Path, text: str, fix: str) -> ConfigError:
    return ConfigError(Problem("init_from", str(path), text=text, fix=fix))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _listed(names: list[str]) -> str:
    listed = ", ".join(map(_shown, names[:NAMED]))
    if len(names) > NAMED:
        listed += f" and {len(names) - NAMED} more"
    return listed


def _shown(name: str) -> str:
    if name.isprintable() and not name.isspace():
        return name
    return repr(name)
