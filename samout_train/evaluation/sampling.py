"""Which token comes next."""

# V vocabulary

import torch
from torch import Tensor


def choose(
    logits_V: Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    banned_ids: list[int],
) -> Tensor:
    """Draws the next token.

    Args:
        logits_V: float64; written over.
        generator: Draws.
        temperature: 0 takes the most probable token; otherwise logits are divided by it before the draw.
        top_k: Draw among this many most probable tokens only; None for all.
        top_p: Draw among the most probable tokens that together have this probability; None for all.
        banned_ids: Ids that are never drawn.

    Returns:
        One id, int64, on the device of the logits.
    """
    logits_V[banned_ids] = float("-inf")
    if temperature == 0:
        return logits_V.argmax()
    if top_k is not None and top_k < len(logits_V):
        logits_V[logits_V < logits_V.topk(top_k).values[-1]] = float("-inf")
    # Without the largest taken off first, a temperature near 0 would make all of them infinite.
    probabilities_V = ((logits_V - logits_V.max()) / temperature).softmax(0)
    if top_p is not None:
        sorted_V, order_V = probabilities_V.sort(descending=True)
        before_V = sorted_V.cumsum(0) - sorted_V
        probabilities_V[order_V[before_V >= top_p]] = 0  # the most probable one has nothing before it, so it stays
    return torch.multinomial(probabilities_V, 1, generator=generator)
