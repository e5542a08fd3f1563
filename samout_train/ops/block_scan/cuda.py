"""Run the recurrence of max-plus blocks on CUDA, in float32, bfloat16 and float16. Needs triton.

A warp owns BLOCK blocks, one per lane, and walks through time row by row in float32; no two programs write to the same
place, and nothing is summed across programs. The forward pass saves the state before every few rows (ROWS_A_CARRY,
fewer for larger blocks); from it the backward pass recomputes a tile's states, then walks the tile from its last row to
its first. The inputs and those states are kept: one float32 per entry, every four rows for blocks of two entries, every
two rows for three entries, and every row for more.

If there are too few blocks to fill the device, time is cut into chunks that run in parallel, in three passes each way:

    forward:   each chunk's max-plus matrix, a column a program; the states before chunks, one after another; outputs
    backward:  each chunk's linear map of gradients, a row a program, and what its outputs add; the gradients after
               chunks, from the last to the first; gradients of the streams

A matrix that permutes the entries is exact, like the steps; otherwise the sums of a chunk round in another order.

The temperature enters each maximum, of the rows of L, of the state and of the matrices: it becomes tau logsumexp(. /
tau), and its gradient a softmax at tau. The kernels read it on the device. None selects the hard maximum, in kernels
without exponentials; at 0, the kernels with a temperature give the same bits. Not measured on a GPU yet.
"""

# B batch, T time, P packed: the streams side by side, N entries a block, G blocks, D = N G, R blocks of rows, C chunks

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.block_scan.operator import rows_a_carry
from samout_train.ops.block_scan.triton import (
    block_backward,
    block_forward,
    block_gradient_maps,
    block_gradient_starts,
    block_maps,
    block_starts,
)
from samout_train.ops.max_scan.cuda import ENOUGH_UNCUT, rows_a_chunk

BLOCK = 32
# One warp per program. No fused multiply-add, so that a hard state has the reference's bits.
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}


def forward(
    packed_BTP: Tensor,
    state_BNG: Tensor,
    temperature: Tensor | None,
    y_BTD: Tensor,
    last_BNG: Tensor,
    carries_BRNG: Tensor,
) -> None:
    """Fill y_BTD, last_BNG and carries_BRNG, the state before every few rows."""
    batch, time, _ = y_BTD.shape
    _, size, blocks = state_BNG.shape
    rows, chunks, programs = _cut(batch, time, blocks)
    heat, sizes, starts_BCNG = _heat(temperature, state_BNG), _sizes(temperature, state_BNG), state_BNG
    walk = {**sizes, "ROWS": rows_a_carry("cuda", size), **OPTIONS}
    with torch.cuda.device_of(packed_BTP):
        if chunks > 1:
            maps_BCNNG = state_BNG.new_empty(batch, chunks, size, size, blocks)
            starts_BCNG = state_BNG.new_empty(batch, chunks, size, blocks)
            block_maps[(programs * size, chunks, batch)](packed_BTP, heat, maps_BCNNG, time, rows, **walk)
            block_starts[(programs, batch)](state_BNG, heat, maps_BCNNG, starts_BCNG, chunks, **sizes, **OPTIONS)
        outputs = (y_BTD, last_BNG, carries_BRNG)
        block_forward[(programs, chunks, batch)](packed_BTP, heat, starts_BCNG, *outputs, time, rows, **walk)


def backward(
    packed_BTP: Tensor,
    carries_BRNG: Tensor,
    temperature: Tensor | None,
    grad_y_BTD: Tensor,
    grad_last_BNG: Tensor,
    grad_packed_BTP: Tensor,
    grad_state_BNG: Tensor,
) -> None:
    """Fill the last two."""
    batch, time, _ = grad_y_BTD.shape
    _, size, blocks = grad_last_BNG.shape
    rows, chunks, programs = _cut(batch, time, blocks)
    heat, sizes, laters_BCNG = _heat(temperature, carries_BRNG), _sizes(temperature, grad_last_BNG), grad_last_BNG
    walk = {**sizes, "ROWS": rows_a_carry("cuda", size), **OPTIONS}
    inputs = (packed_BTP, heat, carries_BRNG, grad_y_BTD)
    with torch.cuda.device_of(packed_BTP):
        if chunks > 1:
            maps_BCMNG = carries_BRNG.new_empty(batch, chunks, size + 1, size, blocks)
            laters_BCNG = carries_BRNG.new_empty(batch, chunks, size, blocks)
            block_gradient_maps[(programs * (size + 1), chunks, batch)](*inputs, maps_BCMNG, time, rows, **walk)
            block_gradient_starts[(programs, batch)](
                grad_last_BNG, maps_BCMNG, laters_BCNG, chunks, N=size, G=blocks, BLOCK=BLOCK, **OPTIONS
            )
        outputs = (grad_packed_BTP, grad_state_BNG)
        block_backward[(programs, chunks, batch)](*inputs, laters_BCNG, *outputs, time, rows, **walk)


def _heat(temperature: Tensor | None, other: Tensor) -> Tensor:
    """Return the temperature, or else any tensor for a kernel that reads none."""
    if temperature is None:
        return other
    return temperature


def _sizes(temperature: Tensor | None, state_BNG: Tensor) -> dict[str, Any]:
    return {"SOFT": temperature is not None, "N": state_BNG.shape[1], "G": state_BNG.shape[2], "BLOCK": BLOCK}


def _cut(batch: int, time: int, blocks: int) -> tuple[int, int, int]:
    """Return the rows of a chunk of time, the number of chunks, and the programs that all blocks take.

    A block counts as two channels: a lane of the running maximum owns two.
    """
    rows = rows_a_chunk(batch, time, 2 * blocks, ENOUGH_UNCUT)
    return rows, -(-time // rows), -(-blocks // BLOCK)
