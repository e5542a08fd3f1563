"""Recognise compressed files and Git LFS pointers, and give the commands that convert them."""

import os
from pathlib import Path

from samout_train.runtime.shell import shell_word

HEAD_BYTES = 64
TEXT = "text"
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip -c"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -dc"),
    b"PK\x03\x04": ("zip", "unzip -p"),
    b"PK\x05\x06": ("zip", "unzip -p"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x -so"),
}
COMPRESSED_ENDINGS = (".gz", ".bz2", ".zst", ".xz", ".lz4", ".zip", ".7z")
BZIP2, BZIP2_BLOCK = b"BZh", b"1AY&SY"
GIT_LFS = b"version https://git-lfs.github.com/spec/"


def require_regular_file(path: Path) -> None:
    """Require that a path is not a pipe, a socket or a device, which might be read without end.

    Raises:
        ValueError: if it is one; the message lacks the path.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("is not a regular file: copy its content to a file, and give that")


def kept_otherwise(head: bytes, path: Path | None, *, wanted: str) -> str | None:
    """Return what to do with a file that is compressed or a pointer to another one; None for other files.

    Args:
        head: Its first `HEAD_BYTES` bytes.
        path: The file; None if it has no name, such as standard input.
        wanted: The expected content, such as `text`.
    """
    if found := compression_of(head):
        name, command = found
        line, away = f"`{converting_line(command, path, 'unpacked')}`", ""
        if os.name == "nt":  # the commands are not there, and `>` of PowerShell changes bytes
            line = "7-Zip"
        if wanted == TEXT:
            away = old_file_away(path)
        return f"is compressed ({name}): decompress it first, for example with {line}, and give the {wanted}{away}"
    if head.startswith(GIT_LFS):
        return f"is a pointer of Git LFS and not the {wanted}: run `git lfs pull` where it lies"
    return None


def compression_of(head: bytes) -> tuple[str, str] | None:
    """Return the name of a compression, and the command to decompress, by the first bytes of a file; else None."""
    if head.startswith(BZIP2) and head[4:10] == BZIP2_BLOCK:
        return "bzip2", "bzip2 -dc"
    for mark, found in COMPRESSED.items():
        if head.startswith(mark):
            return found
    return None


def old_file_away(path: Path | None) -> str:
    """Return the advice to move the original of a converted file, which still matches a pattern."""
    if path is None:
        return ""
    return "; where a folder is read, move the old file out of it"


def converting_line(command: str, path: Path | None, word: str) -> str:
    """Return the command line that converts a file into a new one.

    Args:
        command: A command without the name of the file at its end; it writes to standard output.
        path: The file; None for standard input.
        word: Part of the name of the new file.
    """
    if path is None:
        return command
    return f"{command} {_word(path)} > {_word(new_file(path, word))}"


def new_file(path: Path, word: str) -> Path:
    """Return a name beside a file for what it is converted to; no file has it.

    Args:
        path: The file.
        word: Part of the new name.
    """
    plain = path
    if path.suffix.lower() in COMPRESSED_ENDINGS:
        plain = path.with_suffix("")
    new = plain.with_name(f"{plain.stem}.{word}{plain.suffix}")
    number = 2
    while new.exists():  # the command must not overwrite a file
        new = plain.with_name(f"{plain.stem}.{word}{number}{plain.suffix}")
        number += 1
    return new


def _word(path: Path) -> str:
    """Return a path quoted for the shell, in a form that no program takes for an option."""
    name = str(path)
    if name.startswith("-"):
        name = f"./{name}"
    return shell_word(name)
