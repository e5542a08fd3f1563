"""What the processes of one run tell each other. Where there is one process, nothing is sent.

Decisions that depend on a clock, a signal or a file are those of the first process, or of all together, so that all
make the same steps. They go through main memory (gloo) also where gradients go from one GPU to another (NCCL).
"""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from samout_train.runtime.launch import Launch

SECONDS_TO_WAIT = 1800  # for another process: as long as tokenizing or a whole evaluation of one of them may take
MOST_DIFFERENCES = 8


class LostProcessError(Exception):
    """Another process of the run has ended, so that this one cannot go on."""


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that were started together; does nothing where this one was started by itself.

    Args:
        device: Where this process computes.

    Raises:
        LostProcessError: in place of what torch raises when another process ends.
    """
    launch = Launch.of_environment()
    if launch is None or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
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
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return how many processes make the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is the process that writes and speaks."""
    return rank() == 0


def name() -> str:
    """Return what tells a person which process this is."""
    return f"process {rank()} of {count()} on {socket.gethostname()}"


def total(number: int) -> int:
    """Return the sum over all processes."""
    return number if count() == 1 else int(_reduced(number, dist.ReduceOp.SUM))


def largest(number: int) -> int:
    """Return the largest of all processes."""
    return number if count() == 1 else int(_reduced(number, dist.ReduceOp.MAX))


def summed(tensor: Tensor) -> Tensor:
    """Return the sum over all processes, on the device that it is on; the tensor itself is overwritten."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


def from_first(value: Any) -> Any:
    """Return what the first process has: anything that can be pickled."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def number_of_first(number: float) -> float:
    """Return a number of the first process."""
    if count() == 1:
        return number
    tensor = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(tensor, 0)
    return float(tensor)


def gathered(value: Any) -> list[Any]:
    """Return what each process has, by number: anything that can be pickled."""
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
    first, *others = [json.loads(each) for each in gathered(text)]
    found = [
        f"process {number} has {key}={other.get(key)}, process 0 has {first.get(key)}"
        for number, other in enumerate(others, start=1)
        for key in sorted(first.keys() | other.keys())
        if first.get(key) != other.get(key)
    ]
    more = [f"and {len(found) - MOST_DIFFERENCES} more"] if len(found) > MOST_DIFFERENCES else []
    return found[:MOST_DIFFERENCES] + more


def _reduced(number: int, operation: Any) -> Tensor:
    tensor = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(tensor, operation)
    return tensor


def _is_loss(error: BaseException) -> bool:
    words = ("Connection closed by peer", "Connection reset", "Broken pipe", "Connection refused", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
