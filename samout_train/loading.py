"""What a run, or the published scripts, left behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from samout_train.checkpoint import find_checkpoint, read_checkpoint
from samout_train.config import ConfigError, build, saved_model_node
from samout_train.data.published_vocabulary import read_published_vocabulary
from samout_train.data.vocabulary import Vocabulary
from samout_train.data.vocabulary_choice import vocabulary_from
from samout_train.problems import model_problems


@dataclass(frozen=True)
class LoadedRun:
    """A trained model.

    Args:
        checkpoint: Where it was read from.
        step: After how many steps.
        model: In evaluation mode, on the CPU.
        vocabulary: None where it was trained on ids that are no text.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None where there is none.
        model_node: The `model` of its configuration.
    """

    checkpoint: Path
    step: int
    model: nn.Module
    vocabulary: Vocabulary | None
    vocab_size: int
    pad_id: int | None
    model_node: dict[str, Any]


def load_run(path: str | Path) -> LoadedRun:
    """Loads the model of a run's last checkpoint, or of a checkpoint.

    Args:
        path: A run directory, or a checkpoint in one.

    Raises:
        ValueError: if there is none, or the run's configuration is not beside it, cannot be built or does not fit.
        CheckpointError: if what is there is damaged.
    """
    checkpoint = find_checkpoint(path)
    saved = checkpoint.parent.parent / ".hydra" / "config.yaml"
    model_node = saved_model_node(saved)
    if found := model_problems(model_node):
        raise ConfigError("\n".join(f"{saved}: {mistake}" for mistake in found))
    content = read_checkpoint(checkpoint)
    try:
        model: nn.Module = build(model_node, vocab_size=content["vocab_size"], pad_id=content["pad_id"])
        model.load_state_dict(content["model"])
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{saved}: its model is not that of {checkpoint.name} ({reason}): restore what the run wrote"
        ) from error
    vocabulary = None if content["vocabulary"] is None else vocabulary_from(content["vocabulary"])
    return LoadedRun(
        checkpoint, content["step"], model.eval(), vocabulary, content["vocab_size"], content["pad_id"], model_node
    )


def load_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary that a run was trained with, or a pickled one of the published kind.

    Args:
        path: A run directory, a checkpoint (`.pt`), or a pickled vocabulary; no code in it is run.

    Raises:
        ValueError: if there is none at the path, or the run was trained on ids that are no text.
        CheckpointError: if the run's checkpoints are damaged.
    """
    if (file := Path(path).expanduser()).is_file() and file.suffix != ".pt":
        return read_published_vocabulary(file)
    state = read_checkpoint(find_checkpoint(path))["vocabulary"]
    if state is None:
        raise ValueError(f"{path} was trained on ids that are no text, so it has no vocabulary")
    return vocabulary_from(state)
