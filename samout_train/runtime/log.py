"""The log file of a run, and progress bars on standard error."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from samout_train.runtime.console import Quiet


class LogFile(logging.FileHandler):
    """Appends log records to a file; a full disk is reported once on standard error and does not end the run.

    The file is created with the first record, so a run that is refused earlier leaves no file.
    """

    def __init__(self, filename: str | Path) -> None:
        super().__init__(filename, encoding="utf-8", errors="surrogateescape", delay=True)
        self._has_warned = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; a file that cannot be created is handled like one that cannot be written."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is logging's
        """Report a record that cannot be written; called by `logging`."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_warned:
            print(f"{self.baseFilename} cannot be written ({error.strerror}): training continues", file=sys.stderr)
            self._has_warned = True


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Also append the program's log to a file, as Hydra does for the command line."""
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
    """A tqdm bar on standard error that survives any failure of the stream."""

    def __init__(self, *iterable: Any, **settings: Any) -> None:
        super().__init__(*iterable, file=_StandardError(sys.stderr), **settings)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return the function that draws the bar; for standard error itself, tqdm would flush past `Quiet`."""
        printer: Callable[[str], None] = tqdm.status_printer(Quiet(file))
        return printer


class _StandardError(Quiet):
    """A stream that equals the wrapped one, so that tqdm clears the bar when others print."""

    def __eq__(self, other: object) -> bool:
        return bool(self._wrapped == getattr(other, "_wrapped", other))

    __hash__ = None  # type: ignore[assignment]
