"""The tables of a comparison, as text in cells."""

from collections.abc import Mapping
from typing import Any

from samout_train.config import shown
from samout_train.experiments.compare.findings import in_words, interval, mean_and_spread, nats
from samout_train.experiments.compare.results import Contest, Contestant, difference

NOTE = (
    "Loss: nats a token on the whole validation split, mean and standard deviation over the seeds that count, each "
    "seed in brackets. Behind the best: mean of the differences seed by seed, with its 95 % interval. Tokens a second: "
    "forward and backward pass in rows of the training length. State: of one sequence after such a row."
)
PAIRS_NOTE = (
    "Row minus column: mean of the differences seed by seed, with its 95 % interval; coloured where that is more than "
    "noise. Each interval is for its pair alone: of twenty pairs that do not differ, one is coloured by chance."
)
UNSAID = ("seed", "optimizer.lr")  # settings that every run has one of its own


def loss_table(contest: Contest, speeds: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """A row for each model, the best one first.

    Args:
        contest: Models on the same data.
        speeds: Tokens a second by label and length.
    """
    head = ["model", "validation loss", "behind the best", "", "learning rate", "parameters"]
    head += ["tokens a second", "FLOPs a token", "state bytes"]
    rows = []
    for one in contest.contestants:
        each = ", ".join(nats(loss) for loss in one.losses.values())
        behind, word = _behind(contest, one)
        rows.append(
            [
                one.label,
                mean_and_spread(one) + (f" ({each})" if len(one.losses) > 1 else "") or "no run came to a loss",
                behind,
                word,
                "" if one.best_rate is None else f"{one.best_rate:g}{' (edge)' if one.edge else ''}",
                _count(one.figure("parameters")),
                _count(min(speeds.get(one.label, {}).items(), default=(0, None))[1]),
                _count(one.figure("training_flops_per_token")),
                _count(one.figure("state_bytes")),
            ]
        )
    return {"head": head, "rows": rows, "note": NOTE}


def pair_table(contest: Contest) -> dict[str, Any]:
    """Each model against each."""
    ranked = contest.ranked
    rows = []
    for one in ranked:
        cells: list[dict[str, Any]] = [{"text": one.label, "beyond": False}]
        for other in ranked:
            found = None if one is other else difference(one, other)
            text = "" if found is None else interval(found)
            cells.append({"text": text, "beyond": found is not None and found.within_noise is False})
        rows.append(cells)
    return {"head": ["", *(one.label for one in ranked)], "rows": rows, "note": PAIRS_NOTE}


def run_rows(contest: Contest) -> list[dict[str, Any]]:
    """A row for each run."""
    return [
        {
            "label": run.label,
            "rate": "" if run.rate is None else f"{run.rate:g}",
            "seed": "" if run.seed is None else run.seed,
            "state": run.outcome.state,
            "loss": "" if run.loss is None else f"{run.loss:.4f}",
            "steps": _count((run.summary or {}).get("steps")),
            "seconds": _count((run.summary or {}).get("train_seconds")),
            "where": run.outcome.error or str(run.run_dir),
        }
        for one in contest.contestants
        for run in sorted(one.runs, key=lambda run: (run.rate or 0.0, run.seed or 0))
    ]


def setting_tables(contest: Contest) -> dict[str, Any]:
    """What all models have in common, and what differs, by dotted key."""
    by_label = {
        one.label: _flat(next((run.config for run in one.counted or one.runs if run.config), {}))
        for one in contest.contestants
    }
    common, differing = [], []
    for key in sorted(set().union(*by_label.values()) - set(UNSAID)):
        values = [settings.get(key, "") for settings in by_label.values()]
        if len(set(values)) == 1:
            common.append((key, values[0]))
        else:
            differing.append([key, *values])
    return {"labels": list(by_label), "common": common, "differing": differing}


def _flat(node: Any, above: str = "") -> dict[str, str]:
    """Values as text by dotted key, nulls, too."""
    if not isinstance(node, Mapping):
        return {above: shown(node)}
    nested = [_flat(value, f"{above}.{key}" if above else str(key)) for key, value in node.items()]
    return {key: value for part in nested for key, value in part.items()}


def _behind(contest: Contest, one: Contestant) -> tuple[str, str]:
    best = contest.ranked[0] if contest.ranked else None
    if best is None or one.mean is None:
        return "", ""
    if one is best:
        return "", "best"
    found = difference(one, best)
    return ("" if found is None else interval(found)), in_words(found)


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"
