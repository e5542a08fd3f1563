"""Screening: train each model briefly with each learning rate, and only the best models in full.

A model that was chosen on one seed looks better on that seed than it is, so other seeds are scored.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samout_train.config import Problem, nearest, shown
from samout_train.experiments.jobs import State

Config = Mapping[str, Any]
Losses = Mapping[str, Mapping[float, float | None]]  # by label and learning rate; None where a run has no loss
States = Mapping[str, Mapping[float, State]]  # states of these runs
WITHOUT_LOSS: Mapping[State, str] = {
    "waiting": "not yet run",
    "running": "running",
    "stopped": "stopped",
    "FAILED": "failed",
    "done": "not a number",
}
NOT_OVER = ("waiting", "running", "stopped")
OTHER_LIMITS = ("max_epochs", "max_seconds")  # of full runs; short ones have equally many steps
FEWEST_FOR_AN_EDGE = 3  # rates: of two, the best one is always at the edge
NOTE = (
    "Loss of the short runs: nats per token on the whole validation split, on one seed, which is not scored. "
    "The best learning rate of each model is marked."
)


@dataclass(frozen=True)
class Screening:
    """The settings of a screening.

    A model's loss is the lowest of its short runs, one for each learning rate. The finalists are the models with the
    lowest losses among all models, including those in `always`. Models in `always` that are not finalists are trained
    in full as well. So between `finalists` and `finalists + len(always)` models are trained in full, or fewer if fewer
    have a loss.

    Args:
        steps: Number of steps of each short run; its schedule ends there.
        finalists: Number of models with the lowest loss that are trained in full; None for all.
        always: Labels of models that are trained in full whatever their loss.
    """

    steps: int
    finalists: int | None = None
    always: tuple[str, ...] = ()

    def words(self, config: Config) -> list[str]:
        """Return the overrides of `train` that make a run a short one.

        Args:
            config: Configuration of the full run.
        """
        words = [f"trainer.max_steps={self.steps}"]
        words += [f"trainer.{key}=null" for key in OTHER_LIMITS if config["trainer"].get(key) is not None]
        if _reads_lengths(config):  # the evaluation by length would take longer than the short run
            words.append("callbacks.lengths.times=[]")
        return words

    def shortened(self, config: Config) -> dict[str, Any]:
        """Return the configuration of the full run with these overrides."""
        limits = {key: None for key in OTHER_LIMITS if key in config["trainer"]}
        short = {**config, "trainer": {**config["trainer"], **limits, "max_steps": self.steps}}
        if _reads_lengths(config):
            callbacks = dict(config["callbacks"])
            callbacks["lengths"] = {**callbacks["lengths"], "times": []}
            short["callbacks"] = callbacks
        return short

    def chosen(self, losses: Losses, not_causal: Collection[str] = ()) -> list[str]:
        """Return the labels of the models that are trained in full, in the order of `losses`.

        A model without a loss has no best rate and is never trained in full, even if it is in `always`.

        Args:
            losses: Losses of the short runs, by label and rate.
            not_causal: Labels of models that see what they have to predict; none of them becomes a finalist.
        """
        lowest = {}
        for label, by_rate in losses.items():
            if best_rate(by_rate) is not None:
                lowest[label] = min(loss for loss in by_rate.values() if loss is not None)
        finalists = sorted(lowest, key=lambda label: lowest[label])
        if self.finalists is not None:
            finalists = [label for label in finalists if label not in not_causal][: self.finalists]
        return [label for label in lowest if label in finalists or label in self.always]

    def recorded(self) -> dict[str, Any]:
        """Return the settings for the record, by the keys of `compare`."""
        return {"screen_steps": self.steps, "finalists": self.finalists, "always": list(self.always)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Screening | None":
        """Return the screening of a comparison; None if it has none."""
        settings = record.get("screening")
        if not settings:
            return None
        return cls(settings["screen_steps"], settings["finalists"], tuple(settings["always"]))


def best_rate(by_rate: Mapping[float, float | None]) -> float | None:
    """Return the rate with the lowest loss; None if no run has one."""
    best, lowest = None, math.inf
    for rate, loss in by_rate.items():
        if loss is not None and loss < lowest:
            best, lowest = rate, loss
    return best


def screening_of(
    screen_steps: int | None, finalists: int | None, always: Sequence[str]
) -> tuple[Screening | None, list[Problem]]:
    """Return the requested screening, None without one, and the problems between its settings."""
    found = []
    if screen_steps is None and finalists is not None:
        fix = "set screen_steps, such as screen_steps=500"
        found.append(Problem("finalists", shown(finalists), text="are chosen by a screening", fix=fix))
    if always and finalists is None:
        text = "without finalists all models are trained in full"
        found.append(Problem("always", shown(list(always)), text=text, fix="set finalists, or leave it out"))
    if screen_steps is None or found:
        return None, found
    return Screening(screen_steps, finalists, tuple(always)), []


def check_leaders(leaders: int | None, leader_seeds: int | None) -> list[Problem]:
    """Return the problem of leaders without further seeds, or of further seeds without leaders."""
    if leaders is not None and leader_seeds is None:
        text, fix = "get no further seeds", "set leader_seeds, such as leader_seeds=9"
        return [Problem("leaders", shown(leaders), text=text, fix=fix)]
    if leader_seeds is not None and leaders is None:
        text, fix = "are those of the best models", "set their number, such as leaders=4"
        return [Problem("leader_seeds", shown(leader_seeds), text=text, fix=fix)]
    return []


def check_screening(
    screening: Screening, configs: Mapping[str, Config], rates: Sequence[float], *, chooses_settings: bool = False
) -> list[Problem]:
    """Return why these models cannot be screened.

    Args:
        screening: The request.
        configs: The configuration of the full run of each model, by label.
        rates: Learning rates that each model is tried with.
        chooses_settings: Whether settings other than the rate are chosen.
    """
    found = []
    for label in screening.always:
        if label not in configs:
            found.append(Problem("always", label, text="no such model is compared", fix=nearest(label, configs)))
    if screening.finalists is None and len(rates) == 1 and not chooses_settings:
        text = "one learning rate and no finalists leave nothing to choose"
        found.append(Problem("screen_steps", shown(screening.steps), text=text, fix="give several rates, or finalists"))
    for config in configs.values():
        steps = _full_steps(config)
        if steps is not None and screening.steps >= steps:
            text = f"the full runs have {steps} steps"
            found.append(Problem("screen_steps", shown(screening.steps), text=text, fix="give fewer than those"))
            break
    return found


def screening_table(
    screening: Screening,
    losses: Losses,
    states: States,
    not_causal: Collection[str] = (),
    in_full: Collection[str] = (),
) -> dict[str, Any]:
    """Return the table of a screening: a row for each model, the lowest loss first, and whether it was trained in full.

    Args:
        screening: The request.
        losses: Losses of the short runs.
        states: States of the short runs, which say why a run has no loss.
        not_causal: Labels of models that see what they have to predict; they come last.
        in_full: Labels of models that have full runs; some were finalists only before another model was added.
    """
    rates = sorted(set().union(*losses.values()))
    chosen = screening.chosen(losses, not_causal)
    rows = []
    for label, by_rate in losses.items():
        best = best_rate(by_rate)
        cells = []
        lowest = math.inf
        for rate in rates:
            loss = by_rate.get(rate)
            text = ""
            if loss is not None:
                text = f"{loss:.3f}"
                lowest = min(lowest, loss)
            elif rate in by_rate:
                text = WITHOUT_LOSS[states[label][rate]]
            cells.append({"text": text, "best": rate == best and loss is not None})
        name, is_trained = label, label in in_full and label not in screening.always
        if label in not_causal:
            name = f"{label} (not causal)"
        row = {
            "label": label,
            "name": name,
            "cells": cells,
            "rate": _named(best, sorted(by_rate)),
            "in_full": "yes" if is_trained else _in_full(label, chosen, screening, states, best),
        }
        rows.append(((label in not_causal, lowest), row))
    rows.sort(key=lambda pair: pair[0])
    head = ["model", *(f"lr {rate:g}" for rate in rates), "best rate", "trained in full"]
    title = f"Screening: {screening.steps:,} steps"
    return {"title": title, "head": head, "rows": [row for _, row in rows], "note": NOTE}


def screening_lines(table: Mapping[str, Any]) -> list[str]:
    """Return the table as lines for the console, with a star at each best loss."""
    lines = [list(table["head"])]
    for row in table["rows"]:
        cells = []
        for cell in row["cells"]:
            mark = "*" * cell["best"]
            cells.append(cell["text"] + mark)
        lines.append([row["name"], *cells, row["rate"], row["in_full"]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown_lines = [table["title"]]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        shown_lines.append(f"  {'  '.join(padded)}".rstrip())
    return shown_lines


def screening_caveat(
    screening: Screening,
    losses: Losses,
    states: States,
    not_causal: Collection[str] = (),
    in_full: Collection[str] = (),
) -> str:
    """Return what a reader needs to know about the screening, in one or two sentences; see `screening_table`."""
    chosen = screening.chosen(losses, not_causal)
    text = f"Learning rates were chosen by short runs of {screening.steps:,} steps; full runs may prefer others."
    if not_over(states):
        of = sum(map(len, states.values()))
        return f"{text} The screening is not over: {not_over(states)} of its {of} runs have not ended."
    others = []
    for label, by_rate in losses.items():
        has_place = label in chosen or label in in_full
        if not has_place and label not in not_causal and best_rate(by_rate) is not None:
            others.append(label)
    if others:
        text += f" Not among the finalists, though their rank might change with more steps: {', '.join(others)}."
    return text


def not_over(states: States) -> int:
    """Return the number of short runs that have not ended."""
    return sum(state in NOT_OVER for by_rate in states.values() for state in by_rate.values())


def _named(rate: float | None, rates: Sequence[float]) -> str:
    if rate is None:
        return ""
    if len(rates) >= FEWEST_FOR_AN_EDGE and rate in (rates[0], rates[-1]):
        return f"{rate:g} (edge)"
    return f"{rate:g}"


def _in_full(label: str, chosen: Sequence[str], screening: Screening, states: States, best: float | None) -> str:
    deciding = states  # the runs of all models decide which are among the finalists
    if screening.finalists is None or label in screening.always:
        deciding = {label: states[label]}
    if not_over(deciding):
        return "not yet known"
    if best is None:
        return "no: no run has a loss"
    if label in screening.always:
        return "always"
    if label in chosen:
        return "yes"
    return "no"


def _reads_lengths(config: Config) -> bool:
    callbacks = config.get("callbacks") or {}
    return isinstance(callbacks.get("lengths"), Mapping)


def _full_steps(config: Config) -> int | None:
    """Return the last step of a run; None if only rows or time limit it."""
    trainer = config["trainer"]
    steps: int | None = trainer["max_steps"]
    if steps is None and trainer["max_epochs"] is None and trainer["max_seconds"] is None:
        steps = config["data"]["budget_steps"]
    return steps
