"""Turn errors of the operating system, such as a full disk, into one line: where, what, and what to do."""

import errno
import os
import shutil
from pathlib import Path

from samout_train.runtime.console import FULL

FIXES = {
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that this user can read and write",
    errno.EPERM: "choose a place that this user can read and write",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose another place, as a part of this path is a file",
    errno.EEXIST: "choose another place, as a part of this path is a file",
    errno.EISDIR: "choose another place, as this is a folder",
    errno.EMFILE: "allow more open files with ulimit -n",
}
IN_USE = (32, 33)  # ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION of winerror.h
LONGEST_PATH = 247  # characters; of a folder, which leaves room for a short name: MAX_PATH of minwindef.h
SIZE_LIMIT = "raise the limit on the size of files (ulimit -f), or choose a file system that takes larger ones"


class PlaceError(OSError):
    """Something could not be written; the message is complete."""

    def __str__(self) -> str:
        return str(self.strerror)


def place_problem(path: Path) -> str | None:
    """Return why no directory can be created at a path, or None. The reason may lie in a path above it.

    Args:
        path: It need not exist; nothing is created.
    """
    for part in (path, *path.parents):
        what = ""
        if part != path:
            what = f"{part} "
        try:
            if part.is_symlink() and not part.exists():
                target = part.readlink()
                return f"{what}is a link to {target}, which is not there: make that, or give another directory"
            if part.is_dir():
                return None
            if part.exists():
                return f"{what}is a file: give a directory"
        except NotADirectoryError:  # a path above it is a file
            continue
        except (OSError, ValueError):  # reported when the directory is created
            return None
    return None


def is_full(error: BaseException) -> bool:
    """Return whether there was no room: because of a full disk, a quota, or a limit on file sizes."""
    return isinstance(error, OSError) and error.errno in FULL


def in_words(error: OSError, *, place: Path | None = None, needed: int | None = None, fix: str | None = None) -> str:
    """Return a system error as one line.

    Args:
        error: The system's error.
        place: The path, if the error lacks it.
        needed: Bytes that were to be written.
        fix: Advice, if the caller knows more than the kind of error.
    """
    where = place or error.filename
    if isinstance(error, PlaceError) or where is None:
        return error.strerror or str(error)
    if not is_full(error):
        fix = fix or _on_windows(error, where) or FIXES.get(error.errno or 0)
        message = f"{where}: {error.strerror or error}"
        if fix:
            message += f": {fix}"
        return message
    message, separator = f"{where}: cannot be written ({error.strerror})", ": "
    if needed is not None:
        message, separator = f"{message}: {needed:,} bytes are needed", ", "
    if error.errno == errno.EFBIG:
        return f"{message}: {SIZE_LIMIT}"
    fix = fix or "delete what is not needed, or choose another place"
    return f"{message}{separator}{free_bytes(Path(where))} are free: {fix}"


def _on_windows(error: OSError, where: str | Path) -> str | None:
    if getattr(error, "winerror", None) in IN_USE:
        return "close the program that has it open"
    if (
        os.name == "nt"
        and error.errno in (errno.ENOENT, errno.EINVAL)
        and len(str(Path(where).absolute())) > LONGEST_PATH
    ):
        return "choose a shorter directory, since Windows takes 259 characters unless long paths are enabled"
    return None


def free_bytes(path: Path) -> str:
    """Return the free bytes of the disk of a path, which need not exist."""
    for folder in (path, *path.absolute().parents):
        try:
            return f"{shutil.disk_usage(folder).free:,} bytes"
        except OSError:
            continue
    return "an unknown number of bytes"


def message_of(error: BaseException) -> str:
    """Return the message of an error, with advice if it is a system error."""
    system = _cause(error)
    if system is None:
        return str(error)
    return in_words(system)


def is_of_a_place(error: BaseException) -> bool:
    """Return whether an error is a system error, perhaps wrapped by torch's compiler."""
    return _cause(error) is not None


def _cause(error: BaseException) -> OSError | None:
    """Return the error if it is a system error, or the system error behind an error of torch's compiler."""
    if isinstance(error, OSError):
        return error
    if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return None
    inner = getattr(error, "inner_exception", None) or error.__cause__
    if inner is None:
        return None
    return _cause(inner)
