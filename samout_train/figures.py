"""Figures as JSON can hold them."""

import math
from collections.abc import Mapping
from typing import Any


def finite_or_null(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for numbers that JSON cannot hold: NaN and infinities, also in lists and mappings."""
    return {key: _finite(value) for key, value in figures.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite_or_null(value)
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
