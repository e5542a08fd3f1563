"""Allowed values, declared once beside the parameter: `hidden_size: Annotated[int, Positive]`.

The check of the configuration reads the annotation before anything is built, and `validated` enforces the same
annotation when a constructor is called from Python.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar, cast

from samout_train.config.problem import Problem

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Args:
        low: Lower end.
        high: Upper end.
        low_included: Whether `low` itself is allowed.
        high_included: Whether `high` itself is allowed.
    """

    low: float
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (self.low_included and value == self.low)
        below = value < self.high or (self.high_included and value == self.high)
        return above and below and (isinstance(value, int) or math.isfinite(value))

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        if not self.low_included:
            low = f"above {low}"
        if math.isinf(self.high) and self.low_included:
            return f"at least {low}"
        if math.isinf(self.high):
            return low
        if not self.high_included:
            high = f"below {high}"
        return f"from {low} to {high}"


def _number(value: float) -> str:
    if float(value).is_integer():
        return str(int(value))
    return f"{value:g}"


@dataclass(frozen=True)
class Forms:
    """Text of a few forms.

    Args:
        forms: The forms, in words.
        of_number: The text that a bare number probably stands for, such as `cuda:{}`.
    """

    forms: str
    of_number: str = ""

    def expected(self, value: Any) -> str:
        """Return what a value that is not text must be."""
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if self.of_number and is_number:
            return f"{self.forms}; did you mean {self.of_number.format(value)}?"
        return self.forms


DEVICES = Forms("auto, cpu, cuda, cuda:N or mps", "cuda:{}")
DeviceName = Annotated[str, DEVICES]
Positive = Range(0, low_included=False)
NonNegative = Range(0)
Probability = Range(0, 1, high_included=False)
Share = Range(0, 1)
TopShare = Range(0, 1, low_included=False)  # of top_p; 0 would leave no token to draw
Penalty = Range(0, 10, low_included=False)  # of repetition
LARGEST = 2**63 - 1
Seed = Range(0, LARGEST)
Threads = Range(1, 1024)
Seeds = Range(1, 10_000)  # of a comparison; each is a training run
# Larger values do not fit on any machine, or make libraries fail with unclear messages.
Size = Range(1, 1 << 24)  # of one dimension of a model, as ids
SizeOrNone = Range(0, Size.high)
Layers = Range(1, 10_000)


def range_of(annotation: Any) -> Range | None:
    """Return the Range in an annotation such as `Annotated[int, Positive]` or `Annotated[int, Positive] | None`."""
    return _metadata_of(annotation, Range)


def forms_of(annotation: Any) -> Forms | None:
    """Return the Forms in an annotation such as `Annotated[str, DEVICES]`."""
    return _metadata_of(annotation, Forms)


def _metadata_of(annotation: Any, kind: type[T]) -> T | None:
    """Return the first metadata of a kind in an annotation or one of its alternatives."""
    if typing.get_origin(annotation) is Annotated:
        for item in annotation.__metadata__:
            if isinstance(item, kind):
                return item
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            found = _metadata_of(part, kind)
            if found is not None:
                return found
    return None


def beyond_numbers(value: Any) -> str | None:
    """Return what a number must be if a value is, or contains, a number that is not finite or exceeds 64 bits.

    Args:
        value: A number, or a list or mapping of settings; nodes with `_target_` are checked separately.
    """
    if isinstance(value, dict):
        if "_target_" in value:
            return None
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next(filter(None, map(beyond_numbers, value)), None)
    if isinstance(value, int) and value > LARGEST:
        return f"at most {LARGEST}"
    if isinstance(value, int) and value < -LARGEST:
        return f"at least {-LARGEST}"
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    return None


def not_divisible(whole_name: str, whole: int, part_name: str, part: int) -> str | None:
    """Return the problem if `part` does not divide `whole`, with values that would work; else None."""
    if whole % part == 0:
        return None
    below, above = whole // part * part, (whole // part + 1) * part
    choices = f"{below} or {above}"
    if below == 0:
        choices = f"{whole_name}={above}, or a smaller {part_name}"
    return f"{whole_name} ({whole}) must be divisible by {part_name} ({part}): try {choices}"


def checked_by(problems: Callable[[Mapping[str, Any], str], Sequence[Problem | str]]) -> Callable[[T], T]:
    """Give a component its own check, which runs with the check of the configuration before anything is built.

    Args:
        problems: Called with the component's settings, each valid by itself, and their key. Returns problems, or whole
            messages, about their combination or about the things that they name.
    """

    def attach(component: T) -> T:
        component.problems = problems  # type: ignore[attr-defined]
        return component

    return attach


def validated(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function, a constructor or a dataclass refuse numbers outside the ranges of its annotations.

    Raises:
        ValueError: at the call, with the argument, its value and the range.
    """
    if inspect.isclass(function):
        dataclass_type: Any = function
        dataclass_type.__init__ = validated(dataclass_type.__init__)
        return cast(Callable[P, R], function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = typing.get_type_hints(function, include_extras=True)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            allowed = range_of(hints.get(name))
            if allowed and isinstance(value, int | float) and value not in allowed:
                raise ValueError(f"{name} ({value}) must be {beyond_numbers(value) or allowed}")
            if isinstance(value, int | float | list | tuple) and (limit := beyond_numbers(value)):
                raise ValueError(f"{name} ({value}) must be {limit}")
        return function(*args, **kwargs)

    return check_and_call
