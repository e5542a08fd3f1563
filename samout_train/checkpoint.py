"""Checkpoints: written so that a death at any moment leaves the old or the new, verified before they are believed.

Nothing else knows the format. `step_<8 digits>.pt` holds tensors, numbers, text and lists, so that
`torch.load(weights_only=True)` reads it; `step_<8 digits>.json`, written after it, says that it is complete, and its
size and sha256; `index.json` names the last and the best.
"""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Annotated, Any

import torch

from samout_train.atomic import replace_file
from samout_train.ranges import Positive, validated
from samout_train.tensor_file import read_tensor_file

FORMAT = 3
CORRUPT = ".corrupt"
log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """No checkpoint could be used; the message lists each file with its reason."""


class Checkpoints:
    """Writes a run's checkpoints and deletes old ones.

    Args:
        directory: The run's `checkpoints/`; made when the first one is written.
        every_n_steps: Save at multiples of this; None for no such saves.
        every_n_seconds: Save when this long has passed since the last one; None for no such saves.
        keep_last: How many of the newest to keep.
        keep_best: Whether the one with the best validation loss is saved when it is found, and kept.
    """

    @validated
    def __init__(
        self,
        *,
        directory: Path,
        every_n_steps: Annotated[int, Positive] | None,
        every_n_seconds: Annotated[float, Positive] | None,
        keep_last: Annotated[int, Positive],
        keep_best: bool,
    ) -> None:
        self.directory = directory
        self.every_n_steps, self.every_n_seconds = every_n_steps, every_n_seconds
        self.keep_last, self.keep_best = keep_last, keep_best
        self._last_saved_at = time.monotonic()
        self.last_step: int | None = None

    def due(self, step: int, *, is_best: bool) -> bool:
        """Whether to save after this step."""
        if self.last_step == step:
            return False
        by_steps = self.every_n_steps is not None and step % self.every_n_steps == 0
        by_time = self.every_n_seconds is not None and time.monotonic() - self._last_saved_at >= self.every_n_seconds
        return by_steps or by_time or (is_best and self.keep_best)

    def save(self, state: dict[str, Any], *, step: int, best_step: int | None) -> Path:
        """Writes one checkpoint, verifies it, then deletes those that are no longer kept.

        Args:
            state: What to save: tensors, numbers, text, lists and dictionaries.
            step: Steps made so far.
            best_step: The step with the best validation loss so far.

        Returns:
            Its path.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob("*.tmp"):
            leftover.unlink()
        path = self.directory / f"step_{step:08d}.pt"
        replace_file(path, lambda file: torch.save({"format": FORMAT, **state}, file))
        manifest = {"step": step, "bytes": path.stat().st_size, "sha256": _sha256(path), "torch": torch.__version__}
        _replace_json(_manifest(path), manifest)
        self.last_step, self._last_saved_at = step, time.monotonic()
        steps = sorted(int(other.stem.removeprefix("step_")) for other in self.directory.glob("step_*.pt"))
        best = best_step if self.keep_best and best_step in steps else None
        _replace_json(self.directory / "index.json", {"last": step, "best": best})
        for old in steps[: -self.keep_last]:
            if old not in (best, step):
                for suffix in (".json", ".pt"):
                    (self.directory / f"step_{old:08d}{suffix}").unlink(missing_ok=True)
        return path


def newest_checkpoint(run_dir: Path, *, set_aside: bool) -> Path | None:
    """The newest complete checkpoint of a run; damaged ones are passed over with a warning.

    Args:
        run_dir: The run directory.
        set_aside: Whether damaged ones are renamed to `.corrupt`: only in a run of one's own, since elsewhere a
            checkpoint that looks incomplete may just be being written.

    Returns:
        Its path; None where the run has no checkpoint at all.

    Raises:
        CheckpointError: if it has some and each is damaged.
    """
    folder = run_dir / "checkpoints"
    reasons = []
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        reason = damage(path)
        if reason is None:
            return path
        reasons.append(f"{path.name}: {reason}")
        log.warning("%s cannot be used: %s", path, reason)
        if set_aside:
            for part in (path, _manifest(path)):
                if part.exists():
                    part.replace(part.with_name(part.name + CORRUPT))
    earlier = {
        path for path in folder.glob(f"step_*.pt{CORRUPT}") if path.name.removesuffix(CORRUPT) not in str(reasons)
    }
    reasons += [f"{path.name}: {damage(path) or 'was set aside'}" for path in sorted(earlier)]
    if reasons:
        listing = "\n  ".join(reasons)
        raise CheckpointError(f"no checkpoint in {folder} can be used:\n  {listing}")
    return None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a user means by a run directory, its `checkpoints/`, or a file.

    Raises:
        ValueError: if there is nothing of the kind at the path.
        CheckpointError: if all that is there is damaged.
    """
    if not str(path):
        raise ValueError("the path of a run is empty: give a run directory or a checkpoint file")
    path = Path(path).expanduser()
    if path.is_file() and path.suffix != ".pt":
        raise ValueError(f"{path} is no checkpoint: give a run directory or a checkpoint file, step_*.pt")
    if path.is_file():
        reason = damage(path)
        if reason:
            raise CheckpointError(f"{path} cannot be used: {reason}")
        return path
    if not path.exists():
        raise ValueError(f"{path} is not there: give a run directory or a checkpoint file")
    found = newest_checkpoint(path.parent if path.name == "checkpoints" else path, set_aside=False)
    if found is None:
        raise ValueError(f"{path} holds no checkpoint: give a run directory that has checkpoints/step_*.pt")
    return found


def damage(path: Path) -> str | None:
    """Why a checkpoint file cannot be believed; None where it agrees with its manifest."""
    manifest_path = _manifest(path)
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        size, digest = manifest["bytes"], manifest["sha256"]
    except FileNotFoundError:
        return f"{manifest_path.name} is missing, so the write was not completed"
    except (ValueError, KeyError, TypeError):
        return f"{manifest_path.name} is damaged"
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes, the manifest says {size}"
    if _sha256(path) != digest:
        return "its sha256 differs from the manifest's"
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a verified checkpoint, on the CPU; no code in it is run.

    Raises:
        ValueError: if it is of another format.
        CheckpointError: if it agrees with its manifest and yet cannot be read, or asks for code.
    """
    try:
        content = read_tensor_file(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of format {FORMAT}: another program wrote it, or another version of this one"
        )
    return content


def _manifest(path: Path) -> Path:
    """`step_00000001.json` for `step_00000001.pt`; both may be set aside."""
    return path.with_name(path.name.replace(".pt", ".json"))


def _replace_json(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
