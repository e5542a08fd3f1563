"""Calls to numba kernels on torch tensors: threads as torch has them, bfloat16 as the bits that it is."""

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor


def _launched_threads() -> int:
    """Numba's threads; starting them can change the number that OpenMP, and so torch, uses."""
    before = torch.get_num_threads()
    launched = numba.get_num_threads()
    torch.set_num_threads(before)
    return int(launched)


MOST_THREADS = _launched_threads()
_one_at_a_time = threading.Lock()  # numba's simplest threading layer ends the process otherwise


def num_threads() -> int:
    """How many threads a kernel has."""
    return min(torch.get_num_threads(), MOST_THREADS)


def call(kernel: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Runs a kernel in this many threads.

    Args:
        kernel: Compiled by numba.
        threads: At most num_threads().
        arguments: Tensors on the CPU, of which bfloat16 arrives as uint16, and numbers.
    """
    arrays = [_array(argument) if isinstance(argument, Tensor) else argument for argument in arguments]
    with _one_at_a_time:
        numba.set_num_threads(threads)
        kernel(*arrays)


def _array(tensor: Tensor) -> Any:
    bits = tensor.detach()
    bits = bits.view(torch.uint16) if bits.dtype == torch.bfloat16 else bits
    # A storage that `.numpy()` has looked at can no longer be freed by hand, as FSDP2 does; otherwise it is quicker.
    if torch.distributed.is_initialized() and (array := np.from_dlpack(bits)).flags.writeable:
        return array
    return bits.numpy()
