"""The cores that this program may use, how its threads wait for each other, and what other programs keep busy.

Without torch, since OpenMP reads how threads wait only once: when torch is loaded.
"""

import os
import time
from collections.abc import MutableMapping
from pathlib import Path

# What a person may have set about waiting: then nothing is changed.
ABOUT_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
ABOUT_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# By itself a thread waits awake for up to 20 milliseconds (GNU's OpenMP, which torch for Linux has) or 200 (LLVM's and
# Intel's), in which a program beside it has no core: two runs at once took 1.8 to 2.1 times as long a step on two cores
# of a Xeon, 2026-11-28. Alone, sleep costs a large model 0 to 5 % there; a count of spins in between is no better
# (scripts/bench_threads.py).
SHORT_WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}
CGROUPS = Path("/sys/fs/cgroup")
LEAST_SECONDS = 1.0  # the kernel counts in hundredths
LEAST_BUSY = 0.5  # cores of others; a desktop's clock and mail keep less busy


def wait_shortly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for each other sleep soon, so that programs side by side do not starve each other.

    Args:
        environment: Changed before torch is loaded; what it says of this already has priority.
    """
    if not any(name in environment for name in ABOUT_WAITING):
        environment.update(SHORT_WAIT)


def available_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the quota of its container."""
    cores, quota = len(_own_cores()), quota_of_cores()
    if quota is None:
        return cores
    return max(1, min(cores, int(quota)))


def share_of_cores(at_once: int, environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Return what gives each of several processes its share of the threads; nothing where the environment says it.

    Args:
        at_once: How many run side by side.
        environment: That of the process which starts them.
    """
    if at_once < 2 or any(name in environment for name in ABOUT_NUMBERS):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // at_once))}


def quota_of_cores(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the cores that a container may keep busy in the mean; None where there is no limit, or none is known.

    Args:
        root: Where control groups are mounted.
        own: What names the groups of this process, one a line: `0::/path`, or `3:cpu,cpuacct:/path` of version 1.
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
        base = root / controllers  # the root itself in version 2, which names none
        below = base / path.strip("/")  # inside a container it may be the path outside, and is not there then
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
    """Measures how many of the cores of this process other programs keep busy, where the system says so (Linux)."""

    def __init__(self) -> None:
        self._cores = _own_cores()
        self.num_cores = len(self._cores)  # a quota does not count: it says nothing of what others leave
        self._started = self._now()

    def busy_cores(self) -> float | None:
        """Return how many since the start, in the mean; None where it is too soon to say, or never known."""
        (started, busy_before, own_before), (now, busy, own) = self._started, self._now()
        if busy_before is None or busy is None or now - started < LEAST_SECONDS:
            return None
        return max(0.0, (busy - busy_before - (own - own_before)) / (now - started))

    def _now(self) -> tuple[float, float | None, float]:
        """Return the time, and the seconds that these cores, and this process on them, have been busy."""
        return time.monotonic(), busy_seconds(self._cores), time.process_time()


def busy_seconds(cores: list[int], path: Path = Path("/proc/stat")) -> float | None:
    """Return the seconds that these cores have been busy since the system began; None where it does not say."""
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
            # user nice system idle iowait irq softirq steal; a guest's time is in user
            user, nice, system, _, _, *others = map(int, counts[:8])
            num_found += 1
            busy_ticks += user + nice + system + sum(others)
    if num_found < len(wanted):
        return None
    return busy_ticks / ticks


def told_others(busy: float, threads: int, cores: int) -> str | None:
    """Return what to say about other programs beside this one; None where they take nothing from it.

    Args:
        busy: Cores that they keep busy.
        threads: Of this process.
        cores: That it may use.
    """
    if busy < LEAST_BUSY or busy + threads < cores + LEAST_BUSY:
        return None
    told = f"other programs keep {min(busy, cores):.1f} of {cores} cores busy"
    fewer = max(1, int(cores - busy + LEAST_BUSY))
    if fewer < threads:
        return f"{told}, and the {threads} threads of this run wait for each other: try threads={fewer}"
    return f"{told}: steps take longer than alone"
