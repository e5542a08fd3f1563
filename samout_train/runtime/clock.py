"""The time that training takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from samout_train.runtime.device import wait_for


class Clock:
    """Measure the time that training takes, without that of evaluations and checkpoints.

    Args:
        device: Waited for whenever the clock is paused, so that its work is counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._counted = 0.0
        self._running_since: float | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds counted so far; while it runs, the device may be behind."""
        if self._running_since is None:
            return self._counted
        return self._counted + (time.perf_counter() - self._running_since)

    def start(self) -> None:
        """Count from now on."""
        self._running_since = time.perf_counter()

    def pause(self) -> None:
        """Stop counting, once the device is done."""
        wait_for(self.device)
        self._counted, self._running_since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside; resume after it if it was counting before."""
        was_running = self._running_since is not None
        self.pause()
        try:
            yield
        finally:
            if was_running:
                self.start()

    def set(self, seconds: float) -> None:
        """Set what was counted before, in the run that this one continues."""
        self._counted = seconds
