"""Multiply, transpose, load and store small float32 matrices inside numba kernels, by vectors of 8 numbers.

Matrices lie in buffers of the first-level cache, padded with zeros to LANES columns. A product keeps 4 rows by 16
columns of its result in registers while it walks through the depth. On one core of an AMD EPYC (Zen 3) products of
16 x 64 x 64 ran at 80 to 93 GFLOP/s, and batched products of 64 x 64 in MKL at 42.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from samout_train.ops.head_kernels.layout import LANES as LANES
from samout_train.ops.numba_support import _pointer

ROWS = 4  # of a tile
LINE = 64  # bytes of a cache line
BLOCK, BLOCKS = 64, 2  # numbers of a block that is prefetched, and blocks that a tile prefetches
POSITION, END, FIRST, LAST = 0, 1, 2, 512  # of a queue of blocks: its next and its end; the places of blocks
FLOAT, INDEX = ir.FloatType(), ir.IntType(64)
# Decorates the parts of a kernel, which has the cache and the way in from Python.
NO_WRAPPERS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner = numba.njit(**NO_WRAPPERS)
inlined = numba.njit(**NO_WRAPPERS, inline="always")  # takes functions as arguments, which else prevent the cache
contracted = numba.njit(**NO_WRAPPERS, fastmath={"contract"})  # a product and a sum are rounded once
# Reassociation lets a sum run in vectors. NaN and infinity keep their meaning.
reassociated = numba.njit(**NO_WRAPPERS, fastmath={"reassoc", "contract"})
VECTOR = ir.VectorType(FLOAT, LANES)


def _index(number: int) -> ir.Constant:
    return ir.Constant(INDEX, number)


def _vector_at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), VECTOR.as_pointer())


def _spread(builder: Any, number: Any) -> Any:
    """Return a vector with a number in all lanes."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, lanes)


def _prefetch(builder: Any, ahead: Any) -> None:
    """Prefetch into the second-level cache the next BLOCKS of a queue, if it has any left."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    read, locality, data = (ir.Constant(number, value) for value in (0, 2, 1))
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    queue = builder.inttoptr(ahead, INDEX.as_pointer())
    at, end = builder.load(queue), builder.load(builder.gep(queue, [_index(1)]))
    some, after = builder.append_basic_block("ahead"), builder.append_basic_block("ahead.end")
    builder.cbranch(builder.icmp_signed("<", at, end), some, after)
    builder.position_at_end(some)
    for block in range(BLOCKS):
        address = builder.load(builder.gep(queue, [builder.add(at, _index(block))]))
        for offset in range(0, 4 * BLOCK, LINE):
            line = builder.inttoptr(builder.add(address, _index(offset)), byte)
            builder.call(function, [line, read, locality, data])
    builder.store(builder.add(at, _index(BLOCKS)), queue)
    builder.branch(after)
    builder.position_at_end(after)


def _generate_tile(vectors: int) -> Callable[..., Any]:
    """Return a generator of code for ROWS rows of so many vectors: out = factor * begun + A B, by addresses.

    Where `begun` is 0, the sum begins with zeros. Each tile prefetches blocks of a queue, see `new_queue`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, begun, factor, out_row, a, a_row, a_column, b, b_row, depth, ahead = arguments
        builder.function.attributes.add("noinline")  # copies of it at each call take long to compile
        out, begun, a, b = (builder.inttoptr(address, FLOAT.as_pointer()) for address in (out, begun, a, b))
        offsets = [
            builder.add(builder.mul(_index(row), out_row), _index(LANES * part))
            for row in range(ROWS)
            for part in range(vectors)
        ]
        _prefetch(builder, ahead)
        zeros = ir.Constant(VECTOR, [0.0] * LANES)
        entry = builder.block
        load, loop = builder.append_basic_block("tile.begun"), builder.append_basic_block("tile")
        after = builder.append_basic_block("tile.end")
        builder.cbranch(builder.icmp_unsigned("==", begun, ir.Constant(begun.type, None)), loop, load)
        builder.position_at_end(load)
        factors = _spread(builder, factor)
        given = [builder.fmul(factors, builder.load(_vector_at(builder, begun, at), align=4)) for at in offsets]
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(INDEX)
        sums = [builder.phi(VECTOR) for _ in offsets]
        offset, column = builder.mul(step, b_row), builder.mul(step, a_column)
        rows_b = [
            builder.load(_vector_at(builder, b, builder.add(offset, _index(LANES * part))), align=4)
            for part in range(vectors)
        ]
        added = []
        for row in range(ROWS):
            place = builder.gep(a, [builder.add(column, builder.mul(_index(row), a_row))])
            spread = _spread(builder, builder.load(place, align=4))
            for part in range(vectors):
                product = builder.fmul(spread, rows_b[part], flags=("contract",))
                added.append(builder.fadd(product, sums[row * vectors + part], flags=("contract",)))
        following = builder.add(step, _index(1))
        step.add_incoming(_index(0), entry)
        step.add_incoming(_index(0), load)
        step.add_incoming(following, loop)
        for total, start, end in zip(sums, given, added, strict=True):
            total.add_incoming(zeros, entry)
            total.add_incoming(start, load)
            total.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        for at, total in zip(offsets, added, strict=True):
            builder.store(total, _vector_at(builder, out, at), align=4)
        return context.get_dummy_value()

    return generate


TILE = types.void(*[types.int64] * 2, types.float32, *[types.int64] * 8)


def _tile(vectors: int) -> Any:
    @intrinsic
    def tile(
        typing_context: Any,
        out: Any,
        begun: Any,
        factor: Any,
        out_row: Any,
        a: Any,
        a_row: Any,
        a_column: Any,
        b: Any,
        b_row: Any,
        depth: Any,
        ahead: Any,
    ) -> Any:
        return TILE, _generate_tile(vectors)

    return tile


_wide_tile, _narrow_tile = _tile(2), _tile(1)


@intrinsic
def _transpose_tile(typing_context: Any, out: Any, out_row: Any, a: Any, a_row: Any) -> Any:
    """Transpose LANES x LANES numbers in registers: pairs of rows, pairs of pairs, and halves change places."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, out_row, a, a_row = arguments
        out, a = (builder.inttoptr(address, FLOAT.as_pointer()) for address in (out, a))

        def joined(one: Any, other: Any, lanes: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
            return builder.shuffle_vector(one, other, mask)

        rows = [builder.load(_vector_at(builder, a, builder.mul(_index(row), a_row)), align=4) for row in range(LANES)]
        pairs = []
        for row in range(0, LANES, 2):
            pairs.append(joined(rows[row], rows[row + 1], [0, 8, 1, 9, 4, 12, 5, 13]))
            pairs.append(joined(rows[row], rows[row + 1], [2, 10, 3, 11, 6, 14, 7, 15]))
        fours = []
        for first in (0, 4):
            for part in (0, 1):
                one, other = pairs[first + part], pairs[first + part + 2]
                fours.append(joined(one, other, [0, 1, 8, 9, 4, 5, 12, 13]))
                fours.append(joined(one, other, [2, 3, 10, 11, 6, 7, 14, 15]))
        for half, lanes in ((0, [0, 1, 2, 3, 8, 9, 10, 11]), (4, [4, 5, 6, 7, 12, 13, 14, 15])):
            for row in range(4):
                place = _vector_at(builder, out, builder.mul(_index(half + row), out_row))
                builder.store(joined(fours[row], fours[row + 4], lanes), place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


def _generate_copy(kind: Any) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, given = (builder.inttoptr(address, kind.as_pointer()) for address in arguments)
        builder.store(builder.load(given, align=4), out, align=4)
        return context.get_dummy_value()

    return generate


@intrinsic
def _copy_vector(typing_context: Any, out: Any, given: Any) -> Any:
    return types.void(types.int64, types.int64), _generate_copy(VECTOR)


@intrinsic
def _copy_number(typing_context: Any, out: Any, given: Any) -> Any:
    return types.void(types.int64, types.int64), _generate_copy(FLOAT)


@inner
def padded(width: Any) -> Any:
    """Return a width of whole vectors."""
    return (width + LANES - 1) // LANES * LANES


@inner
def new_queue() -> Any:
    """Return a queue of addresses of blocks to prefetch, at first of none.

    An address may lie outside of a tensor or of all memory: prefetching it has no effect.
    """
    queue = np.zeros(LAST + BLOCKS, np.int64)
    clear_queue(queue)
    return queue


@inner
def clear_queue(queue: Any) -> None:
    """Remove all blocks."""
    queue[POSITION] = queue[END] = FIRST


@inner
def append(queue: Any, address: Any, row: Any, count: Any, width: Any) -> None:
    """Append rows at a distance of `row` numbers to a queue, as long as there is a place."""
    for i in range(count):
        for j in range(0, width, BLOCK):
            if queue[END] < LAST:
                queue[queue[END]] = address + 4 * (i * row + j)
                queue[END] += 1


@inner
def product_at(
    out: Any,
    begun: Any,
    factor: Any,
    out_row: Any,
    a: Any,
    a_row: Any,
    a_column: Any,
    b: Any,
    b_row: Any,
    rows: Any,
    columns: Any,
    depth: Any,
    ahead: Any,
) -> None:
    """Store factor * begun + A B, by addresses and by distances in numbers.

    Args:
        begun: Address of a matrix with rows at the distance of those of the result; 0 for zeros.
        rows: Of the result; a multiple of ROWS.
        columns: Of the result; a multiple of LANES.
        depth: Of the sum, at least 1.
        ahead: Address of a queue of what to prefetch.
    """
    whole = columns // (2 * LANES) * 2 * LANES
    for row in range(0, rows, ROWS):
        a_now = a + 4 * row * a_row
        for column in range(0, whole, 2 * LANES):
            at = 4 * (row * out_row + column)
            from_at = begun + at if begun else 0
            _wide_tile(out + at, from_at, factor, out_row, a_now, a_row, a_column, b + 4 * column, b_row, depth, ahead)
        if whole < columns:
            at = 4 * (row * out_row + whole)
            from_at = begun + at if begun else 0
            _narrow_tile(out + at, from_at, factor, out_row, a_now, a_row, a_column, b + 4 * whole, b_row, depth, ahead)


ONE = np.float32(1)


@inner
def fill_product(out: Any, a: Any, b: Any, ahead: Any) -> None:
    """Fill out with A B."""
    size, width = out.shape
    product_at(
        out.ctypes.data, 0, ONE, width, a.ctypes.data, a.shape[1], 1, b.ctypes.data, width, size, width, len(b), ahead
    )


@inner
def add_product(out: Any, a: Any, b: Any, ahead: Any) -> None:
    """Add A B."""
    size, width = out.shape
    at = out.ctypes.data
    product_at(at, at, ONE, width, a.ctypes.data, a.shape[1], 1, b.ctypes.data, width, size, width, len(b), ahead)


@inner
def fill_with_outer(out: Any, begun: Any, factor: Any, a: Any, b: Any, ahead: Any) -> None:
    """Fill out with a multiple of a matrix, none where the factor is 0, and A^T B."""
    size, width = out.shape
    at = begun.ctypes.data if factor != 0 else 0
    product_at(
        out.ctypes.data, at, factor, width, a.ctypes.data, 1, size, b.ctypes.data, width, size, width, len(b), ahead
    )


@inner
def add_outer(out: Any, a: Any, b: Any, ahead: Any) -> None:
    """Add A^T B."""
    fill_with_outer(out, out, ONE, a, b, ahead)


@inner
def add_lower_product(out: Any, a: Any, b: Any, ahead: Any) -> None:
    """Add A B, where the square matrix A is 0 above its diagonal."""
    size, width = out.shape
    for row in range(0, size, ROWS):
        at, place = a.ctypes.data + 4 * row * size, out.ctypes.data + 4 * row * width
        product_at(place, place, ONE, width, at, size, 1, b.ctypes.data, width, ROWS, width, row + ROWS, ahead)


@inner
def add_lower_transposed(out: Any, a: Any, b: Any, ahead: Any) -> None:
    """Add A^T B, where the square matrix A is 0 above its diagonal."""
    size, width = out.shape
    for row in range(0, size, ROWS):
        at, place = a.ctypes.data + 4 * row * (size + 1), out.ctypes.data + 4 * row * width
        below = b.ctypes.data + 4 * row * width
        product_at(place, place, ONE, width, at, 1, size, below, width, ROWS, width, size - row, ahead)


@inner
def transpose(out: Any, a: Any) -> None:
    """Fill out with A^T; both sides are multiples of LANES."""
    rows, columns = a.shape
    for row in range(0, rows, LANES):
        for column in range(0, columns, LANES):
            place = out.ctypes.data + 4 * (column * rows + row)
            _transpose_tile(place, rows, a.ctypes.data + 4 * (row * columns + column), columns)


@inner
def _copy_row(out: Any, given: Any, width: Any) -> None:
    whole = width // LANES * LANES
    for j in range(0, whole, LANES):
        _copy_vector(out + 4 * j, given + 4 * j)
    for j in range(whole, width):
        _copy_number(out + 4 * j, given + 4 * j)


@inner
def load(out: Any, address: Any, row: Any, count: Any, width: Any) -> None:
    """Fill `width` columns of `count` rows from rows at a distance of `row` numbers, and the rest with zeros."""
    for i in range(count):
        _copy_row(out.ctypes.data + 4 * i * out.shape[1], address + 4 * i * row, width)
        for j in range(width, out.shape[1]):
            out[i, j] = 0
    for i in range(count, len(out)):
        for j in range(out.shape[1]):
            out[i, j] = 0


@inner
def store(a: Any, address: Any, row: Any, count: Any, width: Any) -> None:
    """Copy the first `count` rows to rows at a distance of `row` numbers."""
    for i in range(count):
        _copy_row(address + 4 * i * row, a.ctypes.data + 4 * i * a.shape[1], width)


@inner
def matrices_at(address: Any, count: Any, rows: Any, columns: Any) -> Any:
    """Return the contiguous matrices at an address."""
    return numba.carray(_pointer(address), (count, rows, columns), np.float32)


@reassociated
def dot(a: Any, b: Any) -> Any:
    """Return the sum of products of two rows."""
    total = np.float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@inner
def fill_multiple(out: Any, a: Any, factor: Any) -> None:
    """Fill a row with a multiple of one."""
    for j in range(len(out)):
        out[j] = factor * a[j]


@inner
def scale_into(out: Any, a: Any, factors: Any) -> None:
    """Fill out with the rows of A, each multiplied by its factor."""
    for i in range(len(a)):
        fill_multiple(out[i], a[i], factors[i])


@inner
def scale(a: Any, factors: Any) -> None:
    """Multiply each row by its factor."""
    for i in range(len(a)):  # in place: a loop from a row to itself does not run in vectors
        factor = factors[i]
        for j in range(a.shape[1]):
            a[i, j] *= factor


@inner
def clear(a: Any) -> None:
    """Fill with zeros; as a loop, which is less code than the assignment to a slice."""
    for i in range(len(a)):
        for j in range(a.shape[1]):
            a[i, j] = 0


@inner
def fill_row(out: Any, a: Any, b: Any) -> None:
    """Fill a row with the products of two."""
    for j in range(len(out)):
        out[j] = a[j] * b[j]


@inner
def multiply_into(out: Any, a: Any, b: Any) -> None:
    """Fill out with products of elements."""
    for i in range(len(a)):
        fill_row(out[i], a[i], b[i])


@inner
def multiply(a: Any, b: Any) -> None:
    """Multiply elementwise."""
    for i in range(len(a)):
        multiply_row(a[i], b[i])


@inner
def multiply_row(a: Any, b: Any) -> None:
    """Multiply a row by another in place."""
    for j in range(len(a)):
        a[j] *= b[j]


@contracted
def add_multiple(out: Any, a: Any, factor: Any) -> None:
    """Add a multiple of a row."""
    for d in range(len(out)):
        out[d] += factor * a[d]


@inner
def fill_with_transposed(out_CK: Any, state_KV: Any, columns_VC: Any, spare_KC: Any, ahead: Any) -> None:
    """Fill out with A S^T from A^T."""
    fill_product(spare_KC, state_KV, columns_VC, ahead)
    transpose(out_CK, spare_KC)
