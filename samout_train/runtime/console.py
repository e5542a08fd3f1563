"""Standard input, output and error, whatever they are: closed, not UTF-8, full, or without anybody who reads them.

`use_lasting_streams` is for the program, which owns its streams. Who calls the package from Python keeps their own
streams; `Quiet` then keeps what goes wrong with them out of a run.
"""

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

# A disk may have room again later; a reader that went away does not come back.
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
UNWRITABLE = (*FULL, errno.EBADF, errno.EIO)  # but not a reader that left, who wants no more
ERRORS = "samout_train.replace"
_lost: dict[str, OSError] = {}


def use_lasting_streams() -> None:
    """Make every later write to standard output and error succeed, as far as the caller can see.

    Closed descriptors 0 to 2 are opened on the null device first: otherwise the next file that is opened takes the
    number of a closed one, and text that is printed would go into that file.
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
    """Return why text for standard output was lost; None where none was."""
    return _lost.get("stdout")


def text_of_word(word: str) -> str:
    """Return a word of the command line as text: where the locale is not UTF-8, its bytes still are.

    Raises:
        UnicodeError: if they are not.
    """
    if any("\udc80" <= character <= "\udcff" for character in word):
        return os.fsencode(word).decode()
    return word


def input_as_utf_8(content: bytes) -> bytes:
    """Return what came from standard input in UTF-8: where it is not, as PYTHONIOENCODING or the locale says."""
    try:
        content.decode()
    except UnicodeError:
        with suppress(UnicodeError):
            return content.decode(getattr(sys.stdin, "encoding", None) or "utf-8").encode()
    return content


def is_terminal(stream: Any) -> bool:
    """Return whether a person watches a stream, which may be None or any object that has `write`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


class Quiet:
    """A stream for progress bars that never raises: it drops what the stream behind it does not take.

    Args:
        stream: Any object that has `write`, or None.
    """

    def __init__(self, stream: Any) -> None:
        self._wrapped = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @property
    def encoding(self) -> str:
        """Return the name of the encoding; tqdm draws its bars by it."""
        return getattr(self._wrapped, "encoding", None) or "ascii"

    def isatty(self) -> bool:
        """Return whether a person watches."""
        return is_terminal(self._wrapped)

    def write(self, text: str) -> None:
        """Write text, with replacements where the encoding lacks a character."""
        with suppress(AttributeError, OSError, ValueError):
            try:
                self._wrapped.write(text)
            except UnicodeEncodeError:
                self._wrapped.write(text.encode("ascii", "replace").decode())

    def flush(self) -> None:
        """Flush the stream where it can be flushed."""
        with suppress(AttributeError, OSError, ValueError):
            self._wrapped.flush()


class _LastingFile(io.FileIO):
    """A descriptor that is written to for as long as it takes something; later text is dropped."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._key = name

    def write(self, data: Any) -> int:
        """Write bytes, or drop them; the return value is the same."""
        try:
            while (written := super().write(data)) is None:  # another program has set it to non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            _lost.setdefault(self._key, error)
            if error.errno not in FULL:
                with suppress(OSError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, self.fileno())  # also for libraries and processes that write to the descriptor
                    os.close(null)
            return memoryview(data).nbytes


def _lasting(stream: Any, name: str) -> TextIO:
    """Return a stream in place of one of the interpreter's; another object, such as that of a test, stays."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors=ERRORS, newline="\n")  # noqa: PTH123, as above
    if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
        kept: TextIO = stream
        return kept
    errors = stream.errors or ERRORS
    if errors in ("strict", "surrogateescape"):
        errors = ERRORS
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if not isinstance(raw, io.FileIO):  # a console of Windows, which takes all of Unicode
        stream.reconfigure(errors=errors)
        return stream
    with suppress(OSError):
        stream.flush()
    file: Any = _LastingFile(raw.fileno(), name)
    if not stream.write_through:
        file = io.BufferedWriter(file)
    return io.TextIOWrapper(
        file,
        encoding=stream.encoding,
        errors=errors,
        newline=os.linesep,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Give `?` for a character that an encoding lacks, and a file name's undecodable byte as that byte."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:
        return bytes([code - 0xDC00]), error.start + 1
    return "?", error.start + 1
