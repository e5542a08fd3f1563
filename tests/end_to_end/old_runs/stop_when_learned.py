# stop_when_learned.py
from typing import Annotated

from samout_train.callbacks.base import Callback, StepReport
from samout_train.ranges import Positive, validated


class StopWhenLearned(Callback):
    """Ends a run once its training loss is below a threshold."""

    @validated
    def __init__(self, *, below_nats: Annotated[float, Positive]) -> None:
        self.below_nats = below_nats

    def on_report(self, report: StepReport) -> str | None:
        loss = report.metrics.get("train/loss_nats")
        return f"{loss:.3f} nats is learned" if loss is not None and loss < self.below_nats else None
