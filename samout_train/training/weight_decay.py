"""The weight decay of a run: constant, or on a schedule of its own that is linear in the share of the run.

AdamW and Muon multiply the decay by the learning rate, so the shrinking of a weight in a step follows both schedules.
The schedule applies to each optimizer group with a `weight_decay_end`, including those of a user's own optimizer. The
decay of a step depends only on the progress of the run, so a resumed run continues it exactly.

Source: nanochat (Karpathy 2025) lets the decay of its matrices fall linearly to zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

END = "weight_decay_end"


def decayed_group(parameters: Sequence[nn.Parameter], start: float, end: float | None) -> dict[str, Any]:
    """Return a group of an optimizer with weight decay.

    Args:
        parameters: The parameters.
        start: The decay at the start of the run.
        end: The decay at the last step; None for a constant decay.
    """
    group: dict[str, Any] = {"params": parameters, "weight_decay": start}
    if end is not None:
        group[END] = end
    return group


def changes_decay(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the decay of a group is on a schedule."""
    return any(END in group for group in optimizer.param_groups)


class WeightDecaySchedule:
    """Set the decay of an optimizer's groups for each step.

    Args:
        optimizer: A new optimizer, whose groups have the initial decays.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._ranges: dict[int, tuple[float, float]] = {}
        for number, group in enumerate(optimizer.param_groups):
            if END in group:
                self._ranges[number] = float(group["weight_decay"]), float(group[END])

    def set(self, share: float) -> float | None:
        """Set the decays for a share of the run, from 0 to 1; return the first of them, or None without a schedule."""
        decays = []
        for number, (start, end) in self._ranges.items():
            decays.append((1 - share) * start + share * end)
            self._optimizer.param_groups[number]["weight_decay"] = decays[-1]
        if not decays:
            return None
        return decays[0]
