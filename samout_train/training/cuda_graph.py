"""Record a training step as one CUDA graph: its kernels are launched together, so the host's time no longer counts.

A graph repeats kernels on the same memory. Values that change from step to step are therefore on the device at fixed
addresses: the ids, the inverse of the number of counted targets, the learning rates and the flag of non-finite steps.
The graph contains the forward and backward passes of all micro-steps, the norm, the flag, clipping and the update. The
copy of the ids, the average of the weights and the reading of results stay outside.

The first steps of each shape run one operation at a time, on the stream that captures later: they compile kernels and
create the optimizer's state. Some steps cannot be graphs: those of further shapes after the first MOST_GRAPHS, those
with a hook, and those repeated after a non-finite step. They also run one operation at a time, on the same scalars and
with the same bits.

Random numbers come from torch's generator of the device. Each replay advances it as the original step would.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from samout_train.runtime import device_random_state, distributed, set_device_random_state
from samout_train.training.weight_decay import changes_decay

CudaGraph = bool | Literal["auto"]
WARM_UP_STEPS = 3  # of each shape
MOST_GRAPHS = 4  # shapes; each graph keeps its gradients
MOST_PASSES = 64  # forward and backward passes in a graph
SHARES_OF_TARGETS = 16  # the bound on counted targets is a multiple of 1/16 of all, so that shapes repeat
HOOKS_OF_A_MODULE = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOKS_OF_A_PARAMETER = ("_backward_hooks", "_post_accumulate_grad_hooks")
HOOKS_OF_AN_OPTIMIZER = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """Hold the part of a batch that the device reads.

    Args:
        ids_RT: The rows, (R, T + 1) int64.
        num_targets: Counted targets of all processes.
        inverse: 1 / num_targets as a scalar on the device; None to divide by the number.
        most_targets: Upper bound on the counted targets of a pass.
    """

    ids_RT: Tensor
    num_targets: int
    inverse: Tensor | None
    most_targets: int

    def share_of(self, nats: Tensor) -> Tensor:
        """Return nats divided by the number of counted targets."""
        if self.inverse is None:
            return nats / self.num_targets
        return nats * self.inverse

    @property
    def key(self) -> tuple[Any, ...]:
        """Return the key that decides the shapes of a step."""
        return (*self.ids_RT.shape, self.most_targets)


Results = tuple[Tensor, Tensor | None]  # loss, and gradient norm if there is one


def takes_scalars(optimizer: torch.optim.Optimizer, device: torch.device, *, is_sharded: bool) -> bool:
    """Return whether steps read changing values from scalars on the device, which a graph requires."""
    fused = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and optimizer.defaults["fused"]
    return device.type == "cuda" and fused and not is_sharded


class DeviceScalars:
    """Keep the scalars that steps read on the device: the learning rates, and the inverse of the number of targets.

    On CUDA, torch divides by a number by multiplying with its float32 inverse, so the bits are the same. Rates are
    rounded to float32 here; without these scalars they are doubles.

    Args:
        optimizer: A fused Adam or AdamW of torch.
        device: Its device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._inverse = torch.zeros((), device=device)
        self._num_targets: int | None = None
        self.values: tuple[float, ...] = ()
        self.attach()

    def attach(self) -> None:
        """Give the optimizer its rates as scalars; must be called again after its `load_state_dict`."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
            group["capturable"] = True
        self._optimizer._warned_capturable_if_run_uncaptured = True
        self.values = ()
        self.set_rates(rates)

    def set_rates(self, values: Sequence[float]) -> None:
        """Set the learning rates by group; only those that changed are written to the device."""
        for number, (rate, value) in enumerate(zip(self._rates, values, strict=True)):
            if self.values[number : number + 1] != (value,):
                rate.fill_(value)
        self.values = tuple(values)

    def inverse(self, num_targets: int) -> Tensor:
        """Return 1 / num_targets."""
        if num_targets != self._num_targets:
            self._inverse.fill_(float(np.float32(1) / np.float32(num_targets)))
            self._num_targets = num_targets
        return self._inverse

    def plain(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state of the optimizer with its rates as plain numbers."""
        groups = []
        for group, rate in zip(state["param_groups"], self.values, strict=True):
            groups.append({**group, "lr": rate, "capturable": False})
        return {**state, "param_groups": groups}


def rounded_bound(own_targets: int, shape: tuple[int, int], accumulate: int, chunk_len: int | None) -> int:
    """Return an upper bound on the counted targets of a pass, rounded so that it rarely changes between steps.

    Args:
        own_targets: Counted targets of this process.
        shape: Rows and targets of a row.
        accumulate: Micro-steps.
        chunk_len: Targets of a row in a pass; None for all.
    """
    rows, length = shape
    part = max(1, rows * length // SHARES_OF_TARGETS)
    bound = -(-own_targets // part) * part
    largest_pass = -(-rows // accumulate) * min(length, chunk_len or length)
    if 2 * bound >= largest_pass:  # the loss then takes all targets
        return rows * length
    return bound


def settings_problem(
    *,
    device: torch.device,
    precision: str,
    compile: bool,
    activation_checkpointing: bool,
    profile: bool,
    splits_documents: bool = False,
    passes: int = 1,
) -> str | None:
    """Return which setting excludes graphs, and why; None if none does.

    Args:
        splits_documents: Whether rows are split where documents begin.
        passes: Forward and backward passes in a step.
    """
    if device.type != "cuda":
        return f"it is for CUDA, and this run is on {device.type}"
    if distributed.count() > 1:
        return f"the exchange of gradients between {distributed.count()} processes was never tried in a graph"
    if precision == "fp16":
        return "precision=fp16 reads on the host whether gradients overflow"
    if compile:
        return "trainer.compile=true was never tried in a graph"
    if activation_checkpointing:
        return "trainer.activation_checkpointing=true sets random states back, which a graph cannot"
    if profile:
        return "trainer.profile=true times single operations, which a graph hides"
    if splits_documents:
        return "rows are split where documents begin, so that shapes change from step to step"
    if passes > MOST_PASSES:
        return f"a step has {passes} forward and backward passes, and a graph at most {MOST_PASSES}"
    return None


def refused(problem: str) -> str:
    """Return the message for a graph that was requested but is not possible."""
    return f"trainer.cuda_graph=true: {problem}. Set trainer.cuda_graph=auto"


def model_problem(model: nn.Module, optimizer: torch.optim.Optimizer, *, scalars: bool) -> str | None:
    """Return the property of a model or optimizer that prevents a graph; None if there is no such property.

    Args:
        scalars: Whether steps read changing values from the device.
    """
    if not scalars:
        return f"{type(optimizer).__name__} is not torch's fused Adam or AdamW"
    if changes_decay(optimizer):
        return "the weight decay changes from step to step, and the fused update takes it as a number"
    for module in model.modules():
        name = type(module).__name__
        if hasattr(module, "anneal"):
            return f"the temperature of {name} changes from step to step"
        if isinstance(module, nn.RNNBase) and module.dropout and module.num_layers > 1:
            return f"cuDNN's dropout between the layers of {name} has a random state of its own, which moves in memory"
    return None


class Recorder(Protocol):
    """Run the device's part of a step so that it can be recorded, and record it."""

    def aside(self, work: Callable[[], Results]) -> Results:
        """Run a step of the warm-up."""
        ...

    def record(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Record a step without running it; return the function that runs it, and the results, which it overwrites."""
        ...

    def reset(self) -> None:
        """Drop the memory of earlier records."""
        ...

    def host_random_state(self) -> Tensor:
        """Return the state of a generator that a recorded step does not advance."""
        ...


class CudaRecorder:
    """Capture CUDA graphs, all on one stream and with one pool of memory.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self.reset()

    def reset(self) -> None:
        """Take a new pool; the old one is freed with its graphs."""
        self._pool = torch.cuda.graph_pool_handle()

    def host_random_state(self) -> Tensor:
        """Return the state of torch's CPU generator, whose numbers would be the same in every replay."""
        return torch.get_rng_state()

    def aside(self, work: Callable[[], Results]) -> Results:
        """Run a step on the stream that captures later."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = work()
        current.wait_stream(self._stream)
        return results

    def record(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Capture a graph, and release the memory that only the warm-up used."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.stream(current):  # without this, a failed capture would leave its stream current
                # Threads that write checkpoints also call CUDA.
                capture = torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                )
                with capture:
                    results = work()
        finally:
            torch.cuda.empty_cache()
        return graph.replay, results


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Hold a recorded step: its inputs, its results, and the function that runs it."""

    ids_RT: Tensor
    results: Results
    gradients: tuple[Tensor | None, ...]
    run: Callable[[], None]


class StepGraph:
    """Record the device's part of training steps by shape, and run it from the records.

    Args:
        step: The device's part of a step: it never waits, and reads only its inputs and memory at fixed addresses.
        model: Its model, whose gradients it sets.
        optimizer: Its optimizer.
        device: The device of both.
        recorder: How to record; None for CUDA graphs.
    """

    def __init__(
        self,
        step: Callable[[StepInputs], Results],
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self._step = step
        self._optimizer = optimizer
        self._device = device
        self._parameters = list(model.parameters())
        self._hooks: list[Any] = []
        for module in model.modules():
            self._hooks += [getattr(module, name) for name in HOOKS_OF_A_MODULE]
        self._hooks += [getattr(optimizer, name) for name in HOOKS_OF_AN_OPTIMIZER]
        self._hooks += [getattr(torch_modules, f"_global{name}") for name in HOOKS_OF_A_MODULE]
        self._recorder = recorder or CudaRecorder(device)
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._records: dict[tuple[Any, ...], _Record] = {}
        self._addresses: tuple[int, ...] = ()
        self._state: Any = None
        self._said: set[str] = set()
        self.failed = False

    @property
    def count(self) -> int:
        """Return the number of recorded shapes."""
        return len(self._records)

    def __call__(self, inputs: StepInputs) -> Results:
        """Run the device's part of a step; return its loss and norm, which later steps do not overwrite."""
        if self.failed:
            return self._step(inputs)
        if self._has_hooks():
            self._say("a hook is on the model, its parameters or the optimizer")
            return self._step(inputs)
        self._drop_if_moved()
        key = inputs.key
        if key not in self._records:
            if len(self._records) == MOST_GRAPHS:
                self._say(f"shapes change from step to step, and {MOST_GRAPHS} of them have a graph")
                return self._step(inputs)
            if self._seen[key] < WARM_UP_STEPS:
                return self._warm_up(inputs)
            if not self._record(inputs):
                return self._step(inputs)
        return self._run(self._records[key], inputs)

    def drop(self) -> None:
        """Forget all records; needed after the optimizer's state is loaded, since that moves it in memory."""
        self._records.clear()
        self._seen.clear()
        self._recorder.reset()

    def _has_hooks(self) -> bool:
        if any(self._hooks):
            return True
        return any(getattr(parameter, name) for name in HOOKS_OF_A_PARAMETER for parameter in self._parameters)

    def _drop_if_moved(self) -> None:
        """Forget the records if a weight has moved in memory, or the optimizer's state was replaced."""
        addresses = tuple(parameter.data_ptr() for parameter in self._parameters)
        if self._records and (self._state is not self._optimizer.state or addresses != self._addresses):
            self.drop()
        self._addresses, self._state = addresses, self._optimizer.state

    def _warm_up(self, inputs: StepInputs) -> Results:
        self._seen[inputs.key] += 1
        on_host = self._recorder.host_random_state()
        results = self._recorder.aside(lambda: self._step(inputs))
        if not torch.equal(on_host, self._recorder.host_random_state()):
            self._fail("it draws random numbers on the host")
        return results

    def _record(self, inputs: StepInputs) -> bool:
        """Record a step without running it; return whether that worked."""
        static = replace(inputs, ids_RT=inputs.ids_RT.clone())
        random = device_random_state(self._device)
        try:
            run, results = self._recorder.record(lambda: self._step(static))
        except RuntimeError as error:
            self._fail(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            self._records.clear()
            self._optimizer.zero_grad(set_to_none=True)
            return False
        finally:
            if random is not None:
                with suppress(RuntimeError):
                    set_device_random_state(random, self._device)
        self._records[inputs.key] = _Record(
            ids_RT=static.ids_RT,
            results=results,
            gradients=tuple(parameter.grad for parameter in self._parameters),
            run=run,
        )
        if len(self._records) == 1:
            log.info("graph       from here on, a step is one CUDA graph")
        return True

    def _run(self, record: _Record, inputs: StepInputs) -> Results:
        record.ids_RT.copy_(inputs.ids_RT)
        record.run()
        for parameter, gradient in zip(self._parameters, record.gradients, strict=True):
            parameter.grad = gradient
        loss, grad_norm = record.results
        return loss.clone(), grad_norm if grad_norm is None else grad_norm.clone()

    def _fail(self, reason: str) -> None:
        self.failed = True
        self._say(reason)

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning("graph       steps run one operation at a time: %s", reason)
