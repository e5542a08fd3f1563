"""The training loop: steps, reports, evaluations and checkpoints, until the first limit is reached."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from samout_train.callbacks.base import Callback, RunContext
from samout_train.checkpoint import Checkpoints
from samout_train.data.batches import Batches, Source
from samout_train.evaluation import Evaluation
from samout_train.metrics import num_parameters
from samout_train.ranges import NonNegative, Positive, not_divisible, validated
from samout_train.reports import Reports
from samout_train.runtime import (
    Clock,
    PrecisionName,
    StopRequestedError,
    StopSignals,
    peak_memory_bytes,
    random_states,
    reset_peak_memory,
    set_random_states,
    weights_sha256,
)
from samout_train.schedules import Limits, Schedule
from samout_train.training_step import TrainingStep

log = logging.getLogger(__name__)


class Trainer:
    """Trains one model on one source.

    Args:
        model: Called as `logits, state = model(ids)`; already on the device.
        source: Rows to learn from and to validate on.
        build_optimizer: From the model to its optimizer.
        schedule: The factor on the learning rate.
        device: Where the model is.
        precision: Of the forward and backward pass.
        seed: Decides the order of rows.
        batch_size: Rows in an optimizer step, over all micro-steps together.
        budget_steps: The last step where none of the three limits is set.
        max_steps: The last step; None for no limit.
        max_epochs: Ends after this many passes over the training rows; None for no limit.
        max_seconds: Ends when training has taken this long, evaluations and checkpoints not counted; None for no limit.
        accumulate: Micro-steps in an optimizer step; must divide batch_size.
        clip_grad_norm: The norm of all gradients together is brought down to this; None for no clipping.
        log_every_n_steps: Log at multiples of this, and at the last step.
        eval_every_n_steps: Evaluate on the fixed batches at multiples of this, and at the last step.
        eval_batches: How many batches, spread over the validation split, these are.
        final_eval_batches: At the end, evaluate on the first this many batches only; None for the whole split.
        overfit_batches: Above 0, train on that many first batches, again and again.

    Raises:
        ValueError: if accumulate does not divide batch_size.
    """

    @validated
    def __init__(
        self,
        *,
        model: nn.Module,
        source: Source,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Schedule,
        device: torch.device,
        precision: PrecisionName,
        seed: int,
        batch_size: Annotated[int, Positive],
        budget_steps: Annotated[int, Positive],
        max_steps: Annotated[int, Positive] | None,
        max_epochs: Annotated[float, Positive] | None,
        max_seconds: Annotated[float, Positive] | None,
        accumulate: Annotated[int, Positive],
        clip_grad_norm: Annotated[float, Positive] | None,
        log_every_n_steps: Annotated[int, Positive],
        eval_every_n_steps: Annotated[int, Positive],
        eval_batches: Annotated[int, Positive],
        final_eval_batches: Annotated[int, Positive] | None,
        overfit_batches: Annotated[int, NonNegative],
    ) -> None:
        if problem := not_divisible("batch_size", batch_size, "accumulate", accumulate):
            raise ValueError(problem)
        self.model, self.source, self.device, self.precision = model, source, device, precision
        by_epochs = None if max_epochs is None else math.ceil(max_epochs * source.train.num_rows / batch_size)
        total_steps = min((limit for limit in (max_steps, by_epochs) if limit is not None), default=None)
        unlimited = total_steps is None and max_seconds is None
        self.limits = Limits(budget_steps if unlimited else total_steps, max_seconds)
        batches = Batches(
            source.train,
            batch_size=batch_size,
            seed=seed,
            ignore_index=source.ignore_index,
            device=device,
            overfit_batches=overfit_batches,
        )
        self.training_step = TrainingStep(
            model=model,
            optimizer=build_optimizer(model),
            schedule=schedule,
            batches=batches,
            precision=precision,
            accumulate=accumulate,
            clip_grad_norm=clip_grad_norm,
        )
        self.clock = Clock(device)
        self.reports = Reports(
            self.training_step,
            source=source,
            clock=self.clock,
            log_every_n_steps=log_every_n_steps,
            eval_every_n_steps=eval_every_n_steps,
            eval_batches=eval_batches,
            final_eval_batches=final_eval_batches,
        )

    @property
    def step_count(self) -> int:
        """Optimizer steps made."""
        return self.training_step.step_count

    def step(self) -> Tensor:
        """One optimizer step, exactly as `fit` makes it.

        Returns:
            Its loss before the update, in nats per counted target, as a tensor that nothing waited for.
        """
        return self.training_step(self.limits.progress(self.step_count + 1, self.clock.seconds))

    def finished(self) -> bool:
        """Whether a limit is reached."""
        return self.limits.progress(self.step_count, self.clock.seconds).share >= 1

    def fit(self, context: RunContext, callbacks: Sequence[Callback], checkpoints: Checkpoints) -> dict[str, Any]:
        """Runs to the first limit that is reached, or until a callback asks to stop.

        Returns:
            What `summary.json` holds.

        Raises:
            StopRequestedError: if a signal asked to stop; the checkpoint to continue from is then written.
        """
        reset_peak_memory(self.device)
        try:
            with StopSignals() as signals:
                for callback in callbacks:
                    callback.on_start(context)
                try:
                    self._train(callbacks, checkpoints, signals)
                    final = self.reports.evaluate_whole(signals)
                except StopRequestedError:
                    self._save(callbacks, checkpoints)
                    raise
            summary = self._summary(context, final)
            (context.run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            for callback in callbacks:
                callback.on_end(summary)
        finally:
            for callback in callbacks:
                callback.on_close()
        return summary

    def _train(self, callbacks: Sequence[Callback], checkpoints: Checkpoints, signals: StopSignals) -> None:
        # A run that was stopped between a step and its report makes up for the report first.
        stop_reason = self.reports.report(callbacks, signals, is_last=self.finished()) if self.step_count else None
        self.clock.start()
        while stop_reason is None and not self.finished():
            self.step()
            for callback in callbacks:
                callback.on_step(self.step_count)
            signals.check()
            best_before = self.reports.best_val_step
            stop_reason = self.reports.report(callbacks, signals, is_last=self.finished())
            if checkpoints.due(self.step_count, is_best=self.reports.best_val_step != best_before):
                self._save(callbacks, checkpoints)
        if stop_reason is not None:
            log.info("stopped after step %d: %s", self.step_count, stop_reason)
            self.reports.report(callbacks, signals, is_last=True)
        self.clock.pause()
        self._save(callbacks, checkpoints)

    def _save(self, callbacks: Sequence[Callback], checkpoints: Checkpoints) -> None:
        if checkpoints.last_step == self.step_count:
            return
        with self.clock.paused():
            state = self.state_dict() | {"callbacks": {type(c).__name__: c.state_dict() for c in callbacks}}
            checkpoints.save(state, step=self.step_count, best_step=self.reports.best_val_step)

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs to go on as if it had not been stopped; the order of rows follows from the
        step."""
        return {
            **self.training_step.state_dict(),
            "reports": self.reports.state_dict(),
            "random": random_states(),
            "train_seconds": self.clock.seconds,
            "vocabulary": self.source.vocabulary.state_dict() if self.source.vocabulary else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where `state_dict` left off.

        Raises:
            ValueError: if the checkpoint is of another model or vocabulary.
        """
        vocabulary = self.source.vocabulary.state_dict() if self.source.vocabulary else None
        if state["vocabulary"] != vocabulary:
            raise ValueError(
                "the checkpoint has another vocabulary than this data: continue with the data it was made on"
            )
        self.training_step.load_state_dict(state)
        self.clock.set(state["train_seconds"])
        self.reports.load_state_dict(state["reports"])
        set_random_states(state["random"])

    def _summary(self, context: RunContext, final: Evaluation) -> dict[str, Any]:
        loss = self.training_step.loss
        summary = {
            "model": context.model_name,
            "data": context.data_name,
            "parameters": num_parameters(self.model),
            "steps": self.step_count,
            "tokens_seen": self.training_step.tokens_seen,
            "train_loss_nats": None if loss is None else float(loss),
            "val_loss_nats": final.loss_nats,
            "best_val_loss_nats": self.reports.best_val_loss_nats,
            "best_val_step": self.reports.best_val_step,
            "floor_nats": self.source.floor_nats,
            "bits_per_byte": final.bits_per_byte,
            "tokens_per_second": self.training_step.tokens_seen / self.clock.seconds if self.clock.seconds else 0.0,
            "train_seconds": self.clock.seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "device": str(self.device),
            "precision": self.precision,
            "torch": torch.__version__,
            "seed": context.seed,
            "commit": context.commit,
            "resumed_from": None if context.resumed_from is None else str(context.resumed_from),
            "weights_sha256": weights_sha256(self.model.state_dict()),
        }
        only_where_known = ("floor_nats", "bits_per_byte", "resumed_from")
        return {key: value for key, value in summary.items() if value is not None or key not in only_where_known}
