"""What the Triton kernels share: channels of a program, rows in registers, one step of the maximum."""

import triton
import triton.language as tl


@triton.jit
def channels_of(D: tl.constexpr, BLOCK: tl.constexpr):
    """The channels of a program and which of them there are."""
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return channels, channels < D


@triton.jit
def load_rows(rows, step: tl.constexpr, left, other: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """ROWS rows in float32 from the pointers `rows` on, `other` where fewer are `left`. All loads go before stores."""
    loaded = ()
    for j in tl.static_range(ROWS):
        row = tl.load(rows + j * step) if WHOLE else tl.load(rows + j * step, mask=j < left, other=other)
        loaded = loaded + (row.to(tl.float32),)
    return loaded


@triton.jit
def store_row(row_pointers, row, j: tl.constexpr, left, WHOLE: tl.constexpr):
    """Row j of a tile in the dtype of its pointers, unless fewer rows are `left`."""
    row = row.to(row_pointers.dtype.element_ty)
    if WHOLE:
        tl.store(row_pointers, row)
    else:
        tl.store(row_pointers, row, mask=j < left)


@triton.jit
def later_of(before, d):
    """The maximum of what was before and d, as torch.cummax: of equal values the later, NaN for good."""
    return tl.where((d >= before) | (d != d), d, before)
