"""Read compressed files as streams of the bytes that were compressed: gzip, bzip2 and zstd, known by their first bytes.

A stream only goes forward. Its memory does not depend on the size of the file.
"""

import bz2
import gzip
import importlib.util
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from samout_train.runtime import HEAD_BYTES, compression_of

ENDINGS = (".gz", ".bz2", ".zst")
KINDS = ("gzip", "bzip2", "zstd")
# Four bytes of zstd may stand for 128 KiB, and forty of bzip2 for 900 kB: one read decompresses to at most 128 MiB.
READ_TOGETHER = 4096
BUFFER_BYTES = 1 << 16


def readable_compression(head: bytes, *, archives: bool = False) -> str | None:
    """Return the kind of compression that can be undone here, by the first bytes of a file; None for any other file.

    Args:
        head: The first bytes.
        archives: Whether `zip` is one of them, of which a member is then chosen.
    """
    found = compression_of(head)
    if found is None:
        return None
    kind, _ = found
    if kind in KINDS or (archives and kind == "zip"):
        return kind
    return None


def without_ending(path: Path) -> Path:
    """Return a path without the ending of a compression; other paths unchanged."""
    if path.suffix.lower() in ENDINGS:
        return path.with_suffix("")
    return path


def decompressed(name: str, file: IO[bytes], kind: str, member: str = "") -> IO[bytes]:
    """Return a stream of the content of a compressed file.

    Args:
        name: Its name in messages.
        file: Opened at its first byte.
        kind: One of `KINDS`, or zip.
        member: Ending of the name of the file in a zip archive; `*` for the only one.

    Raises:
        ValueError: if zstd is not installed, or an archive has no such file, or several. Reading raises it where the
            file is damaged or cut short.
    """
    damage: tuple[type[Exception], ...] = (OSError, zlib.error)
    if kind == "gzip":
        source: Any = gzip.GzipFile(fileobj=file)
    elif kind == "bzip2":
        source = _Frames(file, bz2.BZ2Decompressor)
    elif kind == "zip":
        source = _member(name, file, member)
        damage = (OSError, zlib.error, zipfile.BadZipFile)
    else:
        if importlib.util.find_spec("zstandard") is None:
            need = "reading it needs zstandard: pip install 'samout_train[zst]'"
            raise ValueError(f"{name} is compressed (zstd): {need}")
        import zstandard

        # For any window, which the file states and which is held in memory: 8 MiB, or the size given to --long.
        source = _Frames(file, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj)
        damage = (OSError, zstandard.ZstdError)
    return io.BufferedReader(_Checked(name, kind, source, damage), BUFFER_BYTES)


def members_of(path: Path) -> list[str]:
    """Return the names of the files in a zip archive; nothing for any other file.

    Raises:
        ValueError: if it is damaged.
    """
    with path.open("rb") as file:
        if readable_compression(file.read(HEAD_BYTES), archives=True) != "zip":
            return []
        return _names(str(path), file)


def _names(name: str, file: IO[bytes]) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{name} is damaged (zip, {error}): copy or download it again") from error


def _member(name: str, file: IO[bytes], member: str) -> IO[bytes]:
    wanted = [there for there in _names(name, file) if member == "*" or there.endswith(member)]
    if len(wanted) != 1:
        kind = "" if member == "*" else f" that end in {member}"
        raise ValueError(f"{name} is an archive of {len(wanted)} files{kind}, and one is needed: unpack it")
    archive = zipfile.ZipFile(file)
    return archive.open(wanted[0])


class _Checked(io.RawIOBase):
    """Provide a stream of decompressed bytes whose errors name the file."""

    def __init__(self, name: str, kind: str, source: Any, damage: tuple[type[Exception], ...]) -> None:
        self.name, self.kind = f"{name} is", kind
        self.source, self.damage = source, damage

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as one reading goes; 0 at the end."""
        try:
            content = self.source.read(len(buffer))
        except EOFError as error:
            raise ValueError(f"{self.name} cut short ({self.kind}): copy or download it again") from error
        except self.damage as error:
            raise ValueError(f"{self.name} damaged ({self.kind}, {error}): copy or download it again") from error
        buffer[: len(content)] = content
        return len(content)


class _Frames:
    """Decompress concatenated streams, as in joined files; each has to be complete.

    Args:
        file: At the first of them.
        new: Makes a decompressor for the next one.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any]) -> None:
        self._file, self._new = file, new
        self._frame = new()
        self._has_begun = False
        self._compressed = self._text = b""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; empty at the end."""
        while not self._text:
            if not self._compressed:
                self._compressed = self._file.read(READ_TOGETHER)
            if not self._compressed:
                if self._has_begun:
                    raise EOFError
                return b""
            self._text = self._frame.decompress(self._compressed)
            self._has_begun = not self._frame.eof
            self._compressed = b""
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = self._new()
        taken, self._text = self._text[:size], self._text[size:]
        return taken
