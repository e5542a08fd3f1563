"""The trainer: the training loop until the first limit is reached, and the handling of failed steps.

A step is in `samout_train.training.step`; logging and evaluation are in `samout_train.training.reports`.
"""

import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from samout_train.checkpoint import CheckpointError, Checkpoints, require_same_vocabulary
from samout_train.config import NonNegative, Positive, not_divisible, validated
from samout_train.data import Batches, Source, overfit_problem
from samout_train.evaluation import Evaluation, Evaluator
from samout_train.evaluation.verify import Leak
from samout_train.models import ParallelModel, ParallelName, checkpoint_activations, parallel_problem
from samout_train.runtime import (
    Clock,
    PrecisionName,
    StopRequestedError,
    StopSignals,
    distributed,
    is_out_of_memory,
    peak_memory_bytes,
    random_states,
    reset_peak_memory,
    set_own_random_states,
    take_place,
    use_tf32,
    write_figures,
)
from samout_train.training.callbacks.base import Callback, RunContext
from samout_train.training.causality import look_again
from samout_train.training.cuda_graph import CudaGraph, model_problem, refused, settings_problem
from samout_train.training.limits import LimitSettings, Reached
from samout_train.training.non_finite import NonFiniteError, OnNonFinite
from samout_train.training.optimizers.check import checked_optimizer
from samout_train.training.profiler import StepContext, profiling
from samout_train.training.reports import Reports
from samout_train.training.schedules import Schedule, first_limit
from samout_train.training.step import TrainingStep, chunk_problem

Callbacks = Mapping[str, Callback]
log = logging.getLogger(__name__)


class MemoryExhaustedError(Exception):
    """Memory is exhausted; the message reports where, and which settings need less."""


class Trainer:
    """Trains one model on one source.

    Args:
        model: Called as `logits, state = model(ids)`; already on the device.
        source: Training and validation rows.
        build_optimizer: Builds the optimizer of a model.
        schedule: The factor on the learning rate.
        device: The device of the model.
        precision: Precision of the forward and backward pass.
        seed: Seed of the order of rows.
        batch_size: Rows in an optimizer step, over all micro-steps together.
        budget_steps: The last step if none of the three limits is set.
        max_steps: The last step; None for no limit.
        max_epochs: End after this many passes over the training rows; None for no limit.
        max_seconds: End after this many seconds of training, without evaluations and checkpoints; None for no limit.
        accumulate: Micro-steps in an optimizer step. `accumulate` times processes must divide batch_size.
        chunk_len: Targets of a row in one forward and backward pass. The state is carried from chunk to chunk without a
            gradient, so memory is needed only for rows of this length. None for whole rows.
        parallel: How several processes share the model: `ddp`, a copy each, or `fsdp`, shards of it.
        clip_grad_norm: Largest allowed norm of all gradients together; None for no clipping.
        log_every_n_steps: Log at multiples of this, and at the last step.
        eval_every_n_steps: Evaluate on the fixed batches at multiples of this, and at the last step.
        eval_batches: Number of fixed batches, spread over the validation split.
        final_eval_batches: Number of batches of the final evaluation; None for the whole split.
        overfit_batches: If above 0, train on this many first batches repeatedly.
        profile: Whether to profile a few steps into the run directory; see `samout_train.training.profiler`.
        activation_checkpointing: Whether to recompute each layer's activations in the backward pass.
        tf32: Whether float32 products on CUDA round to TF32.
        compile: Whether torch compiles the model for the training step.
        cuda_graph: Whether a step on CUDA is launched as one graph. `auto` does so if possible, and otherwise logs the
            reason; see `samout_train.training.cuda_graph`.
        on_non_finite: What to do with a step whose loss or gradient is not finite.
        ema: Half-life in tokens, at least 1, of an exponential moving average of the weights. The average is evaluated
            and saved in addition to the weights. None for no average.

    Raises:
        ValueError: if `accumulate` times processes does not divide batch_size, or the model or device lacks what a
            setting needs.
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
        ema: Annotated[float, Positive] | None = None,
        cuda_graph: CudaGraph = "auto",
    ) -> None:
        _require_possible(model, batch_size, accumulate, chunk_len, parallel, precision, compile=compile)
        self.model = model
        self.source = source
        self.device = device
        self.precision = precision
        self.profile = profile
        self._prepare_model(tf32=tf32, activation_checkpointing=activation_checkpointing)
        self._set_limits(max_steps, max_epochs, max_seconds, budget_steps, batch_size)
        batches = self._batches(batch_size, seed, overfit_batches)
        self.shared = ParallelModel(model, parallel=parallel, device=device, compile=compile)
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
            ema=ema,
        )
        self._use_graph(cuda_graph, compile=compile, activation_checkpointing=activation_checkpointing)
        self._set_reports(log_every_n_steps, eval_every_n_steps, eval_batches, final_eval_batches)

    def _prepare_model(self, *, tf32: bool, activation_checkpointing: bool) -> None:
        use_tf32(tf32, self.device)
        if activation_checkpointing:
            checkpoint_activations(self.model)

    def _use_graph(self, cuda_graph: CudaGraph, *, compile: bool, activation_checkpointing: bool) -> None:
        """Run steps as a CUDA graph; if that fails, log why, or raise if `cuda_graph` is true. `auto`: on CUDA only."""
        if cuda_graph is False or (cuda_graph == "auto" and self.device.type != "cuda"):
            return
        step = self.training_step
        length = self.source.train.seq_len
        problem = settings_problem(
            device=self.device,
            precision=self.precision,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
            profile=self.profile,
            splits_documents=step.batches.document_id is not None,
            passes=step.accumulate * math.ceil(length / (step.chunk_len or length)),
        ) or model_problem(self.model, step.optimizer, scalars=step.scalars is not None)
        if problem is None and step.batches.document_id is not None:
            problem = "data.reset_at_documents=true splits the rows of each step into other shapes"
        if problem is None:
            step.use_graph()
        elif cuda_graph is True:
            raise ValueError(refused(problem))
        else:
            log.info("graph       steps run one operation at a time: %s", problem)

    def _set_limits(
        self,
        max_steps: int | None,
        max_epochs: float | None,
        max_seconds: float | None,
        budget_steps: int,
        batch_size: int,
    ) -> None:
        num_rows = self.source.train.num_rows
        max_rows = max_epochs and max_epochs * num_rows
        self.limits = first_limit(max_steps, max_rows, max_seconds, batch_size=batch_size, budget_steps=budget_steps)
        self._limit_settings = LimitSettings(
            max_steps, max_epochs, max_seconds, budget_steps, num_rows=num_rows, batch_size=batch_size
        )

    def _batches(self, batch_size: int, seed: int, overfit_batches: int) -> Batches:
        ignore_index = self.source.ignore_index
        batches = Batches(
            self.source.train,
            batch_size=batch_size,
            seed=seed,
            ignore_index=ignore_index,
            device=self.device,
            overfit_batches=overfit_batches,
            document_id=self.source.document_id,
        )
        if problem := overfit_problem(batches, overfit_batches, ignore_index):
            raise ValueError(problem)
        return batches

    def _set_reports(
        self, log_every_n_steps: int, eval_every_n_steps: int, eval_batches: int, final_eval_batches: int | None
    ) -> None:
        self.resumed_from: str | None = None  # another run's checkpoint, if this run started from one
        self.init_from: dict[str, Any] = {}  # the record of its initial weights, if `init_from` gave some
        self.leak: Leak | None = None  # where the model sees tokens that it has to predict, if allowed
        self.clock = Clock(self.device)
        self.reports = Reports(
            self.training_step,
            source=self.source,
            clock=self.clock,
            log_every_n_steps=log_every_n_steps,
            eval_every_n_steps=eval_every_n_steps,
            eval_batches=eval_batches,
            final_eval_batches=final_eval_batches,
        )

    @property
    def evaluator(self) -> Evaluator:
        """Return the evaluator of the current weights."""
        return self.reports.evaluator

    @property
    def step_count(self) -> int:
        """Return the optimizer steps made."""
        return self.training_step.step_count

    def fit(self, context: RunContext, checkpoints: Checkpoints) -> dict[str, Any]:
        """Train until the first limit is reached or a callback asks to stop; return the summary of the run.

        Args:
            context: The run and its callbacks, which are called in their order.
            checkpoints: Where to save.

        Raises:
            StopRequestedError: if a signal asked to stop; the checkpoint to resume from is then written.
            CheckpointError: if that checkpoint, or the final one, could not be written.
            NonFiniteError, MemoryExhaustedError: if a step fails; the state before it is saved.
        """
        reset_peak_memory(self.device)
        try:
            with StopSignals(distributed.largest) as signals:
                with self.shared.unsharded():
                    for callback in context.callbacks.values():
                        callback.on_start(context)
                    distributed.wait_for_all()
                final = self._train_and_evaluate(context, checkpoints, signals)
            return self._finish(context, final)
        finally:
            checkpoints.wait()
            for callback in context.callbacks.values():
                callback.on_close()

    def step(self) -> Tensor:
        """Run one optimizer step exactly as `fit` does.

        Returns:
            Its loss before the update, in nats per counted target, without waiting for the device.
        """
        self.training_step.confirm_finite(wait=False)
        return self.training_step(self.limits.progress(self.step_count + 1, self._seconds()))

    def _train_and_evaluate(self, context: RunContext, checkpoints: Checkpoints, signals: StopSignals) -> Evaluation:
        """Run all steps, and evaluate on the whole validation split; save the state even if either fails."""
        callbacks = context.callbacks
        folder = None
        if self.profile:
            folder = context.run_dir / "profile"
        try:
            with saved_on_error(self.training_step, lambda: self._save_last(callbacks, checkpoints)):
                with profiling(folder=folder, clock=self.clock, steps_made=self.step_count) as profiled:
                    self._set_summary_aside(context.run_dir)
                    self._train(callbacks, checkpoints, signals, profiled)
                final = self.reports.evaluate_whole(signals)
                self._save_last(callbacks, checkpoints)
        except StopRequestedError as stop:
            self._save_last(callbacks, checkpoints)
            for callback in callbacks.values():
                callback.on_stop(str(stop))
            raise
        return final

    def _train(
        self, callbacks: Callbacks, checkpoints: Checkpoints, signals: StopSignals, profiled: StepContext
    ) -> None:
        """Run steps until a limit is reached, a callback gives a reason to stop, or a signal arrives."""
        watching = list(callbacks.values())
        stop_reason = None
        if self.step_count:  # if the run was stopped between a step and its report, report first
            stop_reason = self.reports.log_and_evaluate(watching, signals, is_last=self.finished())
        if self.training_step.on_non_finite == "rollback":
            self._save(callbacks, checkpoints)  # a state to roll back to
        self.clock.start()
        while stop_reason is None and not self.finished():
            if not self._step_or_roll_back(checkpoints, profiled):
                continue
            for callback in watching:
                callback.on_step(self.step_count)
            signals.check()
            best_step = self.reports.best_val_step
            stop_reason = self.reports.log_and_evaluate(watching, signals, is_last=self.finished())
            is_best = self.reports.best_val_step != best_step
            should_checkpoint = distributed.is_first() and checkpoints.due(self.step_count, is_best=is_best)
            if distributed.largest(should_checkpoint):
                self._save(callbacks, checkpoints)
        self.clock.pause()
        if stop_reason is not None:
            log.info("stopped after step %d: %s", self.step_count, stop_reason)
        # If time ran out or a callback asked to stop, the report above was not yet the last.
        self.reports.log_and_evaluate(watching, signals, is_last=True)
        self._save(callbacks, checkpoints)

    def _step_or_roll_back(self, checkpoints: Checkpoints, profiled: StepContext) -> bool:
        """Run a step, or roll back to the newest checkpoint; return whether the step was run.

        Raises:
            NonFiniteError: if the run must not roll back, or has no checkpoint.
            CheckpointError: if all checkpoints are damaged.
        """
        try:
            with profiled():
                self.step()
        except NonFiniteError as error:
            if not error.goes_back:
                raise
            with self.clock.paused():
                skipped_steps = set(self.training_step.skipped_steps)
                content = checkpoints.roll_back(self.training_step)
                if content is None:
                    raise
                self.training_step.skipped_steps |= skipped_steps
                self._set_random_states(content)
                log.warning(
                    "%s\n  rolled back     to step %d; this batch is skipped from now on", error, self.step_count
                )
            return False
        return True

    def _finish(self, context: RunContext, final: Evaluation) -> dict[str, Any]:
        """Write summary.json, and call `on_end` of the callbacks."""
        summary = self.reports.summary(context, final)
        if self.resumed_from is not None:
            summary["resumed_from"] = self.resumed_from
        if self.init_from:
            summary["init_from"] = self.init_from
        with self.shared.unsharded():
            leak = self.leak or look_again(self.evaluator, name=context.model_name)
            summary["leak"] = vars(leak) if leak is not None else None
            for callback in context.callbacks.values():
                summary |= callback.figures()
            if distributed.is_first():
                write_figures(context.run_dir / "summary.json", summary)
            for callback in context.callbacks.values():
                callback.on_end(summary)
            distributed.wait_for_all()
        return summary

    def _set_summary_aside(self, run_dir: Path) -> None:
        """Rename the summary of a finished run that resumes: until it ends again, the run is not finished."""
        path = run_dir / "summary.json"
        if distributed.is_first() and not self.finished() and path.exists():
            take_place(path, path.with_name(f"summary_step_{self.step_count:08d}.json"))

    def _save(self, callbacks: Callbacks, checkpoints: Checkpoints) -> None:
        self.training_step.confirm_finite()
        is_saved = self.step_count in (checkpoints.last_step, checkpoints.begun_step)
        if distributed.largest(distributed.is_first() and is_saved):
            return
        with self.clock.paused():
            state = self.state_dict()
            state["callbacks"] = {name: callback.state_dict() for name, callback in callbacks.items()}
            checkpoints.save(state, step=self.step_count, best_step=self.reports.best_val_step)

    def _save_last(self, callbacks: Callbacks, checkpoints: Checkpoints) -> None:
        checkpoints.wait()
        self._save(callbacks, checkpoints)
        if distributed.is_first():
            checkpoints.finish(self.step_count, self.reports.best_val_step)

    def finished(self) -> bool:
        """Return whether a limit is reached."""
        is_at_end = self.limits.progress(self.step_count, self._seconds()).share >= 1
        return is_at_end and self.training_step.confirm_finite()

    def limits_reached(self) -> list[Reached]:
        """Return the limits that are reached; empty if something else ended the run."""
        return self._limit_settings.reached(self.step_count, self.clock.seconds)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the first group of parameters in a step, counted from 1."""
        progress = self.limits.progress(step, self._seconds())
        return self.training_step.base_rates[0] * self.training_step.schedule(progress)

    def temperature(self, step: int) -> float | None:
        """Set and return the temperature of annealed mixers in a step, counted from 1; None if no mixer is annealed."""
        self.training_step.anneal(self.limits.progress(step, self._seconds()))
        return self.training_step.temperature

    def _seconds(self) -> float:
        """Return the seconds of training so far; those of the first process if time limits the run."""
        if self.limits.max_seconds is None:
            return self.clock.seconds
        return distributed.number_of_first(self.clock.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a run resumes exactly; the step determines the place in the order of rows.

        All processes must call it together.
        """
        self.training_step.confirm_finite()  # may go back, with the random states
        first, *others = distributed.gathered(random_states(self.device))
        vocabulary = None
        if self.source.vocabulary:
            vocabulary = self.source.vocabulary.state_dict()
        begun = {}
        if self.init_from:
            begun["init_from"] = self.init_from
        return {
            **begun,
            **self.training_step.state_dict(),
            "reports": self.reports.state_dict(),
            "random": first,
            "random_of_others": others,
            "resumed_from": self.resumed_from,
            "train_seconds": self.clock.seconds,
            "vocab_size": self.source.vocab_size,
            "pad_id": self.source.pad_id,
            "line_ends": self.source.line_ends,
            "vocabulary": vocabulary,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`.

        Raises:
            ValueError: if the checkpoint is of another model or vocabulary.
        """
        self._take_up(state)
        self.clock.set(state["train_seconds"])
        self.reports.load_state_dict(state["reports"])
        self.resumed_from = state["resumed_from"]
        self.init_from = state.get("init_from", {})  # older checkpoints lack it

    def begin_from(self, state: dict[str, Any], origin: str) -> None:
        """Begin a run with weights, optimizer, steps and random states of another run, without its record.

        Args:
            state: As `state_dict` returns it.
            origin: Path of the checkpoint.

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
        require_same_vocabulary(self.source.vocabulary, state["vocabulary"])
        self.training_step.load_state_dict(state)
        self._set_random_states(state)

    def _set_random_states(self, content: Mapping[str, Any]) -> None:
        set_own_random_states([content["random"], *content.get("random_of_others", [])], self.device)


def _require_possible(
    model: nn.Module,
    batch_size: int,
    accumulate: int,
    chunk_len: int | None,
    parallel: ParallelName,
    precision: PrecisionName,
    *,
    compile: bool,
) -> None:
    if distributed.count() > 1:
        shares = accumulate * distributed.count()
        problem = not_divisible("data.batch_size", batch_size, "accumulate times processes", shares)
    else:
        problem = not_divisible("batch_size", batch_size, "accumulate", accumulate)
    if problem := problem or parallel_problem(parallel, precision, compile) or chunk_problem(model, chunk_len):
        raise ValueError(problem)


@contextmanager
def saved_on_error(step: TrainingStep, save: Callable[[], None]) -> Iterator[None]:
    """Save the last consistent state if a step inside fails, and report the error.

    Args:
        step: The step that may fail.
        save: Writes a checkpoint.

    Raises:
        NonFiniteError: the original report, with a line on what was saved.
        MemoryExhaustedError: in place of the errors of torch, numpy and Python.
    """
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}\n{_saved(step, save)}") from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        peak = peak_memory_bytes(step.batches.device)
        traceback.clear_frames(error.__traceback__)  # its frames hold the activations
        when = f"after step {step.step_count}"
        if step.snapshot is not None:
            when = f"in step {step.step_count + 1}"
        if not step.revert():
            saved = "  saved           nothing: it failed within the update"
        elif distributed.count() > 1:
            saved = f"  saved           nothing: it happened in {distributed.name()}, and the others wait in this step"
        else:
            saved = _saved(step, save)
        what = f"out of memory {when}: {_first_line(error)[:200]}"
        raise MemoryExhaustedError("\n".join([what, *_out_of_memory_report(step, peak), saved])) from None


def _out_of_memory_report(step: TrainingStep, peak: int) -> list[str]:
    """Return the size of the step, and settings that need less memory."""
    batches, parts = step.batches, step.accumulate
    rows, length = batches.batch_size, batches.rows.seq_len
    micro_steps = f"{parts} micro-steps"
    if parts == 1:
        micro_steps = "1 micro-step"
    return [
        f"  peak so far     {peak / 1e9:.2f} GB, on {batches.device} in {step.precision}",
        f"  batch           {rows} rows x {length} targets, in {micro_steps} of {rows // parts} rows",
        f"  needs less      {'; or '.join(_smaller_settings(step)) or 'a smaller model'}",
    ]


def _smaller_settings(step: TrainingStep) -> list[str]:
    """Return settings with which a step needs less memory."""
    rows, length = step.batches.batch_size, step.batches.rows.seq_len
    smaller = []
    shares = step.accumulate * distributed.count()
    for accumulate in range(2 * step.accumulate, rows + 1):
        if rows % (accumulate * distributed.count()) == 0:
            smaller.append(f"trainer.accumulate={accumulate}, which keeps the batch of {rows} rows")
            break
    if rows > shares:
        smaller.append(f"data.batch_size={rows // shares // 2 * shares or shares}")
    if length > 1:
        smaller.append(f"data.seq_len={length // 2}")
    if isinstance(getattr(step.model, "layers", None), nn.ModuleList):
        smaller.append("trainer.activation_checkpointing=true")
    if step.graph is not None and step.graph.count:  # evaluations cannot use a graph's memory
        smaller.append("trainer.cuda_graph=false")
    return smaller


def _saved(step: TrainingStep, save: Callable[[], None]) -> str:
    """Save; return a line of the report with the outcome."""
    try:
        save()
    except (CheckpointError, NonFiniteError, OSError, MemoryError, RuntimeError) as error:
        return f"  saved           nothing: {_first_line(error)}"
    return f"  saved           the state after step {step.step_count}: resume=auto continues from it"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]
