"""Recognising kinds of files by their first bytes, and opening files of text."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 64
UNICODE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip -k"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\xfd7zXZ\x00": ("xz", "unxz -k"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"PK\x05\x06": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
}
COMPRESSED_ENDINGS = (".gz", ".bz2", ".zst", ".xz", ".lz4", ".zip", ".7z")
BZIP2, BZIP2_BLOCK = b"BZh", b"1AY&SY"
PARQUET = b"PAR1\x15"
PDF = b"%PDF-"
GIT_LFS = b"version https://git-lfs.github.com/spec/"


def printable(name: object) -> str:
    """Return a file name with what cannot be printed, such as a line end or a byte that is no UTF-8, escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(name))


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
        if problem := other_kind(file.read(HEAD_BYTES)):
            raise ValueError(f"{printable(path)} {problem}")
        file.seek(0)
        yield file


def other_kind(head: bytes) -> str | None:
    """Return what a file is and what to do, if its first bytes are those of something else than UTF-8 text.

    Args:
        head: Its first `HEAD_BYTES` bytes.
    """
    for mark, name in UNICODE.items():
        if head.startswith(mark):
            return f"is {name}: save it as UTF-8, for example with `iconv -f {name} -t UTF-8 FILE > NEW`"
    for mark, (name, command) in COMPRESSED.items():
        if head.startswith(mark):
            return f"is compressed ({name}): decompress it first, for example with `{command} FILE`, and give the text"
    if head.startswith(BZIP2) and head[4:10] == BZIP2_BLOCK:
        return "is compressed (bzip2): decompress it first, for example with `bunzip2 -k FILE`, and give the text"
    if head.startswith(PARQUET):
        return "is a Parquet table: write its text column to a .txt or .jsonl file, and give that"
    if head.startswith(PDF):
        return "is a PDF: extract its text first, for example with `pdftotext FILE`, and give the text"
    if head.startswith(GIT_LFS):
        return "is a pointer of Git LFS and not the text itself: run `git lfs pull` where it lies"
    return None
