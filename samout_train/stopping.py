"""Signals: noted while a run is under way, and answered where it can stop."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

# SIGUSR1 and SIGUSR2 are what batch systems send before they kill; they are not there on every system.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class StopRequestedError(Exception):
    """A signal asked the run to stop; what is needed to continue is saved before this leaves the trainer."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        # 130 or 143; whoever restarts stopped runs need not know the others.
        self.exit_code = 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)


class StopSignals:
    """While entered, the first of SIGNALS is noted instead of killing the process; a second SIGINT quits at once.

    Args:
        agreed: From the number of the signal that came to this process, 0 for none, to the one that counts: so that
            several processes stop together.
    """

    def __init__(self, agreed: Callable[[int], int] = int) -> None:
        self.received: int | None = None
        self._agreed = agreed
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, as in some notebooks: signals stay as they are
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self) -> None:
        """Raises StopRequestedError once a signal has come; to be called where the run can stop."""
        if number := self._agreed(self.received or 0):
            raise StopRequestedError(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = number
