"""Screening: each model is trained briefly with each learning rate, and only the best ones are trained in full.

What is chosen on one seed looks better there than it is; so the seeds that count are others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samout_train.config import Problem, nearest, shown

Config = Mapping[str, Any]
Losses = Mapping[str, Mapping[float, float | None]]  # by label and learning rate; None where a run came to no loss
FEWEST_FOR_AN_EDGE = 3  # rates: of two, the best one is always at the edge
NOTE = (
    "Loss of the short runs: nats a token on the whole validation split, one seed, which is none of those that count. "
    "The best rate of each model is marked."
)


@dataclass(frozen=True)
class Screening:
    """How models are screened.

    Args:
        steps: Of each short run; its schedule ends there.
        finalists: How many models are trained in full, those with the lowest loss; None for all.
        always: Labels of models that are trained in full whatever their loss is.
    """

    steps: int
    finalists: int | None = None
    always: tuple[str, ...] = ()

    def words(self, config: Config) -> list[str]:
        """Return what makes a run a short one, as overrides of `train`.

        Args:
            config: Of the full run.
        """
        words = [f"trainer.max_steps={self.steps}"]
        if _reads_lengths(config):  # which takes longer than such a run does
            words.append("callbacks.lengths.times=[]")
        return words

    def shortened(self, config: Config) -> dict[str, Any]:
        """Return the configuration that these words make of that of the full run."""
        short = {**config, "trainer": {**config["trainer"], "max_steps": self.steps}}
        if _reads_lengths(config):
            callbacks = dict(config["callbacks"])
            callbacks["lengths"] = {**callbacks["lengths"], "times": []}
            short["callbacks"] = callbacks
        return short

    def chosen(self, losses: Losses) -> list[str]:
        """Return the labels of the models that are trained in full, in the order of `losses`.

        A model of which no run came to a loss has no best rate, and is never one of them.
        """
        lowest = {}
        for label, by_rate in losses.items():
            if best_rate(by_rate) is not None:
                lowest[label] = min(loss for loss in by_rate.values() if loss is not None)
        ranked = sorted(lowest, key=lambda label: lowest[label])
        finalists = ranked[: self.finalists]
        return [label for label in lowest if label in finalists or label in self.always]

    def recorded(self) -> dict[str, Any]:
        """Return the settings by the keys of `compare`, as its record has them."""
        return {"screen_steps": self.steps, "finalists": self.finalists, "always": list(self.always)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Screening | None":
        """Return the screening of a comparison; None where it has none."""
        settings = record.get("screening")
        if not settings:
            return None
        return cls(settings["screen_steps"], settings["finalists"], tuple(settings["always"]))


def best_rate(by_rate: Mapping[float, float | None]) -> float | None:
    """Return the rate with the lowest loss; None where no run came to one."""
    best, lowest = None, math.inf
    for rate, loss in by_rate.items():
        if loss is not None and loss < lowest:
            best, lowest = rate, loss
    return best


def screening_of(
    screen_steps: int | None, finalists: int | None, always: Sequence[str]
) -> tuple[Screening | None, list[Problem]]:
    """Return the screening that is asked for, None for none, and what is wrong between its settings."""
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


def screening_problems(screening: Screening, configs: Mapping[str, Config], rates: Sequence[float]) -> list[Problem]:
    """Return why models cannot be screened so.

    Args:
        screening: What is asked for.
        configs: That of the full run of each model, by label.
        rates: Learning rates that each model is tried with.
    """
    found = []
    for label in screening.always:
        if label not in configs:
            found.append(Problem("always", label, text="no such model is compared", fix=nearest(label, configs)))
    if screening.finalists is None and len(rates) == 1:
        text = "one learning rate and no finalists leave nothing to choose"
        found.append(Problem("screen_steps", shown(screening.steps), text=text, fix="give several rates, or finalists"))
    for config in configs.values():
        steps = _full_steps(config)
        if steps is not None and screening.steps >= steps:
            text = f"the full runs have {steps} steps"
            found.append(Problem("screen_steps", shown(screening.steps), text=text, fix="give fewer than those"))
            break
    return found


def screening_table(screening: Screening, losses: Losses) -> dict[str, Any]:
    """Return a row for each model, the lowest loss first, with which of them were trained in full.

    Args:
        screening: What was asked for.
        losses: Of the short runs.
    """
    rates = sorted(set().union(*losses.values()))
    chosen = screening.chosen(losses)
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
                text = "failed"
            cells.append({"text": text, "best": rate == best and loss is not None})
        row = {
            "label": label,
            "cells": cells,
            "rate": _named(best, rates),
            "fate": _fate(label, chosen, screening, best),
        }
        rows.append((lowest, row))
    rows.sort(key=lambda pair: pair[0])
    head = ["model", *(f"lr {rate:g}" for rate in rates), "best rate", "trained in full"]
    title = f"Screening: {screening.steps:,} steps"
    return {"title": title, "head": head, "rows": [row for _, row in rows], "note": NOTE}


def screening_lines(table: Mapping[str, Any]) -> list[str]:
    """Return the table for a terminal, with a star at each best loss."""
    lines = [list(table["head"])]
    for row in table["rows"]:
        cells = []
        for cell in row["cells"]:
            mark = "*" * cell["best"]
            cells.append(cell["text"] + mark)
        lines.append([row["label"], *cells, row["rate"], row["fate"]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown_lines = [table["title"]]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        shown_lines.append(f"  {'  '.join(padded)}".rstrip())
    return shown_lines


def screening_caveat(screening: Screening, losses: Losses) -> str:
    """Return what a reader has to know of the screening, in one sentence or two."""
    chosen = screening.chosen(losses)
    text = f"Rates were chosen by short runs of {screening.steps:,} steps, where a full run may be best with another."
    others = []
    for label, by_rate in losses.items():
        if label not in chosen and best_rate(by_rate) is not None:
            others.append(label)
    if others:
        text += f" Not trained in full after them, though more steps might have changed that: {', '.join(others)}."
    return text


def _named(rate: float | None, rates: Sequence[float]) -> str:
    if rate is None:
        return ""
    if len(rates) >= FEWEST_FOR_AN_EDGE and rate in (rates[0], rates[-1]):
        return f"{rate:g} (edge)"
    return f"{rate:g}"


def _fate(label: str, chosen: Sequence[str], screening: Screening, best: float | None) -> str:
    if best is None:
        return "no: no run came to a loss"
    if label in screening.always:
        return "always"
    if label in chosen:
        return "yes"
    return "no"


def _reads_lengths(config: Config) -> bool:
    callbacks = config.get("callbacks") or {}
    return isinstance(callbacks.get("lengths"), Mapping)


def _full_steps(config: Config) -> int | None:
    """Return the last step of a run; None where rows or time alone limit it."""
    trainer = config["trainer"]
    steps: int | None = trainer["max_steps"]
    if steps is None and trainer["max_epochs"] is None and trainer["max_seconds"] is None:
        steps = config["data"]["budget_steps"]
    return steps
