"""Measure state health on a few validation rows, and the increase of the loss when a mixer's branch is removed."""

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
from samout_train.runtime import distributed, to_device
from samout_train.training.callbacks.base import Callback, RunContext, StepReport

log = logging.getLogger(__name__)


class StateHealth(Callback):
    """Adds figures to the report of each evaluation, and all of them to `summary.json` as `state_health`.

    Layers whose state grows with the sequence are left out; models with no other layer are skipped.

    Args:
        num_rows: Validation rows to measure: those with the least padding.
        logged_positions: How many of the measured positions (1, 2, 4, ... and the last) go to TensorBoard and
            metrics.jsonl, evenly spread. All of them go to summary.json.
        max_growth: Warn if a layer's state norm grows by more than this factor along a row.
        branches: Where to remove each branch of the mixers, once at the end, to measure how much the validation loss
            rises: in `all_layers` at once, in `each_layer` separately as well, or in `none`.
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
        source = context.source
        rows = calm_rows(source.validation, self.num_rows, source.pad_id, source.document_id)
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
        """Mark the step as measured only now, so that a run stopped before its report measures again."""
        if any(tag.startswith("val_state/") for tag in report.metrics):
            self._measured_step = report.step

    def figures(self) -> dict[str, Any]:
        """Return the last measurement, for `summary.json`."""
        if not self._figures:
            return {}
        return {"state_health": self._figures}

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log a table of the layers and a line of the branches, if verbose."""
        if not self._figures or not self._context.verbose:
            return
        last_token = self._positions[-1]
        norms = f"{'norm at 1':>12}{f'norm at {last_token}':>14}"
        log.info("%s", f"{'state':<14}{norms}{'largest':>12}{f'moved by {last_token}':>16}{'never moved':>14}")
        for name, layer in self._figures["layers"].items():
            moved = never_moved = ""
            if layer["never_moved_share"] is not None:
                moved, never_moved = f"{layer['moved_share'][-1]:.1%}", f"{layer['never_moved_share']:.1%}"
            first = ""
            if "positions" not in layer:
                first = f"{layer['norm'][0]:.3g}"
            norms = f"{first:>12}{layer['norm'][-1]:>14.3g}"
            log.info("%s", f"{name:<14}{norms}{layer['largest'][-1]:>12.3g}{moved:>16}{never_moved:>14}".rstrip())
        for place, worth in self._figures.get("added_nats", {}).items():
            if place == EVERYWHERE:
                place = "all layers"
            added = ", ".join(f"{branch} {nats:+.4f}" for branch, nats in worth.items())
            log.info("without     %s nats in %s", added, place)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"figures": self._figures, "warned": self._warned, "measured_step": self._measured_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
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
        layers = {}
        for name, layer in health.items():
            layers[name] = vars(layer) | {"growth": layer.growth}
            if layer.positions == self._positions:
                del layers[name]["positions"]
        self._figures = {
            "rows": len(self._ids_RT),
            "positions": self._positions,
            "layers": layers,
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
            logged = {self._positions[index] for index in {*shown, last}}
            for index, position in enumerate(layer.positions):
                if position not in logged:
                    continue
                place = f"{name}/token_{position}"
                metrics[f"val_state/norm/{place}"] = layer.norm[index]
                metrics[f"val_state/largest/{place}"] = layer.largest[index]
                if layer.moved_share is not None and index:
                    metrics[f"val_state/moved_share/{place}"] = layer.moved_share[index]
            if layer.never_moved_share is not None:
                metrics[f"val_state/never_moved_share/{name}"] = layer.never_moved_share
        return metrics

    def _measure_branches(self, check_stop: Callable[[], None]) -> dict[str, float]:
        evaluator, batches = replace(self._context.evaluator, check_stop=check_stop), self._context.fixed_batches

        def loss_nats() -> float:  # in passes as large as those of training, of which each process has a part
            return evaluator.loss(part for batch in batches for part in batch.chunk(distributed.count())).loss_nats

        worth = added_nats(evaluator.model, loss_nats, each_layer=self.branches == "each_layer")
        self._figures = self._figures | {"added_nats": worth}
        metrics = {}
        for place, by_branch in worth.items():
            for branch, nats in by_branch.items():
                metrics[f"val_added_nats/{branch}/{place}"] = nats
        return metrics
