"""End a run whose validation loss no longer improves."""

from typing import Annotated

from samout_train.config import NonNegative, Positive, validated
from samout_train.training.callbacks.base import Callback, StepReport
from samout_train.training.limits import Reached


class EarlyStopping(Callback):
    """Stops after `patience` evaluations in a row without a new best.

    Args:
        patience: Evaluations to wait.
        min_improvement_nats: A loss counts as better only if it is lower than the best so far by more than this.
    """

    @validated
    def __init__(
        self, *, patience: Annotated[int, Positive], min_improvement_nats: Annotated[float, NonNegative]
    ) -> None:
        self.patience, self.min_improvement_nats = patience, min_improvement_nats
        self.best_nats = float("inf")
        self.num_without_best = 0

    def on_report(self, report: StepReport) -> str | None:
        """Count evaluations without an improvement."""
        loss_nats = report.metrics.get("val/loss_nats")
        if loss_nats is None:
            return None
        if loss_nats < self.best_nats - self.min_improvement_nats:
            self.best_nats, self.num_without_best = loss_nats, 0
            return None
        self.num_without_best += 1
        if self.num_without_best < self.patience:
            return None
        return f"val/loss_nats was not below {self.best_nats:.4f} for {self.patience} evaluations"

    def limit_reached(self) -> Reached | None:
        """Return the patience if it ended the run."""
        if self.num_without_best < self.patience:
            return None
        return Reached("patience", self.patience, f"patience={2 * self.num_without_best}")

    def state_dict(self) -> dict[str, float]:
        """Return the state that a resumed run needs."""
        return {"best_nats": self.best_nats, "num_without_best": self.num_without_best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state returned by `state_dict`."""
        self.best_nats, self.num_without_best = state["best_nats"], int(state["num_without_best"])
