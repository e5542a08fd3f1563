"""What a run, or the published scripts, left behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from samout_train.checkpoint import find_checkpoint, read_checkpoint
from samout_train.config import build
from samout_train.data.published_vocabulary import read_published_vocabulary
from samout_train.data.vocabulary import Vocabulary
from samout_train.data.vocabulary_choice import vocabulary_from


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
        ValueError: if there is none, or the run's configuration is not beside it.
        CheckpointError: if what is there is damaged.
    """
    checkpoint = find_checkpoint(Path(path).expanduser())
    saved = checkpoint.parent.parent / ".hydra" / "config.yaml"
    try:
        node = OmegaConf.to_container(OmegaConf.load(saved).model, resolve=True)
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"run={path}: {saved}, which says how to build the model, cannot be read ({error})") from error
    content = read_checkpoint(checkpoint)
    assert isinstance(node, dict)
    model_node = {str(key): value for key, value in node.items()}
    model: nn.Module = build(model_node, vocab_size=content["vocab_size"], pad_id=content["pad_id"])
    model.load_state_dict(content["model"])
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
    path = Path(path).expanduser()
    if path.is_file() and path.suffix != ".pt":
        return read_published_vocabulary(path)
    state = read_checkpoint(find_checkpoint(path))["vocabulary"]
    if state is None:
        raise ValueError(f"{path} was trained on ids that are no text, so it has no vocabulary")
    return vocabulary_from(state)
