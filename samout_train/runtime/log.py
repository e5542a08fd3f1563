"""Write the progress of a run: samout_train.log in its directory, and progress bars on standard error."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from samout_train.runtime.console import Quiet


class LogFile(logging.FileHandler):
    """A file that what is logged is appended to; a full disk is told once, on standard error, and goes no further.

    The file is made when the first line is logged, so that a run that is refused before leaves none.
    """

    def __init__(self, filename: str | Path) -> None:
        super().__init__(filename, encoding="utf-8", errors="surrogateescape", delay=True)
        self._has_warned = False

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`; a file that cannot be made is like one that cannot be written."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is logging's
        """Called by `logging` where a record cannot be written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_warned:
            print(f"{self.baseFilename} cannot be written ({error.strerror}): training goes on", file=sys.stderr)
            self._has_warned = True


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append what the program logs to a file, too, as Hydra does it for the command line."""
    logger, handler = logging.getLogger("samout_train"), LogFile(path)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


class Bar(tqdm):
    """A bar of tqdm on whatever standard error is, which no stream can break."""

    def __init__(self, *iterable: Any, **settings: Any) -> None:
        super().__init__(*iterable, file=_StandardError(sys.stderr), **settings)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return what draws the bar; for standard error itself, tqdm would flush it past `Quiet`."""
        printer: Callable[[str], None] = tqdm.status_printer(Quiet(file))
        return printer


class _StandardError(Quiet):
    """Equal to the stream behind it, so that tqdm clears the bar where others print."""

    def __eq__(self, other: object) -> bool:
        return bool(self._wrapped == getattr(other, "_wrapped", other))

    __hash__ = None  # type: ignore[assignment]
