"""The length of a run, and its learning rates: a schedule maps the progress to a factor on the base rate."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np

from samout_train.config import WHAT_A_SCHEDULE_IS, NonNegative, Share, validated


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Args:
        step: The step about to be made, from 1.
        total_steps: The last step; None if only time limits the run.
        share: Share of the run, from 0 to 1: the larger of step / total_steps and elapsed / allowed seconds.
    """

    step: int
    total_steps: int | None
    share: float


@dataclass(frozen=True)
class Limits:
    """The limits of a run: the first that is reached ends it.

    Args:
        total_steps: The last step; None for no such limit.
        max_seconds: Seconds of training, without evaluations and checkpoints; None for no such limit.
    """

    total_steps: int | None
    max_seconds: float | None

    def progress(self, step: int, seconds: float) -> Progress:
        """Return the progress at a step after this many seconds."""
        by_steps = by_time = 0.0
        if self.total_steps:
            by_steps = step / self.total_steps
        if self.max_seconds:
            by_time = seconds / self.max_seconds
        return Progress(step, self.total_steps, min(1.0, max(by_steps, by_time)))


def first_limit(
    max_steps: int | None, max_rows: float | None, max_seconds: float | None, *, batch_size: int, budget_steps: int
) -> Limits:
    """Return the limits of a run from those that are set; if none is, `budget_steps` is the last step.

    Args:
        max_steps: The last step.
        max_rows: Rows to train on, rounded up to a whole batch of `batch_size`.
        max_seconds: Seconds of training.
        batch_size: Rows in a step.
        budget_steps: The last step if the three above are None.
    """
    total_steps = max_steps
    if max_rows is not None:
        by_rows = math.ceil(max_rows / batch_size)
        total_steps = min(by_rows, max_steps or by_rows)
    if total_steps is None and max_seconds is None:
        total_steps = budget_steps
    return Limits(total_steps, max_seconds)


class Schedule(Protocol):
    """A factor on the base learning rate."""

    needs_total_steps: ClassVar[bool]

    def __call__(self, progress: Progress) -> float:
        """Return the factor for the step about to be made, at least 0."""
        ...


def schedule_problem(schedule: Any, progress: Progress) -> str | None:
    """Return why an object is not a schedule, by calling it once; None if it is one.

    Args:
        schedule: The object that its YAML built.
        progress: The progress at the first step.
    """
    name = getattr(schedule, "__name__", type(schedule).__name__)
    try:
        factor = schedule(progress)
    except (TypeError, AttributeError) as error:
        return f"schedule: {name} cannot be called with a Progress ({error}): {WHAT_A_SCHEDULE_IS}"
    if (
        isinstance(factor, int | float | np.number)
        and not isinstance(factor, bool)
        and math.isfinite(factor)
        and factor >= 0
    ):
        return None
    return f"schedule: {name} returned {str(factor)[:80]} for step {progress.step}: {WHAT_A_SCHEDULE_IS}"


class Constant:
    """The base rate at every step, without warm-up."""

    needs_total_steps = False

    def __call__(self, progress: Progress) -> float:
        """Return 1."""
        return 1.0


class Cosine:
    """Linear warm-up, then half a cosine down to `final_share` at the last step.

    Args:
        warmup_steps: Warm-up takes this many steps, or a tenth of the run where that is less.
        final_share: The factor of the last step.
    """

    needs_total_steps = True

    @validated
    def __init__(self, *, warmup_steps: Annotated[int, NonNegative], final_share: Annotated[float, Share]) -> None:
        self.warmup_steps, self.final_share = warmup_steps, final_share

    def __call__(self, progress: Progress) -> float:
        """Return the factor for a step.

        Raises:
            ValueError: if the number of steps is unknown.
        """
        if progress.total_steps is None:
            raise ValueError("schedule cosine needs a number of steps: set trainer.max_steps, or use constant or wsd")
        warmup = _warmup_steps(self.warmup_steps, progress.total_steps)
        if progress.step <= warmup:
            return progress.step / warmup
        done = (progress.step - warmup) / (progress.total_steps - warmup)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class WarmupStableDecay:
    """Linear warm-up, then the base rate, then a linear decay to `final_share` over the last part of the run.

    Args:
        warmup_steps: Warm-up takes this many steps, or a tenth of the run where that is less.
        decay_share: Share of the run, in steps or in time, that the decay takes.
        final_share: The factor of the last step.

    Source: Hu et al., MiniCPM, arXiv 2404.06395.
    """

    needs_total_steps = False

    @validated
    def __init__(
        self,
        *,
        warmup_steps: Annotated[int, NonNegative],
        decay_share: Annotated[float, Share],
        final_share: Annotated[float, Share],
    ) -> None:
        self.warmup_steps, self.decay_share, self.final_share = warmup_steps, decay_share, final_share

    def __call__(self, progress: Progress) -> float:
        """Return the factor for a step: the smaller of warm-up and decay."""
        warmup = _warmup_steps(self.warmup_steps, progress.total_steps)
        left = max(0.0, 1 - progress.share)
        rising = falling = 1.0
        if warmup:
            rising = min(1.0, progress.step / warmup)
        if left < self.decay_share:
            falling = self.final_share + (1 - self.final_share) * left / self.decay_share
        return min(rising, falling)


def _warmup_steps(warmup_steps: int, total_steps: int | None) -> int:
    if total_steps is None:
        return warmup_steps
    return min(warmup_steps, total_steps // 10)
