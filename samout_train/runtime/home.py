"""The home directory: `~` in paths, the cache below it, and a substitute if the user has none.

A shell does not expand the `~` of `run_dir=~/a`. The cache keeps tokenized text and measurements. It lies outside every
run directory, and can be deleted at any time.
"""

import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from samout_train.runtime.os_errors import in_words

# Keys at any level whose values are paths or lists of paths.
PATH_KEYS = (
    *(
        "run_dir",
        "resume",
        "init_from",
        "run",
        "runs",
        "path",
        "paths",
        "out",
        "dir",
        "directory",
        "vocabulary_path",
        "storage",
    ),
    "from_path",
)
SQLITE = "sqlite:///"


def home_path(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~user` expanded; `./~` is an ordinary name."""
    if not str(path).startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or no home directory
        return Path(path)


def home_expanded(node: Any, key: str = "") -> Any:
    """Return plain settings with `~` expanded in the values of all keys that are paths.

    Args:
        node: Nested dictionaries, lists and values.
        key: The key of this node.
    """
    if isinstance(node, Mapping):
        return {name: home_expanded(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [home_expanded(value, key) for value in node]
    if not isinstance(node, str) or key not in PATH_KEYS:
        return node
    path = node.removeprefix(SQLITE)
    if not path.startswith("~"):
        return node
    return node.removesuffix(path) + str(home_path(path))


def cache_directory() -> Path:
    """Return `SAMOUT_TRAIN_CACHE`, else `samout_train` below `XDG_CACHE_HOME` or `~/.cache`."""
    ensure_home()
    if chosen := os.environ.get("SAMOUT_TRAIN_CACHE"):
        return home_path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samout_train"


def cache_path(*parts: object, ending: str) -> Path:
    """Return the path in the cache for these parts; its folder exists.

    Args:
        parts: Everything that the content depends on, compared by `repr`.
        ending: Ending of the file name, such as `.json`.

    Raises:
        ValueError: if the folder cannot be made.
    """
    from hashlib import sha256  # imported late, as below

    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = in_words(error, place=folder, fix="set SAMOUT_TRAIN_CACHE to another folder")
        raise ValueError(f"the cache cannot be made: {reason}") from error
    return folder / (sha256(repr(parts).encode()).hexdigest()[:32] + ending)


def ensure_home() -> None:
    """Set HOME and LOGNAME where they are missing and the user id has no entry in the password file.

    Libraries need both for their caches: without them some raise, and some make a folder named `~`. An unwritable
    folder set for torch's compiler is ignored, because torch creates it even if nothing is compiled.
    """
    _leave_out_unwritable("TORCHINDUCTOR_CACHE_DIR")
    if os.name != "posix":
        return
    import getpass  # imported late, so that a file that hides a module can still be named
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
    """Return a private folder of this user in a folder that others can write to.

    Args:
        parent: A folder such as /tmp.

    Raises:
        OSError: if it cannot be created, or belongs to another user.
    """
    folder = Path(parent) / "samout_train"
    if hasattr(os, "getuid"):
        folder = Path(parent) / f"samout_train-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if hasattr(os, "getuid"):
        found = folder.lstat()
        # Compiled kernels in it are executed, so other users must not be able to write there.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{folder}: belongs to another user")
        folder.chmod(0o700)
    return folder
