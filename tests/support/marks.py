"""Which cases of a test every run has, and which `make test-nightly` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_nightly(cases: Iterable[Any], usual: Iterable[Any]) -> list[Any]:
    """The same cases, marked nightly but for those that every run has."""
    return [case if case in set(usual) else pytest.param(case, marks=pytest.mark.nightly) for case in cases]
