"""Recognise files that are no UTF-8 text by their first bytes, and open those that are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from samout_train.runtime import HEAD_BYTES, TEXT, converting_line, kept_otherwise, old_file_away

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNICODE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
PARQUET = b"PAR1\x15"
PDF = b"%PDF-"


def printable(name: object) -> str:
    """Return a file name with what cannot be printed, such as a line end or a byte that is no UTF-8, escaped."""
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


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of text.

    Raises:
        ValueError: if it cannot be opened, or if its first bytes are those of something else than UTF-8 text.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(
            f"{printable(path)} cannot be read ({error.strerror}): make it readable, or leave it out"
        ) from error
    with file:
        if problem := other_kind(file.read(HEAD_BYTES), path):
            raise ValueError(f"{printable(path)} {problem}")
        file.seek(0)
        yield file


def other_kind(head: bytes, path: Path | None = None) -> str | None:
    """Return what a file is and what to do, if its first bytes are those of something else than UTF-8 text.

    Args:
        head: Its first `HEAD_BYTES` bytes.
        path: Where it lies; None if it has no name, as standard input.
    """
    for mark, name in UNICODE.items():
        if head.startswith(mark):
            return f"is {name}: save it as UTF-8, for example with `{to_utf_8(name, path)}`{old_file_away(path)}"
    if head.startswith(PARQUET):
        return "is a Parquet table: write its text column to a .txt or .jsonl file, and give that"
    if head.startswith(PDF):
        line, away = _of_pdf(path), old_file_away(path)
        return f"is a PDF: extract its text first, for example with `{line}`, and give the text{away}"
    return kept_otherwise(head, path, wanted=TEXT)


def to_utf_8(encoding: str, path: Path | None) -> str:
    """Return the line that converts a file from another encoding; both are named, whatever the locale is."""
    return converting_line(f"iconv -f {encoding} -t UTF-8", path, "utf8")


def _of_pdf(path: Path | None) -> str:
    if path is None:
        return "pdftotext FILE"
    return converting_line("pdftotext", path, "text").replace(" > ", " ")
