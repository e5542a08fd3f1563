"""What numba kernels do with memory: bfloat16 as its bits, computed with in float32; lines asked for early."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from samout_train.ops.numba_cache import compiled

LINE = 64  # bytes of a cache line


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
    """A value of an array in float32."""


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
    """A float32 as `array` holds it: to bfloat16 the nearest, of two the even one."""


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


@intrinsic
def _prefetch_line(typing_context: Any, address: Any) -> Any:
    """Asks for the cache line at an address; one that is not there is no error."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep_in_all_levels, data = number(0), number(3), number(1)
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), read, keep_in_all_levels, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@compiled(error_model="numpy")
def prefetch_row(rows: Any, b: int, t: int, start: int, stop: int, width: int, channels: int) -> None:
    """`channels` of every `width` values from `start` to `stop` of one row, where there is such a row."""
    if 0 <= t < rows.shape[1]:
        row = rows[b, t].ctypes.data
        for stream in range(start, stop, width):
            for j in range(0, channels, LINE // rows.itemsize):
                _prefetch_line(row + (stream + j) * rows.itemsize)
