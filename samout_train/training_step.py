"""One optimizer step: micro-steps forward and backward, clipping, update.

The loss is the sum of nats over the number of counted targets of the whole batch, so that micro-steps over ragged
padding add up to the gradient of the big batch. Nothing waits for the device.
"""

# R rows, T time

from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.profiler import record_function

from samout_train.compilation import compile_problem, compiled, told_compilation
from samout_train.data.batches import Batches
from samout_train.losses import next_token_nats
from samout_train.runtime import PrecisionName, autocast
from samout_train.schedules import Progress, Schedule


class TrainingStep:
    """Everything that an optimizer step changes, and the step.

    Args:
        model: Called as `logits, state = model(ids)`; on the device of the batches.
        optimizer: Over the model's parameters; its learning rates are the base rates.
        schedule: The factor on them.
        batches: What each step learns from.
        precision: Of the forward and backward pass.
        accumulate: Micro-steps; each takes an equal share of the batch's rows.
        clip_grad_norm: The norm of all gradients together is brought down to this; None for no clipping.
        compile: Whether torch compiles the model for this step; what else uses the model uses it as it is.

    Raises:
        ValueError: if it cannot be compiled on this machine.

    Attributes:
        step_count: Steps made.
        tokens_seen: Counted targets in them.
        loss: Of the last step, before its update, in nats per counted target.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        batches: Batches,
        precision: PrecisionName,
        accumulate: int,
        clip_grad_norm: float | None,
        compile: bool,
    ) -> None:
        if compile and (problem := compile_problem(batches.device)):
            raise ValueError(problem)
        self.forward = compiled(model) if compile else model
        self._is_compiled = not compile
        self.model, self.optimizer, self.schedule, self.batches = model, optimizer, schedule, batches
        self.precision, self.accumulate, self.clip_grad_norm = precision, accumulate, clip_grad_norm
        self.parameters = list(model.parameters())
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.scaler = GradScaler(batches.device.type, enabled=precision == "fp16")
        self.step_count = self.tokens_seen = 0
        self.loss: Tensor | None = None
        self._grad_norm: Tensor | None = None

    def __call__(self, progress: Progress) -> Tensor:
        """Makes the next step.

        Raises:
            ValueError: if not one target of the batch is counted.

        Returns:
            Its loss before the update, in nats per counted target, as a tensor that nothing waited for.
        """
        if not self._is_compiled:
            self._is_compiled = True
            with told_compilation():
                return self(progress)
        if not self.model.training:  # setting it anew on every module takes longer than asking the first
            self.model.train()
        batch = self.batches.get(self.step_count)
        if batch.num_targets == 0:
            ignored = self.batches.ignore_index
            raise ValueError(
                f"every target of batch {self.step_count} is {ignored}, which is ignored: nothing to learn"
            )
        factor = self.schedule(progress)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for ids_RT in batch.ids_RT.chunk(self.accumulate):
            with autocast(self.precision, self.batches.device):
                inputs_RT, targets_RT = self.batches.rows.split(ids_RT)
                nats = next_token_nats(self.forward, inputs_RT, targets_RT, self.batches.ignore_index)
            loss = nats / batch.num_targets
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_norm is not None:
            with record_function("Optimizer.clip_grad_norm"):  # so that a profile counts it to the optimizer
                self._grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_count += 1
        self.tokens_seen += batch.num_targets
        self.batches.prepare(self.step_count)
        self.loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return self.loss

    def grad_norm(self) -> float:
        """Norm of all gradients of the last step together, before clipping; waits for the device."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.clip_grad_norm is None and gradients:
            self._grad_norm = nn.utils.get_total_norm(gradients)
        return float("nan") if self._grad_norm is None else float(self._grad_norm)

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on, but for the random states."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step_count,
            "tokens_seen": self.tokens_seen,
            "loss": self.loss,
            "grad_norm": self.grad_norm(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where `state_dict` left off.

        Raises:
            ValueError: if the tensors are of another model, with the names and shapes that differ.
        """
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another model: {error}") from error
        # What the configuration says beats what the checkpoint says; the rate of its last step is for the report.
        kept = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, kept, strict=True):
            group.update(settings)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step_count, self.tokens_seen = state["step"], state["tokens_seen"]
        self.loss, self._grad_norm = state["loss"], torch.tensor(state["grad_norm"])
