"""Progress bars on standard error, which no stream can break."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from samout_train.runtime.console import Quiet


class Bar(tqdm):
    """A bar of tqdm on whatever standard error is."""

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
