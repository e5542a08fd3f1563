"""The limits that ended a run, and the settings that let it resume."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LimitSettings:
    """The limits of a run, as configured.

    Args:
        max_steps: `trainer.max_steps`.
        max_epochs: `trainer.max_epochs`.
        max_seconds: `trainer.max_seconds`.
        budget_steps: `data.budget_steps`, which applies if the three above are None.
        num_rows: Training rows in an epoch.
        batch_size: Rows in a step.
    """

    max_steps: int | None
    max_epochs: float | None
    max_seconds: float | None
    budget_steps: int
    num_rows: int
    batch_size: int

    def reached(self, step: int, seconds: float) -> list["Reached"]:
        """Return the limits that are reached after this step and this many seconds."""
        return list(self._reached(step, seconds))

    def _reached(self, step: int, seconds: float) -> Iterator["Reached"]:
        if self.max_steps is not None and step >= self.max_steps:
            yield Reached("trainer.max_steps", self.max_steps, f"trainer.max_steps={2 * step}")
        if self.max_epochs is not None and step >= self._steps_of(self.max_epochs):
            further = 2 * self.max_epochs
            while self._steps_of(further) <= step:
                further *= 2
            yield Reached("trainer.max_epochs", self.max_epochs, f"trainer.max_epochs={further:.12g}")
        if self.max_seconds is not None and seconds >= self.max_seconds:
            further = 2 * max(self.max_seconds, math.ceil(10 * seconds) / 10)
            yield Reached("trainer.max_seconds", self.max_seconds, f"trainer.max_seconds={further:.12g}")
        is_limited = (self.max_steps, self.max_epochs, self.max_seconds) != (None, None, None)
        if not is_limited and step >= self.budget_steps:
            yield Reached("data.budget_steps", self.budget_steps, f"trainer.max_steps={2 * step}")

    def _steps_of(self, epochs: float) -> int:
        return math.ceil(epochs * self.num_rows / self.batch_size)


@dataclass(frozen=True)
class Reached:
    """A limit that ends a run.

    Args:
        key: Dotted key of the setting.
        value: Its value.
        further: The override with which the run resumes, such as `trainer.max_steps=4`.
    """

    key: str
    value: float
    further: str


def once(words: Sequence[str]) -> list[str]:
    """Return a command line without duplicate keys: the last value of each counts.

    Args:
        words: Flags and overrides. If one of a key's overrides adds it with `+`, the remaining one still adds it.
    """
    last: dict[str, str] = {}
    added = set()
    for word in words:
        key = _identity(word)
        last.pop(key, None)  # so that it takes the place of its last occurrence
        last[key] = word
        if word.startswith("+"):
            added.add(key)
    kept = []
    for key, word in last.items():
        if key in added and word[0] not in "+~-":
            word = f"++{word}"
        kept.append(word)
    return kept


def _identity(word: str) -> str:
    if word.startswith(("~", "-")):
        return word
    return word.lstrip("+").partition("=")[0]
