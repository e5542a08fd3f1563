"""Find the files of a text, leaving out what cannot be read, and take their sizes and digests, before a run."""

import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath

from samout_train.data.text.compressed import without_ending
from samout_train.data.text.documents import SOS, Piece, Reader, Special
from samout_train.data.text.encoding import COMPRESSED, no_text, printable
from samout_train.runtime import COMPRESSED_ENDINGS, Bar, cache_path, home_path, read_json, sha256_of, write_json

FORMAT = 4
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
        others = ""
        if left_out := found.left_out_in_words():
            others = f" ({left_out})"
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
    if ending.lower() not in COMPRESSED_ENDINGS:
        return name
    return name.removesuffix(ending)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_special(path: Path, status: os.stat_result) -> bool:
    """Return whether it is a pipe, a device, or a file of /proc, which has content and yet no size."""
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
    first = sorted(names)[:NAMED]
    if len(names) > NAMED:
        first.append("...")
    return ", ".join(first)


@dataclass(frozen=True)
class Survey:
    """Files that can be tokenized.

    Args:
        root: What file names are relative to in the record.
        files: In the order in which they are read.
        reader: How they are read.
        sizes: Their bytes.
        digests: Their sha256.
        left_out: What lies beside the files and is not read, in words; empty for nothing.
    """

    root: Path
    files: tuple[Path, ...]
    reader: Reader
    sizes: tuple[int, ...]
    digests: tuple[str, ...]
    left_out: str = ""

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(self.sizes)

    @property
    def sha256(self) -> str:
        """Return the sha256 of the content: of one file its own, of several that of the list of digests and names."""
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
        """Return what the record of a run says of the files."""
        facts: dict[str, object] = {"sha256": self.sha256, "files": self.record}
        if self.left_out:
            facts["left out"] = self.left_out
        return facts

    def changed(self) -> bool:
        """Return whether a file is no longer what it was."""
        try:
            return any(_read_digest(path) != digest for path, digest in zip(self.files, self.digests, strict=True))
        except OSError:
            return True

    def count(self) -> "Counts":
        """Read all files to the end; where that was done before, the cache knows.

        Raises:
            ValueError: if a file cannot be read.
        """
        path = cache_path("survey", FORMAT, self.reader, len(self.files), self.sha256, ending=".survey.json")
        note = read_json(path) or {}
        if note.keys() != {field.name for field in fields(Counts)}:
            counts = Counts(characters=0, num_bytes=0, special_tokens=0, documents=0, left_out={})
            with Bar(total=self.num_bytes, unit="B", unit_scale=True, desc="reading", delay=1, leave=False) as bar:
                for file in self.files:
                    start = 0
                    for piece in self.reader.read(file):
                        counts.add(piece)
                        bar.update(piece.bytes_done - start)
                        start = piece.bytes_done
            note = asdict(counts)
            with suppress(OSError):  # it only saves time
                write_json(path, note)
        return Counts(**note)


@dataclass
class Counts:
    """The content of a file that was read.

    Args:
        characters: Of text.
        num_bytes: UTF-8 bytes of text.
        special_tokens: All of them.
        documents: Those that are `<|sos|>`.
        left_out: How much was passed over, by what it is.
    """

    characters: int
    num_bytes: int
    special_tokens: int
    documents: int
    left_out: dict[str, int]

    def add(self, piece: Piece) -> None:
        """Count a piece of a file."""
        for part in piece.parts:
            if isinstance(part, str):
                self.characters += len(part)
                self.num_bytes += len(part.encode())
            else:
                self.special_tokens += 1
        self.documents += piece.parts.count(Special(SOS))
        for what, number in piece.left_out.items():
            self.left_out[what] = self.left_out.get(what, 0) + number


def survey(root: Path, files: Sequence[Path], reader: Reader, left_out: str = "") -> Survey:
    """Take the digests of files.

    Args:
        root: What file names are relative to in the record.
        files: At least one.
        reader: How they are to be read.
        left_out: What lies beside them and is not read, in words.

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
    """Read a file that has not changed once a process: a check and the building of what it allows are two readers."""
    return _read_digest(path)


def _read_digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:  # in reading, it does not say which file
        raise type(error)(error.errno, error.strerror, str(path)) from error
