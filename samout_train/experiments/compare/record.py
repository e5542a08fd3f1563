"""The record of a comparison in its directory: which runs there are, what each is for, and the sizes of the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samout_train.experiments.compare.matching import Sizes
from samout_train.runtime import read_figures

RECORD = "comparison.json"


@dataclass(frozen=True)
class Entry:
    """The identity of a run of a comparison.

    Args:
        label: Label of its model.
        data: The name of the data that it is trained on.
        rate: Its learning rate.
        seed: Its seed.
        counts: Whether it is scored; otherwise a rate or a setting is chosen by it.
        screening: Whether it is a short run of a screening.
        leader: Whether its seed is one on which only leaders are scored.
        settings: The chosen settings other than the rate, by dotted key.
        tries: Key of the setting that the run tries; None if it tries its rate, or is scored.
        task: Whether it is trained on a task that goes with the text of the comparison.
        budget: Budget of a run at a further size, such as `parameters:200000`; None at the comparison's own size.
    """

    label: str
    data: str
    rate: float
    seed: int
    counts: bool
    screening: bool = False
    leader: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    tries: str | None = None
    task: bool = False
    budget: str | None = None


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a comparison; empty if there is none."""
    return read_figures(folder / RECORD)


def entry_of(run_dir: Path) -> Entry | None:
    """Return the entry of a run in the record of its comparison; None outside of a comparison."""
    try:
        return Entry(**read_record(run_dir.parent)["runs"][run_dir.name])
    except (LookupError, TypeError):
        return None


def label_at(label: str, budget: str | None) -> str:
    """Return the name under which the record has a model's sizes; the budget is None at the comparison's own size."""
    if budget is None:
        return label
    return f"{label} @{budget}"


def known_sizes(
    folder: Path, match: str | None, label: str, words: Sequence[str], *, is_beside: bool = False
) -> Sizes | None:
    """Return the sizes that a comparison has found for the same model and budget; None if it has found none.

    Args:
        folder: Directory of the comparison.
        match: The budget, as typed.
        label: Label of the model.
        words: Words of the model, without its sizes.
        is_beside: Whether the budget is that of a further size.
    """
    try:
        name = label
        if is_beside:
            name = label_at(label, match)
        before = read_record(folder)["sizes"][name]
        settings = {str(key): int(size) for key, size in before["settings"].items()}
        full = [*words, *(f"model.{key}={size}" for key, size in settings.items())]
        if before["match"] == match and before["words"] == full:
            return Sizes(settings, float(before["cost"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        pass
    return None
