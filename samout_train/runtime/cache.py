"""The folder of what was read and tokenized before. It lies outside every run directory and can be deleted any time."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from samout_train.runtime.files import replace_file
from samout_train.runtime.home import home_path
from samout_train.runtime.missing_home import ensure_home
from samout_train.runtime.places import in_words


def cache_directory() -> Path:
    """`SAMOUT_TRAIN_CACHE`, else `samout_train` below `XDG_CACHE_HOME` or `~/.cache`."""
    ensure_home()
    if chosen := os.environ.get("SAMOUT_TRAIN_CACHE"):
        return home_path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samout_train"


def cache_path(*parts: object, ending: str) -> Path:
    """The file in the cache for what `parts` describe; its folder is there.

    Args:
        parts: All that the content depends on; their `repr` counts.
        ending: Such as `.json`.

    Raises:
        ValueError: if the folder cannot be made.
    """
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = in_words(error, place=folder, fix="set SAMOUT_TRAIN_CACHE to another folder")
        raise ValueError(f"the cache cannot be made: {reason}") from error
    return folder / (sha256(repr(parts).encode()).hexdigest()[:32] + ending)


def read_note(path: Path) -> dict[str, Any] | None:
    """A JSON object of the cache; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_note(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, whole or not at all."""
    replace_file(path, lambda output: output.write(json.dumps(content).encode()))
