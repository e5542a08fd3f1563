"""Support for numba kernels: compiling with a cache on disk, calls on torch tensors, bfloat16 as its bits.

The cache may be read-only, full, damaged, or have no place at all. Calls have as many threads as torch has.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, overload
from torch import Tensor

from samout_train.runtime import own_folder

log = logging.getLogger(__name__)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function as `numba.njit` does, and keeps the result on disk where it can.

    `cache=True` of numba instead raises where it finds no folder that can be written to, or no room in it.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(**options)(function)
        if (kept := _cache_of(function)) is not None:
            kernel._cache = kept
        return kernel

    return decorate


class _Cache(FunctionCache):
    """numba's cache of one function; a kernel that it cannot read or write is compiled in each process."""

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return what is kept; None where it is not there or cannot be read."""
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # a damaged file can raise anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep it where there is room."""
        try:
            super().save_overload(signature, compiled)
        except OSError as error:
            _report(f"{self.cache_path} cannot be written to ({error.strerror})")


def _cache_of(function: Callable[..., Any]) -> _Cache | None:
    """The cache beside the file of a function, else where numba has it for a user, else in a folder of our own."""
    try:
        return _Cache(function)
    except RuntimeError:  # numba finds no folder
        pass
    try:
        numba.config.CACHE_DIR = str(_own_folder())
        return _Cache(function)
    except (RuntimeError, OSError):
        _report(f"{Path(__file__).parent} and the user's cache folder cannot be written to")
        return None


@cache
def _own_folder() -> Path:
    if chosen := os.environ.get("SAMOUT_TRAIN_CACHE"):
        return Path(chosen).expanduser() / "kernels"
    folder = own_folder(tempfile.gettempdir()) / "kernels"
    log.info("kernels     compiled ones are kept in %s, as numba finds no other place: set NUMBA_CACHE_DIR", folder)
    return folder


@cache
def _report(reason: str) -> None:
    log.warning("kernels     compiled in each process, as %s: set NUMBA_CACHE_DIR to a folder that can be", reason)


def _launched_threads() -> int:
    """Numba's threads; starting them can change the number that OpenMP, and so torch, uses."""
    before = torch.get_num_threads()
    launched = numba.get_num_threads()
    torch.set_num_threads(before)
    return int(launched)


MOST_THREADS = _launched_threads()
_one_at_a_time = threading.Lock()  # numba's simplest threading layer ends the process otherwise


def num_threads() -> int:
    """Return how many threads a kernel has."""
    return min(torch.get_num_threads(), MOST_THREADS)


def call(kernel: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Run a kernel in this many threads.

    Args:
        kernel: Compiled by numba.
        threads: At most num_threads().
        arguments: Tensors on the CPU, of which bfloat16 arrives as uint16, and numbers.
    """
    given = [_as_given(argument) for argument in arguments]
    with _one_at_a_time:
        numba.set_num_threads(threads)
        kernel(*given)


def _as_given(argument: Any) -> Any:
    """Return an argument as numba takes it: of a tensor, an array of its memory."""
    if not isinstance(argument, Tensor):
        return argument
    bits = argument.detach()
    if bits.dtype == torch.bfloat16:
        bits = bits.view(torch.uint16)
    # A storage that `.numpy()` has looked at can no longer be freed by hand, as FSDP2 does; otherwise it is quicker.
    if torch.distributed.is_initialized() and (array := np.from_dlpack(bits)).flags.writeable:
        return array
    return bits.numpy()


@intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def _bits_of_float(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


def widen(value: Any) -> Any:
    """Return a value of an array in float32."""


@overload(widen)
def _widen_compiled(value: Any) -> Any:
    if value == types.uint16:  # bfloat16 is the upper half of float32

        def of_bfloat16(value: Any) -> Any:
            return _float_of_bits(np.uint32(value) << np.uint32(16))

        return of_bfloat16

    def as_it_is(value: Any) -> Any:
        return value

    return as_it_is


def narrow(value: Any, array: Any) -> Any:
    """Return a float32 as `array` holds it: to bfloat16 the nearest, of two the even one."""


@overload(narrow)
def _narrow_compiled(value: Any, array: Any) -> Any:
    if array.dtype == types.uint16:

        def to_bfloat16(value: Any, array: Any) -> Any:
            bits = _bits_of_float(np.float32(value))
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            return np.uint16(np.uint32(0x7FC0) if value != value else rounded)

        return to_bfloat16

    def as_it_is(value: Any, array: Any) -> Any:
        return value

    return as_it_is


@compiled(error_model="numpy")
def vector_exp(x: Any) -> Any:
    """Return e^x of a float32 from -87 to 88, within 2e-7 relative; below, that of -87.

    Without a call, so that a loop of it runs in vectors: 2^k by the exponent's bits, 2^r of the rest by its series.
    """
    scaled = max(x, np.float32(-87)) * np.float32(1.4426950408889634)
    whole = np.floor(scaled + np.float32(0.5))
    r = (scaled - whole) * np.float32(0.6931471805599453)
    series = np.float32(1 / 720) + r * np.float32(1 / 5040)
    series = np.float32(1 / 120) + r * series
    series = np.float32(1 / 24) + r * series
    series = np.float32(1 / 6) + r * series
    series = np.float32(0.5) + r * series
    series = np.float32(1) + r * series
    series = np.float32(1) + r * series
    return series * _float_of_bits(np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23))


@compiled(error_model="numpy")
def vector_log(x: Any) -> Any:
    """Return the natural logarithm of a float32 above 0, within 2e-7 of the larger of it and 1.

    As `vector_exp`, without a call: the exponent's bits, and 2 artanh((y - 1) / (y + 1)) of y from sqrt(1/2) to sqrt(2).
    """
    bits = _bits_of_float(x) - np.uint32(0x3F3504F3)  # sqrt(1/2), from where y begins
    exponent = np.float32(np.int32(bits) >> np.int32(23))
    y = _float_of_bits((bits & np.uint32(0x7FFFFF)) + np.uint32(0x3F3504F3))
    s = (y - np.float32(1)) / (y + np.float32(1))
    square = s * s
    series = np.float32(1 / 7) + square * np.float32(1 / 9)
    series = np.float32(1 / 5) + square * series
    series = np.float32(1 / 3) + square * series
    series = np.float32(1) + square * series
    return exponent * np.float32(0.6931471805599453) + np.float32(2) * s * series
