"""Which files of a folder are read, and which are left out and why."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from samout_train.data.text.text_kind import printable
from samout_train.runtime import COMPRESSED_ENDINGS, home_path

NAMED = 3
HIDDEN = "hidden"
DANGLING = "links to nothing"
LOOP = "links to a folder above them"
SAME = "the same file under another name"
SPECIAL = "no regular files"
CLOSED = "folders that cannot be opened"
COMPRESSED = "compressed, to be decompressed first"
OTHER_CASE = "in other upper and lower case than the pattern"
ANY_DEPTH = "**"
Identity = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """The files that a path names.

    Args:
        root: What names are relative to.
        files: In the order of their names.
        left_out: Names of files and folders of the folder that are not read, by reason.
    """

    root: Path
    files: list[Path]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def left_out_in_words(self) -> str:
        """Return how many are left out, why, and the first of them; empty if none is."""
        return "; ".join(f"{reason}: {len(names)} ({_first(names)})" for reason, names in self.left_out.items())


def find(path: str, pattern: str) -> Found:
    """Find a file, or the files of a folder; links are followed, and each file is found once.

    Args:
        path: Of the file or folder.
        pattern: Which files of a folder, such as `**/*.txt`; hidden ones only if a part of it begins with a dot.

    Raises:
        ValueError: if there is none.
    """
    root = home_path(path)
    if path and root.is_file() and not _is_special(root, root.stat()):
        return Found(root.parent, [root])
    if path and root.exists() and not root.is_dir():
        raise ValueError(f"path={printable(path)}: is no regular file: copy its content to a file, and give that")
    if not path or not root.is_dir():
        raise ValueError(f"path={printable(path)}: is not there: give a file or a folder")
    search = _Search(root, _parts(pattern))
    search.run()
    found = Found(root, sorted(search.files), search.left_out)
    if not found.files:
        others = f" ({left_out})" if (left_out := found.left_out_in_words()) else ""
        raise ValueError(
            f"path={printable(path)}: has no file that matches pattern={pattern}{others}: set pattern to what is there"
        )
    return found


def _parts(pattern: str) -> tuple[str, ...]:
    parts = PurePosixPath(pattern.replace(os.sep, "/")).parts
    reason = None
    if not parts:
        reason = "it is empty"
    elif parts[0] == "/" or Path(pattern).is_absolute() or ".." in parts:
        reason = "it leads out of the folder: set path to the folder that is meant"
    elif any(ANY_DEPTH in part and part != ANY_DEPTH for part in parts):
        reason = "** must stand alone between slashes"
    if reason:
        raise ValueError(f"pattern={pattern}: is no pattern of files ({reason}): give one such as **/*.txt")
    return parts


class _Search:
    """One walk through a folder: first what lies in it, then what links in it lead to."""

    def __init__(self, root: Path, pattern: tuple[str, ...]) -> None:
        self.root, self.pattern = root, pattern
        self.files: list[Path] = []
        self._matching: list[tuple[Path, Identity]] = []
        self.left_out: dict[str, list[str]] = {}
        self._shows_hidden = any(part.startswith(".") for part in pattern)
        self._identities: set[Identity] = set()
        self._links: list[Path] = []
        self._followed: set[Identity] = set()

    def run(self) -> None:
        """Walk through the folder."""
        self._walk(self.root)
        self._keep()
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._follow(link)
            self._keep()

    def _walk(self, folder: Path) -> None:
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError:
                self._leave_out(CLOSED, folder)
                continue
            for entry in entries:
                path = folder / entry.name
                if entry.is_symlink():
                    self._links.append(path)
                elif not entry.is_dir(follow_symlinks=False):
                    self._take(path)
                elif self._is_hidden(path):
                    self._leave_out(HIDDEN, path)
                else:
                    waiting.append(path)

    def _follow(self, link: Path) -> None:
        status = _status(link)
        is_folder = status is not None and stat.S_ISDIR(status.st_mode)
        if status is None or not is_folder:
            self._take(link)
        elif self._is_hidden(link):
            self._leave_out(HIDDEN, link)
        elif _identity(status) in map(_identity_of, link.parents):
            self._leave_out(LOOP, link)
        elif (itself := _identity(link.lstat())) not in self._followed:  # or links to each other are never done
            self._followed.add(itself)
            self._walk(link)

    def _take(self, path: Path) -> None:
        """Note a file that matches, or why it is left out."""
        names = path.relative_to(self.root).parts
        if not _matches(names, self.pattern):
            if _matches((*names[:-1], _uncompressed(names[-1])), self.pattern):
                self._leave_out(COMPRESSED, path)
            elif _matches([name.lower() for name in names], [part.lower() for part in self.pattern]):
                self._leave_out(OTHER_CASE, path)
            return
        status = _status(path)
        if self._is_hidden(path):
            self._leave_out(HIDDEN, path)
        elif status is None:
            self._leave_out(DANGLING, path)
        elif _is_special(path, status):
            self._leave_out(SPECIAL, path)
        else:
            self._matching.append((path, _identity(status)))

    def _keep(self) -> None:
        """Keep each file once, under the first of its names."""
        for path, identity in sorted(self._matching):
            if identity[1] and identity in self._identities:  # some systems have no numbers of files
                self._leave_out(SAME, path)
            else:
                self._identities.add(identity)
                self.files.append(path)
        self._matching = []

    def _is_hidden(self, path: Path) -> bool:
        return path.name.startswith(".") and not self._shows_hidden

    def _leave_out(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(printable(path.relative_to(self.root).as_posix()))


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == ANY_DEPTH:
        return any(_matches(names[start:], pattern[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _uncompressed(name: str) -> str:
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in COMPRESSED_ENDINGS else name


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_special(path: Path, status: os.stat_result) -> bool:
    """Whether it is a pipe, a device, or a file of /proc, which has content and yet no size: another at each look."""
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        return not stat.S_ISREG(status.st_mode)
    try:
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError:  # which is told where it is read
        return False


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _identity_of(path: Path) -> Identity:
    return _identity(path.stat())


def _first(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")
