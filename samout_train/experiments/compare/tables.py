"""The tables of a comparison, as texts in rows: losses, differences of pairs, runs and settings."""

from collections.abc import Collection, Mapping
from typing import Any

from samout_train.config import shown
from samout_train.experiments.compare.answers import NOTE as ANSWERS_NOTE, answers_columns
from samout_train.experiments.compare.findings import in_words, interval, listed, mean_and_spread, nats
from samout_train.experiments.compare.results import CandidateResult, Comparison, difference

NOTE = (
    "Loss: nats per token on the whole validation split, of averaged weights where a run has them (trainer.ema); mean "
    "and standard deviation over the scored seeds, each seed in brackets. Behind the best: mean of the differences "
    "seed by seed, with its 95 % interval. Tokens per second: forward and backward pass in rows of the training "
    "length. State: of one sequence after such a row."
)
FRONT_NOTE = (
    " Front: no other model with as small a state has as low a loss, or in a task as many right answers; means over "
    "the seeds that all models have ({})."
)
PAIRS_NOTE = (
    "Row minus column: mean of the differences seed by seed, with its 95 % interval; marked where that is more than "
    "noise. Each interval is for its pair alone: of twenty pairs that do not differ, one is marked by chance."
)
UNSAID = ("seed", "optimizer.lr")  # settings that differ from run to run anyway


def loss_table(
    comparison: Comparison, speeds: Mapping[str, Mapping[int, float]], left_out: Collection[str] = ()
) -> dict[str, Any]:
    """Return a row for each model, the best one first.

    Args:
        comparison: Models on the same data.
        speeds: Tokens per second by label and length.
        left_out: Labels of models that were not trained in full.
    """
    columns = answers_columns(comparison)
    head = ["model", "validation loss", "behind the best", "", *(name for name, _ in columns)]
    head += ["state, bytes", "learning rate", "parameters", "tokens per second", "FLOPs per token"]
    rows, fronts = [], _all_fronts(comparison)
    for one in comparison.results:
        if one.label in left_out:
            continue
        loss = mean_and_spread(one) or "no scored run has a loss"
        if len(one.losses) > 1:
            loss += f" ({', '.join(nats(loss) for loss in one.losses.values())})"
        rate = _short(one.best_rate)
        if one.edge:
            rate += " (edge)"
        for key, value in one.best_settings.items():
            rate += f", {key.rpartition('.')[2]} {shown(value)}"
        speed = None
        if speeds.get(one.label):
            speed = min(speeds[one.label].items())[1]  # at the training length
        behind, word = _behind_best(comparison, one)
        rows.append(
            [
                one.label,
                loss,
                behind,
                word,
                *(cells.get(one.label, "") for _, cells in columns),
                _number(one.figure("state_bytes")) + _on_front(one, fronts),
                rate,
                _number(one.figure("parameters")),
                _number(speed),
                _number(one.figure("training_flops_per_token")),
            ]
        )
    note = NOTE + _front_note(comparison) + ANSWERS_NOTE * bool(columns)
    return {"head": head, "rows": rows, "note": note}


def pair_table(comparison: Comparison) -> dict[str, Any]:
    """Return the differences of all pairs of models, each model in a row and a column."""
    ranked = comparison.ranked
    rows = []
    for one in ranked:
        cells: list[dict[str, Any]] = [{"text": one.label, "beyond": False}]
        for other in ranked:
            found = difference(one, other)
            if one is other or found is None:
                cells.append({"text": "", "beyond": False})
            else:
                cells.append({"text": interval(found), "beyond": found.within_noise is False})
        rows.append(cells)
    return {"head": ["", *(one.label for one in ranked)], "rows": rows, "note": PAIRS_NOTE}


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each run."""
    rows = []
    for one in comparison.results:
        for run in sorted(one.runs, key=lambda run: (run.rate or 0.0, run.seed or 0)):
            loss, seed, summary = "", "", run.summary or {}
            if run.seed is not None:
                seed = str(run.seed)
            if run.loss is not None:
                loss = f"{run.loss:.4f}"
            row = {
                "label": run.label,
                "name": comparison.name,
                "rate": _short(run.rate),
                "seed": seed,
                "state": run.outcome.state,
                "loss": loss,
                "steps": _number(summary.get("steps")),
                "seconds": _number(summary.get("train_seconds")),
                "where": run.outcome.error or str(run.run_dir),
            }
            rows.append(row)
    return rows


def setting_tables(comparison: Comparison) -> dict[str, Any]:
    """Return the settings that all models share and those that differ, by dotted key."""
    by_label = {}
    for one in comparison.results:
        config: Mapping[str, Any] = {}
        for run in one.counted or one.runs:
            config = config or run.config
        by_label[one.label] = _flat(config)
    common, differing = [], []
    for key in sorted(set().union(*by_label.values()) - set(UNSAID)):
        values = [settings.get(key, "") for settings in by_label.values()]
        if len(set(values)) == 1:
            common.append((key, values[0]))
        else:
            differing.append([key, *values])
    return {"labels": list(by_label), "common": common, "differing": differing}


def _flat(node: Any, above: str = "") -> dict[str, str]:
    """Return values as text by dotted key, nulls included."""
    if not isinstance(node, Mapping):
        return {above: shown(node)}
    found: dict[str, str] = {}
    for key, value in node.items():
        path = str(key)
        if above:
            path = f"{above}.{key}"
        found |= _flat(value, path)
    return found


def _behind_best(comparison: Comparison, one: CandidateResult) -> tuple[str, str]:
    if one.leak is not None:
        return "", "not causal"
    if not comparison.ranked or one.mean is None:
        return "", ""
    best = comparison.ranked[0]
    if one is best:
        return "", "best"
    found = difference(one, best)
    if found is None:
        return "", in_words(found)
    return interval(found), in_words(found)


def _all_fronts(comparison: Comparison) -> dict[str, Collection[str]]:
    """Return the labels on each front, by its name, of a comparison and of the tasks that go with it."""
    fronts: dict[str, Collection[str]] = dict(comparison.fronts)
    for task in comparison.tasks:
        if "accuracy" in task.fronts:
            fronts[task.data] = task.fronts["accuracy"]
    return fronts


def _front_note(comparison: Comparison) -> str:
    """Return what the fronts are, and on which seeds; empty without a front."""
    seeds = {}
    for name in comparison.fronts:
        seeds[name] = listed(comparison.front_seeds[name])
    for task in comparison.tasks:
        if "accuracy" in task.fronts:
            seeds[task.data] = listed(task.front_seeds["accuracy"])
    if not seeds:
        return ""
    if len(set(seeds.values())) == 1:
        return FRONT_NOTE.format(*set(seeds.values()))
    return FRONT_NOTE.format("; ".join(f"{name}: {of_front}" for name, of_front in seeds.items()))


def _on_front(one: CandidateResult, fronts: Mapping[str, Collection[str]]) -> str:
    """Return ` (front)`, with its name if there are several fronts; empty if the model is on none."""
    names = [name for name, labels in fronts.items() if one.label in labels]
    if not names:
        return ""
    if len(fronts) == 1:
        return " (front)"
    if len(names) == len(fronts) == 2:
        return " (front: both)"
    return f" (front: {', '.join(names)})"


def _number(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}"


def _short(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:g}"
