"""Measure the health of a recurrent model's state on a few validation rows, and what its mixers' branches are worth."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from tqdm import tqdm

from samout_train.config import Positive, validated
from samout_train.evaluation import (
    EVERYWHERE,
    LayerHealth,
    added_nats,
    calm_rows,
    growing_layers,
    positions_of,
)
from samout_train.runtime import to_device
from samout_train.training.callbacks.base import Callback, RunContext, StepReport

log = logging.getLogger(__name__)


class StateHealth(Callback):
    """Adds figures to the report of each evaluation, and all of them to `summary.json` as `state_health`.

    A model whose state grows with the sequence, or that has none, is left alone.

    Args:
        num_rows: Validation rows to look at, those with the least padding.
        logged_positions: Of the positions along a row (1, 2, 4 and so on, and the last) so many, from the first to the
            last, are in TensorBoard and metrics.jsonl; all are in summary.json.
        max_growth: A layer whose state's norm grows more times than this along a row is warned of.
        branches: What leaving out each branch of the mixers adds to the validation loss, once at the end: in
            `all_layers` together; in `each_layer` by itself, too; or `none`.
    """

    @validated
    def __init__(
        self,
        *,
        num_rows: Annotated[int, Positive],
        logged_positions: Annotated[int, Positive],
        max_growth: Annotated[float, Positive],
        branches: Literal["all_layers", "each_layer", "none"],
    ) -> None:
        self.num_rows, self.logged_positions, self.max_growth = num_rows, logged_positions, max_growth
        self.branches = branches
        self._figures: dict[str, Any] = {}
        self._warned: list[str] = []
        self._measured_step: int | None = None
        self._has_health = True

    def on_start(self, context: RunContext) -> None:
        """Keep the rows."""
        self._context = context
        rows = calm_rows(context.source.validation, self.num_rows, context.source.pad_id)
        self._ids_RT = to_device(rows, context.device)
        self._positions = positions_of(rows.shape[1])

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """Measure the states, and at the end the branches."""
        metrics: dict[str, float] = {}
        if self._has_health and self._measured_step != step:
            metrics = self._measure(step)
        if self._figures and is_last and self.branches != "none":
            metrics |= self._measure_branches(check_stop)
        return metrics

    def on_report(self, report: StepReport) -> None:
        """Note what is reported; a run that is stopped before measures again."""
        if any(tag.startswith("val_state/") for tag in report.metrics):
            self._measured_step = report.step

    def figures(self) -> dict[str, Any]:
        """Return what was measured last, for `summary.json`."""
        if not self._figures:
            return {}
        return {"state_health": self._figures}

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log the results in a few lines."""
        if not self._figures:
            return
        log.info("state after the first token of a row and after the last, token %d", self._positions[-1])
        for name, layer in self._figures["layers"].items():
            moves = ""
            if layer["never_moved_share"] is not None:
                last, never = layer["moved_share"][-1], layer["never_moved_share"]
                moves = f"; channels moved by the last token {last:.1%}, by none but the first {never:.1%}"
            first, last = layer["norm"][0], layer["norm"][-1]
            log.info("  %-22s norm %.3g to %.3g, largest value %.3g%s", name, first, last, layer["largest"][-1], moves)
        for place, worth in self._figures.get("added_nats", {}).items():
            if place == EVERYWHERE:
                place = "all layers"
            added = ", ".join(f"{branch} {nats:+.4f}" for branch, nats in worth.items())
            log.info("  %-22s %s", f"{place} without", f"{added} nats")

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run needs."""
        return {"figures": self._figures, "warned": self._warned, "measured_step": self._measured_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was measured last."""
        self._figures, self._warned = state["figures"], list(state["warned"])
        self._measured_step = state["measured_step"]

    def _measure(self, step: int) -> dict[str, float]:
        health = self._context.evaluator.state_health(self._ids_RT)
        self._has_health = bool(health)
        if not health:
            return {}
        growing = growing_layers(health, self.max_growth)
        for name, warning in growing.items():
            if name not in self._warned:
                self._warned.append(name)
                with tqdm.external_write_mode():
                    log.warning("step %-5d %s", step, warning)
        self._figures = {
            "rows": len(self._ids_RT),
            "positions": self._positions,
            "layers": {name: vars(layer) | {"growth": layer.growth} for name, layer in health.items()},
            "warnings": list(growing.values()),
        }
        return self._by_tag(health)

    def _by_tag(self, health: dict[str, LayerHealth]) -> dict[str, float]:
        last = len(self._positions) - 1
        shown = [0]
        if last:
            shown = np.unique(np.linspace(0, last, self.logged_positions).round().astype(int)).tolist()
        metrics = {}
        for name, layer in health.items():
            for index in {*shown, last}:
                place = f"{name}/token_{self._positions[index]}"
                metrics[f"val_state/norm/{place}"] = layer.norm[index]
                metrics[f"val_state/largest/{place}"] = layer.largest[index]
                if layer.moved_share is not None and index:
                    metrics[f"val_state/moved_share/{place}"] = layer.moved_share[index]
            if layer.never_moved_share is not None:
                metrics[f"val_state/never_moved_share/{name}"] = layer.never_moved_share
        return metrics

    def _measure_branches(self, check_stop: Callable[[], None]) -> dict[str, float]:
        evaluator, batches = replace(self._context.evaluator, check_stop=check_stop), self._context.fixed_batches

        def loss_nats() -> float:
            return evaluator.loss(batches, len(batches)).loss_nats

        worth = added_nats(evaluator.model, loss_nats, each_layer=self.branches == "each_layer")
        self._figures = self._figures | {"added_nats": worth}
        metrics = {}
        for place, by_branch in worth.items():
            for branch, nats in by_branch.items():
                metrics[f"val_added_nats/{branch}/{place}"] = nats
        return metrics
