"""Files that are there whole or not at all."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def replace_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file so that a death at any moment leaves the old one or the new one.

    Args:
        path: The file; its folder must be there.
        write: Gets an open binary file beside it, `*.tmp`, which then takes its place.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a directory cannot be opened
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def leftovers(folder: Path) -> Iterator[Path]:
    """What a death in `replace_file` left in a folder."""
    return (path for path in folder.glob("*.tmp") if re.search(r"\.\d+\.tmp$", path.name))
