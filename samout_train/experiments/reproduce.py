"""Golden curves: compare the losses of a preset's training with recorded ones.

A run has the same data in the same order and the same initial weights on every machine. Only rounding differs, and
training amplifies that with each step. So losses are compared as means over growing spans of steps. Each span has its
own tolerance: a multiple of the differences between replicas that rounded differently on the recording machine.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from samout_train.config import ConfigError, Problem
from samout_train.runtime import replace_file

CURVES = Path(__file__).resolve().parent / "curves"
ENDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
TOLERANCE_TIMES = 4.0
LEAST_TOLERANCE_NATS = 1e-4


@dataclass(frozen=True)
class GoldenCurve:
    """The recorded curve of one preset.

    Args:
        preset: Name of the preset, which is a YAML in conf/experiment.
        ends: The last step of each span; each span begins after the previous one.
        loss_nats: The mean loss of each span, each loss taken before the update.
        tolerance_nats: The largest accepted difference on another machine.
        recorded: Device, torch, date, precision and replicas of the recording.
    """

    preset: str
    ends: list[int]
    loss_nats: list[float]
    tolerance_nats: list[float]
    recorded: dict[str, Any]

    @classmethod
    def read(cls, preset: str, folder: Path = CURVES) -> "GoldenCurve":
        """Return the curve of a preset.

        Raises:
            ConfigError: if there is none.
        """
        try:
            content = json.loads((folder / f"{preset}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
            raise ConfigError(Problem("experiment", preset, text=f"has no recorded curve; there are {known}")) from None
        return cls(preset=preset, **content)

    @classmethod
    def of_replicas(cls, preset: str, replicas: Sequence[Sequence[float]], recorded: dict[str, Any]) -> "GoldenCurve":
        """Return a curve from the losses of the same steps in runs that differ by rounding; the first run is the curve.

        Args:
            preset: Its name.
            replicas: The loss of every step, for each of two or more runs.
            recorded: About the recording.
        """
        ends = spans_of(len(replicas[0]))
        curve, *others = [span_means(losses, ends) for losses in replicas]
        tolerance, widest = [], 0.0
        for index, mean in enumerate(curve):
            # Curves that have come apart meet again only by chance, so a tolerance never falls.
            for other in others:
                widest = max(widest, abs(other[index] - mean))
            tolerance.append(max(LEAST_TOLERANCE_NATS, TOLERANCE_TIMES * widest))
        return cls(preset, ends, curve, tolerance, recorded)

    def write(self, folder: Path = CURVES) -> Path:
        """Write the curve where `read` looks for it; return the path."""
        content = asdict(self)
        del content["preset"]
        path = folder / f"{self.preset}.json"
        text = json.dumps(content, indent=1) + "\n"
        replace_file(path, lambda file: file.write(text.encode()))
        return path

    def compared(self, losses: Iterable[float]) -> Iterator["Span"]:
        """Yield the spans one by one as the losses of their steps come in; an incomplete last span is left out."""
        found: list[float] = []
        steps = iter(losses)
        for (before, end), golden, tolerance in zip(
            pairwise([0, *self.ends]), self.loss_nats, self.tolerance_nats, strict=True
        ):
            for loss in steps:
                found.append(loss)
                if len(found) == end:
                    yield Span(before + 1, end, golden, statistics.fmean(found[before:]), tolerance)
                    break


@dataclass(frozen=True)
class Span:
    """A span of steps of a run and of the curve.

    Args:
        first: The first step.
        last: The last step.
        golden_nats: Their mean loss on the curve.
        here_nats: Their mean loss on this machine.
        tolerance_nats: The largest accepted difference.
    """

    first: int
    last: int
    golden_nats: float
    here_nats: float
    tolerance_nats: float

    @property
    def is_on(self) -> bool:
        """Return whether the loss is on the curve; NaN is not."""
        return abs(self.here_nats - self.golden_nats) <= self.tolerance_nats

    def line(self) -> str:
        """Return a line of the table that HEADER begins."""
        steps = f"{self.first}"
        if self.first != self.last:
            steps = f"{self.first} to {self.last}"
        difference = self.here_nats - self.golden_nats
        verdict = "OFF"
        if self.is_on:
            verdict = "on"
        return (
            f"{steps:>14}  {self.golden_nats:8.4f}  {self.here_nats:8.4f}  {difference:+10.5f}  "
            f"{self.tolerance_nats:9.5f}  {verdict}"
        )


HEADER = f"{'steps':>14}  {'recorded':>8}  {'here':>8}  {'difference':>10}  {'tolerance':>9}  curve"


def spans_of(num_steps: int) -> list[int]:
    """Return the last step of each span of a run with this many steps."""
    ends = [end for end in ENDS if end < num_steps]
    return [*ends, num_steps]


def span_means(losses: Sequence[float], ends: Sequence[int]) -> list[float]:
    """Return the mean of each span."""
    means = []
    for before, end in pairwise([0, *ends]):
        means.append(statistics.fmean(losses[before:end]))
    return means


def losses_of(step: Callable[[], Any], num_steps: int) -> Iterator[float]:
    """Yield the losses of the next steps.

    Args:
        step: Makes one step, and returns its loss as a tensor.
        num_steps: Number of steps.
    """
    for _ in range(num_steps):
        yield float(step())
