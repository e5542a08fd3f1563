"""The processes of one run: the launcher's environment, the process group, and its collectives.

A single process sends nothing. Decisions that depend on a clock, a signal or a file are made by the first process, or
by all together, so that all run the same steps. They are sent through main memory (gloo), even if gradients are sent
between GPUs (NCCL).

torch is imported inside functions, because `Launch` is also needed without torch, for --help.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from samout_train.runtime.shell import text_setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SAID = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
RUN_DIR, HERE, GROUP = "samout_train/run_dir", "samout_train/here", "samout_train/group"
SECONDS_BETWEEN_LOOKS = 0.02
SECONDS_TO_WAIT = 1800  # for another process, which may be tokenizing or evaluating
MOST_DIFFERENCES = 8
PROBE_TAG = 1  # a tag that no message has


@dataclass(frozen=True)
class Launch:
    """One of the processes of a run.

    Args:
        rank: Number of the process, from 0.
        count: Number of processes.
        local_rank: Number on its machine, from 0.
        keeps_store: Whether the launcher keeps a store that outlives its processes, as torchrun does.
    """

    rank: int
    count: int
    local_rank: int
    keeps_store: bool

    @classmethod
    def of_environment(cls) -> "Launch | None":
        """Return the launch of this process; None if it was started alone."""
        if not all(name in os.environ for name in SAID):
            return None
        return cls(
            rank=int(os.environ["RANK"]),
            count=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            keeps_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes."""
        return self.rank == 0

    def words(self, words: Sequence[str]) -> list[str]:
        """Return the command line, changed to resume the run that earlier processes of this launch began, if any."""
        run_dir = self._begun()
        if run_dir is None:
            return list(words)
        kept = [word for word in words if word.partition("=")[0].lstrip("+") not in ("run_dir", "resume")]
        return [*kept, text_setting("run_dir", run_dir), "resume=auto"]

    def note(self, run_dir: str) -> None:
        """Record the run directory for processes that the launcher starts in place of the current ones."""
        if self.keeps_store:
            _store().set(RUN_DIR, run_dir)

    def store(self, timeout: timedelta) -> Any:
        """Return the store through which the processes of this start find each other; None to let torch make one.

        The launcher's store still has entries of earlier processes, such as their addresses. So each start has a prefix
        of its own: the first process makes a name, and passes it to the processes that it finds in the store.
        """
        if not self.keeps_store:
            return None
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        store = _store()
        store.set_timeout(timeout)
        return PrefixStore(self._group(store), store)

    def _group(self, store: Any) -> str:
        own_name = uuid4().hex
        if not self.is_first:
            store.set(f"{HERE}/{self.rank}", own_name)
            group: str = store.get(f"{GROUP}/{own_name}").decode()
            store.set(f"{HERE}/{group}/{self.rank}", "")
            return group
        for rank in range(1, self.count):
            # The entry may belong to a process of an earlier start: repeat until the current process answers.
            while not store.check([f"{HERE}/{own_name}/{rank}"]):
                if store.check([f"{HERE}/{rank}"]):
                    store.set(f"{GROUP}/{store.get(f'{HERE}/{rank}').decode()}", own_name)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return own_name

    def _begun(self) -> str | None:
        if not self.keeps_store:
            return None
        store = _store()
        if not store.check([RUN_DIR]):
            return None
        run_dir: str = store.get(RUN_DIR).decode()
        return run_dir


def _store() -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


class LostProcessError(Exception):
    """Another process of the run has ended, so this process cannot continue."""


@contextmanager
def joined(device: "torch.device") -> Iterator[None]:
    """Join the processes that were started together; do nothing if this one was started alone.

    Args:
        device: The device of this process.

    Raises:
        LostProcessError: in place of torch's error if another process ends.
    """
    import torch.distributed as dist

    launch = Launch.of_environment()
    if launch is None or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=SECONDS_TO_WAIT)
    try:
        store = launch.store(timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=launch.rank, world_size=launch.count)
    except (RuntimeError, dist.DistError) as error:
        this = f"process {launch.rank} of {launch.count} on {socket.gethostname()}"
        raise LostProcessError(f"{this} cannot join the others ({_first_line(error)})") from error
    try:
        yield
        dist.barrier()
    except (RuntimeError, dist.DistError) as error:
        if not isinstance(error, dist.DistError) and not _has_closed_connection():
            raise
        raise LostProcessError(f"{name()} lost the others: one of them has ended ({_first_line(error)})") from error
    # The gloo group stays until the process ends: destroying it joins threads that may wait for the interpreter, which
    # waits for them (torch 2.13, one time in ten).
    if device.type == "cuda":
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return 0
    return dist.get_rank()


def count() -> int:
    """Return the number of processes of the run."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return 1
    return dist.get_world_size()


def is_first() -> bool:
    """Return whether this is the process that writes and logs."""
    return rank() == 0


def name() -> str:
    """Return the name of this process in messages."""
    return f"process {rank()} of {count()} on {socket.gethostname()}"


def total(number: int) -> int:
    """Return the sum over all processes."""
    import torch.distributed as dist

    return _reduced(number, dist.ReduceOp.SUM)


def largest(number: int) -> int:
    """Return the largest number over all processes."""
    import torch.distributed as dist

    return _reduced(number, dist.ReduceOp.MAX)


def summed(tensor: "Tensor") -> "Tensor":
    """Sum a tensor over all processes in place, on its device; return it."""
    import torch.distributed as dist

    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait_for_all() -> None:
    """Wait until all processes have called this."""
    import torch.distributed as dist

    if count() > 1:
        dist.barrier()


def from_first(value: Any) -> Any:
    """Return the value of the first process, which must be picklable."""
    import torch
    import torch.distributed as dist

    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def number_of_first(number: float) -> float:
    """Return the number of the first process."""
    import torch
    import torch.distributed as dist

    if count() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(tensor, 0)
    return float(tensor)


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes in order; they must be picklable."""
    import torch.distributed as dist

    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def differences(settings: Mapping[str, object]) -> list[str]:
    """Return the settings in which the processes differ, one text each; all processes get the same list."""
    text = json.dumps(dict(settings), sort_keys=True, default=str)
    hashes = gathered(hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return []
    first, *others = map(json.loads, gathered(text))
    found = []
    for number, other in enumerate(others, start=1):
        for key in sorted(first.keys() | other.keys()):
            here, there = other.get(key), first.get(key)
            if here != there:
                found.append(f"process {number} has {key}={here}, process 0 has {there}")
    if len(found) > MOST_DIFFERENCES:
        return [*found[:MOST_DIFFERENCES], f"and {len(found) - MOST_DIFFERENCES} more"]
    return found


def _reduced(number: int, operation: Any) -> int:
    import torch
    import torch.distributed as dist

    if count() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(tensor, operation)
    return int(tensor)


def _has_closed_connection() -> bool:
    """Return whether the connection to another process is closed, without waiting for any of them.

    When gloo loses a connection, it raises a plain RuntimeError, as any operation of torch may. A receive on a closed
    connection fails at once; on an open connection it stays pending until this process ends.
    """
    import torch
    import torch.distributed as dist

    for other in range(count()):
        if other == rank():
            continue
        try:
            dist.irecv(torch.empty(1), src=other, tag=PROBE_TAG)
        except (RuntimeError, dist.DistError):
            return True
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
