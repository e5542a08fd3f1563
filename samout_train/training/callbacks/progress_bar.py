"""The bar that a person watches: loss, learning rate, tokens a second, and the time that is left."""

import sys
from typing import Any

from samout_train.runtime import Bar, is_terminal
from samout_train.training.callbacks.base import Callback, RunContext, StepReport

SECONDS_BETWEEN_LINES = 10.0
SHOWN = {
    "train/loss_nats": ("loss", "{:.3f}"),
    "val/loss_nats": ("val", "{:.3f}"),
    "train/lr": ("lr", "{:.2e}"),
    "time/tokens_per_second": ("tokens/s", "{:,.0f}"),
}


class ProgressBar(Callback):
    """A tqdm bar on standard error; where that is no terminal, it is written anew every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_start(self, context: RunContext) -> None:
        """Keeps what the bar needs; it opens with the first step, below what others print before it."""
        self._first_step, self._total_steps = context.first_step, context.total_steps

    def on_step(self, step: int) -> None:
        """Moves it on."""
        if self._bar is None:
            interval = 0.1 if is_terminal(sys.stderr) else SECONDS_BETWEEN_LINES
            self._bar = Bar(
                total=self._total_steps,
                initial=self._first_step,
                unit="step",
                dynamic_ncols=True,
                mininterval=interval,
            )
        self._bar.update(step - self._bar.n)

    def on_report(self, report: StepReport) -> None:
        """Shows what the step says."""
        for tag, (name, style) in SHOWN.items():
            if tag in report.metrics:
                self._shown[name] = style.format(report.metrics[tag])
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Closes the bar, before others print: it is the first callback."""
        self.on_close()

    def on_stop(self, reason: str) -> None:
        """Closes the bar, before others print."""
        self.on_close()

    def on_close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
