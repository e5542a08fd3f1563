"""Main memory and device memory: total, current use, and peak."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
# Memory limits of a container, in cgroups 2 and 1: docs.kernel.org/admin-guide/cgroup-v2.html.
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Words in torch's RuntimeErrors for failed allocations: on a CPU, on Linux and on Windows; of shared memory; of CUDA,
# Apple's GPU and their libraries; of sizes whose bytes exceed 64 bits.
NO_MEMORY = (
    *("can't allocate memory", "DefaultCPUAllocator", "not enough memory", "Cannot allocate memory"),
    *("out of memory", "ALLOC_FAILED", "size calculation overflowed", "multiplication overflow"),
)


def total_memory_bytes(device: torch.device) -> int | None:
    """Return the memory of a device, or main memory for the CPU; None if the system does not report it."""
    try:
        if device.type == "cuda":
            return int(torch.cuda.get_device_properties(device).total_memory)
        if windows := getattr(ctypes, "windll", None):
            return _memory_of_windows(windows)
        return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_limits()])
    except (AttributeError, OSError, ValueError, RuntimeError, AssertionError):  # not POSIX, or no such device
        return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        *(("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64)),
        *((name, ctypes.c_uint64) for name in ("free", "page", "free_page", "virtual", "free_virtual", "extended")),
    )


def _memory_of_windows(windows: Any) -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.total)


def _memory_limits() -> list[int]:
    """Return the memory limits in bytes that cgroups 2 or 1 set for this process; empty for no limit."""
    limits = []
    for path in MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # no such file; "max" for no limit
            limits.append(int(path.read_text(encoding="ascii")))
    return limits


def too_large(needed: int, device: torch.device) -> str | None:
    """Return why this many bytes do not fit into the memory of a device; None if they may."""
    total = total_memory_bytes(device)
    if total is None or needed <= total:
        return None
    return f"does not fit into memory: {needed:,} bytes are needed, and there are {total:,}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation, on a device or in main memory.

    Illegal memory accesses and numeric overflows are other errors. If the error has its own type, the type decides.
    torch 2.13 raises a plain RuntimeError without fields if an allocation in main memory fails, so its text is read:
    here, and nowhere else in the package.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(words in message for words in NO_MEMORY)


def current_memory_bytes() -> int:
    """Return the resident memory of this process on Linux; 0 on other systems."""
    return _status_bytes("VmRSS")


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of peak memory, if the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif Path("/proc/self/clear_refs").exists():
        try:
            Path("/proc/self/clear_refs").write_bytes(b"5")
        except OSError:  # not permitted in some containers: the peak then counts from the start of the process
            return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak in bytes since the reset; 0 if the system does not report it.

    On CUDA this is allocated memory; on an Apple GPU the memory that torch holds, which only grows; on a CPU the
    resident memory of the process, torch itself included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return 0
    start = status.find(field.encode() + b":")
    if start < 0:
        return 0
    return int(status[start + len(field) + 1 :].split(maxsplit=1)[0]) * 1024


def keep_freed_memory() -> None:
    """Let the process keep large blocks of main memory that it frees, if its C library is glibc.

    By default, glibc returns them to the system. At every step, for every large tensor, the system would hand them out
    again in pages of 4 KB, and zero each page at its first write. Environment variables (MALLOC_...) have priority.
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
