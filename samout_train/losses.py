"""Next-token cross-entropy, as a sum: whoever adds up parts of a batch divides once, by all counted targets."""

# B batch, T time, V vocabulary

from torch import Tensor
from torch.nn import functional as F


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor, ignore_index: int) -> Tensor:
    """Sum of the nats of all counted targets, in float32.

    Args:
        logits_BTV: Unnormalised log-probabilities, any floating dtype.
        targets_BT: Token ids, int64.
        ignore_index: Targets of this value add nothing and take no gradient.

    Returns:
        A scalar; 0 where no target is counted.
    """
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=ignore_index, reduction="sum"
    )
