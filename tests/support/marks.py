"""Which cases of a test every run has, and which `make test-nightly` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_nightly(cases: Iterable[Any], usual: Iterable[Any]) -> list[Any]:
    """Return the same cases, marked nightly but for those that every run has."""
    kept = list(usual)
    return [case if case in kept else pytest.param(case, marks=pytest.mark.nightly) for case in cases]


def spread(cases: Iterable[Any], every: int) -> list[Any]:
    """Return the same cases, marked nightly but for one in `every`, from the first. A tuple holds several arguments."""
    return [_at_night(case) if number % every else case for number, case in enumerate(cases)]


def _at_night(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.nightly)
