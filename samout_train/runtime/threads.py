"""The cores that this program may use, how its threads wait for each other, and the load of other programs.

This module does not import torch: OpenMP reads how threads wait only once, when torch is loaded.
"""

import os
import time
from collections.abc import MutableMapping
from pathlib import Path

# Variables about waiting: if the user set one, nothing is changed.
ABOUT_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
ABOUT_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# By default a waiting thread spins for up to 20 milliseconds (GNU's OpenMP, which torch for Linux uses) or 200 (LLVM's
# and Intel's). Meanwhile other programs get no core: with two runs at once, a step takes many times as long. Threads
# that sleep at once slow down a single run: on two cores of an AMD EPYC, 2026-11-30, its steps take 1.1 to 2.1 times as
# long as with 1,000 spins (about 0.02 milliseconds). With two runs at once, these spins cost up to a half more time,
# and twice the time for the smallest model (scripts/bench_threads.py). LLVM and Intel only count whole milliseconds.
SHORT_WAIT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
CGROUPS = Path("/sys/fs/cgroup")
LEAST_SECONDS = 1.0  # the kernel counts in hundredths
LEAST_BUSY = 0.5  # cores; background programs of a desktop use less


def wait_shortly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads sleep soon, so that concurrent programs do not starve each other.

    Args:
        environment: Changed before torch is loaded; existing variables about waiting have priority.
    """
    if not any(name in environment for name in ABOUT_WAITING):
        environment.update(SHORT_WAIT)


def available_cores() -> int:
    """Return the number of cores that this process may use, given its affinity and its container's quota."""
    cores, quota = len(_own_cores()), quota_of_cores()
    if quota is None:
        return cores
    return max(1, min(cores, int(quota)))


def share_of_cores(at_once: int, environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables that give each of several processes its share of threads; empty if the environment sets it.

    Args:
        at_once: Number of concurrent processes.
        environment: Environment of the process that starts them.
    """
    if at_once < 2 or any(name in environment for name in ABOUT_NUMBERS):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // at_once))}


def quota_of_cores(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the mean number of cores that a container may use; None if it has no limit, or an unknown one.

    Args:
        root: Mount point of control groups.
        own: File with the groups of this process, one per line: `0::/path`, or `3:cpu,cpuacct:/path` in version 1.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers  # the root itself in version 2, which names no controllers
        below = base / path.strip("/")  # in a container this may be a path of the host that does not exist inside
        for folder in (below, *below.parents):
            if folder.is_relative_to(base) and (cores := _quota(folder)) is not None:
                found.append(cores)
    return min(found, default=None)


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        if quota in ("max", "-1"):
            return None
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _own_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Others:
    """Measures how many of this process's cores other programs use (Linux)."""

    def __init__(self) -> None:
        self._cores = _own_cores()
        self.num_cores = len(self._cores)  # without the quota, which does not limit other programs
        self._started = self._now()

    def busy_cores(self) -> float | None:
        """Return the mean number since the start; None if it is too early, or not reported by the system."""
        (started, busy_before, own_before), (now, busy, own) = self._started, self._now()
        if busy_before is None or busy is None or now - started < LEAST_SECONDS:
            return None
        return max(0.0, (busy - busy_before - (own - own_before)) / (now - started))

    def _now(self) -> tuple[float, float | None, float]:
        """Return the time, and the busy seconds of these cores and of this process."""
        return time.monotonic(), busy_seconds(self._cores), time.process_time()


def busy_seconds(cores: list[int], path: Path = Path("/proc/stat")) -> float | None:
    """Return the busy seconds of these cores since the system started; None if the system does not report them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    wanted = {f"cpu{core}" for core in cores}
    num_found = busy_ticks = 0
    for line in lines:
        name, *counts = line.split() or [""]
        if name in wanted:
            # user nice system idle iowait irq softirq steal; guest time is part of user
            user, nice, system, _, _, *others = map(int, counts[:8])
            num_found += 1
            busy_ticks += user + nice + system + sum(others)
    if num_found < len(wanted):
        return None
    return busy_ticks / ticks


def other_programs_message(busy: float, threads: int, cores: int) -> str | None:
    """Return a message about other programs on the same cores; None if they leave enough for this program.

    Args:
        busy: Cores that other programs use.
        threads: Threads of this process.
        cores: Cores that this process may use.
    """
    if busy < LEAST_BUSY or busy + threads < cores + LEAST_BUSY:
        return None
    others = f"other programs use {min(busy, cores):.1f} of {cores} cores"
    fewer = max(1, int(cores - busy + LEAST_BUSY))
    if fewer < threads:
        return f"{others}: threads={fewer} may be faster than {threads}"
    return f"{others}: steps take longer than alone"
