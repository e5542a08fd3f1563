"""Non-finite losses and gradients: found before the update, and reported in full.

On a CPU the host checks every step. On CUDA a check would make the host wait, so the device decides: a sticky flag
suppresses the fused update of the non-finite step and of all later ones (`found_inf`, as in torch's GradScaler), and a
copy of the flag reaches the host some steps later without a wait. The host then returns to that step, whose weights are
unchanged, and repeats it with a check. From there on CPU and CUDA behave alike. With an optimizer that does not support
`found_inf`, the host checks every step, on CUDA too.
"""

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.tensor import DTensor

from samout_train.checkpoint import named_values
from samout_train.data import Batches, Vocabulary
from samout_train.models import whole_tensor
from samout_train.runtime import device_random_state, distributed, float64_place, set_device_random_state

OnNonFinite = Literal["stop", "skip", "rollback"]
MOST_IN_A_ROW = 5  # consecutive steps that may be skipped; the next one ends the run
STEPS_BEHIND = 3  # how far the device may be behind the host, with several processes
MOST_ROWS, MOST_PARAMETERS, MOST_CHARACTERS = 8, 12, 60

log = logging.getLogger(__name__)


class NonFiniteError(Exception):
    """A loss, a gradient or a weight is not finite; the message is the report.

    Args:
        message: The report.
        goes_back: Whether the run may roll back to its newest checkpoint and continue without this step.
    """

    def __init__(self, message: str, *, goes_back: bool = False) -> None:
        super().__init__(message)
        self.goes_back = goes_back


@dataclass(frozen=True, kw_only=True)
class StepSnapshot:
    """The state before a step, apart from weights and optimizer state.

    Args:
        step_count: Steps made so far.
        tokens_seen: Counted targets in them.
        empty_steps: How many of these steps had a batch without counted targets.
        loss: Loss of the last step.
        grad_norm: Gradient norm of the last step.
        rates: Learning rates by group.
        random: States of torch's generators: of the CPU, and of the CUDA device if the step runs on one.
        averaging: Whether the average of the weights was past its warm-up.
    """

    step_count: int
    tokens_seen: int
    empty_steps: int
    loss: Tensor | None
    grad_norm: Tensor | None
    rates: tuple[Any, ...]
    random: tuple[Tensor, Tensor | None]
    averaging: bool = False

    def restore(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Restore the generators, and drop the gradients."""
        on_cpu, on_device = self.random
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            set_device_random_state(on_device, device)
        optimizer.zero_grad(set_to_none=True)


def generator_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the states of torch's generators that a step on this device draws from."""
    return torch.get_rng_state(), device_random_state(device)


def needs_host(device: torch.device, *, holds_back: bool) -> bool:
    """Return whether the host looks at each step before its update.

    Args:
        device: The device of the run. On mps, torch's fused Adam took `found_inf` and ignored it (PyTorch #186360).
        holds_back: Whether the optimizer leaves out an update where the device found that it is not finite.
    """
    return device.type != "cuda" or not holds_back


class NonFiniteMonitor:
    """Finds the first non-finite step without waiting for the device.

    Attributes:
        flag: On the device: 1 if a marked step was not finite, else 0; None before the first one.
    """

    def __init__(self) -> None:
        self.flag: Tensor | None = None  # at one address for the whole run, as graphs require
        self._noted: deque[tuple[StepSnapshot, Tensor, torch.cuda.Event | None]] = deque()

    def mark(self, figure: Tensor) -> Tensor:
        """Raise the flag on the device if a step is not finite; return the flag.

        Args:
            figure: A number of at least 0 that is finite if and only if the step is.
        """
        if self.flag is None:
            self.flag = torch.zeros_like(figure, dtype=torch.float32)  # as the fused kernels read it
        return self.flag.masked_fill_((figure < math.inf).logical_not(), 1.0)

    def watch(self, before: StepSnapshot) -> None:
        """Queue the copy of the flag to the host.

        Args:
            before: The snapshot to return to if the last marked step is not finite.
        """
        assert self.flag is not None
        event = None
        copy = self.flag.to("cpu", non_blocking=self.flag.is_cuda, copy=True)  # into pinned memory
        if self.flag.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.flag.device))
        self._noted.append((before, copy, event))

    def first(self, *, wait: bool) -> StepSnapshot | None:
        """Return the snapshot before the first non-finite step, once; None if no such step is known.

        Args:
            wait: Whether to wait for the device, so that the result of every watched step is known. Several processes
                always wait for all but the last few steps.
        """
        together = distributed.count() > 1
        while self._noted:
            before, copy, event = self._noted[0]
            if together and not wait and len(self._noted) <= STEPS_BEHIND:
                return None
            if event is not None:
                if wait or together:
                    event.synchronize()
                elif not event.query():
                    return None
            self._noted.popleft()
            if copy:
                self.forget()
                return before
        return None

    def forget(self) -> None:
        """Clear the flag."""
        if self.flag is not None:
            self.flag.zero_()
        self._noted.clear()


def update(optimizer: Any, scaler: GradScaler, held_back: Tensor | None) -> None:
    """Update the weights.

    Args:
        optimizer: Must support `found_inf` if `held_back` is given.
        scaler: The scaler of its gradients, which are already unscaled.
        held_back: On the device: 1 to leave weights and optimizer state unchanged; None counts as 0.
    """
    if held_back is None:
        scaler.step(optimizer)
    elif scaler.is_enabled():

        def holds_back(optimizer: Any, args: Any, kwargs: Any) -> None:
            optimizer.found_inf = torch.maximum(optimizer.found_inf, held_back)

        with optimizer.register_step_pre_hook(holds_back):
            scaler.step(optimizer)
    else:
        optimizer.grad_scale, optimizer.found_inf = None, held_back
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    scaler.update()


def describe_non_finite(
    step: int, loss: float, batches: Batches, model: nn.Module, vocabulary: Vocabulary | None
) -> str:
    """Describe a non-finite step: its rows, its loss, and the norm of each gradient.

    Args:
        step: Counted from 1, as in the log.
        loss: In nats per counted target.
        batches: The source of its rows.
        model: With the gradients of the step, before clipping.
        vocabulary: Decodes ids; None if the data is not text.
    """
    what = f"its loss is {loss}"
    if math.isfinite(loss):
        what = "its gradient is not finite"
    lines = [f"step {step} was not applied: {what}", f"  loss            {loss:.4f} nats"]
    lines += _row_lines(step, batches, vocabulary)
    lines += _gradient_lines(model)
    return "\n".join(lines)


def _row_lines(step: int, batches: Batches, vocabulary: Vocabulary | None) -> list[str]:
    """Return the indices of a step's rows by epoch, and their text; all processes must call it together."""
    places = batches.places(step - 1)
    ids_RT, _ = batches.on_host(step - 1)
    inputs_RT = torch.cat(distributed.gathered(batches.rows.split(ids_RT)[0]))
    by_epoch: dict[int, list[str]] = {}
    for epoch, index in places:
        by_epoch.setdefault(epoch, []).append(str(index))
    lines = []
    for epoch, indices in by_epoch.items():
        lines.append(f"  rows            of epoch {epoch}: {' '.join(indices)}")
    if vocabulary is None:
        return lines
    for (_, index), row_T in list(zip(places, inputs_RT.tolist(), strict=True))[:MOST_ROWS]:
        lines.append(f"  row {index:<11} {vocabulary.decode(row_T)[:MOST_CHARACTERS]!r}")
    if len(places) > MOST_ROWS:
        lines.append(f"  and {len(places) - MOST_ROWS} rows more")
    return lines


def _gradient_lines(model: nn.Module) -> list[str]:
    """Return the norm of each gradient: non-finite ones first, then in descending order."""
    norms: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = whole_tensor(parameter.grad)
            norms[name] = float(gradient.to(float64_place(gradient.device)).double().norm())
    num_bad = sum(not math.isfinite(norm) for norm in norms.values())
    lines = [f"  gradient norms  {num_bad} of {len(norms)} not finite"]
    ordered = sorted(norms, key=lambda name: (math.isfinite(norms[name]), -norms[name]))
    for name in ordered[:MOST_PARAMETERS]:
        lines.append(f"    {norms[name]:<13.4g} {name}")
    if len(norms) > MOST_PARAMETERS:
        lines.append(f"    and {len(norms) - MOST_PARAMETERS} more")
    return lines


def skip_or_raise(choice: OnNonFinite, step: int, skipped_steps: set[int], message: str) -> None:
    """Add a non-finite step to the skipped ones.

    Args:
        choice: The value of `trainer.on_non_finite`.
        step: Counted from 1, as in the log.
        skipped_steps: Steps skipped so far.
        message: The report of the step.

    Raises:
        NonFiniteError: if the run stops or rolls back.
    """
    if all(step - back in skipped_steps for back in range(1, MOST_IN_A_ROW + 1)):
        raise NonFiniteError(f"{message}\n  stopped         the {MOST_IN_A_ROW} steps before it were skipped, too")
    if choice == "stop":
        raise NonFiniteError(message)
    skipped_steps.add(step)
    if choice == "rollback":
        raise NonFiniteError(message, goes_back=True)
    log.warning("%s\n  skipped         %d of %d steps so far", message, len(skipped_steps), step)


def require_finite(state: Mapping[str, Any]) -> None:
    """Require that the weights and optimizer state of a checkpoint are finite.

    Args:
        state: Content of the checkpoint.

    Raises:
        NonFiniteError: if a tensor of model or optimizer has a NaN or an infinity.
    """
    tensors = {}
    for part in ("model", "optimizer"):
        for name, value in named_values(state[part], part):
            if isinstance(value, DTensor):
                value = value.to_local()
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                tensors[name] = value
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors.values():
        by_device.setdefault(tensor.device, []).append(tensor)
    # The maximum is finite if and only if all numbers are: one pass, and one wait per device.
    largest = [float(nn.utils.get_total_norm(group, norm_type=math.inf)) for group in by_device.values()]
    if not distributed.largest(not all(map(math.isfinite, largest))):
        return
    names = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    listed = ", ".join(names[:MOST_ROWS])
    if len(names) > MOST_ROWS:
        listed += f" and {len(names) - MOST_ROWS} more"
    raise NonFiniteError(f"after step {state['step']}, these are not finite, so they are not saved: {listed}")
