"""What a run, or the published scripts, left behind, for use from Python."""

from pathlib import Path

from samout_train.checkpoint import find_checkpoint, read_checkpoint
from samout_train.data.published_vocabulary import read_published_vocabulary
from samout_train.data.vocabulary import Vocabulary
from samout_train.data.vocabulary_choice import vocabulary_from


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
