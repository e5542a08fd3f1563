"""samout_train.log: what the program logs, in the run directory."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """What the program logs goes to a file, too, as Hydra does it for the command line."""
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
