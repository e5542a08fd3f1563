"""What is done where a run fails: its last whole state is saved, and what happened is told in a few lines."""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from samout_train.checkpoint import CheckpointError, Checkpoints, newest_checkpoint, read_checkpoint
from samout_train.runtime import Clock, distributed, peak_memory_bytes, seed_everything, set_random_states
from samout_train.training.non_finite import NonFiniteError
from samout_train.training.step import TrainingStep

# How an allocation that fails is told where it is no OutOfMemoryError: by the CPU, by CUDA and by its libraries.
OUT_OF_MEMORY = ("can't allocate memory", "DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
log = logging.getLogger(__name__)


class MemoryExhaustedError(Exception):
    """There was not enough memory; the message says for what, and what needs less."""


@contextmanager
def rescued(step: TrainingStep, save: Callable[[], None]) -> Iterator[None]:
    """Saves the state before the step that fails inside, where it is whole, and tells what happened.

    Args:
        step: What fails, perhaps.
        save: Writes a checkpoint.

    Raises:
        NonFiniteError: as it came, with what was saved.
        MemoryExhaustedError: in place of what torch, numpy or Python raise.
    """
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}\n{_save(step, save)}") from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        peak = peak_memory_bytes(step.batches.device)
        traceback.clear_frames(error.__traceback__)  # they hold the activations
        what = f"in step {step.step_count + 1}" if step.before else f"after step {step.step_count}"
        if not step.undo():
            saved = "  saved           nothing: it failed within the update"
        elif distributed.count() > 1:
            saved = f"  saved           nothing: it happened in {distributed.name()}, and the others wait in this step"
        else:
            saved = _save(step, save)
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        lines = [f"out of memory {what}: {first_line}", *_sizes(step, peak), saved]
        raise MemoryExhaustedError("\n".join(lines)) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the device or in main memory."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in OUT_OF_MEMORY)


def made(step: Callable[[], object], training_step: TrainingStep, checkpoints: Checkpoints, clock: Clock) -> bool:
    """Makes a step, or rolls back.

    Args:
        step: Makes it.
        training_step: What it makes.
        checkpoints: Of its run.
        clock: Stands still while the newest one is read.

    Returns:
        Whether it made the step.
    """
    try:
        step()
    except NonFiniteError as error:
        if not error.goes_back:
            raise
        with clock.paused():
            checkpoints.wait()
            go_back(training_step, checkpoints.directory.parent, error)
        return False
    return True


def go_back(step: TrainingStep, run_dir: Path, error: NonFiniteError) -> None:
    """Puts a step where the newest checkpoint of its run left off; what it leaves out stays left out.

    Args:
        step: What had no finite figures.
        run_dir: Of its run.
        error: What it said.

    Raises:
        NonFiniteError: `error`, if there is no checkpoint.
        CheckpointError: if all are damaged.
    """
    path = distributed.from_first(newest_checkpoint(run_dir, set_aside=True) if distributed.is_first() else None)
    if path is None:
        raise error
    content, left_out = read_checkpoint(path, whole=not step.shared.is_sharded), set(step.skipped_steps)
    step.load_state_dict(content)
    step.skipped_steps |= left_out
    set_own_random_states(content, step.batches.device)
    log.warning("%s\n  rolled back     to step %d; this batch is left out from now on", error, step.step_count)


def set_own_random_states(content: Mapping[str, Any], device: torch.device) -> None:
    """Puts the random generators of this process where it left off.

    Args:
        content: Of a checkpoint. A process that it knows nothing of goes on from a seed made of the first one's state.
        device: Where it runs.
    """
    states = [content["random"], *content.get("random_of_others", [])]
    set_random_states(states[min(distributed.rank(), len(states) - 1)], device)
    if distributed.rank() >= len(states):
        seed_everything(int(torch.randint(2**31, ())) + distributed.rank())


def _save(step: TrainingStep, save: Callable[[], None]) -> str:
    try:
        save()
    except (CheckpointError, NonFiniteError, OSError, MemoryError, RuntimeError) as error:
        return f"  saved           nothing: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return f"  saved           the state after step {step.step_count}: resume=auto goes on from it"


def _sizes(step: TrainingStep, peak: int) -> list[str]:
    """What the step held, and what would need less."""
    batches, parts = step.batches, step.accumulate
    rows, length = batches.batch_size, batches.rows.seq_len
    micro_steps = f"{parts} micro-step{'s' if parts > 1 else ''} of {rows // parts} rows"
    less = []
    finer = next((count for count in range(2 * parts, rows + 1) if rows % count == 0), None)
    if finer is not None:
        less.append(f"trainer.accumulate={finer}, which keeps the batch of {rows} rows")
    if rows > 1:
        less.append(f"data.batch_size={rows // 2}")
    if length > 1:
        less.append(f"data.seq_len={length // 2}")
    if isinstance(getattr(step.model, "layers", None), torch.nn.ModuleList):
        less.append("trainer.activation_checkpointing=true")
    return [
        f"  peak so far     {peak / 1e9:.2f} GB, on {batches.device} in {step.precision}",
        f"  batch           {rows} rows x {length} targets, in {micro_steps}",
        f"  needs less      {'; or '.join(less) or 'a smaller model'}",
    ]
