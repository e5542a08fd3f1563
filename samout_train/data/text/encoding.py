"""Recognise files that are not UTF-8 text by their first bytes, and open text files, compressed or not."""

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from samout_train.data.text.compressed import decompressed, readable_compression
from samout_train.runtime import (
    HEAD_BYTES,
    TEXT,
    compression_of,
    converting_line,
    kept_otherwise,
    new_file,
    old_file_away,
    program_file,
    typed_line,
)

SKIPPED_TOGETHER = 1 << 20
# Python that converts a file to UTF-8; without double quotes, so that it can be typed into any shell.
CONVERT = (
    "import sys; a, b, e = sys.argv[1:]; "
    "open(b, 'x', encoding='utf-8', newline='').write(open(a, encoding=e, newline='').read())"
)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNICODE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
PARQUET = b"PAR1\x15"
ARROW, ARROW_STREAM = b"ARROW1\x00\x00", b"\xff\xff\xff\xff"
PDF = b"%PDF-"
SOME_ZEROS, FEW_ZEROS = 0.05, 0.01
# The places, among each four bytes, that are often zero, and the places that are not.
ZEROS = {
    "UTF-32LE": ((2, 3), (0,)),
    "UTF-32BE": ((0, 1), (3,)),
    "UTF-16LE": ((1, 3), (0, 2)),
    "UTF-16BE": ((0, 2), (1, 3)),
}
BINARY_BYTES = 8000  # as in Git
NO_TEXT = f"no text (a PDF, or a zero byte among the first {BINARY_BYTES:,})"
COMPRESSED = "compressed, to be decompressed first"


def printable(name: object) -> str:
    """Return a file name with unprintable characters, such as line ends and bytes that are not UTF-8, escaped."""
    text = str(name)
    if text.isprintable():
        return text
    escaped = ""
    for character in text:
        if character.isprintable():
            escaped += character
        else:
            escaped += character.encode("unicode_escape").decode()
    return escaped


class TextFile:
    """Hold a file of text, opened at its first byte; a compressed file is decompressed while it is read.

    Args:
        lying: The file as stored.
        text: The decompressed file; the same file if it is not compressed.
    """

    def __init__(self, lying: IO[bytes], text: IO[bytes]) -> None:
        self.text = text
        self.read, self.readline = text.read, text.readline
        self._lying = lying

    def skip_to(self, place: int) -> None:
        """Go to a byte of the text; called before anything else is read."""
        if self.text is self._lying:
            self.text.seek(place)
            return
        while place > 0 and (skipped := len(self.text.read(min(place, SKIPPED_TOGETHER)))):
            place -= skipped

    def compressed_bytes(self) -> int | None:
        """Return the number of stored bytes read so far from a compressed file; None if it is not compressed."""
        if self.text is self._lying:
            return None
        return self._lying.tell()


@contextmanager
def opened(path: Path, member: str = "") -> Iterator[TextFile]:
    """Open a file of text, compressed or not.

    Args:
        path: The file.
        member: The end of the name of a file in a zip archive, or `*` for its only file. Archives are refused if it is
            empty.

    Raises:
        ValueError: if it cannot be opened, or its first bytes belong to another kind of file.
    """
    try:
        lying = path.open("rb")
    except OSError as error:
        raise ValueError(
            f"{printable(path)} cannot be read ({error.strerror}): make it readable, or leave it out"
        ) from error
    with lying:
        kind = readable_compression(lying.read(HEAD_BYTES), archives=bool(member))
        head = _from_its_start(path, lying, kind, member).read(HEAD_BYTES)
        if problem := other_kind(head, path if kind is None else None):  # commands for a file need its stored name
            raise ValueError(f"{printable(path)} {problem}")
        yield TextFile(lying, _from_its_start(path, lying, kind, member))


def _from_its_start(path: Path, lying: IO[bytes], kind: str | None, member: str = "") -> IO[bytes]:
    lying.seek(0)
    if kind is None:
        return lying
    return decompressed(printable(path), lying, kind, member)


def no_text(path: Path) -> str | None:
    """Return why a file is skipped in a folder: it is not text in any encoding. None if it may be text.

    A file is not text if its first `BINARY_BYTES`, after decompression, contain a zero byte that is not part of UTF-16
    or UTF-32, or if it begins like a PDF or a compression that cannot be read here. Tables are read.
    """
    try:
        with path.open("rb") as lying:
            head = lying.read(HEAD_BYTES)
            if head.startswith((PARQUET, ARROW, ARROW_STREAM)):
                return None
            kind = readable_compression(head)
            if kind is None and compression_of(head):
                return COMPRESSED
            head = _from_its_start(path, lying, kind).read(BINARY_BYTES)
    except (OSError, ValueError):  # reported when the file is read
        return None
    if head.startswith(PDF) or (0 in head and not _is_unicode(head)):
        return NO_TEXT
    return None


def _is_unicode(head: bytes) -> bool:
    """Return whether the beginning of a file with zero bytes may be text in UTF-16 or UTF-32."""
    if head.startswith(tuple(UNICODE)):
        return True
    encoding = encoding_of_zeros(head)
    if encoding is None:
        return False
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def encoding_of_zeros(content: bytes) -> str | None:
    """Return the encoding of a text with zero bytes, by the places of the zeros; None if it is not text.

    Args:
        content: Any part of a file that begins at a multiple of four bytes.
    """
    if content.count(0) < 2:
        return None
    zeros = [content[place::4].count(0) * 4 / len(content) for place in range(4)]  # share of zeros at each place
    return next((encoding for encoding, places in ZEROS.items() if _lie_in(*places, zeros)), None)


def _lie_in(places: tuple[int, ...], others: tuple[int, ...], zeros: list[float]) -> bool:
    """Return whether zeros are frequent at each of `places`, and rare at all of `others`."""
    return min(zeros[place] for place in places) >= SOME_ZEROS and max(zeros[place] for place in others) < FEW_ZEROS


def other_kind(head: bytes, path: Path | None = None) -> str | None:
    """Return the kind of a file, and what to do, if its first bytes show that it is not UTF-8 text; else None.

    Args:
        head: Its first `HEAD_BYTES` bytes.
        path: The file; None if it has no name, such as standard input.
    """
    for mark, name in UNICODE.items():
        if head.startswith(mark):
            return f"is {name}: save it as UTF-8, for example with `{to_utf_8(name, path)}`{old_file_away(path)}"
    if head.startswith(PARQUET):
        return "is a Parquet table: write its text column to a .txt or .jsonl file, and use that"
    if head.startswith((ARROW, ARROW_STREAM)):
        return "is an Arrow table: write its text column to a .txt or .jsonl file, and give that"
    if head.startswith(PDF):
        line, away = _of_pdf(path), old_file_away(path)
        return f"is a PDF: extract its text first, for example with `{line}`, and use the text{away}"
    return kept_otherwise(head, path, wanted=TEXT)


def to_utf_8(encoding: str, path: Path | None) -> str:
    """Return the command that converts a file to UTF-8. It names both encodings, so the locale has no effect.

    Windows has no iconv, and `>` of its PowerShell writes UTF-16: there, Python converts.
    """
    if os.name == "nt" and path is not None:
        return typed_line([program_file(), "-c", CONVERT, str(path), str(new_file(path, "utf8")), encoding])
    return converting_line(f"iconv -f {encoding} -t UTF-8", path, "utf8")


def _of_pdf(path: Path | None) -> str:
    if path is None:
        return "pdftotext FILE"
    return converting_line("pdftotext", path, "text").replace(" > ", " ")
