"""Multiply, transpose, load and store small float32 matrices inside numba kernels.

Matrices lie in buffers of the first-level cache, padded with zeros to LANES columns.
"""

from typing import Any

import numba
import numpy as np

from samout_train.ops.head_kernels.layout import LANES
from samout_train.ops.head_kernels.tile_code import (
    BLOCKS,
    END,
    FIRST,
    LINE,
    LINES,
    POSITION,
    ROWS,
    TALL,
    WIDE,
    copy_number,
    copy_vector,
    tile,
    transpose_tile,
)
from samout_train.ops.numba_support import _pointer

LAST = 512  # the end of a queue's places for blocks
# Options for the parts of a kernel: only the kernel itself needs a cache and an entry point from Python.
NO_WRAPPERS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner = numba.njit(**NO_WRAPPERS)
inlined = numba.njit(**NO_WRAPPERS, inline="always")  # takes functions as arguments, which otherwise prevent caching
contracted = numba.njit(**NO_WRAPPERS, fastmath={"contract"})  # a product and a sum are rounded once
# Reassociation lets a sum run in vectors. NaN and infinity keep their meaning.
reassociated = numba.njit(**NO_WRAPPERS, fastmath={"reassoc", "contract"})


@inner
def padded(width: Any) -> Any:
    """Round a width up to whole vectors."""
    return (width + LANES - 1) // LANES * LANES


@inner
def new_queue() -> Any:
    """Return an empty queue for the addresses of blocks to prefetch.

    An address may lie outside its tensor, or be invalid: prefetching it then has no effect.
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
    """Append rows with a stride of `row` numbers to a queue, until it is full."""
    for i in range(count):
        for j in range(0, width, LINE * LINES // 4):
            if queue[END] < LAST:
                queue[queue[END]] = address + 4 * (i * row + j)
                queue[END] += 1


def _strip(height: int) -> Any:
    """Return a function that computes `height` rows of a product, the rows of a tile; see `product_at`."""
    wide, one, narrow = tile(height, 2, WIDE), tile(height, 1, WIDE), tile(height, 1, LANES)

    def strip(
        out: Any,
        begun: Any,
        factor: Any,
        out_row: Any,
        a: Any,
        a_row: Any,
        a_column: Any,
        b: Any,
        b_row: Any,
        columns: Any,
        depth: Any,
        ahead: Any,
    ) -> None:
        column = 0
        while column < columns:
            at, from_at = out + 4 * column, begun + 4 * column if begun else 0
            b_now = b + 4 * column
            if column + 2 * WIDE <= columns:
                wide(at, from_at, factor, out_row, a, a_row, a_column, b_now, b_row, depth, ahead)
                column += 2 * WIDE
            elif column + WIDE <= columns:
                one(at, from_at, factor, out_row, a, a_row, a_column, b_now, b_row, depth, ahead)
                column += WIDE
            else:
                narrow(at, from_at, factor, out_row, a, a_row, a_column, b_now, b_row, depth, ahead)
                column += LANES

    # numba names machine code after the function and a counter of the process. With one name, strips of different
    # heights that several processes cached could have the same symbol, and the first one loaded would serve for both.
    strip.__name__ = strip.__qualname__ = f"strip_of_{height}"
    return inner(strip)


_flat_strip = _strip(ROWS)
_tall_strip = _strip(TALL) if TALL > ROWS else _flat_strip


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
    """Store factor * begun + A B, by addresses and by strides in numbers.

    Args:
        begun: Address of a matrix whose rows have the stride of the result's; 0 for zeros.
        rows: Rows of the result; a multiple of ROWS.
        columns: Columns of the result; a multiple of LANES.
        depth: Number of terms of a sum, at least 1.
        ahead: Address of a queue of blocks to prefetch.
    """
    row = 0
    while row < rows:
        at = 4 * row * out_row
        from_at, a_now = begun + at if begun else 0, a + 4 * row * a_row
        if row + TALL <= rows:
            _tall_strip(out + at, from_at, factor, out_row, a_now, a_row, a_column, b, b_row, columns, depth, ahead)
            row += TALL
        else:
            _flat_strip(out + at, from_at, factor, out_row, a_now, a_row, a_column, b, b_row, columns, depth, ahead)
            row += ROWS


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
    """Fill out with factor * begun + A^T B; with a factor of 0, `begun` is not read."""
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
            transpose_tile(place, rows, a.ctypes.data + 4 * (row * columns + column), columns)


@inner
def _copy_row(out: Any, given: Any, width: Any) -> None:
    whole = width // LANES * LANES
    for j in range(0, whole, LANES):
        copy_vector(out + 4 * j, given + 4 * j)
    for j in range(whole, width):
        copy_number(out + 4 * j, given + 4 * j)


@inner
def load(out: Any, address: Any, row: Any, count: Any, width: Any) -> None:
    """Load `count` rows of `width` numbers, with a stride of `row` numbers; fill the rest with zeros."""
    for i in range(count):
        _copy_row(out.ctypes.data + 4 * i * out.shape[1], address + 4 * i * row, width)
        for j in range(width, out.shape[1]):
            out[i, j] = 0
    for i in range(count, len(out)):
        for j in range(out.shape[1]):
            out[i, j] = 0


@inner
def store(a: Any, address: Any, row: Any, count: Any, width: Any) -> None:
    """Store `width` numbers of the first `count` rows, with a stride of `row` numbers."""
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
    """Fill a row with a multiple of another."""
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
    for i in range(len(a)):  # not `scale_into(a, a, factors)`, whose loop from a row to itself does not run in vectors
        factor = factors[i]
        for j in range(a.shape[1]):
            a[i, j] *= factor


@inner
def clear(a: Any) -> None:
    """Fill with zeros, in a loop, which compiles to less code than assigning to a slice."""
    for i in range(len(a)):
        for j in range(a.shape[1]):
            a[i, j] = 0


@inner
def fill_row(out: Any, a: Any, b: Any) -> None:
    """Fill a row with the elementwise product of two rows."""
    for j in range(len(out)):
        out[j] = a[j] * b[j]


@inner
def multiply_into(out: Any, a: Any, b: Any) -> None:
    """Fill out with the elementwise product of A and B."""
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
    """Fill out with A S^T, given A^T."""
    fill_product(spare_KC, state_KV, columns_VC, ahead)
    transpose(out_CK, spare_KC)
