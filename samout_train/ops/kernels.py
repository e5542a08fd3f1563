"""Choose between torch's own operations and fused kernels.

`auto` uses a fused kernel if there is one for the device and the precision, and logs the choice and its reason once.
`reference` uses torch's operations only. `fused` raises an error if no kernel fits.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from samout_train.runtime import install_line

Kernels = Literal["auto", "reference", "fused"]

# The library of each device's kernels, its installation, and the precisions that they support.
LIBRARIES = {
    "cpu": ("numba", install_line("fast"), (torch.float32, torch.bfloat16)),
    "cuda": ("triton", "pip install triton", (torch.float32, torch.bfloat16, torch.float16)),
}

LEAST_OF_A_ROW = 1024  # tokens times the width of a key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The choice between fused kernels and torch's operations, with its reason."""

    is_fused: bool
    reason: str


_setting: Kernels = "auto"


def use_kernels(kernels: Kernels) -> None:
    """Set the choice for the whole process.

    Raises:
        ValueError: for a word other than `auto`, `reference` and `fused`.
    """
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels ({kernels}) must be one of {', '.join(get_args(Kernels))}")
    global _setting
    _setting = kernels
    _chosen.cache_clear()
    _chosen_chunks.cache_clear()
    log_torch_chunks.cache_clear()


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Use torch's own operations inside the context, without logging."""
    before, was_disabled = _setting, log.disabled
    use_kernels("reference")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = was_disabled
        use_kernels(before)


def fused_problem(kernels: Kernels, device_type: str, dtype: torch.dtype) -> str | None:
    """Return why kernels=fused is impossible here; None if it is possible or another choice is set."""
    if kernels != "fused" or (choice := _choose(kernels, device_type, dtype)).is_fused:
        return None
    return f"kernels=fused is not possible: {choice.reason}. Set kernels=auto to run without"


def only_torch() -> bool:
    """Return whether torch's own operations run everywhere: kernels=reference."""
    return _setting == "reference"


def demands_fused() -> bool:
    """Return whether inputs that no fused kernel supports are refused, as kernels=fused demands."""
    return _setting == "fused"


def is_fused(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether a fused kernel runs for this device and dtype, and log the reason once.

    Raises:
        ValueError: if kernels=fused and no kernel supports them.
    """
    choice = _chosen(device_type, dtype)
    if _setting == "fused" and not choice.is_fused:
        raise ValueError(fused_problem(_setting, device_type, dtype))
    return choice.is_fused


def has_chunk_kernels(device_type: str) -> bool:
    """Return whether flash-linear-attention's kernels run recurrences over matrices, and log the reason once.

    Otherwise they run in chunks in numba (`has_head_kernels`) or in torch's operations, even with kernels=fused.
    """
    return _chosen_chunks(device_type).is_fused


@cache
def log_torch_chunks(device_type: str, reason: str) -> None:
    """Log once why recurrences over matrices run in torch's operations, even if their kernels are installed."""
    log.info("kernels     torch for chunks on %s: %s", device_type, reason)


def has_head_kernels(q_BHTK: Tensor) -> bool:
    """Return whether numba's kernels run a recurrence over matrices: in float32 on a CPU, if kernels are fused there.

    With kernels=auto, a head's row must also have LEAST_OF_A_ROW numbers or more, as they take seconds to compile.
    """
    if q_BHTK.device.type != "cpu" or q_BHTK.dtype != torch.float32 or not is_fused("cpu", torch.float32):
        return False
    return _setting == "fused" or q_BHTK.shape[2] * q_BHTK.shape[3] >= LEAST_OF_A_ROW


# Sets what torch.compiler.assume_constant_result would, without the second that importing the compiler takes.
is_fused._dynamo_marked_constant = True  # type: ignore[attr-defined]


def products_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of products of x: autocast's if it is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def is_traced(tensor: Tensor) -> bool:
    """Return whether operations on a tensor are recorded, profiled or intercepted, and so need a registered operator.

    Otherwise a kernel is called directly, because a call through torch's library takes the host longer.
    """
    return (
        torch.compiler.is_compiling()
        or torch.autograd.profiler._is_profiler_enabled
        or torch._C._len_torch_dispatch_stack() > 0
        or type(tensor) not in (Tensor, Parameter)
    )


def kernels_of(package: str, tensor: Tensor) -> ModuleType:
    """Return the module of an operator's kernels for the device of a tensor.

    Args:
        package: The operator's package, which has a module of kernels for each device: `__package__` in its modules.
        tensor: An input of the kernels.
    """
    return _kernels_for(package, tensor.device)


@cache
def _kernels_for(package: str, device: torch.device) -> ModuleType:  # not its type, a string that takes longer to make
    return importlib.import_module(f"{package}.{device.type}")


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`, 1 or more; Triton's own takes the host 2 us a call."""
    return 1 << (size - 1).bit_length()


@cache
def _chosen_chunks(device_type: str) -> Choice:
    choice, name = _choose_chunks(device_type), "torch"
    if choice.is_fused:
        name = "fla"
    log.info("kernels     %s for chunks on %s: %s", name, device_type, choice.reason)
    return choice


def _choose_chunks(device_type: str) -> Choice:
    if _setting == "reference":
        return Choice(False, "kernels=reference")
    if device_type != "cuda":
        return Choice(False, "flash-linear-attention is for cuda only")
    if importlib.util.find_spec("fla") is None:
        return Choice(False, f"flash-linear-attention is not installed ({install_line('fla')})")
    if reason := _unusable("triton") or _unusable("fla.ops.gla"):
        return Choice(False, f"flash-linear-attention cannot be used ({reason})")
    return Choice(True, f"flash-linear-attention {_version('fla', 'fla-core')}".strip())


def without_library(
    forward: Callable[..., Any], keep: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> type[torch.autograd.Function]:
    """Return an operator's function for eager mode, without torch's library, which costs more than a small kernel.

    Args:
        forward: Returns the operator's outputs.
        keep: What `register_autograd` takes as `setup_context`.
        backward: What it takes as the backward pass. There is no second derivative.
    """

    backward_once = once_differentiable(backward)  # takes the host 8 us more, and does nothing without gradients

    class WithoutLibrary(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> Any:
            outputs = forward(*given)
            keep(ctx, given, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            compute = backward_once if torch.is_grad_enabled() else backward
            return compute(ctx, *grads)

    return WithoutLibrary


@cache
def _chosen(device_type: str, dtype: torch.dtype) -> Choice:
    choice = _choose(_setting, device_type, dtype)
    name, precision = "reference", str(dtype).removeprefix("torch.")
    if choice.is_fused:
        name = "fused"
    log.info("kernels     %s for %s on %s: %s", name, precision, device_type, choice.reason)
    return choice


def _choose(kernels: Kernels, device_type: str, dtype: torch.dtype) -> Choice:
    if kernels == "reference":
        return Choice(False, "kernels=reference")
    if device_type not in LIBRARIES:
        return Choice(False, f"there are fused kernels for {' and '.join(LIBRARIES)} only")
    library, installation, dtypes = LIBRARIES[device_type]
    if importlib.util.find_spec(library) is None:
        return Choice(False, f"{library} is not installed ({installation})")
    if reason := _unusable(library):
        return Choice(False, f"{library} cannot be used ({reason})")
    if dtype not in dtypes:
        taken = ", ".join(str(each).removeprefix("torch.") for each in dtypes)
        return Choice(False, f"the fused kernels for {device_type} take {taken}")
    return Choice(True, f"{library} {_version(library, library)}".strip())


def _version(library: str, distribution: str) -> str:
    """Return the version of an installed library; empty if it does not tell. Wheels of Triton have several names."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(library), "__version__", ""))


@cache
def _unusable(library: str) -> str | None:
    """Return why an installed library cannot compile here; None if it can."""
    try:
        module = importlib.import_module(library)
        if library == "numba":
            if module.config.DISABLE_JIT:
                return "NUMBA_DISABLE_JIT is set: unset it"
            importlib.import_module("samout_train.ops.numba_support")  # starts its threads
    except Exception as error:  # a library that does not fit its dependencies can raise anything
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return f"{type(error).__name__}: {reason}: fix this, or install it again"
    if library == "triton" and not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
        return "it finds no C compiler: install gcc, or name one in CC"
    return None
