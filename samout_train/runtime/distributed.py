"""The processes of one run: what the launcher says of this one, and what they tell each other.

Where there is one process, nothing is sent. Decisions that depend on a clock, a signal or a file are those of the first
process, or of all together, so that all make the same steps. They go through main memory (gloo) also where gradients go
from one GPU to another (NCCL).

torch is imported where it is used: `Launch` is asked for also where torch is not needed, as for --help.
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
SECONDS_TO_WAIT = 1800  # for another process: as long as tokenizing or a whole evaluation of one of them may take
MOST_DIFFERENCES = 8


@dataclass(frozen=True)
class Launch:
    """One of the processes of a run.

    Args:
        rank: Its number, from 0.
        count: How many there are.
        local_rank: Its number on its machine.
        keeps_store: Whether the launcher keeps a store that outlives its processes, as torchrun does.
    """

    rank: int
    count: int
    local_rank: int
    keeps_store: bool

    @classmethod
    def of_environment(cls) -> "Launch | None":
        """Return this process; None where it was started by itself."""
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
        """Return whether it is the one that writes."""
        return self.rank == 0

    def words(self, words: Sequence[str]) -> list[str]:
        """Return the command line: where processes before these ones had begun the run, it goes on with that run."""
        run_dir = self._begun()
        if run_dir is None:
            return list(words)
        kept = [word for word in words if word.partition("=")[0].lstrip("+") not in ("run_dir", "resume")]
        return [*kept, text_setting("run_dir", run_dir), "resume=auto"]

    def note(self, run_dir: str) -> None:
        """Tell the processes that are started after these ones which run they go on with."""
        if self.keeps_store:
            _store().set(RUN_DIR, run_dir)

    def store(self, timeout: timedelta) -> Any:
        """Return where the processes of this start find each other; None where torch makes such a place.

        The launcher's store still has what processes before these ones wrote, such as where they listened. So each
        start has a prefix of its own, a name that the first process makes and gives to those that it finds here.
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
            # What is read may be the name of a process of an earlier start: it is read again until this one answers.
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
    """Another process of the run has ended, so that this one cannot go on."""


@contextmanager
def joined(device: "torch.device") -> Iterator[None]:
    """Join the processes that were started together; does nothing where this one was started by itself.

    Args:
        device: Where this process computes.

    Raises:
        LostProcessError: in place of what torch raises when another process ends.
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
        yield
        dist.barrier()
    except (RuntimeError, dist.DistError) as error:
        if not _is_loss(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise LostProcessError(f"{name()} lost the others: one of them has ended ({reason})") from error
    # The group of gloo stays for as long as the process: its end joins threads that may wait for the interpreter, which
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
    """Return how many processes make the run."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return 1
    return dist.get_world_size()


def is_first() -> bool:
    """Return whether this is the process that writes and speaks."""
    return rank() == 0


def name() -> str:
    """Return what tells a person which process this is."""
    return f"process {rank()} of {count()} on {socket.gethostname()}"


def total(number: int) -> int:
    """Return the sum over all processes."""
    import torch.distributed as dist

    return _reduced(number, dist.ReduceOp.SUM)


def largest(number: int) -> int:
    """Return the largest of all processes."""
    import torch.distributed as dist

    return _reduced(number, dist.ReduceOp.MAX)


def summed(tensor: "Tensor") -> "Tensor":
    """Return the sum over all processes, on the device that it is on; the tensor itself is overwritten."""
    import torch.distributed as dist

    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait_for_all() -> None:
    """Wait until all processes are here."""
    import torch.distributed as dist

    if count() > 1:
        dist.barrier()


def from_first(value: Any) -> Any:
    """Return what the first process has: anything that can be pickled."""
    import torch
    import torch.distributed as dist

    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def number_of_first(number: float) -> float:
    """Return a number of the first process."""
    import torch
    import torch.distributed as dist

    if count() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(tensor, 0)
    return float(tensor)


def gathered(value: Any) -> list[Any]:
    """Return what each process has, by number: anything that can be pickled."""
    import torch.distributed as dist

    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def differences(settings: Mapping[str, object]) -> list[str]:
    """Return where the processes do not agree, one text each; all get the same ones.

    Args:
        settings: By name.
    """
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


def _is_loss(error: BaseException) -> bool:
    import torch.distributed as dist

    words = ("Connection closed by peer", "Connection reset", "Broken pipe", "Connection refused", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
