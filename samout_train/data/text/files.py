"""What files hold, before anything is made of them: sizes, digests, and that they can be read to the end."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

from samout_train.data.text.documents import SOS, Reader, Special
from samout_train.data.text.text_kind import printable
from samout_train.runtime import Bar, cache_path, read_json, sha256_of, write_json

FORMAT = 4


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
        """Of all files."""
        return sum(self.sizes)

    @property
    def sha256(self) -> str:
        """Of the content: the file's own for one file, of the list of digests and names for several."""
        if len(self.files) == 1:
            return self.digests[0]
        names = (path.relative_to(self.root).as_posix() for path in self.files)
        listing = "\n".join(f"{digest} {name}" for digest, name in zip(self.digests, names, strict=True))
        return hashlib.sha256(os.fsencode(listing)).hexdigest()

    @property
    def record(self) -> list[dict[str, object]]:
        """Name, bytes and sha256 of each file."""
        return [
            {"name": printable(path.relative_to(self.root).as_posix()), "bytes": size, "sha256": digest}
            for path, size, digest in zip(self.files, self.sizes, self.digests, strict=True)
        ]

    def description(self) -> dict[str, object]:
        """Return what the record of a run says of the files."""
        facts: dict[str, object] = {"sha256": self.sha256, "files": self.record}
        return facts | ({"left out": self.left_out} if self.left_out else {})

    def changed(self) -> bool:
        """Whether a file is no longer what it was."""
        try:
            return any(_read_digest(path) != digest for path, digest in zip(self.files, self.digests, strict=True))
        except OSError:
            return True

    def count(self) -> "Counts":
        """Reads all files to the end; where that was done before, the cache knows.

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
                        texts = [part for part in piece.parts if isinstance(part, str)]
                        counts.characters += sum(map(len, texts))
                        counts.num_bytes += sum(len(text.encode()) for text in texts)
                        counts.special_tokens += len(piece.parts) - len(texts)
                        counts.documents += piece.parts.count(Special(SOS))
                        for what, number in piece.left_out.items():
                            counts.left_out[what] = counts.left_out.get(what, 0) + number
                        bar.update(piece.end - start)
                        start = piece.end
            note = asdict(counts)
            with suppress(OSError):  # it only saves time
                write_json(path, note)
        return Counts(**note)


@dataclass
class Counts:
    """What was read.

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


def survey(root: Path, files: Sequence[Path], reader: Reader, left_out: str = "") -> Survey:
    """Takes the digests of files.

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
    total = sum(entry.st_size for entry in status)
    digests = []
    with Bar(total=total, unit="B", unit_scale=True, desc="sha256", delay=1, leave=False) as bar:
        for path, entry in zip(files, status, strict=True):
            digests.append(_digest(path, entry.st_size, entry.st_mtime_ns, entry.st_ino))
            bar.update(entry.st_size)
    return Survey(root, tuple(files), reader, tuple(entry.st_size for entry in status), tuple(digests), left_out)


@lru_cache(maxsize=1 << 14)
def _digest(path: Path, size: int, modified_ns: int, inode: int) -> str:
    """Once a process for a file that has not changed: a check and the building of what it allows are two readers."""
    return _read_digest(path)


def _read_digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:  # in reading, it does not say which file
        raise type(error)(error.errno, error.strerror, str(path)) from error
