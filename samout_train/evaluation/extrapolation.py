"""What a model loses past the length that it was trained at: by position, and in windows of several lengths."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FAR_TIMES = 16  # where a loss is compared with that at the training length
MOST_GROWTH = 1.10  # of the loss at FAR_TIMES: beyond it a model does not extrapolate


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """What reading on came to.

    Args:
        trained_length: Tokens in a training row.
        num_tokens: Tokens that were read for each length.
        loss_nats: By length, mean nats a token over windows of that length.
        left_out: By length, why there is no loss.
        by_position: First and last position of a range, from 1, and the mean nats there, of the shortest windows that
            have them.
        state_norm: Of the longest windows, by layer: the norm of its state after each chunk, mean of the windows; empty
            where states grow with the sequence, as a cache does.
    """

    trained_length: int
    num_tokens: int
    loss_nats: dict[int, float]
    left_out: dict[int, str] = field(default_factory=dict)
    by_position: list[tuple[int, int, float]] = field(default_factory=list)
    state_norm: dict[str, list[float]] = field(default_factory=dict)

    @property
    def far_growth(self) -> float | None:
        """The loss at 16 times the training length over that at the training length; None where one is not there."""
        near = self.loss_nats.get(self.trained_length)
        far = self.loss_nats.get(FAR_TIMES * self.trained_length)
        return far / near if near and far is not None else None

    @property
    def extrapolates(self) -> bool | None:
        """Whether that is at most 1.10; None where it is not known."""
        growth = self.far_growth
        return None if growth is None else growth <= MOST_GROWTH

    @property
    def state_growth(self) -> dict[str, float]:
        """By layer: the norm of its state at the end of the longest windows over that after a training row."""
        return {
            name: norms[-1] / norms[0] if norms[0] else math.inf if norms[-1] else 1.0
            for name, norms in self.state_norm.items()
        }

    def figures(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {
            "trained_length": self.trained_length,
            "num_tokens": self.num_tokens,
            "loss_nats": {str(length): nats for length, nats in self.loss_nats.items()},
            "perplexity": {str(length): perplexity(nats) for length, nats in self.loss_nats.items()},
            "left_out": {str(length): reason for length, reason in self.left_out.items()},
            "far_growth": self.far_growth,
            "extrapolates": self.extrapolates,
            "by_position": [list(part) for part in self.by_position],
            "state_growth": self.state_growth,
        }

    def verdict(self) -> list[str]:
        """What it means, a line each."""
        near, far, growth = self.trained_length, FAR_TIMES * self.trained_length, self.far_growth
        if growth is None:
            missing = near if near not in self.loss_nats else far
            reason = self.left_out.get(missing, f"there is no loss at {missing:,} tokens")
            return [f"whether it extrapolates is not known: {reason}"]
        if not math.isfinite(growth):
            return [f"does not extrapolate: the loss at {far:,} tokens, or at {near:,}, is not finite"]
        if self.extrapolates:
            change = f"{abs(growth - 1):.1%} {'above' if growth >= 1 else 'below'}"
            return [f"extrapolates: the loss at {far:,} tokens is {change} that at {near:,}"]
        lines = [
            f"does not extrapolate: the loss at {far:,} tokens, {FAR_TIMES} times the training length, is "
            f"{growth - 1:.0%} above that at {near:,}"
        ]
        grown = {name: times for name, times in self.state_growth.items() if not times <= 1}
        if grown:
            most = max(grown, key=lambda name: grown[name])
            by_layer = ", ".join(f"{name} {times:.2f}" for name, times in self.state_growth.items())
            lines.append(
                f"{most}'s state grows the most past a training row; by layer, its norm at the end of the longest "
                f"windows over that after a training row: {by_layer}"
            )
        elif self.state_growth:
            lines.append("no layer's state grows past a training row")
        return lines


def perplexity(nats: float) -> float:
    """e to the power of a loss; infinite where that is no number of its size."""
    return math.exp(nats) if nats < math.log(np.finfo(np.float64).max) else math.inf
