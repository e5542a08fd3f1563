"""Generate machine code for tiles of a product, for transposed tiles and for copies in numba kernels.

A product keeps a tile of its result in registers while it walks through the depth: 4 rows by 16 columns, or 8 by 32
with AVX-512, which has twice as many registers, each twice as wide. Both sum in the same order, so they give the same
numbers. A tile also prefetches from a queue of blocks, see tiles.py.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from samout_train.ops.head_kernels.layout import LANES

_, _, FEATURES = cpu_target.target_context.codegen().magic_tuple()  # of the processor that numba compiles for
WIDE = 16 if "+avx512f" in FEATURES else LANES  # numbers of its widest vector
ROWS = 4  # of the lowest tile
TALL = 8 if WIDE > LANES else ROWS  # rows of the highest tile
SPREAD = WIDE > LANES  # whether a tile prefetches a line at each of its steps
LINE, LINES = 64, 4  # bytes of a cache line, and lines of a block
BLOCKS = 2  # blocks that a tile prefetches at once
POSITION, END, FIRST = 0, 1, 2  # places in a queue: of its position, its end, and its first block
FLOAT, INDEX = ir.FloatType(), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)


def _index(number: int) -> ir.Constant:
    return ir.Constant(INDEX, number)


def _vector_at(builder: Any, base: Any, offset: Any, kind: Any = VECTOR) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _spread(builder: Any, number: Any, kind: Any) -> Any:
    """Return a vector with a number in all lanes."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, undefined, lanes)


def _prefetch(builder: Any, block: Any, line: Any) -> None:
    """Prefetch a line of a block into the second-level cache."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    read, locality, data = (ir.Constant(number, value) for value in (0, 2, 1))
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    address = builder.add(block, builder.mul(line, _index(LINE)))
    builder.call(function, [builder.inttoptr(address, byte), read, locality, data])


def _prefetch_at_once(builder: Any, queue: Any) -> None:
    """Prefetch the next BLOCKS of a queue, if it has any left."""
    position, end = builder.load(queue), builder.load(builder.gep(queue, [_index(END)]))
    some, after = builder.append_basic_block("ahead"), builder.append_basic_block("ahead.end")
    builder.cbranch(builder.icmp_signed("<", position, end), some, after)
    builder.position_at_end(some)
    for place in range(BLOCKS):
        block = builder.load(builder.gep(queue, [builder.add(position, _index(place))]))
        for line in range(LINES):
            _prefetch(builder, block, _index(line))
    builder.store(builder.add(position, _index(BLOCKS)), queue)
    builder.branch(after)
    builder.position_at_end(after)


def _prefetch_at_step(builder: Any, queue: Any, position: Any, end: Any, step: Any) -> None:
    """Prefetch a line of a queue at a step of a tile; past its end, repeat the first block, which has no effect."""
    place = builder.add(position, builder.udiv(step, _index(LINES)))
    place = builder.select(builder.icmp_signed("<", place, end), place, _index(FIRST))
    _prefetch(builder, builder.load(builder.gep(queue, [place])), builder.urem(step, _index(LINES)))


def _add_outer(builder: Any, sums: list[Any], column_a: list[Any], rows_b: list[Any]) -> list[Any]:
    """Return the sums of a tile plus the outer product of a column of A and a row of B."""
    added = []
    for row, place in enumerate(column_a):
        number = _spread(builder, builder.load(place, align=4), rows_b[0].type)
        for part, vector in enumerate(rows_b):
            product = builder.fmul(number, vector, flags=("contract",))
            added.append(builder.fadd(product, sums[row * len(rows_b) + part], flags=("contract",)))
    return added


def _generate_tile(rows: int, vectors: int, lanes: int) -> Callable[..., Any]:
    """Return a generator of code for a tile of rows of vectors: out = factor * begun + A B, by addresses.

    If `begun` is 0, the sum starts at zero. A tile prefetches from a queue, see `new_queue`: with wide vectors each
    step has time for one line; otherwise the tile prefetches some blocks at once.
    """
    kind = ir.VectorType(FLOAT, lanes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, begun, factor, out_row, a, a_row, a_column, b, b_row, depth, ahead = arguments
        builder.function.attributes.add("noinline")  # inlined copies take long to compile
        out, begun, a, b = (builder.inttoptr(address, FLOAT.as_pointer()) for address in (out, begun, a, b))
        offsets = [
            builder.add(builder.mul(_index(row), out_row), _index(lanes * part))
            for row in range(rows)
            for part in range(vectors)
        ]
        queue = builder.inttoptr(ahead, INDEX.as_pointer())
        if not SPREAD:
            _prefetch_at_once(builder, queue)
        position, end = builder.load(queue), builder.load(builder.gep(queue, [_index(END)]))
        zeros = ir.Constant(kind, [0.0] * lanes)
        entry = builder.block
        load, loop = builder.append_basic_block("tile.begun"), builder.append_basic_block("tile")
        after = builder.append_basic_block("tile.end")
        builder.cbranch(builder.icmp_unsigned("==", begun, ir.Constant(begun.type, None)), loop, load)
        builder.position_at_end(load)
        factors = _spread(builder, factor, kind)
        given = [builder.fmul(factors, builder.load(_vector_at(builder, begun, at, kind), align=4)) for at in offsets]
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(INDEX)
        sums = [builder.phi(kind) for _ in offsets]
        if SPREAD:
            _prefetch_at_step(builder, queue, position, end, step)
        offset, column = builder.mul(step, b_row), builder.mul(step, a_column)
        rows_b = [
            builder.load(_vector_at(builder, b, builder.add(offset, _index(lanes * part)), kind), align=4)
            for part in range(vectors)
        ]
        column_a = [builder.gep(a, [builder.add(column, builder.mul(_index(row), a_row))]) for row in range(rows)]
        added = _add_outer(builder, sums, column_a, rows_b)
        following = builder.add(step, _index(1))
        step.add_incoming(_index(0), entry)
        step.add_incoming(_index(0), load)
        step.add_incoming(following, loop)
        for total, start, next_sum in zip(sums, given, added, strict=True):
            total.add_incoming(zeros, entry)
            total.add_incoming(start, load)
            total.add_incoming(next_sum, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        if SPREAD:
            builder.store(builder.add(position, builder.udiv(depth, _index(LINES))), queue)
        for at, total in zip(offsets, added, strict=True):
            builder.store(total, _vector_at(builder, out, at, kind), align=4)
        return context.get_dummy_value()

    return generate


TILE = types.void(*[types.int64] * 2, types.float32, *[types.int64] * 8)


def tile(rows: int, vectors: int, lanes: int) -> Any:
    """Return a function that computes a tile from addresses and strides, in numbers; see `product_at`."""

    @intrinsic
    def compute(
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
        return TILE, _generate_tile(rows, vectors, lanes)

    return compute


@intrinsic
def transpose_tile(typing_context: Any, out: Any, out_row: Any, a: Any, a_row: Any) -> Any:
    """Transpose LANES x LANES numbers in registers: interleave pairs of rows, then pairs of pairs, then halves."""

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
def copy_vector(typing_context: Any, out: Any, given: Any) -> Any:
    """Copy LANES numbers from one address to another."""
    return types.void(types.int64, types.int64), _generate_copy(VECTOR)


@intrinsic
def copy_number(typing_context: Any, out: Any, given: Any) -> Any:
    """Copy a number from one address to another."""
    return types.void(types.int64, types.int64), _generate_copy(FLOAT)
