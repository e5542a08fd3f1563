"""An optimizer step: micro-steps forward and backward, clipping, update.

The loss is the sum of nats divided by the number of counted targets in the whole batch, so that micro-steps with
different amounts of padding add up to the gradient of the whole batch. The host never waits for the device, and a
non-finite loss or gradient never reaches the weights: `samout_train.training.non_finite` explains how.

Long rows may be trained on in chunks. Each chunk starts from the state of the previous one, and no gradient flows back
into it (truncated backpropagation through time, Williams and Peng 1990). The loss is the same as for whole rows, but
memory is needed for one chunk only.
"""

# R rows, T time

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.profiler import record_function

from samout_train.checkpoint import load_weights, saved_weights
from samout_train.data import Batch, Batches, Part, Vocabulary, nothing
from samout_train.models import ParallelModel, map_state, whole_tensor
from samout_train.runtime import (
    DTYPES,
    PrecisionName,
    autocast,
    compile_problem,
    distributed,
    logged_compilation,
    to_device,
)
from samout_train.training.average import WeightAverage
from samout_train.training.cuda_graph import DeviceScalars, StepGraph, StepInputs, rounded_bound, takes_scalars
from samout_train.training.non_finite import (
    NonFiniteMonitor,
    OnNonFinite,
    StepSnapshot,
    describe_non_finite,
    generator_states,
    needs_host,
    require_finite,
    skip_or_raise,
    update,
)
from samout_train.training.schedules import Progress, Schedule
from samout_train.training.weight_decay import WeightDecaySchedule

log = logging.getLogger(__name__)
EMPTY = (
    "step %d was skipped: its batch has no counted target, since each is %d (data.ignore_index). They are counted: "
    "train/empty_steps in the metrics, empty_steps in summary.json"
)


class TrainingStep:
    """An optimizer step, and the state that it changes.

    Args:
        shared: The model, on the device of the batches, and the exchange of its gradients between processes.
        optimizer: Over the model's parameters; its learning rates are the base rates.
        stateful: Keys of its groups that its steps change.
        schedule: The factor on the base rates.
        batches: The batch of each step.
        precision: Precision of the forward and backward pass.
        accumulate: Micro-steps; each takes an equal share of the batch's rows.
        chunk_len: Targets of a row in one forward and backward pass; None for all.
        clip_grad_norm: Largest allowed norm of all gradients together; None for no clipping.
        compile: Whether torch compiles the model at the first step; evaluation uses the uncompiled model.
        on_non_finite: What to do with a step whose loss or gradient is not finite. In fp16, GradScaler handles
            overflowing gradients: it skips the update and lowers its scale; only the loss is checked there.
        vocabulary: For the report of such a step; None if the data is not text.
        ema: Half-life in tokens of the average of the weights; None for no average.

    The device's part of a step may run as a CUDA graph: see `samout_train.training.cuda_graph` and `use_graph`.

    Raises:
        ValueError: if the model cannot be compiled on this machine, or its weights cannot be averaged.

    Attributes:
        step_count: Steps made, skipped ones included.
        tokens_seen: Counted targets in them, without skipped steps.
        loss: Loss of the last step that was not skipped, before its update, in nats per counted target.
        skipped_steps: Non-finite steps that were skipped, counted from 1: they change nothing, not even a random state.
        empty_steps: Number of steps whose batch had no counted target; they change nothing either.
        temperature: Temperature of the last step; None unless a mixer is annealed.
        weight_decay: Weight decay of the last step; None unless it is on a schedule.
        snapshot: The state before the step that is running; None between steps.
        checks_on_host: Whether the host checks each step before its update.
        average: The average of the weights; None without `ema`.
        scalars: The values that change from step to step, on the device; None if steps read them as numbers.
        graph: The device's part as a graph; None if each operation is launched separately.
    """

    def __init__(
        self,
        *,
        shared: ParallelModel,
        optimizer: torch.optim.Optimizer,
        stateful: frozenset[str] = frozenset(),
        schedule: Schedule,
        batches: Batches,
        precision: PrecisionName,
        accumulate: int,
        chunk_len: int | None,
        clip_grad_norm: float | None,
        compile: bool,
        on_non_finite: OnNonFinite,
        vocabulary: Vocabulary | None,
        ema: float | None = None,
    ) -> None:
        if compile and (problem := compile_problem(batches.device)):
            raise ValueError(problem)
        self.shared = shared
        self.model = shared.model
        self.compile = compile
        self._is_compiled = not compile
        self._is_updating = False
        self.optimizer = optimizer
        self.stateful = stateful
        self.schedule = schedule
        self.batches = batches
        self.precision = precision
        self.accumulate = accumulate
        self.chunk_len = chunk_len
        self.clip_grad_norm = clip_grad_norm
        self.parameters = list(self.model.parameters())
        self._annealed: list[Any] = [module for module in self.model.modules() if hasattr(module, "anneal")]
        self.temperature: float | None = None
        self.weight_decay: float | None = None
        self._weight_decays = WeightDecaySchedule(optimizer)
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.scalars: DeviceScalars | None = None
        if takes_scalars(optimizer, batches.device, is_sharded=shared.is_sharded):
            self.scalars = DeviceScalars(optimizer, batches.device)
        self.graph: StepGraph | None = None
        self.scaler = GradScaler(batches.device.type, enabled=precision == "fp16")
        self.step_count = 0
        self.tokens_seen = 0
        self.loss: Tensor | None = None
        self._grad_norm: Tensor | None = None
        self.on_non_finite = on_non_finite
        self.vocabulary = vocabulary
        self.skipped_steps: set[int] = set()
        self.empty_steps = 0
        holds_back = getattr(optimizer, "_step_supports_amp_scaling", False) and not shared.is_sharded
        self.checks_on_host = needs_host(batches.device, holds_back=holds_back)
        self._monitor = NonFiniteMonitor()
        self._redo_step: int | None = None  # the step that is repeated with a check on the host
        self.snapshot: StepSnapshot | None = None
        self.average: WeightAverage | None = None
        if ema is not None:
            self.average = WeightAverage(shared, half_life=ema)

    def __call__(self, progress: Progress) -> Tensor:
        """Run the next step, or skip it.

        Raises:
            NonFiniteError: if its loss or gradient is not finite and it is not to be skipped; nothing is changed then.

        Returns:
            Its loss before the update, in nats per counted target, without waiting for the device; NaN if skipped.
        """
        if self.step_count + 1 in self.skipped_steps:
            return self._pass_over()
        batch = self.batches.get(self.step_count)
        if batch.num_targets == 0:
            if not self.empty_steps:
                log.warning(EMPTY, self.step_count + 1, self.batches.ignore_index)
            self.empty_steps += 1
            return self._pass_over()
        if self._is_compiled:
            return self._train_step(batch, progress)
        self._is_compiled = True
        with logged_compilation():
            return self._train_step(batch, progress)

    def anneal(self, progress: Progress) -> None:
        """Set the temperature of the mixers that are annealed."""
        for module in self._annealed:
            self.temperature = module.anneal(progress.share)

    def _train_step(self, batch: Batch, progress: Progress) -> Tensor:
        if not self.model.training:  # train() on every module takes longer than this check
            self.model.train()
        self.snapshot = snapshot = self._take_snapshot()
        factor = self.schedule(progress)
        self._set_rates([base * factor for base in self.base_rates])
        self.weight_decay = self._weight_decays.set(progress.share)
        self.anneal(progress)
        inputs = self._inputs(batch)
        held_back: Tensor | None = None
        grad_norm: Tensor | None
        if self.checks_on_host or self._redo_step == self.step_count:
            loss, grad_norm, loss_and_norm = self._gradients(inputs)
            loss_is_finite = math.isfinite(loss_and_norm)
            if not loss_is_finite:
                return self._leave_out(float(loss))
            self._clip_and_update(grad_norm, None)
        else:
            loss, grad_norm = (self.graph or self._device_step)(inputs)
            self._monitor.watch(snapshot)
            held_back = self._monitor.flag
        if self.average is not None:
            rises = self.loss is None or self.rates()[0] > snapshot.rates[0]
            self.average.update(batch.num_targets, rate_rises=rises, held_back=held_back)
        self._is_updating = False
        self.step_count += 1
        self.tokens_seen += batch.num_targets
        self.batches.prepare(self.step_count)
        self.loss = loss
        self._grad_norm = grad_norm
        self.snapshot = None
        return loss

    def use_graph(self) -> None:
        """Run the device's part of steps as a CUDA graph from now on."""
        self.graph = StepGraph(
            self._device_step, model=self.model, optimizer=self.optimizer, device=self.batches.device
        )

    def rates(self) -> tuple[float, ...]:
        """Return the learning rates by group, without waiting for the device."""
        if self.scalars is not None:
            return self.scalars.values
        return tuple(group["lr"] for group in self.optimizer.param_groups)

    def _set_rates(self, rates: Sequence[float]) -> None:
        if self.scalars is not None:
            self.scalars.set_rates(rates)
            return
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _inputs(self, batch: Batch) -> StepInputs:
        """Return what the device reads of a batch: numbers, or scalars at fixed addresses."""
        most, inverse = batch.own_targets, None
        if self.scalars is not None:
            inverse = self.scalars.inverse(batch.num_targets)
            targets_RT = self.batches.rows.split(batch.ids_RT)[1]
            most = rounded_bound(most, (targets_RT.shape[0], targets_RT.shape[1]), self.accumulate, self.chunk_len)
        return StepInputs(ids_RT=batch.ids_RT, num_targets=batch.num_targets, inverse=inverse, most_targets=most)

    def _device_step(self, inputs: StepInputs) -> tuple[Tensor, Tensor | None]:
        """Run a step that is checked on the device: no wait, and no branch on data. A graph captures this.

        Returns:
            Its loss and the norm of its gradient; no norm in fp16 without clipping.
        """
        loss, grad_norm, loss_and_norm = self._gradients(inputs)
        self._clip_and_update(grad_norm, self._monitor.mark(loss_and_norm))
        return loss, grad_norm

    def _gradients(self, inputs: StepInputs) -> tuple[Tensor, Tensor | None, Tensor]:
        """Run the forward and backward passes.

        Returns:
            The loss, the norm, and a figure that is finite if and only if the step is; in fp16, GradScaler handles
            overflowing gradients.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._forward_backward(inputs)
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_norm is None and self.scaler.is_enabled():
            return loss, None, loss
        with record_function("Optimizer.clip_grad_norm"):  # a profile counts it as part of the optimizer
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            grad_norm = whole_tensor(nn.utils.get_total_norm(gradients))
            if self.scaler.is_enabled():
                return loss, grad_norm, loss
            return loss, grad_norm, loss + grad_norm

    def _clip_and_update(self, grad_norm: Tensor | None, held_back: Tensor | None) -> None:
        if grad_norm is not None and self.clip_grad_norm is not None:
            with record_function("Optimizer.clip_grad_norm"):
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, grad_norm)
        self._is_updating = True
        update(self.optimizer, self.scaler, held_back)

    def _forward_backward(self, inputs: StepInputs) -> Tensor:
        """Run `_micro_steps`; weights are cast and added once for all of them."""
        with self.shared.weight_copies(DTYPES.get(self.precision, torch.float32)):
            return self._micro_steps(inputs)

    def _micro_steps(self, inputs: StepInputs) -> Tensor:
        """Accumulate the scaled gradient of a batch, by micro-steps and chunks.

        Returns:
            The unscaled loss in nats per counted target, over all processes.
        """
        losses = []
        parts = self._parts(inputs.ids_RT)
        for number, (inputs_RT, targets_RT) in enumerate(parts, start=1):
            length = self.chunk_len or inputs_RT.shape[1]
            state: Any = None
            for start in range(0, inputs_RT.shape[1], length):
                piece = slice(start, start + length)
                chunk_RT, chunk_targets_RT = inputs_RT[:, piece], targets_RT[:, piece]
                is_last = number == len(parts) and start + length >= inputs_RT.shape[1]
                most = min(inputs.most_targets, chunk_targets_RT.numel())
                with self.shared.gradient_sync(is_last):
                    with autocast(self.precision, self.batches.device):
                        nats, state = self.shared.loss_sum(
                            chunk_RT, chunk_targets_RT, self.batches.ignore_index, most, state
                        )
                    loss = inputs.share_of(nats)
                    losses.append(loss.detach())
                    if distributed.count() > 1:  # DDP averages over the processes; the loss is a sum over them
                        loss = loss * distributed.count()
                    self.scaler.scale(loss).backward()
                state = map_state(Tensor.detach, state) if length < inputs_RT.shape[1] else None
        if len(losses) == 1:
            return distributed.summed(losses[0])
        return distributed.summed(torch.stack(losses).sum())

    def _parts(self, ids_RT: Tensor) -> list[Part]:
        """Return the inputs and targets of the micro-steps, further split where rows are split at documents."""
        parts = self.batches.parts(
            ids_RT, micro_steps=self.accumulate, chunk_len=self.chunk_len, few_shapes=self.compile
        )
        if self.batches.document_id is None or not self.shared.is_sharded:
            return parts
        # Each call gathers shards from all processes, so all processes must make the same number of calls.
        calls = 0
        for inputs_RT, _ in parts:
            calls += -(-inputs_RT.shape[1] // (self.chunk_len or inputs_RT.shape[1]))
        missing = distributed.largest(calls) - calls
        empty = nothing(self.batches.document_id, self.batches.ignore_index)
        empty = Part(*(to_device(tensor, self.batches.device) for tensor in empty))
        return [*[empty] * missing, *parts]

    def steps_left_out(self) -> int:
        """Return the number of steps so far that were skipped."""
        return self.empty_steps + sum(step <= self.step_count for step in self.skipped_steps)

    def _pass_over(self) -> Tensor:
        """Count a skipped step."""
        self.step_count += 1
        self.batches.prepare(self.step_count)
        return torch.full((), math.nan, device=self.batches.device)

    def confirm_finite(self, *, wait: bool = True) -> bool:
        """Return whether all steps so far are finite, as far as known; else go back to the first one that is not.

        After going back, the next call repeats that step with a check on the host.

        Args:
            wait: Wait for the device, so that the answer holds for all steps.
        """
        snapshot = self._monitor.first(wait=wait)
        if snapshot is None:
            return True
        self._restore(snapshot)
        self._redo_step = snapshot.step_count
        return False

    def revert(self) -> bool:
        """Revert an incomplete step, and drop the gradients.

        Returns:
            Whether the state is as before the step; false if the step failed during the update.
        """
        if self.snapshot is not None:
            self._restore(self.snapshot)
        return not self._is_updating

    def grad_norm(self) -> float:
        """Return the norm of all gradients of the last step, before clipping; waits for the device."""
        if self._grad_norm is None:  # before the first step, and in fp16 without clipping
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            if not gradients:
                return math.nan
            self._grad_norm = whole_tensor(nn.utils.get_total_norm(gradients))
        return float(self._grad_norm)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, except the random states.

        Raises:
            NonFiniteError: if weights or optimizer state are not finite.
        """
        self.confirm_finite()
        grad_norm = self.grad_norm()
        weights = saved_weights(self.shared, self.optimizer)
        if self.scalars is not None:
            weights["optimizer"] = self.scalars.plain(weights["optimizer"])
        state = {
            **weights,
            "scaler": self.scaler.state_dict(),
            "step": self.step_count,
            "tokens_seen": self.tokens_seen,
            "loss": self.loss,
            "grad_norm": grad_norm,
            "skipped_steps": sorted(self.skipped_steps),
            "empty_steps": self.empty_steps,
        }
        if not math.isfinite(grad_norm):
            state["grad_norm"] = None
        if self.average is not None:
            state["ema"] = self.average.state_dict()
        if self.temperature is not None:
            state["temperature"] = self.temperature
        require_finite(state)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`.

        Raises:
            ValueError: if the tensors belong to another model or optimizer; the message names those that differ, and
                nothing is loaded.
        """
        load_weights(self.shared, self.optimizer, state, self.stateful)
        if self.scalars is not None:
            self.scalars.attach()
        if self.graph is not None:
            self.graph.drop()
        if self.average is not None:
            self.average.load_state_dict(state.get("ema"))  # None if the run was trained without it so far
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step_count = state["step"]
        self.tokens_seen = state["tokens_seen"]
        self.loss = state["loss"]
        self._grad_norm = torch.tensor(math.nan)
        if state["grad_norm"] is not None:
            self._grad_norm = torch.tensor(state["grad_norm"])
        self.skipped_steps = set(state.get("skipped_steps", ()))
        self.empty_steps = state.get("empty_steps", 0)  # older checkpoints lack it
        self.temperature = state.get("temperature")
        self._monitor.forget()
        self._redo_step = None
        self.snapshot = None
        self.optimizer.zero_grad(set_to_none=True)

    def _leave_out(self, loss: float) -> Tensor:
        """Revert a non-finite step, and skip it or raise."""
        step = self.step_count + 1
        message = describe_non_finite(step, loss, self.batches, self.model, self.vocabulary)
        self.scaler.update()
        self.revert()
        skip_or_raise(self.on_non_finite, step, self.skipped_steps, message)
        self.step_count = step
        return torch.full((), loss, device=self.batches.device)

    def _take_snapshot(self) -> StepSnapshot:
        return StepSnapshot(
            step_count=self.step_count,
            tokens_seen=self.tokens_seen,
            empty_steps=self.empty_steps,
            loss=self.loss,
            grad_norm=self._grad_norm,
            rates=self.rates(),
            random=generator_states(self.batches.device),
            averaging=self.average is not None and self.average.started,
        )

    def _restore(self, snapshot: StepSnapshot) -> None:
        self.step_count = snapshot.step_count
        self.tokens_seen = snapshot.tokens_seen
        self.empty_steps = snapshot.empty_steps
        self.loss = snapshot.loss
        self._grad_norm = snapshot.grad_norm
        if self.average is not None:
            self.average.started = snapshot.averaging
        self.snapshot = None
        self._set_rates(snapshot.rates)
        snapshot.restore(self.optimizer, self.batches.device)
        self._monitor.forget()


def chunk_problem(model: Any, chunk_len: int | None) -> str | None:
    """Return why chunked training is unsupported for this model, or None."""
    if chunk_len is None or not getattr(model, "sees_future", False):
        return None
    return f"trainer.chunk_len ({chunk_len}): this model sees the whole sequence and carries no state: leave it out"
