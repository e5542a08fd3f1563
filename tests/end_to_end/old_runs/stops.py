"""A callback that stops all processes of a command at a step of the run that the file `stop` names."""

import os
import signal
from pathlib import Path

from samout_train.callbacks.base import Callback, RunContext


class Stops(Callback):
    def __init__(self) -> None:
        self.is_named = False

    def on_start(self, context: RunContext) -> None:
        self.is_named = Path("stop").is_file() and Path("stop").read_text().strip() in str(context.run_dir)

    def on_step(self, step: int) -> None:
        if self.is_named and step == 4:
            os.killpg(0, signal.SIGTERM)
