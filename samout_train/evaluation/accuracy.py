"""Accuracy: the share of right answers, its confidence interval, and its table."""

# R rows, T time, N places, D width, V vocabulary

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samout_train.data import Rows
from samout_train.models import MOST_LOGITS
from samout_train.ops.linear import linear

LEAST_ANSWERS = 100
NORMAL_QUANTILE = 1.959963984540054  # of 0.975, for 95 %


@dataclass(frozen=True)
class Accuracy:
    """An accuracy.

    Args:
        right: Number of right answers.
        answers: Number of answers.

    Raises:
        ValueError: if there are fewer than 100 answers.
    """

    right: int
    answers: int

    def __post_init__(self) -> None:
        if self.answers < LEAST_ANSWERS:
            raise ValueError(
                f"an accuracy needs {LEAST_ANSWERS} answers or more, and there are {self.answers}: use more rows"
            )

    @property
    def share(self) -> float:
        """Return the share of right answers."""
        return self.right / self.answers

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson score interval of the share, for independent answers.

        Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
        """
        count, square = self.answers, NORMAL_QUANTILE**2
        middle = (self.share + square / (2 * count)) / (1 + square / count)
        spread = math.sqrt(self.share * (1 - self.share) / count + square / (4 * count**2))
        reach = NORMAL_QUANTILE * spread / (1 + square / count)
        return max(0.0, middle - reach), min(1.0, middle + reach)

    def figures(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        low, high = self.interval
        return {"share": self.share, "low": low, "high": high, "right": self.right, "answers": self.answers}


def rows_that_fit(rows_per_batch: int, train: Rows, rows: Rows) -> int:
    """Return the number of rows of another length that have as many tokens as a training batch."""
    return max(1, rows_per_batch * train.seq_len // rows.seq_len)


def accuracy_lines(found: dict[str, Accuracy], chance: float | None) -> list[str]:
    """Return a line per test with accuracy and 95 % interval, and a last line with the accuracy of guessing."""
    lines = []
    for name, counted in found.items():
        low, high = counted.interval
        reach = f"({low:.3f} to {high:.3f}, of {counted.answers:,} answers)"
        lines.append(f"{'accuracy, ' + name.replace('_', ' '):<32} {counted.share:.3f} {reach}")
    if chance is not None and lines:
        lines.append(f"{'chance':<32} {chance:.3g}")
    return lines


def most_probable(model: nn.Module, ids_RT: Tensor, place_N: Tensor) -> Tensor:
    """Return the most probable token at some places of the flattened rows, (N,), without computing other logits."""
    weight_VD = getattr(model, "head_weight", None)
    if weight_VD is None:
        said_N: Tensor = model(ids_RT)[0].flatten(0, 1)[place_N].argmax(-1)
        return said_N
    hidden_ND = model(ids_RT, return_hidden=True)[0].flatten(0, 1)[place_N]
    pieces = hidden_ND.split(max(1, MOST_LOGITS // len(weight_VD)))
    return torch.cat([linear(piece, weight_VD).argmax(-1) for piece in pieces])
