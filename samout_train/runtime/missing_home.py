"""A home directory and a user's name for libraries that ask for them, where the system has neither."""

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path


def ensure_home() -> None:
    """Set HOME and LOGNAME where they are missing and the user id has no entry in the password file.

    Libraries ask for both to place their caches: some raise then, and some make a folder named `~`. A folder that is
    set for torch's compiler and cannot be written to is not used: torch makes it also where nothing is compiled.
    """
    _leave_out_unwritable("TORCHINDUCTOR_CACHE_DIR")
    if os.name != "posix":
        return
    import getpass  # here, so that a file that hides a module can still be named
    import tempfile

    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user{os.getuid()}"
    if os.path.expanduser("~") != "~":  # noqa: PTH111, pathlib raises instead
        return
    with suppress(OSError):
        os.environ["HOME"] = str(own_folder(tempfile.gettempdir()))
        where = os.environ["HOME"]
        print(f"HOME: is not set, and user {os.getuid()} has none: caches lie in {where}. Set HOME.", file=sys.stderr)


def _leave_out_unwritable(variable: str) -> None:
    import tempfile

    if not (folder := os.environ.get(variable)):
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1))
            file.flush()
    except OSError as error:
        del os.environ[variable]
        reason = f"cannot be written to ({error.strerror}), and a temporary folder is used"
        print(f"{variable}={folder}: {reason}. Set another one.", file=sys.stderr)


def own_folder(parent: str) -> Path:
    """Return a folder that belongs to this user alone, in one that others can write to.

    Args:
        parent: Such as /tmp.

    Raises:
        OSError: if it cannot be made, or is not this user's.
    """
    folder = Path(parent) / f"samout_train-{os.getuid()}" if hasattr(os, "getuid") else Path(parent) / "samout_train"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if hasattr(os, "getuid"):
        found = folder.lstat()
        # What others can write there, kernels among it, would be run.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{folder}: belongs to another user")
        folder.chmod(0o700)
    return folder
