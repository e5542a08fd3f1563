"""Manage the checkpoints of a run: save in a thread while training continues, delete old ones, restore, roll back."""

import logging
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch

from samout_train.checkpoint.data_digests import require_same_data
from samout_train.checkpoint.error import CheckpointError
from samout_train.checkpoint.file_names import checkpoint_path, saved_steps, shards_folder
from samout_train.checkpoint.files import (
    delete_checkpoint,
    find_checkpoint,
    is_complete,
    newest_checkpoint,
    read_checkpoint,
    read_manifest,
    replace_json,
    serialised,
    write_checkpoint,
)
from samout_train.checkpoint.shards import split_shards, write_shards
from samout_train.config import Positive, current_settings, validated
from samout_train.models import ParallelModel, resume_with
from samout_train.ops import chosen_products
from samout_train.runtime import PrecisionName, distributed

OPTIMIZER = "optimizer._target_"
log = logging.getLogger(__name__)


class Restorable(Protocol):
    """Something that a checkpoint is loaded into: a trainer, or its step alone."""

    shared: ParallelModel

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""


class Resumable(Restorable, Protocol):
    """Something that a run resumes with: a trainer."""

    device: torch.device
    precision: PrecisionName

    @property
    def step_count(self) -> int:
        """Return the number of steps made."""

    def begin_from(self, state: dict[str, Any], origin: str) -> None:
        """Begin a new run with the state of another run's checkpoint at `origin`."""


@dataclass(frozen=True)
class Restored:
    """The checkpoint that a run resumes from.

    Args:
        content: The saved state.
        manifest: Its manifest, with the current name of each `_target_` in the settings.
        is_own: Whether this run wrote it; otherwise a new run begins with another run's state.
    """

    content: dict[str, Any]
    manifest: dict[str, Any]
    is_own: bool


class Checkpoints:
    """Saves a run, restores it, rolls it back, and deletes old checkpoints.

    If a checkpoint cannot be written, training continues with a warning. An old checkpoint is deleted only after a new
    one is complete and read back.

    Args:
        directory: The run's `checkpoints/`; made with the first checkpoint.
        every_n_steps: Save at multiples of this; None for no such saves.
        every_n_seconds: Save if this many seconds have passed since the last save; None for no such saves.
        keep_last: Number of newest checkpoints to keep.
        keep_best: Whether to save a new best validation loss at once, and to keep its checkpoint.
        about: Text and numbers to add to each manifest, next to size and sha256. Restoring compares `data` and
            `settings` with those of the checkpoint.

    Attributes:
        last_step: Step of the newest complete checkpoint; None before the first.
        begun_step: Step of the last save that was begun; None if it failed.
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
        about: dict[str, Any],
    ) -> None:
        self.directory = directory
        self.every_n_steps = every_n_steps
        self.every_n_seconds = every_n_seconds
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.about = about
        self._last_saved_at = time.monotonic()
        self.last_step: int | None = None
        self.begun_step: int | None = None
        self._thread: threading.Thread | None = None
        self._problem = ""

    def due(self, step: int, *, is_best: bool) -> bool:
        """Return whether to save after this step."""
        if step in (self.last_step, self.begun_step):
            return False
        by_steps = self.every_n_steps is not None and step % self.every_n_steps == 0
        by_time = self.every_n_seconds is not None and time.monotonic() - self._last_saved_at >= self.every_n_seconds
        return by_steps or by_time or (is_best and self.keep_best)

    def save(self, state: dict[str, Any], *, step: int, best_step: int | None) -> None:
        """Copy a state, and write the copy in a thread; waits for the previous write first.

        A collective call: the first process writes the file. If the model is sharded, each process writes its shards
        before the call returns.

        Args:
            state: Tensors, numbers, text, lists and dictionaries.
            step: Steps made so far.
            best_step: The step with the best validation loss so far.
        """
        self.wait()
        self.begun_step, self._last_saved_at = step, time.monotonic()
        about = self.about
        if "vectors" in state:
            state, digests = self._write_shards(state, step)
            if digests is None:
                return
            about = about | {"shards": digests}
        if distributed.is_first():
            content = serialised(state)
            self._thread = threading.Thread(target=self._write, args=(content, step, best_step, about))
            self._thread.start()

    def restore(self, trainer: Resumable, resume: str | None, data: Mapping[str, Any]) -> Restored | None:
        """Restore a trainer from the checkpoint that `resume` names.

        Args:
            trainer: A newly built trainer.
            resume: `auto` for the newest checkpoint of this run, or the path of another run or checkpoint.
            data: The `data` of the configuration, for a message.

        Returns:
            The restored checkpoint; None if the run starts at step 0.

        Raises:
            ValueError: if there is no such checkpoint, or it has another model or optimizer or, in the same run, data.
            CheckpointError: if the checkpoints are damaged.
        """
        is_own = resume == "auto"
        if resume is None or (path := self._path_to_resume(resume)) is None:
            return None
        content = read_checkpoint(path, whole=not trainer.shared.is_sharded)
        then = read_manifest(path)
        then["settings"] = current_settings(then.get("settings", {}))
        optimizer, before = self.about["settings"][OPTIMIZER], then["settings"].get(OPTIMIZER)
        if is_own:
            require_same_data(self.about["data"], then.get("data"), data)
        elif before not in (None, optimizer):
            raise ValueError(f"{OPTIMIZER}={optimizer}: {path} was made with {before}: choose that optimizer")
        try:
            if is_own:
                trainer.load_state_dict(content)
            else:
                trainer.begin_from(content, str(path))
        except (LookupError, TypeError, AttributeError) as error:
            raise CheckpointError.of_file(path, f"it is not a complete checkpoint ({error!r:.100})") from error
        if is_own:
            resume_with(then.get("products"))
            self.last_step = trainer.step_count
        self._log_restored(path, then, trainer, is_own=is_own)
        self._last_saved_at = time.monotonic()
        return Restored(content, then, is_own)

    def roll_back(self, step: Restorable) -> dict[str, Any] | None:
        """Wait for a pending write, and load the newest checkpoint of the run.

        Returns:
            Its content; None, with nothing loaded, if there is no checkpoint.

        Raises:
            CheckpointError: if every checkpoint is damaged.
        """
        self.wait()
        path = self._newest()
        if path is None:
            return None
        content = read_checkpoint(path, whole=not step.shared.is_sharded)
        step.load_state_dict(content)
        return content

    def wait(self) -> None:
        """Wait for a pending write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self, step: int) -> None:
        """Wait for a pending write, and check that this step is saved.

        Raises:
            CheckpointError: if it is not; the message has the reason.
        """
        self.wait()
        if self.last_step != step:
            raise CheckpointError(self._problem or f"the checkpoint of step {step} was not written")

    def _newest(self) -> Path | None:
        """Return the newest complete checkpoint of the run, found by the first process."""
        newest = None
        if distributed.is_first():
            newest = newest_checkpoint(self.directory.parent, set_aside=True)
        return distributed.from_first(newest)

    def _path_to_resume(self, resume: str) -> Path | None:
        if resume != "auto":
            found = None
            if distributed.is_first():
                found = find_checkpoint(Path(resume))
            return distributed.from_first(found)
        path = self._newest()
        if path is None:
            log.info("resume       no checkpoint in %s yet: starting at step 0", self.directory.parent)
        return path

    def _log_restored(self, path: Path, then: Mapping[str, Any], trainer: Resumable, *, is_own: bool) -> None:
        """Log the restored checkpoint, and what has changed since."""
        made_now = made_with(trainer.device, trainer.precision)
        other = []
        for key, now in made_now.items():
            if then.get(key, now) != now:
                other.append(f"{key} {then[key]}, now {now}")
        if other:
            log.warning("resume      made with %s: the last bits of what follows will differ", "; ".join(other))
        new_run = ""
        if not is_own:
            new_run = ": a new run, with its weights, optimizer, steps and random states, and a new record"
        log.info("resume      %s, after step %d%s", path, trainer.step_count, new_run)
        before, settings = then["settings"], self.about["settings"]
        if not before:
            return
        changed = []
        for key in sorted(before.keys() | settings.keys()):
            if before.get(key) != settings.get(key):
                changed.append(f"{key} {before.get(key, 'null')}, now {settings.get(key, 'null')}")
        if changed:
            log.info("resume       changed: %s", "; ".join(changed))

    def _write_shards(self, state: dict[str, Any], step: int) -> tuple[dict[str, Any], dict[str, str] | None]:
        """Return the state without its shards, and their digests; None if they are complete or could not be written."""
        path = checkpoint_path(self.directory, step)
        state, tensors = split_shards(state)
        if distributed.from_first(distributed.is_first() and is_complete(path)):
            self.last_step = step
            return state, None
        try:
            return state, write_shards(shards_folder(path), tensors)
        except OSError as error:
            if distributed.is_first():
                shutil.rmtree(shards_folder(path), ignore_errors=True)
                self._problem = self._told(
                    error, step, sum(part.numel() * part.element_size() for part in tensors.values())
                )
                log.warning("%s", self._problem)
            self.begun_step = None
            return state, None

    def _write(self, content: memoryview, step: int, best_step: int | None, about: dict[str, Any]) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_checkpoint(self.directory, step, content, about)
        except OSError as error:
            self._problem = self._told(error, step, len(content))
            log.warning("%s", self._problem)
            self.begun_step = None
            return
        self.last_step = step
        try:
            self._delete_old(step, best_step)
        except OSError as error:
            log.warning("an old checkpoint in %s could not be deleted (%s); training continues", self.directory, error)

    def _told(self, error: OSError, step: int, needed: int) -> str:
        kept = "there is no earlier checkpoint"
        if self.last_step is not None:
            kept = f"the checkpoint of step {self.last_step} is kept"
        try:
            free = f"{shutil.disk_usage(self.directory).free:,}"
        except OSError:
            free = "an unknown number of"
        return (
            f"the checkpoint of step {step} could not be written to {self.directory}: {error.strerror or error}; it "
            f"needs {needed:,} bytes, {free} are free; {kept}"
        )

    def _delete_old(self, step: int, best_step: int | None) -> None:
        steps = saved_steps(self.directory)
        best = None
        if self.keep_best and best_step in steps:
            best = best_step
        replace_json(self.directory / "index.json", {"last": step, "best": best})
        for old in steps[: -self.keep_last]:
            if old not in (best, step):
                delete_checkpoint(self.directory, old)


def made_with(device: torch.device, precision: PrecisionName) -> dict[str, str | int]:
    """Return the properties of this process that affect the last bits of training results."""
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "torch": torch.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "processes": distributed.count(),
        "precision": precision,
        "products": str(chosen_products()),
    }
