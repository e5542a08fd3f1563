"""Launch the causal convolution on CUDA, in float32, bfloat16 and float16. Needs triton.

Everything is computed in float32. The gradients of weight and bias are sums of a fixed number of programs, so that the
same input gives the same bits.
"""

# B batch, T time, S time of the input, D width, K rows that an output takes together

import torch
from torch import Tensor

from samout_train.ops.causal_convolution.triton import convolution_row_gradients, convolution_rows

ROWS, BLOCK = 16, 128
PROGRAMS = 256  # of gradients, for each block of channels
OPTIONS = {"num_warps": 2, "enable_fp_fusion": True}


def convolve(x_BSD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, silu: bool, y_BTD: Tensor) -> None:
    """Fill y_BTD; x_BSD may have any strides but the last."""
    batch, time, width = y_BTD.shape
    grid = (-(-width // BLOCK), -(-time // ROWS), batch)
    with torch.cuda.device_of(x_BSD):
        convolution_rows[grid](
            x_BSD,
            weight_DK,
            weight_DK if bias_D is None else bias_D,
            y_BTD,
            time,
            x_BSD.shape[1] - time,
            *x_BSD.stride()[:2],
            **_options(weight_DK, bias_D, silu),
        )


def convolve_gradients(
    x_BSD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    silu: bool,
    grad_BTD: Tensor,
    grad_x_BSD: Tensor,
    grad_weights: Tensor,
) -> None:
    """Fill the last two; grad_weights has the gradients of the weight (D, K) and of the bias, one after the other."""
    batch, time, width = grad_BTD.shape
    lead = x_BSD.shape[1] - time
    programs = min(batch * -(-(time + lead) // ROWS), PROGRAMS)
    partial = grad_weights.new_empty(programs, grad_weights.numel())
    with torch.cuda.device_of(x_BSD):
        convolution_row_gradients[(-(-width // BLOCK), programs)](
            x_BSD,
            weight_DK,
            weight_DK if bias_D is None else bias_D,
            grad_BTD,
            grad_x_BSD,
            partial,
            batch,
            time,
            lead,
            *x_BSD.stride()[:2],
            **_options(weight_DK, bias_D, silu),
        )
    torch.sum(partial, 0, out=grad_weights)


def _options(weight_DK: Tensor, bias_D: Tensor | None, silu: bool) -> dict[str, int]:
    width, size = weight_DK.shape
    return {
        "HAS_BIAS": bias_D is not None,
        "SILU": silu,
        "K": size,
        "D": width,
        "ROWS": ROWS,
        "BLOCK": BLOCK,
        **OPTIONS,
    }
