"""Run the fused scan on CUDA, in float32. Needs triton."""

# B batch, T time, C chunks, D width

import torch
from torch import Tensor

from samout_train.ops.max_scan.cuda import ENOUGH_CHANNELS, rows_a_chunk
from samout_train.ops.semiring_scan.triton import (
    scan_backward,
    scan_forward,
    scan_gradient_totals,
    scan_starts,
    scan_totals,
)

ROWS, BLOCK = 8, 64
# One warp per program. No fused multiply-add, so that a row has the reference's bits.
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}


def forward(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: str, h_BTD: Tensor) -> None:
    """Fill h_BTD."""
    batch, time, width = h_BTD.shape
    rows, chunks, blocks = _cut(batch, time, width)
    sizes = {"MAX_MIN": semiring == "max_min", "D": width, "BLOCK": BLOCK}
    starts_BCD = state_BD
    with torch.cuda.device_of(h_BTD):
        if chunks > 1:
            product_BCD, total_BCD, starts_BCD = (state_BD.new_empty(batch, chunks, width) for _ in range(3))
            grid = (blocks, chunks, batch)
            scan_totals[grid](a_BTD, x_BTD, product_BCD, total_BCD, time, rows, ROWS=ROWS, **sizes, **OPTIONS)
            given = (state_BD, product_BCD, total_BCD, starts_BCD, torch.empty_like(state_BD), chunks)
            scan_starts[(blocks, batch)](*given, BACKWARD=False, **sizes, **OPTIONS)
        scan_forward[(blocks, chunks, batch)](
            a_BTD, x_BTD, starts_BCD, h_BTD, time, rows, ROWS=ROWS, **sizes, **OPTIONS
        )


def backward(
    a_BTD: Tensor,
    x_BTD: Tensor,
    h_BTD: Tensor,
    state_BD: Tensor,
    semiring: str,
    grad_h_BTD: Tensor,
    grad_a_BTD: Tensor,
    grad_x_BTD: Tensor,
    grad_state_BD: Tensor,
) -> None:
    """Fill the last three."""
    batch, time, width = h_BTD.shape
    rows, chunks, blocks = _cut(batch, time, width)
    sizes = {"MAX_MIN": semiring == "max_min", "D": width, "ROWS": ROWS, "BLOCK": BLOCK}
    product_BCD, total_BCD, starts_BCD = (state_BD.new_empty(batch, chunks, width) for _ in range(3))
    given, grid = (a_BTD, x_BTD, h_BTD, state_BD, grad_h_BTD), (blocks, chunks, batch)
    with torch.cuda.device_of(h_BTD):
        scan_gradient_totals[grid](*given, product_BCD, total_BCD, time, rows, **sizes, **OPTIONS)
        chunked = (torch.zeros_like(state_BD), product_BCD, total_BCD, starts_BCD, grad_state_BD, chunks)
        of_chunks = {"MAX_MIN": False, "BACKWARD": True, "D": width, "BLOCK": BLOCK}
        scan_starts[(blocks, batch)](*chunked, **of_chunks, **OPTIONS)
        scan_backward[grid](*given, starts_BCD, grad_a_BTD, grad_x_BTD, time, rows, **sizes, **OPTIONS)


def _cut(batch: int, time: int, width: int) -> tuple[int, int, int]:
    """Return the rows of a chunk of time, the number of chunks, and the number of blocks of channels."""
    rows = rows_a_chunk(batch, time, width, ENOUGH_CHANNELS)
    return rows, -(-time // rows), -(-width // BLOCK)
