"""The fused running maximum on CUDA, in float32, bfloat16 and float16. Needs triton.

A warp owns BLOCK channels of one sequence and walks through time row by row, with the maxima and ROWS rows of each
stream in registers. There is no associative scan and no shared memory. The forward pass saves the maximum before every
ROWS rows; from it the backward pass recomputes a tile and walks it from its last row to its first. "Is a new maximum"
is the local test d_t == m_t or d_t is NaN, so no index is stored.

If batch times width is too small to fill the device, time is cut into chunks that run in parallel. The forward pass
needs the maximum before each chunk, from an extra pass over d. It is exact; with a decay, however, the sum of a chunk's
decays rounds differently from adding them one by one. The backward pass reads nothing twice: the gradient that later
chunks add to a chunk's maximum belongs to the row of its last new maximum, which is rewritten.
"""

# B batch, T time, D width, P packed: the streams side by side, N tiles of rows, C chunks

import torch
from torch import Tensor

from samout_train.ops.max_scan.operator import ROWS_A_CARRY
from samout_train.ops.max_scan.reference import CODES
from samout_train.ops.max_scan.triton import (
    add_later,
    backward_chunk,
    chunk_gradients,
    chunk_starts,
    chunk_totals,
    forward_chunk,
)

ROWS, BLOCK = ROWS_A_CARRY["cuda"], 64
# One warp per program. No fused multiply-add, so that results have the reference's bits.
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
BACKWARD_OPTIONS = OPTIONS | {"maxnreg": 224}  # without a limit, ptxas spills to fit a few more warps
ENOUGH_CHANNELS = 100_000  # enough warps to hide the memory latency of a large device
ENOUGH_UNCUT = 24_000  # from here on a forward pass in one chunk is fast enough, and reads d only once
LEAST_ROWS = 128  # rows of a chunk


def rows_a_chunk(batch: int, time: int, width: int, enough: int) -> int:
    """Return the number of rows, a multiple of ROWS, in a chunk of time.

    Args:
        batch: B.
        time: T.
        width: D.
        enough: With this many channels in all sequences together, time is not cut.
    """
    chunks = 1
    if batch * width < enough:
        chunks = min(-(-ENOUGH_CHANNELS // (batch * width)), max(1, time // LEAST_ROWS))
    return max(1, -(-time // (chunks * ROWS))) * ROWS


def _or_any(given: Tensor | None, other: Tensor) -> Tensor:
    """Return the given tensor, or else any tensor for an argument that the kernel then does not read."""
    if given is None:
        return other
    return given


def forward(
    packed_BTP: Tensor,
    state_BD: Tensor | None,
    decay_BTD: Tensor | None,
    form: str,
    y_BTD: Tensor,
    last_BD: Tensor,
    carries_BND: Tensor,
) -> None:
    """Fill y_BTD, last_BD and carries_BND, the maximum before every ROWS rows."""
    batch, time, width = y_BTD.shape
    rows = rows_a_chunk(batch, time, width, ENOUGH_UNCUT)
    chunks, blocks = -(-time // rows), -(-width // BLOCK)
    sizes = {"D": width, "P": packed_BTP.shape[2], "BLOCK": BLOCK, "HAS_DECAY": decay_BTD is not None}
    inputs = (packed_BTP, _or_any(decay_BTD, packed_BTP))
    has_state, starts_BCD = state_BD is not None, _or_any(state_BD, last_BD)
    with torch.cuda.device_of(packed_BTP):
        if chunks > 1:
            maxima_BCD, decays_BCD, starts_BCD = (last_BD.new_empty(batch, chunks, width) for _ in range(3))
            chunk_totals[(blocks, chunks, batch)](
                *inputs, maxima_BCD, decays_BCD, time, rows, ROWS=ROWS, **sizes, **OPTIONS
            )
            chunk_starts[(blocks, batch)](
                _or_any(state_BD, last_BD),
                maxima_BCD,
                decays_BCD,
                starts_BCD,
                chunks,
                HAS_STATE=has_state,
                D=width,
                BLOCK=BLOCK,
                **OPTIONS,
            )
            has_state = True
        forward_chunk[(blocks, chunks, batch)](
            *inputs,
            starts_BCD,
            y_BTD,
            last_BD,
            carries_BND,
            time,
            rows,
            HAS_STATE=has_state,
            FORM=CODES[form],
            ROWS=ROWS,
            **sizes,
            **OPTIONS,
        )


def backward(
    packed_BTP: Tensor,
    carries_BND: Tensor,
    decay_BTD: Tensor | None,
    form: str,
    grad_y_BTD: Tensor,
    grad_last_BD: Tensor | None,
    grad_packed_BTP: Tensor,
    grad_state_BD: Tensor,
    grad_decay_BTD: Tensor,
) -> None:
    """Fill the last three; grad_decay_BTD only if there is a decay."""
    batch, time, width = grad_y_BTD.shape
    rows = rows_a_chunk(batch, time, width, ENOUGH_CHANNELS)
    chunks, blocks = -(-time // rows), -(-width // BLOCK)
    sizes = {"D": width, "P": packed_BTP.shape[2], "BLOCK": BLOCK, "HAS_DECAY": decay_BTD is not None}
    last_BD = _or_any(grad_last_BD, grad_state_BD)
    inputs = (packed_BTP, _or_any(decay_BTD, packed_BTP), carries_BND, grad_y_BTD, last_BD)
    grads = (grad_packed_BTP, grad_decay_BTD)
    out_BCD, kept_BCD, later_BCD = (grad_state_BD.new_empty(batch, chunks, width) for _ in range(3))
    newest_BCD = torch.empty_like(out_BCD, dtype=torch.int32)
    with torch.cuda.device_of(packed_BTP):
        backward_chunk[(blocks, chunks, batch)](
            *inputs,
            *grads,
            out_BCD,
            kept_BCD,
            newest_BCD,
            time,
            rows,
            HAS_GRAD_LAST=grad_last_BD is not None,
            FORM=CODES[form],
            ROWS=ROWS,
            **sizes,
            **BACKWARD_OPTIONS,
        )
        chunk_gradients[(blocks, batch)](
            out_BCD, newest_BCD, later_BCD, grad_state_BD, chunks, D=width, BLOCK=BLOCK, **OPTIONS
        )
        if chunks > 1:
            add_later[(blocks, chunks - 1, batch)](
                *grads, kept_BCD, newest_BCD, later_BCD, time, rows, **sizes, **OPTIONS
            )
