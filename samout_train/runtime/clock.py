"""The clock of training time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from samout_train.runtime.device import wait_for


class Clock:
    """Measures the time of training, without evaluations and checkpoints.

    Args:
        device: The clock waits for this device at each pause, so that all of its work is counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._counted = 0.0
        self._running_since: float | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds counted so far; while the clock runs, the device may be behind."""
        if self._running_since is None:
            return self._counted
        return self._counted + (time.perf_counter() - self._running_since)

    def start(self) -> None:
        """Start counting."""
        self._running_since = time.perf_counter()

    def pause(self) -> None:
        """Wait for the device, then stop counting."""
        wait_for(self.device)
        self._counted, self._running_since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause inside; resume afterwards if the clock was running."""
        was_running = self._running_since is not None
        self.pause()
        try:
            yield
        finally:
            if was_running:
                self.start()

    def set(self, seconds: float) -> None:
        """Set the seconds counted before the run was resumed."""
        self._counted = seconds
