"""Standard input, output and error in any condition: closed, not UTF-8, on a full disk, or without a reader.

`use_lasting_streams` is for the program, which owns its streams. Python code that calls the package keeps its own
streams; `Quiet` then prevents errors of these streams from ending a run.
"""

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

# A disk may have room again later; a reader that left does not return.
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
UNWRITABLE = (*FULL, errno.EBADF, errno.EIO)  # but not EPIPE: the reader has left
ERRORS = "samout_train.replace"
_lost: dict[str, OSError] = {}


def use_lasting_streams() -> None:
    """Make every later write to standard output and standard error succeed.

    Closed descriptors 0 to 2 are opened on the null device first: otherwise the next open file would take the number of
    a closed one, and printed text would go into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    codecs.register_error(ERRORS, _replaced)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123, lasts as long as the process
    sys.stdout = _lasting(sys.stdout, "stdout")
    sys.stderr = _lasting(sys.stderr, "stderr")


def lost_output() -> OSError | None:
    """Return why text for standard output was lost, or None."""
    return _lost.get("stdout")


def text_of_word(word: str) -> str:
    """Return a word of the command line as text, read as UTF-8 whatever the locale is.

    Raises:
        UnicodeError: if its bytes are not UTF-8.
    """
    if any("\udc80" <= character <= "\udcff" for character in word):
        return os.fsencode(word).decode()
    return word


def input_as_utf_8(content: bytes) -> bytes:
    """Return standard input in UTF-8; other content is decoded by PYTHONIOENCODING or the locale."""
    try:
        content.decode()
    except UnicodeError:
        with suppress(UnicodeError):
            return content.decode(getattr(sys.stdin, "encoding", None) or "utf-8").encode()
    return content


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal; it may be None or any object with `write`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


class Quiet:
    """A stream for progress bars that never raises: it drops text that the wrapped stream refuses.

    Args:
        stream: Any object with `write`, or None.
    """

    def __init__(self, stream: Any) -> None:
        self._wrapped = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @property
    def encoding(self) -> str:
        """Return the name of the encoding, by which tqdm draws its bars."""
        return getattr(self._wrapped, "encoding", None) or "ascii"

    def isatty(self) -> bool:
        """Return whether the wrapped stream is a terminal."""
        return is_terminal(self._wrapped)

    def write(self, text: str) -> None:
        """Write text, with replacements for characters that the encoding lacks."""
        with suppress(AttributeError, OSError, ValueError):
            try:
                self._wrapped.write(text)
            except UnicodeEncodeError:
                self._wrapped.write(text.encode("ascii", "replace").decode())

    def flush(self) -> None:
        """Flush the stream if possible."""
        with suppress(AttributeError, OSError, ValueError):
            self._wrapped.flush()


class _LastingFile(io.FileIO):
    """A descriptor that is written to until it fails; later text is dropped."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._key = name

    def write(self, data: Any) -> int:
        """Write or drop bytes; return their number in both cases."""
        try:
            while (written := super().write(data)) is None:  # another program has made it non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            _lost.setdefault(self._key, error)
            if error.errno not in FULL:
                with suppress(OSError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, self.fileno())  # also for libraries and child processes
                    os.close(null)
            return memoryview(data).nbytes


def _lasting(stream: Any, name: str) -> TextIO:
    """Return a lasting stream in place of one of the interpreter's; return any other object unchanged."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors=ERRORS, newline="\n")  # noqa: PTH123, as above
    if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
        kept: TextIO = stream
        return kept
    errors = stream.errors or ERRORS
    if errors in ("strict", "surrogateescape"):
        errors = ERRORS
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if not isinstance(raw, io.FileIO):  # a Windows console, which accepts all of Unicode
        stream.reconfigure(errors=errors)
        return stream
    with suppress(OSError):
        stream.flush()
    file: Any = _LastingFile(raw.fileno(), name)
    if not stream.write_through:
        file = io.BufferedWriter(file)
    return io.TextIOWrapper(
        file,
        encoding=_encoding(stream, name),
        errors=errors,
        newline=os.linesep,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _encoding(stream: Any, name: str) -> str:
    """Return UTF-8 for standard output to a pipe or a file on Windows, where the locale's lacks most scripts."""
    if os.name == "nt" and name == "stdout" and not is_terminal(stream) and not os.environ.get("PYTHONIOENCODING"):
        return "utf-8"
    return str(stream.encoding)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace a character that an encoding lacks by `?`, and an undecodable byte of a file name by that byte."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:
        return bytes([code - 0xDC00]), error.start + 1
    return "?", error.start + 1
