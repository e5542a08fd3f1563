"""The training loop: steps, reports, evaluations and checkpoints, until the first limit is reached."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from samout_train.checkpoint import Checkpoints
from samout_train.runtime import StopRequestedError, StopSignals, distributed, reset_peak_memory, write_figures
from samout_train.training.callbacks.base import Callback, RunContext
from samout_train.training.profiler import profiling
from samout_train.training.rescue import made, rescued
from samout_train.training.trainer import Trainer

Callbacks = Mapping[str, Callback]
log = logging.getLogger(__name__)


def fit(trainer: Trainer, context: RunContext, callbacks: Callbacks, checkpoints: Checkpoints) -> dict[str, Any]:
    """Runs to the first limit that is reached, or until a callback asks to stop; returns what `summary.json` holds.

    Args:
        trainer: Makes the steps.
        context: What callbacks are told at the start.
        callbacks: By name, in the order in which they are called.
        checkpoints: Where to save.

    Raises:
        StopRequestedError: if a signal asked to stop; the checkpoint to continue from is then written.
        CheckpointError: if that, or the one at the end, could not be written.
        NonFiniteError, MemoryExhaustedError: if a step cannot be made; the state before it is saved.
    """
    reset_peak_memory(trainer.device)
    watching = list(callbacks.values())
    try:
        with StopSignals(distributed.largest) as signals:
            with trainer.shared.whole():
                for callback in watching:
                    callback.on_start(context)
                distributed.wait_for_all()
            try:
                folder = context.run_dir / "profile" if trainer.profile else None
                with rescued(trainer.training_step, lambda: _save_last(trainer, callbacks, checkpoints)):
                    with profiling(
                        trainer.step, folder=folder, clock=trainer.clock, steps_made=trainer.step_count
                    ) as step:
                        _set_summary_aside(trainer, context.run_dir)
                        _train(trainer, step, callbacks, checkpoints, signals)
                    final = trainer.reports.evaluate_whole(signals)
                    _save_last(trainer, callbacks, checkpoints)
            except StopRequestedError as stop:
                _save_last(trainer, callbacks, checkpoints)
                for callback in watching:
                    callback.on_stop(str(stop))
                raise
        summary = trainer.reports.summary(context, final)
        summary |= {} if trainer.resumed_from is None else {"resumed_from": trainer.resumed_from}
        with trainer.shared.whole():
            for callback in watching:
                summary |= callback.figures()
            if distributed.is_first():
                write_figures(context.run_dir / "summary.json", summary)
            for callback in watching:
                callback.on_end(summary)
            distributed.wait_for_all()
    finally:
        checkpoints.wait()
        for callback in watching:
            callback.on_close()
    return summary


def _set_summary_aside(trainer: Trainer, run_dir: Path) -> None:
    """Rename the summary of a finished run that goes on: until it has ended again, it is not finished."""
    path = run_dir / "summary.json"
    if distributed.is_first() and not trainer.finished() and path.exists():
        path.replace(path.with_name(f"summary_step_{trainer.step_count:08d}.json"))


def _train(
    trainer: Trainer, step: Callable[[], Tensor], callbacks: Callbacks, checkpoints: Checkpoints, signals: StopSignals
) -> None:
    watching = list(callbacks.values())
    # A run that was stopped between a step and its report makes up for the report first.
    stop_reason = trainer.reports.report(watching, signals, is_last=trainer.finished()) if trainer.step_count else None
    if trainer.training_step.on_non_finite == "rollback":
        _save(trainer, callbacks, checkpoints)  # so that there is something to go back to
    trainer.clock.start()
    while stop_reason is None and not trainer.finished():
        if not made(step, trainer.training_step, checkpoints, trainer.clock):
            continue
        for callback in watching:
            callback.on_step(trainer.step_count)
        signals.check()
        best_before = trainer.reports.best_val_step
        stop_reason = trainer.reports.report(watching, signals, is_last=trainer.finished())
        is_best = trainer.reports.best_val_step != best_before
        if distributed.largest(distributed.is_first() and checkpoints.due(trainer.step_count, is_best=is_best)):
            _save(trainer, callbacks, checkpoints)
    trainer.clock.pause()
    if stop_reason is not None:
        log.info("stopped after step %d: %s", trainer.step_count, stop_reason)
    # Also where time ran out, or a callback spoke, after the step had been asked whether it is the last.
    trainer.reports.report(watching, signals, is_last=True)
    _save(trainer, callbacks, checkpoints)


def _save(trainer: Trainer, callbacks: Callbacks, checkpoints: Checkpoints) -> None:
    is_saved = trainer.step_count in (checkpoints.last_step, checkpoints.begun_step)
    if distributed.largest(distributed.is_first() and is_saved):
        return
    with trainer.clock.paused():
        state = trainer.state_dict() | {"callbacks": {name: c.state_dict() for name, c in callbacks.items()}}
        checkpoints.save(state, step=trainer.step_count, best_step=trainer.reports.best_val_step)


def _save_last(trainer: Trainer, callbacks: Callbacks, checkpoints: Checkpoints) -> None:
    checkpoints.wait()
    _save(trainer, callbacks, checkpoints)
    if distributed.is_first():
        checkpoints.finish(trainer.step_count)
