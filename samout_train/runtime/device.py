"""The device of a run: its choice, the precision, threads, TF32 and torch.compile."""

import importlib.util
import logging
import os
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from samout_train.runtime.distributed import Launch
from samout_train.runtime.memory import keep_freed_memory
from samout_train.runtime.os_errors import in_words
from samout_train.runtime.threads import ABOUT_NUMBERS, available_cores

PrecisionName = Literal["fp32", "bf16", "fp16"]
DEVICE_FORMS = "auto, cpu, cuda, cuda:N or mps"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SET_CACHE = "set TORCHINDUCTOR_CACHE_DIR to another folder"
log = logging.getLogger(__name__)
_threads_before: int | None = None  # torch's number before the first call that set one


def choose_device(name: str) -> torch.device:
    """Return the device of this name. `auto` is CUDA if available. Each of several processes has its own device.

    Raises:
        ValueError: if there is no such device.
    """
    launch = Launch.of_environment()
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
    if launch is not None and name.startswith("cuda"):
        if name != "cuda":
            raise ValueError(f"device ({name}) is one device, and each process needs its own: use device=cuda")
        name = f"cuda:{launch.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device ({name}) must be {DEVICE_FORMS}")
    if device.type == "cpu" and device.index is not None:
        raise ValueError(f"device ({name}) must be {DEVICE_FORMS}: the processor has no number, write device=cpu")
    if device.type == "mps" and launch is not None:
        raise ValueError(f"device ({name}) is for one process: start it without torchrun, or use device=cpu")
    if device.type == "mps" and not ((device.index or 0) == 0 and torch.backends.mps.is_available()):
        raise ValueError(f"device ({name}) is not there: torch sees no such GPU of Apple here; use device=cpu")
    if device.type == "cuda":
        _require_cuda_device(device, name, launch)
    return device


def _require_cuda_device(device: torch.device, name: str, launch: Launch | None) -> None:
    count, have = 0, "torch sees no CUDA device here"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        have = f"this machine has cuda:0 to cuda:{count - 1}"
    if (device.index or 0) < count:
        return
    instead = "use device=auto or device=cpu"
    if launch is not None:
        instead = "start fewer processes (--nproc-per-node)"
    raise ValueError(f"device ({name}) is not there: {have}; {instead}")


def choose_precision(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> PrecisionName:
    """Return the precision of the forward and backward pass; weights and optimizer state are float32 in each.

    Args:
        name: `auto` is bf16 on a GPU that supports it, else fp32.

    Raises:
        ValueError: if the device does not support it.
    """
    bf16_gpu = False
    if device.type == "cuda":
        with torch.cuda.device(device):
            bf16_gpu = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto" and bf16_gpu:
        return "bf16"
    if name == "auto":
        return "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"precision (fp16) needs a CUDA device: use bf16 or fp32 on {device.type}")
    if name == "bf16" and device.type == "cuda" and not bf16_gpu:
        raise ValueError(f"precision (bf16) is not in the hardware of {torch.cuda.get_device_name(device)}: use fp16")
    return name


def autocast(precision: PrecisionName, device: torch.device) -> AbstractContextManager[Any]:
    """Return the autocast context of a forward pass."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from pageable memory to a device; to CUDA through pinned memory, without waiting for the copy."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def float64_place(device: torch.device) -> torch.device:
    """Return the device for float64 sums: this one, or the CPU for Apple's GPUs, which lack float64."""
    if device.type == "mps":
        return torch.device("cpu")
    return device


def use_device(name: str, threads: int | None) -> torch.device:
    """Return the device of this name, after setting up the memory and the threads of the process.

    Args:
        name: As for `choose_device`.
        threads: As for `use_threads`.

    Raises:
        ValueError: if there is no such device.
    """
    device = choose_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    use_threads(threads)
    return device


def use_threads(threads: int | None) -> None:
    """Set the number of threads of torch and of the fused CPU kernels, for the whole process.

    Args:
        threads: None for torch's default, or the number of cores if a container allows fewer.
    """
    global _threads_before
    cores, before = available_cores(), _threads_before
    if before is None:
        before = torch.get_num_threads()
    if threads is None:
        number = before
        if number > cores and not any(name in os.environ for name in ABOUT_NUMBERS):
            number = cores
        _threads_before = None
    else:
        number = threads
        _threads_before = before
        if threads > cores:
            log.warning("threads     %d are more than the %d cores here: steps take longer", threads, cores)
    if number != torch.get_num_threads():
        torch.set_num_threads(number)


def use_tf32(tf32: bool, device: torch.device) -> None:
    """Allow or forbid float32 products and cuDNN on a GPU to round their inputs to TF32 (10 of 23 bits, and faster).

    The setting is global, so it is always set: no run inherits the choice of an earlier one. torch's default is full
    precision for matrix products, and TF32 for cuDNN, which recurrent modules use.

    Raises:
        ValueError: if TF32 is requested and the device is not a CUDA GPU.
    """
    if problem := tf32_problem(tf32, device):
        raise ValueError(problem)
    precision = "ieee"
    if tf32:
        precision = "tf32"
    cuda, cudnn = cast(Any, torch.backends.cuda), cast(Any, torch.backends.cudnn)
    with warnings.catch_warnings():  # torch raises in the getters of the former settings unless they agree
        warnings.simplefilter("ignore")
        cuda.matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    for operations in (cuda.matmul, cudnn.conv, cudnn.rnn):
        operations.fp32_precision = precision


def tf32_problem(tf32: bool, device: torch.device) -> str | None:
    """Return why TF32 cannot be used on a device, or None."""
    if tf32 and device.type != "cuda":
        return f"trainer.tf32=true: is for CUDA, and this run is on {device}: leave it out, or set device=cuda"
    return None


def compiled(model: nn.Module) -> Callable[..., Any]:
    """Return a callable that torch compiles at its first call, for one shape of input; the model is unchanged.

    Args:
        model: Its weights are shared; its dropout is drawn in another order.
    """
    # Code compiled for earlier models counts towards torch's limit. Beyond it, torch no longer compiles.
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False)


def compile_problem(device: torch.device) -> str | None:
    """Return why a model cannot be compiled for a device, or None."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if device.type == "mps":
        return "trainer.compile=true: is for cpu and cuda, and this run is on mps: leave it out"
    if missing := _cache_problem():  # first, since torch's search for a compiler writes into that folder
        pass
    elif device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            missing = "triton for CUDA, which is not installed: pip install triton"
    elif not has_cpp_compiler():
        missing = "a C++ compiler for the CPU, and torch finds none: install g++, or name one in CXX"
    elif not header.exists():
        missing = f"{header}, which is not there: install Python's headers"
    if missing is None:
        return None
    return f"trainer.compile=true: needs {missing}, or leave it out"


def _cache_problem() -> str | None:
    """Return why compiled code cannot be stored, or None."""
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir())
    try:
        _try_to_write(folder)
        # Imported only now: an import that fails half-way cannot be repeated in this process.
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        folder = Path(cache_dir())
        _try_to_write(folder)
    except OSError as error:
        return f"a folder for what is compiled, and {in_words(error, place=folder, fix=SET_CACHE)}"
    return None


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1))


def has_cpp_compiler() -> bool:
    """Return whether torch finds a C++ compiler; its search respects CXX."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):  # RuntimeError: Visual Studio in another language than English
        return False
    return True


@contextmanager
def logged_compilation() -> Iterator[None]:
    """Log that the first step, run inside, compiles the model, and how long it took."""
    _log("compile     the first step compiles the model, which can take a minute")
    started = time.monotonic()
    yield
    _log(f"compile     the first step took {time.monotonic() - started:.1f} s, compilation included")


def _log(line: str) -> None:
    with tqdm.external_write_mode():
        log.info("%s", line)
