"""Next-token cross-entropy, as a sum: whoever adds up parts of a batch divides once, by all counted targets.

Where there would be very many logits, they are made some rows at a time, and their gradient takes their place: see
ops/cross_entropy. torch's own `linear_cross_entropy` makes pieces, too, but its sum is bfloat16 where its inputs are,
it reads the logits once for each of its operations, and torch has it from 2.13 on only.
"""

# B batch, T time, R rows: B T, D width, V vocabulary

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samout_train.ops import add_product, linear_into, nats_and_errors
from samout_train.ops.linear import linear

# 128 MB in float32. Below it, on two cores of an AMD EPYC, logits in one piece took 0.8 to 1.0 of the time.
MOST_LOGITS = 2**25


def next_token_nats(
    model: Callable[..., Any], ids_BT: Tensor, targets_BT: Tensor, ignore_index: int, *, most_targets: int | None = None
) -> Tensor:
    """Return the nats of `nats_and_state` for rows from a fresh state."""
    return nats_and_state(model, ids_BT, targets_BT, ignore_index, most_targets)[0]


def nats_and_state(
    model: Callable[..., Any],
    ids_BT: Tensor,
    targets_BT: Tensor,
    ignore_index: int,
    most_targets: int | None = None,
    state: Any = None,
) -> tuple[Tensor, Any]:
    """Return the sum of the nats of all counted targets of a model.

    Its logits are never all there where they are very many.

    Args:
        model: Called as `logits, state = model(ids, state)`. One with an attribute `head_weight` that is a (V, D)
            matrix is called with `return_hidden=True` where there would be more than MOST_LOGITS, or where most are not
            counted.
        ids_BT: Token ids, int64.
        targets_BT: Token ids, int64.
        ignore_index: Targets of this value add nothing and take no gradient.
        most_targets: Counted targets are at most so many. Where that is less than half of all, no others get logits.
        state: What the model returned for the tokens before; None at the start of rows.

    Returns:
        A float32 scalar, 0 where no target is counted; and the state behind these tokens.
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
    # Read again: a head that is sharded is whole from the forward to the backward pass only.
    weight_VD = model.head_weight  # type: ignore[attr-defined]
    hidden_RD, targets_R = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    if few:
        assert most_targets is not None
        hidden_RD, targets_R = _counted(hidden_RD, targets_R, ignore_index, most_targets)
        if len(hidden_RD) * len(weight_VD) <= MOST_LOGITS:
            return cross_entropy_sum(linear(hidden_RD, weight_VD), targets_R, ignore_index), state
    return linear_cross_entropy_sum(hidden_RD, weight_VD, targets_R, ignore_index, MOST_LOGITS), state


def _counted(hidden_RD: Tensor, targets_R: Tensor, ignore_index: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` rows whose targets are counted; where there are fewer, others whose targets are ignored.

    How many there are is not asked of the device, which would have to be waited for.
    """
    place_R = (targets_R != ignore_index).nonzero_static(size=count, fill_value=-1).squeeze(1)
    targets_R = targets_R[place_R].masked_fill(place_R < 0, ignore_index)
    return hidden_RD.index_select(0, place_R.clamp(min=0)), targets_R


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor, ignore_index: int) -> Tensor:
    """Return the sum of the nats of all counted targets, in float32.

    Args:
        logits_BTV: Unnormalised log-probabilities, any floating dtype; or those of rows, (R, V).
        targets_BT: Token ids, int64; or (R,).
        ignore_index: Targets of this value add nothing and take no gradient.

    Returns:
        A scalar; 0 where no target is counted.
    """
    return F.cross_entropy(
        logits_BTV.flatten(0, -2).float(), targets_BT.flatten(), ignore_index=ignore_index, reduction="sum"
    )


def linear_cross_entropy_sum(
    hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, ignore_index: int, most_logits: int
) -> Tensor:
    """Return `cross_entropy_sum` of the logits hidden weight^T, of which at most `most_logits` are there at a time.

    Products have autocast's dtype where it is on, all else is float32. There are no gradients of gradients.

    Args:
        hidden_RD: What the head reads.
        weight_VD: The head.
        targets_R: Token ids, int64.
        ignore_index: Targets of this value add nothing and take no gradient.
        most_logits: Each piece has at least one row, however many these are.

    Returns:
        A float32 scalar; 0 where no target is counted.
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
    """The gradient of a sum of nats to its logits is softmax less one-hot, whatever comes after but for a factor."""

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
        """Sum the nats, and keep the gradients to both inputs where something learns."""
        head_VD = weight_VD.to(products)
        nats_R = hidden_RD.new_empty(len(targets_R), dtype=torch.promote_types(products, torch.float32))
        to_hidden_RD = to_weight_VD = None
        if learns:
            to_hidden_RD, to_weight_VD = torch.empty_like(hidden_RD, dtype=products), torch.zeros_like(weight_VD)
        with torch.autocast(hidden_RD.device.type, enabled=False):
            inputs_RD, targets_R = hidden_RD.to(products), targets_R.contiguous()
            # One piece of memory for all: a new one for each cost a third of the product on two cores of an Intel Xeon.
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
        return nats_R.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        """Scale what the forward pass kept."""
        to_hidden_RD, to_weight_VD = ctx.saved_tensors
        to_hidden_RD = to_hidden_RD * upstream[0].view(1)  # a vector, so that the product is in float32
        return to_hidden_RD, to_weight_VD * upstream[0], None, None, None, None, None
