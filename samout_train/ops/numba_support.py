"""Support for numba kernels: compilation with a cache on disk, calls on torch tensors, bfloat16 as its bits.

A cache that is read-only, full, damaged or missing costs time but never fails a call. Calls use torch's thread count.

If numba's DISABLE_JIT is set before a kernel's file is imported, the kernel runs in Python, for a debugger and for
coverage. A function with an `@overload` is compiled from its overload, while Python runs the function's own body.
"""

import glob
import hashlib
import logging
import math
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
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import intrinsic, overload
from torch import Tensor

from samout_train.runtime import own_folder

LINE = 64  # bytes of a cache line

log = logging.getLogger(__name__)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function like `numba.njit` and caches the result on disk if possible.

    numba's own `cache=True` raises if there is no writable folder or the disk is full.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(**options)(function)
        if (kept := cache_of(function)) is not None:
            kernel._cache = kept
        return kernel

    return decorate


class CacheFile(IndexDataCacheFile):
    """The files of a cache. A data file belongs to one kernel, made from one state of the sources, and never changes.

    numba itself numbers the data files and writes the index first. A process that starts in between would run the
    kernel that had the number before, from earlier sources or for other types.
    """

    def save(self, key: Any, data: Any) -> None:
        """Save a kernel, then name it in the index."""
        digest = hashlib.sha256(repr((self._source_stamp, key)).encode()).hexdigest()
        name = self._data_name_pattern.replace("{number:d}", digest[:16])
        overloads = self._load_index()
        if not overloads:
            self._remove_others()
        self._save_data(name, data)
        self._save_index(overloads | {key: name})

    def _remove_others(self) -> None:
        """Remove the kernels of earlier sources; a process that misses one compiles it."""
        before, _, after = self._data_name_pattern.partition("{number:d}")
        for path in Path(self._cache_path).glob(f"{glob.escape(before)}*{after}"):
            with suppress(OSError):
                path.unlink()


class _Cache(FunctionCache):
    """numba's cache of one function. A kernel that cannot be read or written is compiled in each process.

    numba checks only the function's own file for changes. A kernel also contains functions from other files, so a
    change in any file of this package recompiles it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), _digest_of_sources())
        self._cache_file = CacheFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the cached kernel; None if it is missing or cannot be read."""
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # a damaged file can raise anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Save the kernel; log a warning if that fails."""
        try:
            super().save_overload(signature, compiled)
        except OSError as error:
            _report(f"{self.cache_path} cannot be written to ({error.strerror})")


@cache
def _digest_of_sources() -> str:
    """Return a digest of the Python files of this package."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def cache_of(function: Callable[..., Any]) -> _Cache | None:
    """Return a cache next to the function's file, else in numba's folder for the user, else in a folder of our own."""
    try:
        return _Cache(function)
    except RuntimeError:  # numba finds no writable folder
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
    log.info("kernels     cached in %s, as numba finds no other writable folder: set NUMBA_CACHE_DIR", folder)
    return folder


@cache
def _report(reason: str) -> None:
    log.warning("kernels     compiled in each process, as %s: set NUMBA_CACHE_DIR to a writable folder", reason)


def _launched_threads() -> int:
    """Start numba's threads and return their number; restore torch's number, which this can change through OpenMP."""
    before = torch.get_num_threads()
    launched = numba.get_num_threads()
    torch.set_num_threads(before)
    return int(launched)


MOST_THREADS = _launched_threads()
ELEMENTS_A_THREAD = 2**15  # waking a thread costs about as much as reading this many elements
_threads_in_use = threading.local()
_one_at_a_time = threading.Lock()  # numba's simplest threading layer aborts the process on concurrent calls


def num_threads(elements: int | None = None) -> int:
    """Return the number of threads of a kernel: fewer than torch's if each would read few elements.

    Args:
        elements: Elements of the largest tensor; None if computing takes longer than reading.
    """
    threads = min(torch.get_num_threads(), MOST_THREADS)
    if threads == 1 or elements is None:
        return threads
    return max(1, min(threads, elements // ELEMENTS_A_THREAD))


def call(kernel: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Run a kernel.

    Args:
        kernel: A function compiled by numba.
        threads: Threads to use, at most num_threads().
        arguments: Numbers and tensors on the CPU; a bfloat16 tensor arrives as uint16.
    """
    is_distributed = torch.distributed.is_initialized()
    given = [_as_given(argument, is_distributed) for argument in arguments]
    with _one_at_a_time:
        _use_threads(threads)
        kernel(*given)


def call_at(kernel: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Run a kernel that takes addresses.

    Making an array from a tensor takes the host about 3 us, and `data_ptr()` a tenth of that.

    Args:
        kernel: A function compiled by numba.
        threads: Threads to use, at most num_threads().
        arguments: Numbers and addresses.
    """
    with _one_at_a_time:
        _use_threads(threads)
        kernel(*arguments)


def call_either(kernel: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Run a kernel that takes addresses and, as its last argument, whether to launch threads: with more than one."""
    if threads == 1:
        kernel(*arguments, False)
    else:
        call_at(kernel, threads, *arguments, True)


def _use_threads(threads: int) -> None:
    """Set numba's number of threads if it differs; each Python thread has its own setting."""
    if getattr(_threads_in_use, "number", None) != threads:
        numba.set_num_threads(threads)
        _threads_in_use.number = threads


def _as_given(argument: Any, is_distributed: bool) -> Any:
    """Return an argument for numba: for a tensor, an array that shares its memory."""
    if not isinstance(argument, Tensor):
        return argument
    bits = argument.detach()
    if bits.dtype == torch.bfloat16:
        bits = bits.view(torch.uint16)
    # `.numpy()` is faster, but its storage can no longer be freed by hand, which FSDP2 does.
    if is_distributed and (array := np.from_dlpack(bits)).flags.writeable:
        return array
    return bits.numpy()


# A value that tells numba the dtype of the array at an address; a bfloat16 tensor becomes an array of uint16.
ELEMENT = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Return an address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


def array_at(address: Any, shape: Any, element: Any) -> Any:
    """Return the contiguous array at an address, of the dtype of `element`; None for None."""
    if address is None:
        return None
    kind = np.ctypeslib.as_ctypes_type(element.dtype)
    return np.ctypeslib.as_array((kind * math.prod(shape)).from_address(address)).reshape(shape)


@overload(array_at)
def _array_at_compiled(address: Any, shape: Any, element: Any) -> Any:
    if isinstance(address, types.NoneType):

        def nothing(address: Any, shape: Any, element: Any) -> Any:
            return None

        return nothing
    dtype = numba.np.numpy_support.as_dtype(element).type

    def of_dtype(address: Any, shape: Any, element: Any) -> Any:
        return numba.carray(_pointer(address), shape, dtype)

    return of_dtype


def as_float(bits: Any) -> Any:
    """Return the float32 of these bits."""
    return np.uint32(bits).view(np.float32)


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@overload(as_float)
def _as_float_compiled(bits: Any) -> Any:
    def of_bits(bits: Any) -> Any:
        return _as_float(bits)

    return of_bits


def as_bits(value: Any) -> Any:
    """Return the bits of a float32."""
    return np.float32(value).view(np.uint32)


@intrinsic
def _as_bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@overload(as_bits)
def _as_bits_compiled(value: Any) -> Any:
    def of_value(value: Any) -> Any:
        return _as_bits(value)

    return of_value


def widen(value: Any) -> Any:
    """Return an array's value as float32."""
    return _widening(value.dtype == np.uint16)(value)


@overload(widen)
def _widen_compiled(value: Any) -> Any:
    return _widening(value == types.uint16)


def _widening(is_bfloat16: bool) -> Callable[[Any], Any]:
    def of_bfloat16(value: Any) -> Any:
        return as_float(np.uint32(value) << np.uint32(16))  # bfloat16 is the upper half of float32

    def as_it_is(value: Any) -> Any:
        return value

    return of_bfloat16 if is_bfloat16 else as_it_is


def narrow(value: Any, array: Any) -> Any:
    """Return a float32 in the dtype of `array`; to bfloat16 it rounds to nearest, ties to even."""
    return _narrowing(array.dtype == np.uint16)(value, array)


@overload(narrow)
def _narrow_compiled(value: Any, array: Any) -> Any:
    return _narrowing(array.dtype == types.uint16)


def _narrowing(is_bfloat16: bool) -> Callable[[Any, Any], Any]:
    def to_bfloat16(value: Any, array: Any) -> Any:
        bits = as_bits(np.float32(value))
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.uint16(np.uint32(0x7FC0) if value != value else rounded)

    def as_it_is(value: Any, array: Any) -> Any:
        return value

    return to_bfloat16 if is_bfloat16 else as_it_is


# Adding it to a float32 leaves the nearest whole number in the lowest bits, which are 0 in 2^23 (1 + 1/2).
WHOLE = np.float32(1.5 * 2**23)


@compiled(error_model="numpy", fastmath={"contract"})
def vector_exp(x: Any) -> Any:
    """Return e^x of a float32 from -87 to 88, within 2e-7 relative; below -87, e^-87.

    It makes no calls, so that loops over it run in vectors: the exponent's bits give 2^k, and a minimax polynomial
    gives e^r of the rest r.
    """
    x = max(x, np.float32(-87))
    shifted = x * np.float32(1.4426950408889634) + WHOLE
    whole = shifted - WHOLE  # the nearest whole number
    r = (x - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)  # ln 2 in two parts, the first exact
    series = np.float32(0.00836873) + r * np.float32(0.00138146)
    series = np.float32(0.04166839) + r * series
    series = np.float32(0.16666521) + r * series
    series = np.float32(0.5) + r * series
    series = np.float32(1) + r * series
    series = np.float32(1) + r * series
    return series * as_float((as_bits(shifted) + np.uint32(127)) << np.uint32(23))


@compiled(error_model="numpy", fastmath={"contract"})
def vector_log(x: Any) -> Any:
    """Return the natural logarithm of a float32 above 0, within 2e-7 times the larger of 1 and its magnitude.

    Like `vector_exp`, it makes no calls: it adds the exponent's part and 2 artanh((y - 1) / (y + 1)), with y from
    sqrt(1/2) to sqrt(2).
    """
    bits = as_bits(x) - np.uint32(0x3F3504F3)  # the bits of sqrt(1/2), where y begins
    exponent = np.float32(np.int32(bits) >> np.int32(23))
    y = as_float((bits & np.uint32(0x7FFFFF)) + np.uint32(0x3F3504F3))
    s = (y - np.float32(1)) / (y + np.float32(1))
    square = s * s
    series = np.float32(1 / 7) + square * np.float32(1 / 9)
    series = np.float32(1 / 5) + square * series
    series = np.float32(1 / 3) + square * series
    series = np.float32(1) + square * series
    return exponent * np.float32(0.6931471805599453) + np.float32(2) * s * series


def _prefetch_line(address: Any) -> None:
    """Prefetch the cache line at an address. An invalid address is not an error."""


@intrinsic
def _prefetch(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep_in_all_levels, data = number(0), number(3), number(1)
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), read, keep_in_all_levels, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@overload(_prefetch_line)
def _prefetch_line_compiled(address: Any) -> Any:
    def prefetch(address: Any) -> None:
        _prefetch(address)

    return prefetch


@compiled(error_model="numpy")
def prefetch_row(rows: Any, b: int, t: int, start: int, stop: int, width: int, channels: int) -> None:
    """Prefetch `channels` of every `width` values from `start` to `stop` of row t, if that row exists."""
    if 0 <= t < rows.shape[1]:
        row = rows[b, t].ctypes.data
        for stream in range(start, stop, width):
            for j in range(0, channels, LINE // rows.itemsize):
                _prefetch_line(row + (stream + j) * rows.itemsize)
