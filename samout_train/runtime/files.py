"""Files, and records in files, that are there whole or not at all."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

SECONDS_OF_PATIENCE = 5.0
# Names of devices on Windows, whatever ending they have.
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d\xb9\xb2\xb3])(\.|$)", re.IGNORECASE)


def replace_file(
    path: Path, write: Callable[[IO[bytes]], Any], confirm: Callable[[Path], Any] = lambda temporary: None
) -> None:
    """Writes a file so that a death at any moment leaves the old one or the new one.

    Args:
        path: The file; its folder must be there.
        write: Gets an open binary file beside it, `*.tmp`, which then takes its place.
        confirm: Gets the path of that file, once it is written, and may raise.

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
        # One without a number says all in its own words, which a path would hide.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # a folder that cannot be written to, or is none
            temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a directory cannot be opened
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def take_place(new: Path, path: Path) -> None:
    """Put a file in the place of another one.

    Windows refuses it while somebody has the other one open, such as a virus scanner: then it is tried again, for
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
    """What a death in `replace_file` left in a folder."""
    return (path for path in folder.glob("*.tmp") if re.search(r"\.\d+\.tmp$", path.name))


def append(file: IO[bytes], record: bytes) -> None:
    """Writes a record at the end of a file, or nothing.

    Args:
        file: Unbuffered, at its end.
        record: What to write.

    Raises:
        OSError: if there is no room for it; the file is as it was then. `filename` is its path.
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
