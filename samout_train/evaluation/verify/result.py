"""The result of a check: what was measured, its bound, and whether it held. Bounds are the same for every model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FP32, BF16 = 1e-5, 2e-2  # relative in norm
FINITE_DIFFERENCES = 1e-5  # relative in norm, float64
OVERFIT_NATS = 0.1
# A gradient's error is relative to its own parameter, but to no less than this share of the norm of all gradients:
# below it, the rounding of what cancels out in a sum over all tokens is not small against the sum.
FLOOR = 1e-2
Measured = tuple[float, str]  # how far it is from holding, and what else a reader has to know


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        name: What must hold.
        measured: How far it is from holding.
        bound: How far it may be.
        note: What else a reader has to know.
        skipped: Whether it was left out, for the reason in the note.
    """

    name: str
    measured: float
    bound: float
    note: str = ""
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Return whether it holds; a NaN never does."""
        return self.measured <= self.bound


Row = CheckResult  # its earlier name


class NothingMeasuredError(Exception):
    """A check that has nothing to measure here; the message is the reason."""


def check_result(name: str, bound: float, measure: Callable[[], Measured]) -> CheckResult:
    """Make one check; what it raises is its result.

    Args:
        name: What must hold.
        bound: How far from holding it may be.
        measure: Measures; raises NothingMeasuredError where there is nothing to measure.
    """
    try:
        measured, note = measure()
    except NothingMeasuredError as reason:
        return CheckResult(name, 0.0, bound, str(reason), skipped=True)
    except Exception as error:  # whatever a person's mixer raises, the other checks and models have their turn
        first_line = next(iter(str(error).splitlines()), "")
        return CheckResult(name, float("nan"), bound, f"{type(error).__name__}: {first_line}")
    return CheckResult(name, measured, bound, note)


def distance(got: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference, relative to that of what is wanted."""
    return float((got - wanted).detach().double().norm() / wanted.detach().double().norm())


def worst_gradient(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> Measured:
    """Return the largest relative error of a parameter's gradient, and which parameter that is.

    Args:
        got: Gradients by name.
        wanted: The same, as they have to be.
    """
    return worst_error({name: (got[name].double() - wanted[name].double()).norm() for name in wanted}, wanted)


def worst_error(errors: dict[str, Tensor], gradients: dict[str, Tensor]) -> Measured:
    """Return the largest error, relative to the norm of the gradient of its parameter, and which parameter that is.

    Args:
        errors: By the parameter's name, no negative ones.
        gradients: By the same names.
    """
    norms = torch.stack([gradient.double().norm() for gradient in gradients.values()])
    relative = torch.stack([errors[name] for name in gradients]) / norms.maximum(FLOOR * norms.norm())
    index = int(relative.argmax())  # which is that of a NaN, where there is one
    return float(relative[index]), f"the worst is {list(gradients)[index]}"
