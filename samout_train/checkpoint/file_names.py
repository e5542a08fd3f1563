"""Name the files of a run's checkpoints, and find them. Files of any other name are the user's and are left alone."""

import re
from pathlib import Path

CORRUPT = ".corrupt"
CHECKPOINT, MANIFEST, SHARDS = ".pt", ".json", ".shards"
STEP = re.compile(r"step_(\d{8}|[1-9]\d{8,})", re.ASCII)  # of 8 digits, and of more only where a step needs more


def checkpoint_path(directory: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return directory / f"step_{step:08d}{CHECKPOINT}"


def manifest_path(path: Path) -> Path:
    """Return `step_00000001.json` for `step_00000001.pt`, also if both were set aside."""
    return path.with_name(path.name.replace(CHECKPOINT, MANIFEST))


def shards_folder(path: Path) -> Path:
    """Return the folder, next to a checkpoint, with the tensors of a sharded model and its optimizer."""
    return path.with_name(path.name.replace(CHECKPOINT, SHARDS))


def step_of(name: str, ending: str = CHECKPOINT) -> int | None:
    """Return the step in the name of a checkpoint's file; None if the program gives no such name."""
    if not name.endswith(ending) or (found := STEP.fullmatch(name.removesuffix(ending))) is None:
        return None
    return int(found[1])


def step_files(directory: Path, ending: str = CHECKPOINT) -> list[Path]:
    """Return the checkpoints of a directory, complete or not, or other files of theirs, in the order of steps.

    Args:
        directory: The `checkpoints/` of a run, which need not exist.
        ending: Of the files, such as CHECKPOINT, MANIFEST or SHARDS; with CORRUPT for those set aside.
    """
    by_step = {}
    for path in directory.glob(f"step_*{ending}"):
        if (step := step_of(path.name, ending)) is not None:
            by_step[step] = path
    return [by_step[step] for step in sorted(by_step)]


def saved_steps(directory: Path) -> list[int]:
    """Return the steps with a checkpoint file, complete or not, in order."""
    return [step for path in step_files(directory) if (step := step_of(path.name)) is not None]
