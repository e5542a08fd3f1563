"""Read compressed files as streams of decompressed bytes: gzip, bzip2 and zstd, recognised by their first bytes.

A stream can only be read forward. Its memory does not depend on the size of the file.
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

from samout_train.runtime import HEAD_BYTES, compression_of, install_line

ENDINGS = (".gz", ".bz2", ".zst")
KINDS = ("gzip", "bzip2", "zstd")
# Four bytes of zstd may expand to 128 KiB, and forty of bzip2 to 900 kB: one read decompresses to at most 128 MiB.
READ_TOGETHER = 4096
BUFFER_BYTES = 1 << 16


def readable_compression(head: bytes, *, archives: bool = False) -> str | None:
    """Return the compression of a file, by its first bytes, if it can be decompressed here; None for other files.

    Args:
        head: The first bytes.
        archives: Whether to include `zip`; the caller then chooses a member of the archive.
    """
    found = compression_of(head)
    if found is None:
        return None
    kind, _ = found
    if kind in KINDS or (archives and kind == "zip"):
        return kind
    return None


def without_ending(path: Path) -> Path:
    """Return a path without the ending of a compressed file; return other paths unchanged."""
    if path.suffix.lower() in ENDINGS:
        return path.with_suffix("")
    return path


def decompressed(name: str, file: IO[bytes], kind: str, member: str = "") -> IO[bytes]:
    """Return a stream of the content of a compressed file.

    Args:
        name: Its name in messages.
        file: Opened at its first byte.
        kind: One of `KINDS`, or zip.
        member: The end of the name of a file in a zip archive; `*` for its only file.

    Raises:
        ValueError: if zstandard is not installed, or an archive has no such file, or several. Reading the stream raises
            it if the file is damaged or cut short.
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
            need = f"reading it needs zstandard: {install_line('zst')}"
            raise ValueError(f"{name} is compressed (zstd): {need}")
        import zstandard

        # Accept any window. The file states its size, 8 MiB or as set by --long, and the window is held in memory.
        source = _Frames(file, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj)
        damage = (OSError, zstandard.ZstdError)
    return io.BufferedReader(_Checked(name, kind, source, damage), BUFFER_BYTES)


def members_of(path: Path) -> list[str]:
    """Return the names of the files in a zip archive; an empty list for any other file.

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
        """Fill a buffer with the bytes of one read, and return their number; 0 at the end."""
        try:
            content = self.source.read(len(buffer))
        except EOFError as error:
            raise ValueError(f"{self.name} cut short ({self.kind}): copy or download it again") from error
        except self.damage as error:
            raise ValueError(f"{self.name} damaged ({self.kind}, {error}): copy or download it again") from error
        buffer[: len(content)] = content
        return len(content)


class _Frames:
    """Decompress concatenated streams, as in joined files. Each stream must be complete.

    Args:
        file: The file, at the start of the first stream.
        new: Makes a decompressor for the next stream.
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
