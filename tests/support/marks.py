"""Which cases of a test every run has, and which `make test-slow` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """The same cases, marked slow but for those that are quick enough for every run."""
    return [case if case in set(quick) else pytest.param(case, marks=pytest.mark.slow) for case in cases]
