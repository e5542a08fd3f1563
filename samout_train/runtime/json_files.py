"""Figures as JSON can hold them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samout_train.runtime.files import replace_file


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures as JSON, where a number that is not finite is null."""
    content = json.dumps(finite_or_null(figures), indent=2, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(content.encode()))


def read_figures(path: Path) -> dict[str, Any]:
    """What `write_figures` wrote; nothing where there is no such file, or it is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def finite_or_null(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for numbers that JSON cannot hold: NaN and infinities, also in lists and mappings."""
    return {key: _finite(value) for key, value in figures.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite_or_null(value)
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
