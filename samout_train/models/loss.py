"""Next-token cross-entropy as a sum. The caller adds the parts of a batch and divides once by all counted targets.

If the logits would not fit comfortably into memory, the loss computes them a block of rows at a time and overwrites
them with their gradient: see ops/cross_entropy. torch's own `linear_cross_entropy` also works in blocks, but it sums in
bfloat16 for bfloat16 inputs, reads the logits once for each of its operations, and exists only from torch 2.13.
"""

# B batch, T time, R rows: B T, D width, V vocabulary

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samout_train.ops import add_product, linear_into, nats_and_errors
from samout_train.ops.linear import copy_of, linear

# 128 MB in float32. Below it, on two cores of an AMD EPYC, logits in one block took 0.8 to 1.0 times as long.
MOST_LOGITS = 2**25
# On CUDA the fused kernel needs little memory apart from the block: 1 GB in bfloat16, for few, large products.
MOST_LOGITS_OF_A_BLOCK = {"cuda": 2**29}


def next_token_nats(
    model: Callable[..., Any], ids_BT: Tensor, targets_BT: Tensor, ignore_index: int, *, most_targets: int | None = None
) -> Tensor:
    """Return the nats of `nats_and_state` for rows that start without a state."""
    return nats_and_state(model, ids_BT, targets_BT, ignore_index, most_targets)[0]


def nats_and_state(
    model: Callable[..., Any],
    ids_BT: Tensor,
    targets_BT: Tensor,
    ignore_index: int,
    most_targets: int | None = None,
    state: Any = None,
) -> tuple[Tensor, Any]:
    """Return the sum of the nats of all counted targets, and the model's next state.

    Args:
        model: Called as `logits, state = model(ids, state)`. A model with a (V, D) matrix `head_weight` is called with
            `return_hidden=True` if there would be more than MOST_LOGITS logits or if few targets count.
        ids_BT: Token ids, int64.
        targets_BT: Token ids, int64.
        ignore_index: Targets of this value add neither loss nor gradient.
        most_targets: An upper bound on the counted targets. Below half of all targets, only counted ones get logits.
        state: State that the model returned for the previous tokens; None at the start of the rows.

    Returns:
        (nats, state): A float32 scalar, 0 without a counted target, and the state after these tokens.
    """
    weight_VD = getattr(model, "head_weight", None)
    few = most_targets is not None and 2 * most_targets < targets_BT.numel()
    carried = []
    if state is not None:
        carried = [state]
    if weight_VD is None or (not few and ids_BT.numel() * len(weight_VD) <= MOST_LOGITS):
        logits_BTV, state = model(ids_BT, *carried)
        return cross_entropy_sum(logits_BTV, targets_BT, ignore_index), state
    hidden_BTD, state = model(ids_BT, *carried, return_hidden=True)
    # Read again: a sharded head is whole only between the forward and the backward pass.
    weight_VD = model.head_weight  # type: ignore[attr-defined]
    hidden_RD, targets_R = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    if few:
        assert most_targets is not None
        hidden_RD, targets_R = _counted(hidden_RD, targets_R, ignore_index, most_targets)
        if len(hidden_RD) * len(weight_VD) <= MOST_LOGITS:
            return cross_entropy_sum(linear(hidden_RD, weight_VD), targets_R, ignore_index), state
    most_logits = max(MOST_LOGITS, MOST_LOGITS_OF_A_BLOCK.get(ids_BT.device.type, 0))
    return linear_cross_entropy_sum(hidden_RD, weight_VD, targets_R, ignore_index, most_logits), state


def _counted(hidden_RD: Tensor, targets_R: Tensor, ignore_index: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` rows with a counted target, padded with rows whose targets are ignored.

    The caller fixes the size, because reading the number of counted targets would wait for the device.
    """
    place_R = (targets_R != ignore_index).nonzero_static(size=count, fill_value=-1).squeeze(1)
    targets_R = targets_R[place_R].masked_fill(place_R < 0, ignore_index)
    return hidden_RD.index_select(0, place_R.clamp(min=0)), targets_R


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor, ignore_index: int) -> Tensor:
    """Return the sum of the nats of all counted targets, in float32.

    Args:
        logits_BTV: Logits of any floating dtype, (B, T, V) or (R, V).
        targets_BT: Token ids, int64, (B, T) or (R,).
        ignore_index: Targets of this value add neither loss nor gradient.

    Returns:
        A scalar; 0 without a counted target.
    """
    return F.cross_entropy(
        logits_BTV.flatten(0, -2).float(), targets_BT.flatten(), ignore_index=ignore_index, reduction="sum"
    )


def linear_cross_entropy_sum(
    hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, ignore_index: int, most_logits: int
) -> Tensor:
    """Return `cross_entropy_sum` of the logits hidden weight^T, holding about `most_logits` logits at a time.

    Matrix products use autocast's dtype if autocast is on; everything else is float32. There is no second derivative.

    Args:
        hidden_RD: Hidden states, the head's input.
        weight_VD: The head's matrix.
        targets_R: Token ids, int64.
        ignore_index: Targets of this value add neither loss nor gradient.
        most_logits: Logits in memory at once. A block has at least one row, even if that is more.

    Returns:
        A float32 scalar; 0 without a counted target.
    """
    device = hidden_RD.device.type
    products = weight_VD.dtype
    if torch.is_autocast_enabled(device):
        products = torch.get_autocast_dtype(device)
    rows = max(1, most_logits // len(weight_VD))
    learns = torch.is_grad_enabled() and (hidden_RD.requires_grad or weight_VD.requires_grad)
    nats: Tensor = _LinearCrossEntropySum.apply(hidden_RD, weight_VD, targets_R, ignore_index, rows, products, learns)
    return nats


class _LinearCrossEntropySum(torch.autograd.Function):
    """Loss and gradient in one pass: with respect to the logits, the gradient of a sum of nats is softmax - one-hot.

    The upstream gradient is only a factor, which the backward pass applies.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        targets_R: Tensor,
        ignored: int,
        rows: int,
        products: torch.dtype,
        learns: bool,
    ) -> Tensor:
        """Sum the nats, and save the gradients of both inputs if one of them needs a gradient."""
        head_VD = weight_VD.to(products) if (copy := copy_of(weight_VD, products)) is None else copy.weight_NK
        nats_R = hidden_RD.new_empty(len(targets_R), dtype=torch.promote_types(products, torch.float32))
        to_hidden_RD = to_weight_VD = None
        if learns:
            to_hidden_RD, to_weight_VD = torch.empty_like(hidden_RD, dtype=products), torch.zeros_like(weight_VD)
        with torch.autocast(hidden_RD.device.type, enabled=False):
            inputs_RD, targets_R = hidden_RD.to(products), targets_R.contiguous()
            # One buffer for all: a new one per piece cost a third of the product on two cores of an Intel Xeon.
            piece_RV = head_VD.new_empty(min(rows, len(targets_R)), len(head_VD))
            for start in range(0, len(targets_R), rows):
                piece = slice(start, start + rows)
                logits_RV = piece_RV[: len(targets_R) - start]
                linear_into(logits_RV, inputs_RD[piece], head_VD)
                nats_and_errors(logits_RV, targets_R[piece], nats_R[piece], ignored, learns=learns)
                if to_hidden_RD is not None and to_weight_VD is not None:
                    torch.mm(logits_RV, head_VD, out=to_hidden_RD[piece])
                    add_product(to_weight_VD, logits_RV.t(), inputs_RD[piece])
        ctx.save_for_backward(to_hidden_RD, to_weight_VD)
        ctx.hidden_dtype = hidden_RD.dtype
        return nats_R.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        """Scale the gradients that the forward pass saved."""
        to_hidden_RD, to_weight_VD = ctx.saved_tensors
        # As a vector, not a scalar, the factor keeps the product in float32, rounded once when it is written.
        scaled_RD = torch.empty_like(to_hidden_RD, dtype=ctx.hidden_dtype)
        torch.mul(to_hidden_RD, upstream[0].view(1), out=scaled_RD)
        return scaled_RD, to_weight_VD * upstream[0], None, None, None, None, None
