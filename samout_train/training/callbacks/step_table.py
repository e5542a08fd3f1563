"""Format the progress of a run as the rows of a table: step, losses, speed and the time that is left."""

import time

from samout_train.training.callbacks.base import RunContext, StepReport

SHARE_BETWEEN_ROWS = 0.05  # of the run: about twenty rows, plus those of evaluations
SECONDS_BETWEEN_ROWS = 60.0  # a slow run prints a row as often as this
# Heading, tag and format of each column between the step and the time left.
COLUMNS = (
    ("train loss", "train/loss_nats", "{:.4f}"),
    ("val loss", "val/loss_nats", "{:.4f}"),
    ("tokens/s", "time/tokens_per_second", "{:,.0f}"),
)
ACCURACY = ("accuracy", "val/accuracy", "{:.4f}")
LEARNING_RATE = ("lr", "train/lr", "{:.2e}")
LOSSES = ("train/loss_nats", "val/loss_nats")
STEP_WIDTH, WIDTH, TIME_WIDTH = 8, 12, 14
NO_VALUE = "-"


class StepTable:
    """Decide which reports become rows, and format them.

    Args:
        context: The run at its start.
        every_report: Whether every report becomes a row; rows then include the learning rate.
    """

    def __init__(self, context: RunContext, *, every_report: bool) -> None:
        self._limits, self._clock = context.trainer.limits, context.trainer.clock
        self._every_report = every_report
        self._columns = [*COLUMNS]
        if context.source.chance is not None:
            self._columns.insert(2, ACCURACY)
        if every_report:
            self._columns.append(LEARNING_RATE)
        self._measured_from = (context.first_step, self._clock.seconds)
        self._last_row: tuple[float, float] | None = None  # share of the run, and when

    def rows(self, report: StepReport) -> list[str]:
        """Return the row of a report, with headings above the first row; empty if no row is due."""
        seconds = self._clock.seconds
        share = self._limits.progress(report.step, seconds).share
        if not self._is_due(report, share):
            return []
        lines = []
        if self._last_row is None:
            headings = [f"{heading:>{WIDTH}}" for heading, _, _ in self._columns]
            lines.append(f"{'step':>{STEP_WIDTH}}{''.join(headings)}{'time left':>{TIME_WIDTH}}")
        cells = [f"{report.step:>{STEP_WIDTH},}"]
        for _, tag, style in self._columns:
            value = NO_VALUE
            if tag in report.metrics:
                value = style.format(report.metrics[tag])
            cells.append(f"{value:>{WIDTH}}")
        cells.append(f"{self._time_left(report.step, seconds):>{TIME_WIDTH}}")
        lines.append("".join(cells))
        self._last_row = share, time.monotonic()
        self._measured_from = report.step, seconds
        return lines

    def _is_due(self, report: StepReport, share: float) -> bool:
        if not any(tag in report.metrics for tag in LOSSES):  # a last report with nothing but callbacks' measurements
            return False
        if self._last_row is None or self._every_report or "val/loss_nats" in report.metrics:
            return True
        last_share, last_time = self._last_row
        if share >= last_share + SHARE_BETWEEN_ROWS - 1e-9:
            return True
        return time.monotonic() >= last_time + SECONDS_BETWEEN_ROWS

    def _time_left(self, step: int, seconds: float) -> str:
        """Return the time to the first limit at the speed since the last row, without evaluations."""
        left = []
        if self._limits.max_seconds is not None:
            left.append(self._limits.max_seconds - seconds)
        last_step, last_seconds = self._measured_from
        if self._limits.total_steps is not None and step > last_step:
            left.append((self._limits.total_steps - step) * (seconds - last_seconds) / (step - last_step))
        if not left:
            return NO_VALUE
        return duration(max(0.0, min(left)))


def duration(seconds: float) -> str:
    """Return a time in its two largest units, such as `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s"
