"""A callback that stops its run with a signal."""

import os
import signal

from samout_train.training import Callback


class SignalAfter(Callback):
    """Sends SIGTERM to this process after a step."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        """Sends the signal."""
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def signal_after(step: int) -> str:
    """The override that adds it."""
    return f"+callbacks.signal_after={{_target_: {__name__}.SignalAfter, step: {step}}}"
