"""`~` in paths: a shell leaves that of `run_dir=~/a` as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Keys whose values are paths, or lists of paths, wherever they stand.
PATH_KEYS = (
    *("run_dir", "resume", "run", "runs", "path", "paths", "out", "dir", "directory", "vocabulary_path", "storage"),
    "from_path",
)
SQLITE = "sqlite:///"


def home_path(path: str | Path) -> Path:
    """Return a path with `~` and `~user` in front expanded; `./~` in front is a name like any other."""
    if not str(path).startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user, or no home
        return Path(path)


def home_expanded(node: Any, key: str = "") -> Any:
    """Return plain settings with `~` expanded in the values of all keys that are paths.

    Args:
        node: Dictionaries, lists and values.
        key: What the node is the value of.
    """
    if isinstance(node, Mapping):
        return {name: home_expanded(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [home_expanded(value, key) for value in node]
    if not isinstance(node, str) or key not in PATH_KEYS:
        return node
    scheme = SQLITE if node.startswith(SQLITE) else ""
    path = node.removeprefix(scheme)
    return scheme + str(home_path(path)) if path.startswith("~") else node
