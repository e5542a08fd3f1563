"""Golden curves: the losses of a preset's training as they were recorded, and whether a machine is on them.

A run has the same data in the same order and the same first weights everywhere; what differs is rounding, which
training makes larger with each step. So losses are compared as means over spans of steps that grow, and each span has
its own tolerance: some times what replicas differed by that had to round differently on the recording machine.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from samout_train.runtime import replace_file

CURVES = Path(__file__).resolve().parent / "curves"
ENDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
TOLERANCE_TIMES = 4.0
LEAST_TOLERANCE_NATS = 1e-4


@dataclass(frozen=True)
class GoldenCurve:
    """The recorded curve of one preset.

    Args:
        preset: Its name, that of a YAML in conf/experiment.
        ends: The last step of each span; a span begins behind the one before it.
        loss_nats: The mean loss of each span, of the batches before their updates.
        tolerance_nats: How far another machine may be away.
        recorded: What with: device, torch, date, precision, replicas.
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
            ValueError: if there is none.
        """
        try:
            content = json.loads((folder / f"{preset}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
            raise ValueError(f"experiment={preset}: has no recorded curve; there are {known}") from None
        return cls(preset=preset, **content)

    @classmethod
    def of_replicas(cls, preset: str, replicas: Sequence[Sequence[float]], recorded: dict[str, Any]) -> "GoldenCurve":
        """Return a curve from the losses of the same steps in runs that differ by rounding; the first one is the curve.

        Args:
            preset: Its name.
            replicas: Of each run, the loss of every step; two or more runs.
            recorded: What with.
        """
        ends = spans_of(len(replicas[0]))
        curve, *others = [span_means(losses, ends) for losses in replicas]
        apart = [max(abs(other - mean) for other in found) for mean, *found in zip(curve, *others, strict=True)]
        # What has come apart does not come together again by more than chance.
        widest = [max(apart[: index + 1]) for index in range(len(apart))]
        tolerance = [max(LEAST_TOLERANCE_NATS, TOLERANCE_TIMES * nats) for nats in widest]
        return cls(preset, ends, curve, tolerance, recorded)

    def write(self, folder: Path = CURVES) -> Path:
        """Writes it where `read` looks."""
        content = {key: value for key, value in asdict(self).items() if key != "preset"}
        path = folder / f"{self.preset}.json"
        text = json.dumps(content, indent=1) + "\n"
        replace_file(path, lambda file: file.write(text.encode()))
        return path

    def compared(self, losses: Iterable[float]) -> Iterator["Span"]:
        """A span after the other, as the losses of its steps come in; a last one that is not whole is left out."""
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
    """Some steps of a run beside those of the curve.

    Args:
        first: The first step.
        last: The last step.
        golden_nats: Their mean loss on the curve.
        here_nats: The same here.
        tolerance_nats: How far the two may be apart.
    """

    first: int
    last: int
    golden_nats: float
    here_nats: float
    tolerance_nats: float

    @property
    def is_on(self) -> bool:
        """Return whether this is on the curve; what is no number is not."""
        return abs(self.here_nats - self.golden_nats) <= self.tolerance_nats

    def line(self) -> str:
        """For people."""
        steps = f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"
        apart = self.here_nats - self.golden_nats
        verdict = "on it" if self.is_on else "OFF"
        return (
            f"{steps:>14}  {self.golden_nats:8.4f}  {self.here_nats:8.4f}  {apart:+9.5f}  {self.tolerance_nats:8.5f}  "
            f"{verdict}"
        )


HEADER = f"{'steps':>14}  {'golden':>8}  {'here':>8}  {'apart':>9}  {'at most':>8}"


def spans_of(num_steps: int) -> list[int]:
    """Return the last step of each span of a run of so many steps."""
    return [*(end for end in ENDS if end < num_steps), num_steps]


def span_means(losses: Sequence[float], ends: Sequence[int]) -> list[float]:
    """Return the mean of each span."""
    return [statistics.fmean(losses[before:end]) for before, end in pairwise([0, *ends])]


def losses_of(step: Callable[[], Any], num_steps: int) -> Iterator[float]:
    """Return the losses of so many steps.

    Args:
        step: Makes one, and returns its loss as a tensor.
        num_steps: How many.
    """
    for _ in range(num_steps):
        yield float(step())
