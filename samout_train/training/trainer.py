"""A trainer: what makes the steps of a run and reports on them, and all that its checkpoints hold."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from samout_train.checkpoint import refuse_other_vocabulary
from samout_train.config import NonNegative, Positive, not_divisible, validated
from samout_train.data import Batches, Source, overfit_problem
from samout_train.models import ParallelName, SharedModel, checkpoint_activations, parallel_problem
from samout_train.runtime import Clock, PrecisionName, distributed, random_states, use_tf32
from samout_train.training.limits import LimitSettings, Reached
from samout_train.training.micro_steps import chunk_problem
from samout_train.training.non_finite import OnNonFinite
from samout_train.training.optimizers.check import checked_optimizer
from samout_train.training.reports import Reports
from samout_train.training.rescue import set_own_random_states
from samout_train.training.schedules import Schedule, first_limit
from samout_train.training.step import TrainingStep


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
        accumulate: Micro-steps in an optimizer step; must divide batch_size, together with the number of processes.
        chunk_len: Targets of a row that are learned at a time, with the state carried on from chunk to chunk but no
            gradient: memory is that of rows of this length. None for whole rows.
        parallel: How several processes share the model: `ddp`, a copy each, or `fsdp`, shards of it.
        clip_grad_norm: The norm of all gradients together is brought down to this; None for no clipping.
        log_every_n_steps: Log at multiples of this, and at the last step.
        eval_every_n_steps: Evaluate on the fixed batches at multiples of this, and at the last step.
        eval_batches: How many batches, spread over the validation split, these are.
        final_eval_batches: At the end, evaluate on the first this many batches only; None for the whole split.
        overfit_batches: Above 0, train on that many first batches, again and again.
        profile: Whether to profile a few steps into the run directory; see `samout_train.training.profiler`.
        activation_checkpointing: Whether each layer's activations are computed again in the backward pass.
        tf32: Whether float32 products on CUDA round to TF32.
        compile: Whether torch compiles the model for the training step.
        on_non_finite: What becomes of a step whose loss or gradient is NaN or infinite.

    Raises:
        ValueError: if accumulate and processes do not divide batch_size, or model or device cannot do what is asked
            for.
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
        chunk_len: Annotated[int, Positive] | None,
        parallel: ParallelName,
        clip_grad_norm: Annotated[float, Positive] | None,
        log_every_n_steps: Annotated[int, Positive],
        eval_every_n_steps: Annotated[int, Positive],
        eval_batches: Annotated[int, Positive],
        final_eval_batches: Annotated[int, Positive] | None,
        overfit_batches: Annotated[int, NonNegative],
        profile: bool,
        activation_checkpointing: bool,
        tf32: bool,
        compile: bool,
        on_non_finite: OnNonFinite,
    ) -> None:
        if distributed.count() > 1:
            shares = ("accumulate times processes", accumulate * distributed.count())
            problem = not_divisible("data.batch_size", batch_size, *shares)
        else:
            problem = not_divisible("batch_size", batch_size, "accumulate", accumulate)
        if problem := problem or parallel_problem(parallel, precision, compile) or chunk_problem(model, chunk_len):
            raise ValueError(problem)
        self.model, self.source, self.device, self.precision, self.profile = model, source, device, precision, profile
        use_tf32(tf32, device)
        if activation_checkpointing:
            checkpoint_activations(model)
        max_rows = max_epochs and max_epochs * source.train.num_rows
        self.limits = first_limit(max_steps, max_rows, max_seconds, batch_size=batch_size, budget_steps=budget_steps)
        set_limits = (max_steps, max_epochs, max_seconds, budget_steps)
        self._limit_settings = LimitSettings(*set_limits, num_rows=source.train.num_rows, batch_size=batch_size)
        batches = Batches(
            source.train,
            batch_size=batch_size,
            seed=seed,
            ignore_index=source.ignore_index,
            device=device,
            overfit_batches=overfit_batches,
        )
        if problem := overfit_problem(batches, overfit_batches, source.ignore_index):
            raise ValueError(problem)
        self.shared = SharedModel(model, parallel=parallel, device=device, compile=compile)
        optimizer, stateful = checked_optimizer(build_optimizer, self.shared)
        self.training_step = TrainingStep(
            shared=self.shared,
            optimizer=optimizer,
            stateful=stateful,
            schedule=schedule,
            batches=batches,
            precision=precision,
            accumulate=accumulate,
            chunk_len=chunk_len,
            clip_grad_norm=clip_grad_norm,
            compile=compile,
            on_non_finite=on_non_finite,
            vocabulary=source.vocabulary,
        )
        self.clock = Clock(device)
        self.resumed_from: str | None = None  # the other run's checkpoint that this one started from
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
        """One optimizer step, exactly as `samout_train.training.fit` makes it.

        Returns:
            Its loss before the update, in nats per counted target, as a tensor that nothing waited for.
        """
        self.training_step.settle(wait=False)
        return self.training_step(self.limits.progress(self.step_count + 1, self._seconds()))

    def finished(self) -> bool:
        """Whether a limit is reached."""
        is_at_end = self.limits.progress(self.step_count, self._seconds()).share >= 1
        return is_at_end and not self.training_step.settle()

    def limits_reached(self) -> list[Reached]:
        """Return the limits that hold now; none where something else ended the run."""
        return self._limit_settings.reached(self.step_count, self.clock.seconds)

    def learning_rate(self, step: int) -> float:
        """Return the rate that these settings give the first group of parameters in a step, counted from 1."""
        progress = self.limits.progress(step, self._seconds())
        return self.training_step.base_rates[0] * self.training_step.schedule(progress)

    def _seconds(self) -> float:
        """Of training so far, where they count: those of the first process."""
        seconds = self.clock.seconds
        return seconds if self.limits.max_seconds is None else distributed.number_of_first(seconds)

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs to go on as if it had not been stopped; the step gives the order of rows.

        All processes ask for it together.
        """
        first, *others = distributed.gathered(random_states(self.device))
        return {
            **self.training_step.state_dict(),
            "reports": self.reports.state_dict(),
            "random": first,
            "random_of_others": others,
            "resumed_from": self.resumed_from,
            "train_seconds": self.clock.seconds,
            "vocab_size": self.source.vocab_size,
            "pad_id": self.source.pad_id,
            "line_ends": self.source.line_ends,
            "vocabulary": self.source.vocabulary.state_dict() if self.source.vocabulary else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where `state_dict` left off.

        Raises:
            ValueError: if the checkpoint is of another model or vocabulary.
        """
        self._take_up(state)
        self.clock.set(state["train_seconds"])
        self.reports.load_state_dict(state["reports"])
        self.resumed_from = state["resumed_from"]

    def begin_from(self, state: dict[str, Any], origin: str) -> None:
        """Begins a run with the state of another: with its weights, optimizer, steps and random states, and nothing
        of its record.

        Args:
            state: As `state_dict` gives it.
            origin: Where it lies.

        Raises:
            ValueError: if the checkpoint is of another model or vocabulary.
        """
        self._take_up(state)
        step = self.training_step
        step.empty_steps = 0
        step.skipped_steps = {skipped for skipped in step.skipped_steps if skipped > step.step_count}
        self.reports.begin()
        self.resumed_from = origin

    def _take_up(self, state: dict[str, Any]) -> None:
        refuse_other_vocabulary(self.source.vocabulary, state["vocabulary"])
        self.training_step.load_state_dict(state)
        set_own_random_states(state, self.device)
