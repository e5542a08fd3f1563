"""The result of a check: the measured deviation, its bound, and whether it passed. All models have the same bounds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FP32, BF16 = 1e-5, 2e-2  # relative in norm
FINITE_DIFFERENCES = 1e-5  # relative in norm, float64
OVERFIT_NATS = 0.1
# A gradient's error is relative to its own norm, but at least to this share of the norm of all gradients. A smaller
# gradient is a sum over all tokens that nearly cancels, so its rounding error is large relative to the sum.
FLOOR = 1e-2
Measured = tuple[float, str]  # the measured deviation, and a note for the reader


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        name: The checked property.
        measured: The measured deviation.
        bound: The largest allowed deviation.
        note: A note for the reader.
        skipped: Whether the check was skipped; the note has the reason.
    """

    name: str
    measured: float
    bound: float
    note: str = ""
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Return whether the deviation is within its bound; NaN never is."""
        return self.measured <= self.bound


Row = CheckResult  # its earlier name


class NothingMeasuredError(Exception):
    """A check has nothing to measure; the message is the reason."""


def check_result(name: str, bound: float, measure: Callable[[], Measured]) -> CheckResult:
    """Run one check and return its result; an exception is a failure.

    Args:
        name: The checked property.
        bound: The largest allowed deviation.
        measure: Measures the deviation; raises NothingMeasuredError if there is nothing to measure.
    """
    try:
        measured, note = measure()
    except NothingMeasuredError as reason:
        return CheckResult(name, 0.0, bound, str(reason), skipped=True)
    except Exception as error:  # a custom mixer may raise anything, and the other checks must still run
        first_line = next(iter(str(error).splitlines()), "")
        return CheckResult(name, float("nan"), bound, f"{type(error).__name__}: {first_line}")
    return CheckResult(name, measured, bound, note)


def distance(got: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference relative to the norm of `wanted`."""
    return float((got - wanted).detach().double().norm() / wanted.detach().double().norm())


def worst_gradient(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> Measured:
    """Return the largest relative error of a parameter's gradient, and the name of the parameter.

    Args:
        got: Gradients by name.
        wanted: Their reference, by the same names.
    """
    return worst_error({name: (got[name].double() - wanted[name].double()).norm() for name in wanted}, wanted)


def worst_error(errors: dict[str, Tensor], gradients: dict[str, Tensor]) -> Measured:
    """Return the largest error relative to the norm of its parameter's gradient, and the name of the parameter.

    Args:
        errors: Non-negative errors by parameter name.
        gradients: Gradients by the same names.
    """
    norms = torch.stack([gradient.double().norm() for gradient in gradients.values()])
    relative = torch.stack([errors[name] for name in gradients]) / norms.maximum(FLOOR * norms.norm())
    index = int(relative.argmax())  # a NaN counts as the largest
    return float(relative[index]), f"the worst is {list(gradients)[index]}"
