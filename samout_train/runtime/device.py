"""The machine under a run: device, precision, random states, memory, clock, and what code is running."""

import ctypes
import logging
import os
import platform
import random
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from samout_train.runtime import distributed
from samout_train.runtime.launch import Launch
from samout_train.runtime.threads import ABOUT_NUMBERS, available_cores

PrecisionName = Literal["fp32", "bf16", "fp16"]
DEVICE_FORMS = "auto, cpu, cuda, cuda:N or mps"
log = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
# Where a container reads its own limit, of cgroups 2 and 1: docs.kernel.org/admin-guide/cgroup-v2.html.
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_threads_before: int | None = None  # what torch had when a number was first asked for
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA if there is one, and of several processes on a machine each has its own.

    Raises:
        ValueError: if there is no such device.
    """
    launch = Launch.of_environment()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        have = f"this machine has cuda:0 to cuda:{count - 1}" if count else "torch sees no CUDA device here"
        instead = "use device=auto or device=cpu" if launch is None else "start fewer processes (--nproc-per-node)"
        raise ValueError(f"device ({name}) is not there: {have}; {instead}")
    return device


def choose_precision(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> PrecisionName:
    """The precision of the forward and backward pass; weights and optimizer state are float32 in each.

    Args:
        name: `auto` is bf16 on a GPU that has it, else fp32.
        device: Where the model runs.

    Raises:
        ValueError: if the device cannot do it.
    """
    bf16_gpu = False
    if device.type == "cuda":
        with torch.cuda.device(device):
            bf16_gpu = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return "bf16" if bf16_gpu else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"precision (fp16) needs a CUDA device: use bf16 or fp32 on {device.type}")
    if name == "bf16" and device.type == "cuda" and not bf16_gpu:
        raise ValueError(f"precision (bf16) is not in the hardware of {torch.cuda.get_device_name(device)}: use fp16")
    return name


def autocast(precision: PrecisionName, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a forward pass runs."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def keep_freed_memory() -> None:
    """Lets the process keep large blocks of main memory that it frees, where its C library is glibc.

    By default, glibc hands them back to the system, which gives them again in pages of 4 KB, each filled with zeros at
    the first write: at every step, for every large tensor. Settings of the environment (MALLOC_...) have priority.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # another C library
        return
    set_option(M_MMAP_THRESHOLD, 2**31 - 1)
    set_option(M_TRIM_THRESHOLD, 2**31 - 1)
    set_option(M_TOP_PAD, 2**26)


def use_threads(threads: int | None) -> None:
    """Set how many threads torch and the fused kernels of a CPU have, in the whole process.

    Args:
        threads: None for as many as torch has by itself, or cores where a container allows fewer.
    """
    global _threads_before
    cores = available_cores()
    if threads is None:
        number = torch.get_num_threads() if _threads_before is None else _threads_before
        if number > cores and not any(name in os.environ for name in ABOUT_NUMBERS):
            number = cores
        _threads_before = None
    else:
        number = threads
        _threads_before = torch.get_num_threads() if _threads_before is None else _threads_before
        if threads > cores:
            log.warning("threads     %d are more than the %d cores here: steps take longer", threads, cores)
    if number != torch.get_num_threads():
        torch.set_num_threads(number)


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The state of every random generator that a run on this device uses, in what a checkpoint can hold."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": device_random_state(device) if device.type == "cuda" else None,
    } | ({"mps": device_random_state(device)} if device.type == "mps" else {})


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Puts every random generator where `random_states` found it; warns where the checkpoint is of another device."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    made_on = "mps" if "mps" in states else "cpu" if states["cuda"] is None else "cuda"
    if made_on != device.type:
        log.warning("the checkpoint is of another kind of device than %s: dropout will differ from there on", device)
    elif device.type != "cpu":
        set_device_random_state(states[device.type], device)


def set_own_random_states(states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Put the random generators of this process where it left off.

    Args:
        states: Of each process that made a checkpoint. A process beyond them resumes from a seed made of the last
            one's state.
        device: Where it runs.
    """
    set_random_states(states[min(distributed.rank(), len(states) - 1)], device)
    if distributed.rank() >= len(states):
        seed_everything(int(torch.randint(2**31, ())) + distributed.rank())


def device_random_state(device: torch.device) -> Tensor | None:
    """Return the state of a GPU's own generator; None for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def set_device_random_state(state: Tensor, device: torch.device) -> None:
    """Put a GPU's own generator where `device_random_state` found it."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.mps.set_rng_state(state)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies from ordinary memory; to CUDA from pinned memory, so that nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def total_memory_bytes(device: torch.device) -> int | None:
    """Memory of a device, or of the machine for its processor; None where the system does not say."""
    try:
        if device.type == "cuda":
            return int(torch.cuda.get_device_properties(device).total_memory)
        return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_limits()])
    except (AttributeError, OSError, ValueError, RuntimeError, AssertionError):  # not POSIX, or no such device
        return None


def _memory_limits() -> list[int]:
    """Return the bytes that a container of cgroups, version 2 or 1, lets this process have; empty for no limit."""
    limits = []
    for path in MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # no such file; "max" for no limit
            limits.append(int(path.read_text(encoding="ascii")))
    return limits


def too_large(needed: int, device: torch.device) -> str | None:
    """Return that so many bytes do not fit into the memory of a device; None where they may."""
    total = total_memory_bytes(device)
    if total is None or needed <= total:
        return None
    return f"does not fit into memory: {needed:,} bytes are needed, and there are {total:,}"


def current_memory_bytes() -> int:
    """Resident memory of this process on Linux; 0 where the system does not say."""
    return _status_bytes("VmRSS")


def reset_peak_memory(device: torch.device) -> None:
    """Starts the measurement of peak memory anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif Path("/proc/self/clear_refs").exists():
        try:
            Path("/proc/self/clear_refs").write_bytes(b"5")
        except OSError:  # not permitted in some containers: then the peak counts from the start of the process
            return


def peak_memory_bytes(device: torch.device) -> int:
    """Peak since the reset: allocated on a CUDA device; what torch holds of an Apple GPU, which only grows; resident
    in this process on a CPU, torch itself included. 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _status_bytes("VmHWM")


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def float64_place(device: torch.device) -> torch.device:
    """Return where float64 sums of what this device computes are kept: on it, unless it is Apple's, which has none."""
    return torch.device("cpu") if device.type == "mps" else device


def device_name(device: torch.device) -> str:
    """What a person calls it, such as `NVIDIA H200` or `AMD EPYC 9654 96-Core Processor`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that this code runs from, `-dirty` where files differ; None outside a checkout."""
    package = Path(__file__).resolve().parent.parent
    if not (package.parent / ".git").exists():
        return None
    # `git describe --dirty` would lock the index, against what its user does there, and leave the lock where it dies.
    git = ["git", "--no-optional-locks", "-C", str(package.parent)]
    found = []
    try:
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
            done = subprocess.run([*git, *words], capture_output=True, encoding="utf-8", timeout=10, check=True)
            found.append(done.stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] + ("-dirty" if found[1] else "")


class Clock:
    """Measures the time that training takes, without that of evaluations and checkpoints.

    Args:
        device: Waited for whenever the clock is paused, so that its work is counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._counted = 0.0
        self._running_since: float | None = None

    @property
    def seconds(self) -> float:
        """Counted so far; while it runs, the device may be behind."""
        return self._counted + (time.perf_counter() - self._running_since if self._running_since is not None else 0.0)

    def start(self) -> None:
        """Counts from now on."""
        self._running_since = time.perf_counter()

    def pause(self) -> None:
        """Stops counting, once the device is done."""
        wait_for(self.device)
        self._counted, self._running_since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count what happens inside; goes on after it if it was going before."""
        was_running = self._running_since is not None
        self.pause()
        try:
            yield
        finally:
            if was_running:
                self.start()

    def set(self, seconds: float) -> None:
        """Says what was counted before, in the run that this one continues."""
        self._counted = seconds


def _status_bytes(field: str) -> int:
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return 0
    start = status.find(field.encode() + b":")
    return int(status[start + len(field) + 1 :].split(maxsplit=1)[0]) * 1024 if start >= 0 else 0
