"""Find the files of a text, and compute their sizes and digests before a run."""

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from samout_train.data.text.compressed import without_ending
from samout_train.data.text.documents import SOS, Piece, Reader, Special
from samout_train.data.text.encoding import COMPRESSED, no_text, printable
from samout_train.runtime import COMPRESSED_ENDINGS, Bar, cache_path, home_path, read_json, sha256_of, write_json

FORMAT = 5
NAMED = 3
HIDDEN = "hidden"
DANGLING = "links to nothing"
LOOP = "links to a folder above them"
SAME = "the same file under another name"
SPECIAL = "no regular files"
CLOSED = "folders that cannot be opened"
NOT_NAMED = "compressed, and not named by the pattern, as **/*.txt.gz does"
TWICE = "compressed, beside the file that they were made of"
OTHER_CASE = "in other upper and lower case than the pattern"
ANY_DEPTH = "**"
Identity = tuple[int, int]
P = TypeVar("P", bound=PurePath)


@dataclass(frozen=True)
class Found:
    """The files of a path.

    Args:
        root: The folder that names are relative to.
        files: The files, in the order of their names.
        left_out: Names of skipped files and folders, by reason.
    """

    root: Path
    files: list[Path]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def left_out_in_words(self) -> str:
        """Return a description of the skipped files: reasons, numbers and first names; empty if there are none."""
        return "; ".join(f"{reason}: {len(names)} ({_first(names)})" for reason, names in self.left_out.items())


def find(path: str, pattern: str) -> Found:
    """Find a file, or the files of a folder. Links are followed, and each file is found once.

    Args:
        path: A file or folder.
        pattern: Pattern of a folder's files, such as `**/*.txt`. Hidden files match only if a part begins with a dot.

    Raises:
        ValueError: if there is no file.
    """
    root = home_path(path)
    if path and root.is_file() and not _is_special(root, root.stat()):
        return Found(root.parent, [root])
    if path and root.exists() and not root.is_dir():
        raise ValueError(f"path={printable(path)}: is not a regular file: copy its content to one, and use that")
    if not path or not root.is_dir():
        raise ValueError(f"path={printable(path)}: is not there: give a file or a folder")
    search = _Search(root, _parts(pattern))
    search.run()
    found = Found(root, in_order(root, search.files), search.left_out)
    if not found.files:
        others = ""
        if left_out := found.left_out_in_words():
            others = f" ({left_out})"
        raise ValueError(
            f"path={printable(path)}: has no file that matches pattern={pattern}{others}: set another pattern"
        )
    return found


def in_order(root: PurePath, paths: Iterable[P]) -> list[P]:
    """Return paths below a folder in the order of their names, the same on systems that ignore upper and lower case."""
    return sorted(paths, key=lambda path: path.relative_to(root).parts)


def _parts(pattern: str) -> tuple[str, ...]:
    parts = PurePosixPath(pattern.replace(os.sep, "/")).parts
    reason = None
    if not parts:
        reason = "it is empty"
    elif parts[0] == "/" or Path(pattern).is_absolute() or ".." in parts:
        reason = "it leads out of the folder: set path to the other folder"
    elif any(ANY_DEPTH in part and part != ANY_DEPTH for part in parts):
        reason = "** must stand alone between slashes"
    if reason:
        raise ValueError(f"pattern={pattern}: is not a pattern of files ({reason}): set one such as **/*.txt")
    return parts


class _Search:
    """One walk through a folder: first its own files, then the files behind its links."""

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
            links, self._links = in_order(self.root, self._links), []
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
        elif (itself := _identity(link.lstat())) not in self._followed:  # or links to each other would never end
            self._followed.add(itself)
            self._walk(link)

    def _take(self, path: Path) -> None:
        """Record a file that matches, or the reason for skipping it."""
        names = path.relative_to(self.root).parts
        if not self._names(path):
            if _matches((*names[:-1], without_ending(path).name), self.pattern):
                self._leave_out(NOT_NAMED, path)
            elif _matches((*names[:-1], _uncompressed(names[-1])), self.pattern):
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
        elif (plain := without_ending(path)) != path and plain.is_file() and self._names(plain):
            self._leave_out(TWICE, path)
        elif reason := no_text(path):
            self._leave_out(reason, path)
        else:
            self._matching.append((path, _identity(status)))

    def _names(self, path: Path) -> bool:
        return _matches(path.relative_to(self.root).parts, self.pattern)

    def _keep(self) -> None:
        """Keep each file once, under the first of its names."""
        identities = dict(self._matching)
        for path in in_order(self.root, identities):
            identity = identities[path]
            if identity[1] and identity in self._identities:  # some systems have no inode numbers
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
    if ending.lower() not in COMPRESSED_ENDINGS:
        return name
    return name.removesuffix(ending)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_special(path: Path, status: os.stat_result) -> bool:
    """Return whether a path is a pipe, a device, or a file of /proc, which has content although its size is 0."""
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        return not stat.S_ISREG(status.st_mode)
    try:
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError:  # reported when the file is read
        return False


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _identity_of(path: Path) -> Identity:
    return _identity(path.stat())


def _first(names: Sequence[str]) -> str:
    first = sorted(names)[:NAMED]
    if len(names) > NAMED:
        first.append("...")
    return ", ".join(first)


@dataclass(frozen=True)
class Survey:
    """Files to tokenize.

    Args:
        root: The folder that names in the record are relative to.
        files: The files, in reading order.
        reader: The reader of the files.
        sizes: Their sizes in bytes.
        digests: Their sha256 digests.
        left_out: Description of skipped files; empty if there are none.
    """

    root: Path
    files: tuple[Path, ...]
    reader: Reader
    sizes: tuple[int, ...]
    digests: tuple[str, ...]
    left_out: str = ""

    @property
    def num_bytes(self) -> int:
        """Return the size of all files in bytes."""
        return sum(self.sizes)

    @property
    def sha256(self) -> str:
        """Return the sha256 of the content: of a single file, or of the list of digests and names."""
        if len(self.files) == 1:
            return self.digests[0]
        lines = []
        for digest, path in zip(self.digests, self.files, strict=True):
            lines.append(f"{digest} {path.relative_to(self.root).as_posix()}")
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()

    @property
    def record(self) -> list[dict[str, object]]:
        """Return name, bytes and sha256 of each file."""
        entries: list[dict[str, object]] = []
        for path, size, digest in zip(self.files, self.sizes, self.digests, strict=True):
            name = printable(path.relative_to(self.root).as_posix())
            entries.append({"name": name, "bytes": size, "sha256": digest})
        return entries

    def description(self) -> dict[str, object]:
        """Return the files' part of a run's record."""
        facts: dict[str, object] = {"sha256": self.sha256, "files": self.record}
        if self.left_out:
            facts["left out"] = self.left_out
        return facts

    def changed(self) -> bool:
        """Return whether a file has changed since the survey."""
        try:
            return any(_read_digest(path) != digest for path, digest in zip(self.files, self.digests, strict=True))
        except OSError:
            return True

    def count(self) -> "Counts":
        """Count the content of all files, or return the counts from the cache.

        Raises:
            ValueError: if a file cannot be read.
        """
        path = cache_path("survey", FORMAT, self.reader, len(self.files), self.sha256, ending=".survey.json")
        note = read_json(path) or {}
        if note.keys() != {field.name for field in fields(Counts)}:
            counts = Counts(characters=0, num_bytes=0, words=0, lines=0, special_tokens=0, documents=0, left_out={})
            with Bar(total=self.num_bytes, unit="B", unit_scale=True, desc="reading", delay=1, leave=False) as bar:
                for file in self.files:
                    start = 0
                    for piece in self.reader.read(file):
                        counts.add(piece)
                        bar.update(piece.bytes_done - start)
                        start = piece.bytes_done
            note = asdict(counts)
            with suppress(OSError):  # the cache only saves time
                write_json(path, note)
        return Counts(**note)


@dataclass
class Counts:
    """The amount of content in files.

    Args:
        characters: Characters of text.
        num_bytes: UTF-8 bytes of text.
        words: Number of words, separated by blanks and line ends.
        lines: Number of line ends.
        special_tokens: Number of special tokens.
        documents: Number of `<|sos|>` among them.
        left_out: Number of skipped things, by kind.
    """

    characters: int
    num_bytes: int
    words: int
    lines: int
    special_tokens: int
    documents: int
    left_out: dict[str, int]

    def add(self, piece: Piece) -> None:
        """Count a piece of a file."""
        for part in piece.parts:
            if isinstance(part, str):
                self.characters += len(part)
                self.num_bytes += len(part.encode())
                self.words += len(part.split())
                self.lines += part.count("\n")
            else:
                self.special_tokens += 1
        self.documents += piece.parts.count(Special(SOS))
        for what, number in piece.left_out.items():
            self.left_out[what] = self.left_out.get(what, 0) + number


def survey(root: Path, files: Sequence[Path], reader: Reader, left_out: str = "") -> Survey:
    """Compute the sizes and digests of files.

    Args:
        root: The folder that names in the record are relative to.
        files: At least one file.
        reader: The reader of the files.
        left_out: Description of skipped files.

    Raises:
        ValueError: if a file cannot be read.
    """
    try:
        return _surveyed(root, files, reader, left_out)
    except OSError as error:
        raise ValueError(
            f"path: {printable(error.filename)} cannot be read ({error.strerror}): make it readable, or leave it out"
        ) from error


def _surveyed(root: Path, files: Sequence[Path], reader: Reader, left_out: str) -> Survey:
    status = [path.stat() for path in files]
    sizes = tuple(entry.st_size for entry in status)
    digests = []
    with Bar(total=sum(sizes), unit="B", unit_scale=True, desc="sha256", delay=1, leave=False) as bar:
        for path, entry in zip(files, status, strict=True):
            digests.append(_digest(path, entry.st_size, entry.st_mtime_ns, entry.st_ino))
            bar.update(entry.st_size)
    return Survey(root, tuple(files), reader, sizes, tuple(digests), left_out)


@lru_cache(maxsize=1 << 14)
def _digest(path: Path, size: int, modified_ns: int, inode: int) -> str:
    """Return the digest of a file. An unchanged file is read once per process, for both the check and the build."""
    return _read_digest(path)


def _read_digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:  # a read error lacks the name of the file
        raise type(error)(error.errno, error.strerror, str(path)) from error
