"""When a run is saved, what is kept of it, and the thread that writes while training goes on."""

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from samout_train.checkpoint.files import (
    CheckpointError,
    checkpoint_path,
    delete_checkpoint,
    is_complete,
    replace_json,
    saved_steps,
    serialised,
    shards_folder,
    write_checkpoint,
)
from samout_train.checkpoint.shards import split_shards, write_shards
from samout_train.config import Positive, validated
from samout_train.runtime import distributed

log = logging.getLogger(__name__)


class Checkpoints:
    """Writes a run's checkpoints and deletes old ones.

    A checkpoint that cannot be written is a warning, and training goes on; an old one is deleted only when a new one is
    complete and read back.

    Args:
        directory: The run's `checkpoints/`; made when the first one is written.
        every_n_steps: Save at multiples of this; None for no such saves.
        every_n_seconds: Save when this long has passed since the last one; None for no such saves.
        keep_last: How many of the newest to keep.
        keep_best: Whether the one with the best validation loss is saved when it is found, and kept.
        about: What each manifest says beside size and sha256: text and numbers.

    Attributes:
        last_step: Of the newest that is complete; None where there is none yet.
        begun_step: Of the one that was begun last, unless it failed.
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
        self.every_n_steps, self.every_n_seconds = every_n_steps, every_n_seconds
        self.keep_last, self.keep_best, self.about = keep_last, keep_best, about
        self._last_saved_at = time.monotonic()
        self.last_step: int | None = None
        self.begun_step: int | None = None
        self._thread: threading.Thread | None = None
        self._problem = ""

    def due(self, step: int, *, is_best: bool) -> bool:
        """Whether to save after this step."""
        if step in (self.last_step, self.begun_step):
            return False
        by_steps = self.every_n_steps is not None and step % self.every_n_steps == 0
        by_time = self.every_n_seconds is not None and time.monotonic() - self._last_saved_at >= self.every_n_seconds
        return by_steps or by_time or (is_best and self.keep_best)

    def save(self, state: dict[str, Any], *, step: int, best_step: int | None) -> None:
        """Copies a state, and writes the copy while the caller goes on; waits for the write before this one.

        All processes of a run call it: the first one writes, and where the model is sharded each its shards, before the
        caller goes on.

        Args:
            state: What to save: tensors, numbers, text, lists and dictionaries.
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

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self, step: int) -> None:
        """Waits, and makes sure that this step is saved.

        Raises:
            CheckpointError: if it is not; the message says why.
        """
        self.wait()
        if self.last_step != step:
            raise CheckpointError(self._problem or f"the checkpoint of step {step} was not written")

    def _write_shards(self, state: dict[str, Any], step: int) -> tuple[dict[str, Any], dict[str, str] | None]:
        """The state without its shards, and their digests; None where they are not there, or need not be written."""
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
            log.warning("an old checkpoint in %s could not be deleted (%s); training goes on", self.directory, error)

    def _told(self, error: OSError, step: int, needed: int) -> str:
        kept = "there is none before it" if self.last_step is None else f"that of step {self.last_step} is kept"
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
        best = best_step if self.keep_best and best_step in steps else None
        replace_json(self.directory / "index.json", {"last": step, "best": best})
        for old in steps[: -self.keep_last]:
            if old not in (best, step):
                delete_checkpoint(self.directory, old)
