"""The schedule of logging and evaluation, and the final summary of a run."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from samout_train.checkpoint import weights_sha256
from samout_train.data import Source
from samout_train.evaluation import Evaluation, Evaluator, SpreadBatches, has_targets, in_order
from samout_train.models import TRAINING_TIMES, num_parameters
from samout_train.runtime import Clock, StopSignals, device_name, distributed, matmul_rate, peak_memory_bytes
from samout_train.training.callbacks.base import Callback, RunContext, StepReport
from samout_train.training.step import TrainingStep


class Reports:
    """Makes reports and passes them to callbacks.

    Args:
        training_step: The step whose figures are reported.
        source: Its validation split is evaluated.
        clock: Paused during reports.
        log_every_n_steps: Log at multiples of this, and at the last step.
        eval_every_n_steps: Evaluate on the fixed batches at multiples of this, and at the last step.
        eval_batches: Number of fixed batches, spread over the validation split.
        final_eval_batches: Number of batches of the final evaluation; None for the whole split.

    Attributes:
        evaluator: The evaluator of the current weights.
        best_val_loss_nats: The lowest loss on the fixed batches so far.
        best_val_step: The step with that loss.
    """

    def __init__(
        self,
        training_step: TrainingStep,
        *,
        source: Source,
        clock: Clock,
        log_every_n_steps: int,
        eval_every_n_steps: int,
        eval_batches: int,
        final_eval_batches: int | None,
    ) -> None:
        self.training_step = training_step
        self.source = source
        self.clock = clock
        self.log_every_n_steps = log_every_n_steps
        self.eval_every_n_steps = eval_every_n_steps
        self.final_eval_batches = final_eval_batches
        batches = training_step.batches
        self.device, self.rows_per_batch = batches.device, batches.batch_size // training_step.accumulate
        self.fixed_batches = SpreadBatches(
            source.validation, self.rows_per_batch, eval_batches, ignore_index=source.ignore_index
        )
        self.evaluator = Evaluator(
            training_step.model, source, batches.device, training_step.precision, training_step.chunk_len
        )
        self.best_val_loss_nats: float | None = None
        self.best_val_step: int | None = None
        self._final_ema_loss_nats: float | None = None
        self._logged_step = self._evaluated_step = self._closed_step = 0
        self._speed_from = (0.0, 0)
        self._tokens_before = 0  # seen by the run whose checkpoint this one started from

    @property
    def reported_step(self) -> int:
        """Return the last step that was logged or evaluated."""
        return max(self._logged_step, self._evaluated_step)

    def log_and_evaluate(self, callbacks: Sequence[Callback], signals: StopSignals, *, is_last: bool) -> str | None:
        """Log and evaluate if due after this step, unless that was done before, such as before a rollback.

        Args:
            callbacks: They get the report, if there is one; empty in all processes but the first.
            signals: Checked before each batch of an evaluation.
            is_last: Whether this is the last step. Both are due then, and callbacks make their final measurements.

        Returns:
            The reason to stop, if a callback gives one; else None.
        """
        step = self.training_step.step_count
        should_log = (is_last or step % self.log_every_n_steps == 0) and self._logged_step < step
        should_evaluate = (is_last or step % self.eval_every_n_steps == 0) and self._evaluated_step < step
        should_close = is_last and self._closed_step < step
        if not (should_log or should_evaluate or should_close) or not self.training_step.confirm_finite():
            return None
        metrics: dict[str, float] = {}
        reasons: list[str | None] = []
        with self.clock.paused():
            if should_log:
                metrics |= self._training_metrics()
            if should_evaluate:
                metrics |= self._validation_metrics(step, signals)
            if should_evaluate or should_close:
                metrics |= self._callback_metrics(callbacks, signals, is_last=should_close)
            if should_close:
                self._closed_step = step
            if should_log:
                self._logged_step = step
            if should_evaluate:
                self._evaluated_step = step
            if metrics:
                report = StepReport(step=step, metrics=metrics)
                # After an evaluation, a callback may generate a sample in the first process only.
                with self.training_step.shared.unsharded() if should_evaluate else nullcontext():
                    reasons = [callback.on_report(report) for callback in callbacks]
        return distributed.from_first(next((reason for reason in reasons if reason), None))

    def evaluate_whole(self, signals: StopSignals) -> Evaluation:
        """Evaluate on the whole validation split, or on `final_eval_batches` batches with counted targets.

        If the run has an average of the weights, it is evaluated too.
        """
        if self.training_step.average is not None:
            with self.training_step.average.in_place_of_weights():
                self._final_ema_loss_nats = self._evaluate_end(signals).loss_nats
        return self._evaluate_end(signals)

    @property
    def _num_val_batches(self) -> int:
        return -(-self.source.validation.num_windows // self.rows_per_batch)

    def _evaluate_end(self, signals: StopSignals) -> Evaluation:
        rows = self.source.validation
        num_batches, batches = self._num_val_batches, in_order(rows, self.rows_per_batch)
        if self.final_eval_batches is not None:
            num_batches = min(num_batches, self.final_eval_batches)
            counted = (ids for ids in batches if has_targets(rows, ids, self.source.ignore_index))
            batches = islice(counted, num_batches)
        return self._evaluate(batches, num_batches, signals)

    def summary(self, context: RunContext, final: Evaluation) -> dict[str, Any]:
        """Return the run's final figures, as `summary.json` holds them.

        Args:
            context: The run.
            final: What `evaluate_whole` returned.
        """
        step, seq_len = self.training_step, self.source.train.seq_len
        model: Any = step.model
        train_loss_nats = None
        if step.loss is not None:
            train_loss_nats = float(step.loss)
        summary = {
            "model": context.model_name,
            "data": context.data_name,
            "parameters": num_parameters(model),
            "training_flops_per_token": TRAINING_TIMES * model.forward_flops_per_token(seq_len),
            "state_bytes": model.state_bytes(seq_len),
            "processes": distributed.count(),
            "steps": step.step_count,
            "tokens_seen": step.tokens_seen,
            "train_loss_nats": train_loss_nats,
            "val_loss_nats": final.loss_nats,
            "best_val_loss_nats": self.best_val_loss_nats,
            "best_val_step": self.best_val_step,
            "tokens_per_second": self._tokens_per_second(),
            "train_seconds": self.clock.seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "device": str(self.device),
            "processor": device_name(self.device),
            "precision": step.precision,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "seed": context.seed,
            "commit": context.commit,
            "weights_sha256": weights_sha256(step.shared.weights()),
        }
        val_batches = None  # of a part of the validation split
        if self.final_eval_batches is not None and self.final_eval_batches < self._num_val_batches:
            val_batches = self.final_eval_batches
        only_where_known = {
            "val_batches": val_batches,
            "ema_val_loss_nats": self._final_ema_loss_nats,
            "floor_nats": self.source.floor_nats,
            "bits_per_byte": final.bits_per_byte,
            "bits_per_character": final.bits_per_character,
            "word_perplexity": self._word_perplexity(final),
            "skipped_steps": sorted(step.skipped_steps) or None,
            "empty_steps": step.empty_steps or None,
            "empty_validation_batches": final.empty_batches or None,
        }
        for key, value in only_where_known.items():
            if value is not None:
                summary[key] = value
        return summary

    def _word_perplexity(self, final: Evaluation) -> float | None:
        """Return the word perplexity; None if the data has no count of words, or not all of the text was evaluated."""
        if self.source.words is None or self.final_eval_batches is not None:
            return None
        return final.word_perplexity(self.source.words)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that lets a resumed run report as if it had never stopped."""
        return {
            "best_val_loss_nats": self.best_val_loss_nats,
            "best_val_step": self.best_val_step,
            "logged_step": min(self._logged_step, self.training_step.step_count),
            "evaluated_step": min(self._evaluated_step, self.training_step.step_count),
            "closed_step": min(self._closed_step, self.training_step.step_count),
            "tokens_before": self._tokens_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        self.best_val_loss_nats, self.best_val_step = state["best_val_loss_nats"], state["best_val_step"]
        self._logged_step, self._evaluated_step = state["logged_step"], state["evaluated_step"]
        # Older checkpoints lack these.
        self._closed_step, self._tokens_before = state.get("closed_step", 0), state.get("tokens_before", 0)
        self._speed_from = (self.clock.seconds, self.training_step.tokens_seen)

    def begin(self) -> None:
        """Begin the record of a run that started from another run's checkpoint."""
        self._logged_step, self._tokens_before = self.training_step.step_count, self.training_step.tokens_seen
        self._speed_from = (self.clock.seconds, self._tokens_before)

    def _tokens_per_second(self) -> float:
        seconds = self.clock.seconds
        if not seconds:
            return 0.0
        return (self.training_step.tokens_seen - self._tokens_before) / seconds

    def _training_metrics(self) -> dict[str, float]:
        step = self.training_step
        metrics = {
            "train/lr": float(step.rates()[0]),
            "memory/peak_bytes": float(peak_memory_bytes(self.device)),
        }
        if step.loss is not None:  # None if every step was skipped
            metrics |= {"train/loss_nats": float(step.loss), "train/grad_norm": step.grad_norm()}
        if step.temperature is not None:
            metrics["train/temperature"] = step.temperature
        if step.weight_decay is not None:
            metrics["train/weight_decay"] = step.weight_decay
        if step.skipped_steps:
            metrics["train/skipped_steps"] = float(len(step.skipped_steps))
        if step.empty_steps:
            metrics["train/empty_steps"] = float(step.empty_steps)
        seconds, tokens = self._speed_from
        self._speed_from = (self.clock.seconds, step.tokens_seen)
        if step.tokens_seen > tokens and self.clock.seconds > seconds:
            speed = (step.tokens_seen - tokens) / (self.clock.seconds - seconds)
            metrics["time/tokens_per_second"] = speed
            metrics["time/matmul_share"] = self._matmul_share(speed)
        return metrics

    def _matmul_share(self, tokens_per_second: float) -> float:
        """Return the FLOPs of the model's matrix products as a share of what this machine does in the same time."""
        model: Any = self.training_step.model
        flops = TRAINING_TIMES * model.forward_flops_per_token(self.source.train.seq_len) * tokens_per_second
        return flops / distributed.count() / matmul_rate(self.device, self.training_step.precision)

    def _validation_metrics(self, step: int, signals: StopSignals) -> dict[str, float]:
        found = self._evaluate(self.fixed_batches, len(self.fixed_batches), signals)
        best = self.best_val_loss_nats
        if best is None or math.isnan(best) or found.loss_nats < best:
            self.best_val_loss_nats, self.best_val_step = found.loss_nats, step
        metrics = {"val/loss_nats": found.loss_nats}
        if self.training_step.average is not None:
            with self.training_step.average.in_place_of_weights():
                averaged = self._evaluate(self.fixed_batches, len(self.fixed_batches), signals)
            metrics["val/ema_loss_nats"] = averaged.loss_nats
        if found.bits_per_byte is not None:
            metrics["val/bits_per_byte"] = found.bits_per_byte
        return metrics

    def _callback_metrics(
        self, callbacks: Sequence[Callback], signals: StopSignals, *, is_last: bool
    ) -> dict[str, float]:
        def check_stop() -> None:
            if distributed.count() == 1:  # several processes would have to check together
                signals.check()

        step = self.training_step.step_count
        metrics: dict[str, float] = {}
        with self.training_step.shared.unsharded():
            for callback in callbacks:
                metrics |= callback.on_evaluate(step, is_last=is_last, check_stop=check_stop)
            distributed.wait_for_all()
        return metrics

    def _evaluate(self, batches: Any, num_batches: int, signals: StopSignals) -> Evaluation:
        with self.training_step.shared.unsharded():
            return replace(self.evaluator, check_stop=signals.check).loss(batches, num_batches, together=True)
