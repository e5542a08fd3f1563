"""Files that are written atomically, JSON files, and digests of files."""

import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

SECONDS_OF_PATIENCE = 5.0
# Names of devices on Windows, with any ending.
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d\xb9\xb2\xb3])(\.|$)", re.IGNORECASE)


def replace_file(
    path: Path, write: Callable[[IO[bytes]], Any], confirm: Callable[[Path], Any] = lambda temporary: None
) -> None:
    """Write a file atomically: if the process dies at any moment, the old or the new file is there.

    Args:
        path: The file; its folder must exist.
        write: Writes to an open binary file `*.tmp` in the same folder, which then replaces the old file.
        confirm: Called with the path of the complete temporary file; may raise.

    Raises:
        OSError: if it cannot be written; `filename` is the path.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        confirm(temporary)
        take_place(temporary, path)
    except OSError as error:
        # An error without a number has its own message, which a path would hide.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # the folder is not writable, or not a folder
            temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a directory cannot be opened
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def take_place(new: Path, path: Path) -> None:
    """Replace a file by another one.

    Windows refuses this while a program, such as a virus scanner, has the file open: it is retried for
    SECONDS_OF_PATIENCE.
    """
    given_up_at = time.monotonic() + SECONDS_OF_PATIENCE
    while True:
        try:
            new.replace(path)
            return
        except PermissionError:
            if os.name == "posix" or time.monotonic() > given_up_at:
                raise
            time.sleep(0.05)


def leftovers(folder: Path) -> Iterator[Path]:
    """Return the temporary files that a process left in a folder when it died in `replace_file`."""
    for path in folder.glob("*.tmp"):
        if re.search(r"\.\d+\.tmp$", path.name):
            yield path


def append(file: IO[bytes], record: bytes) -> None:
    """Append a whole record to a file, or nothing.

    Args:
        file: Unbuffered, at its end.

    Raises:
        OSError: if there is no room for it; the file is then unchanged. `filename` is its path.
    """
    before = file.tell()
    try:
        if file.write(record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        error.filename = error.filename or str(file.name)
        file.truncate(before)
        file.seek(before)
        raise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if it is missing or unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    return content


def write_json(path: Path, content: dict[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON object to a file atomically."""
    replace_file(path, lambda file: file.write(json.dumps(content, indent=indent).encode()))


def read_figures(path: Path) -> dict[str, Any]:
    """Return the content that `write_figures` wrote; empty if the file is missing or unreadable."""
    return read_json(path) or {}


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as indented JSON, with null for non-finite numbers."""
    content = json.dumps(finite_or_null(figures), indent=2, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(content.encode()))


def finite_or_null(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures with None in place of NaN and infinities, also in lists and mappings."""
    return {key: _finite(value) for key, value in figures.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite_or_null(value)
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
