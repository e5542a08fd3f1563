"""Profile a few steady optimizer steps with torch's profiler; write a trace, and a table of where the time goes.

On a CPU, the time of a step is the time of its thread; on CUDA, the time of its operations on the device. An
operation's time excludes the operations that it calls, so that the parts add up to the whole.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

from samout_train.runtime import Clock, replace_file

WARM_UP_STEPS = 5  # the last one already runs under the profiler, whose start is slow
PROFILED_STEPS = 5
LONGEST_LIST = 15
STEP = "optimizer step"
TRACE, TABLE = "steps.pt.trace.json", "table.txt"  # TensorBoard's profiler looks for names with this ending
OPTIMIZER_RANGE = "Optimizer."  # torch's own ranges begin with this, and so does the range of clipping
OPTIMIZER, COMPILED, OTHER = "optimizer", "compiled", "other"
# The first pattern that matches an operation's name decides its kind.
KINDS = {
    "matrix products": r"^aten::(mm|addmm|bmm|baddbmm|mv|addmv|matmul|linear|_addmm_activation)$|mkldnn\w*::?_?linear",
    "mixer": r"samout_train\w*:*_?(max_mix|block_mix|semiring_scan|head_recurrence|convolve)|scaled_dot_product"
    r"|_attention_|^aten::(cummax|lstm|gru|rnn_)|rnn_layer|cudnn_rnn|_cell",
    "elementwise and norm": r"samout_train\w*:*_?(gated|blended|add_norm|minus_softplus|turn)"
    r"|^aten::(\w*_norm(_backward)?|native_dropout\w*|dropout|bernoulli_?|copy_|fill_|zero_|sum|mean|where"
    r"|_?softmax|_softmax_backward_data|(threshold|gelu|sigmoid|tanh|softplus|silu)(_backward)?_?"
    r"|(relu|exp|log|add|sub|rsub|mul|div|neg|pow|sqrt|rsqrt|reciprocal|logaddexp|maximum|minimum|cos|sin|clamp\w*)_?"
    r"|(addcmul|addcdiv|lerp|eq|ne|ge|gt|le|lt|isfinite|isnan|masked_fill|bitwise_\w+)_?)$",
    "embedding and loss": r"samout_train\w*:*_?nats_and_errors"
    r"|^aten::(embedding\w*|index_select|index|_?log_softmax\w*|nll_loss\w*|cross_entropy_loss)$",
    OPTIMIZER: r"^aten::(_fused_adam|_foreach_|_amp_)",
    COMPILED: r"^Torch-Compiled|^CompiledFunction|CompiledFx|^triton_",
}
StepContext = Callable[[], AbstractContextManager[None]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """An operation in the profiled steps.

    Args:
        name: Its name in torch.
        kind: A key of `KINDS`, or `other`.
        microseconds: Time of all its calls together, without the operations that it calls.
        calls: Number of calls.
    """

    name: str
    kind: str
    microseconds: float
    calls: int


@contextmanager
def profiling(*, folder: Path | None, clock: Clock, steps_made: int) -> Iterator[StepContext]:
    """Yield the context of each step; given a folder, profile a few steps after the warm-up.

    If the run ends before these steps, the log reports it. If it is stopped during them, no profile is written.

    Args:
        folder: Where trace and table go; None for no profile.
        clock: Paused while these are written.
        steps_made: Steps before the first call, for the report.
    """
    if folder is None:
        yield nullcontext
        return
    profiled = _Profile(folder, clock, steps_made)
    try:
        yield profiled.step
    except BaseException:
        profiled.abandon()
        raise
    profiled.finish()


class _Profile:
    """Profiles the steps that come after the warm-up."""

    def __init__(self, folder: Path, clock: Clock, steps_made: int) -> None:
        self.folder, self.clock, self.steps_made = folder, clock, steps_made
        self._calls = 0
        self._is_done = False
        self._profiler: Any = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the step inside the context, and profile it if its turn has come."""
        if self._is_done:
            yield
            return
        if self._calls == WARM_UP_STEPS - 1:
            activities = [ProfilerActivity.CPU]
            if self.clock.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities)
            self._profiler.start()
        name = "warm-up"
        if self._calls >= WARM_UP_STEPS:
            name = STEP
        with record_function(name):
            yield
        self._calls += 1
        if self._calls == WARM_UP_STEPS + PROFILED_STEPS:
            self.finish()

    def finish(self) -> None:
        """Write the profile, or log that there is none."""
        if self._is_done:
            return
        self._is_done = True
        if self._profiler is not None:
            with self.clock.paused():
                self._profiler.stop()
                if self._calls > WARM_UP_STEPS:
                    self._write()
        if self._calls <= WARM_UP_STEPS:
            log.info(
                "profile     nothing was profiled: the run made %d steps, and the first %d only warm up",
                self._calls,
                WARM_UP_STEPS,
            )
        self._profiler = None

    def abandon(self) -> None:
        """End an incomplete profile without writing it, so that the run can proceed to its checkpoint."""
        if self._is_done:
            return
        self._is_done = True
        if self._profiler is not None:
            self._profiler.stop()
        log.info("profile     nothing was written: the run was stopped before all steps to profile were made")

    def _write(self) -> None:
        first, last = self.steps_made + WARM_UP_STEPS + 1, self.steps_made + self._calls
        lines = table(self._profiler.events(), self.clock.device)
        lines[0] = f"steps {first} to {last} on {self.clock.device}: {lines[0]}"
        if self._calls < WARM_UP_STEPS + PROFILED_STEPS:
            lines[0] += f" (fewer steps than {PROFILED_STEPS}, since the run ended)"
        with tqdm.external_write_mode():
            for line in (f"profile     {lines[0]}", *lines[1:], f"profile     {self.folder}"):
                log.info("%s", line)
        try:
            self.folder.mkdir(exist_ok=True)
            replace_file(self.folder / TABLE, lambda file: file.write(("\n".join(lines) + "\n").encode()))
            with TemporaryDirectory() as elsewhere:
                trace = Path(elsewhere) / TRACE
                self._profiler.export_chrome_trace(str(trace))
                replace_file(self.folder / TRACE, lambda file: file.write(trace.read_bytes()))
        except OSError as error:  # a profile must not end the run
            log.warning("the profile cannot be written to %s: %s", self.folder, error)


def operations(events: Sequence[Any], device: torch.device) -> list[Operation]:
    """Return the operations of the profiled steps, the longest first.

    Args:
        events: Events of torch's profiler; steps are ranges named `optimizer step`.
        device: The device whose time counts.
    """
    on_host = [event for event in events if event.device_type.name == "CPU" and not event.is_async]
    steps = [event for event in on_host if event.name == STEP]
    on_cuda = device.type == "cuda"
    microseconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    calls: Counter[tuple[str, str]] = Counter()
    for event in on_host:
        if not any(_is_within(event, step, any_thread=on_cuda) for step in steps):
            continue
        key = event.name, _kind(event)
        calls[key] += 1
        if on_cuda:
            microseconds[key] += _device_time(event)
        else:
            microseconds[key] += event.self_cpu_time_total
    found = [Operation(name, kind, microseconds[name, kind], calls[name, kind]) for name, kind in calls]
    return sorted(found, key=lambda operation: -operation.microseconds)


def _is_within(event: Any, step: Any, *, any_thread: bool) -> bool:
    """Return whether an event began in a step.

    On CUDA the backward pass has its own thread; on a CPU the time of other threads does not count.
    """
    if event.thread != step.thread and not any_thread:
        return False
    return bool(step.time_range.start <= event.time_range.start <= step.time_range.end)


def table(events: Sequence[Any], device: torch.device) -> list[str]:
    """Return a table of where a step's time goes: by kind, then the longest operations.

    Args:
        events: As for `operations`.
        device: The device whose time counts.
    """
    found = operations(events, device)
    num_steps = sum(event.name == STEP and event.device_type.name == "CPU" for event in events)
    by_kind: defaultdict[str, float] = defaultdict(float)
    for operation in found:
        by_kind[operation.kind] += operation.microseconds
    whole = sum(operation.microseconds for operation in found)

    def columns(microseconds: float) -> str:
        return f"{microseconds / 1000 / num_steps:12.3f} {microseconds / (whole or 1.0):9.2%}"

    on_device = ""
    if device.type == "cuda":
        on_device = " of work of the device"
    lines = [f"{whole / 1000 / num_steps:.3f} ms a step{on_device}, the mean of {num_steps}"]
    lines += ["", f"{'kind':<48} {'ms a step':>12} {'share':>9}"]
    for kind in (*KINDS, OTHER):
        if kind != COMPILED or by_kind[kind]:
            lines.append(f"{kind:<48} {columns(by_kind[kind])}")
    lines += [f"{'whole':<48} {columns(whole)}"]
    lines += ["", f"{'operation':<48} {'ms a step':>12} {'share':>9} {'calls a step':>13}  kind"]
    for operation in found[:LONGEST_LIST]:
        name = operation.name
        if name == STEP:
            name = "(between operations)"
        start = f"{name[:48]:<48} {columns(operation.microseconds)}"
        lines.append(f"{start} {operation.calls / num_steps:13.1f}  {operation.kind}")
    return lines


def _device_time(event: Any) -> float:
    """Return the microseconds of the kernels that this operation launched, without a range's own device event."""
    return float(sum(kernel.duration for kernel in event.kernels if kernel.name != event.name))


def _kind(event: Any) -> str:
    above = event
    while above is not None:
        if above.name.startswith(OPTIMIZER_RANGE):
            return OPTIMIZER
        above = above.cpu_parent
    for kind, pattern in KINDS.items():
        if re.search(pattern, event.name):
            return kind
    return OTHER
