"""Sweeps in two stages: each form of a model briefly with several learning rates, then the best forms longer, with the
best rate of each and seeds that nothing was chosen with.

What is chosen on one seed looks better there than it is; so the seeds of the second stage are others.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from samout_train.config import NonNegative, Positive, Seed, validated

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        form: Whose.
        rate: Its learning rate.
        seed: Its seed; None for that of the configuration, in the first stage.
        overrides: What makes it of the configuration.
    """

    form: str
    rate: float
    seed: int | None
    overrides: tuple[str, ...]


class Stages:
    """The jobs of both stages.

    Args:
        forms: By name, the overrides that make the form.
        rates: Learning rates of the first stage.
        finalists: How many forms go to the second stage: those with the lowest loss in the first.
        always: Forms that go there, too, whatever they did.
        seeds: Of the second stage.
        longer: Overrides of each run there: what makes it the longer one.
        only: Some of the forms, in place of all.

    Raises:
        ValueError: if a name in `always` or `only` is no form.
    """

    @validated
    def __init__(
        self,
        *,
        forms: Mapping[str, Sequence[str]],
        rates: Sequence[Annotated[float, Positive]],
        finalists: Annotated[int, NonNegative],
        always: Sequence[str],
        seeds: Sequence[Annotated[int, Seed]],
        longer: Sequence[str],
        only: Sequence[str] | None = None,
    ) -> None:
        for key, names in (("always", always), ("only", only or [])):
            if strange := [name for name in names if name not in forms]:
                raise ValueError(f"{key}: {', '.join(strange)}: no such form; there are {', '.join(forms)}")
        self.forms = {name: tuple(forms[name]) for name in (forms if only is None else only)}
        self.rates, self.finalists, self.seeds, self.longer = list(rates), finalists, list(seeds), tuple(longer)
        self.always = [name for name in always if name in self.forms]

    def screening(self) -> list[Job]:
        """The first stage."""
        return [
            Job(form, rate, None, (*overrides, f"optimizer.lr={rate:g}"))
            for form, overrides in self.forms.items()
            for rate in self.rates
        ]

    def finals(self, screened: Mapping[Job, Summary | None]) -> list[Job]:
        """The second stage, of what the first one left; a form of which no run came to its end is not in it."""
        best = best_jobs(screened)
        ranked = sorted((form for form in best if form not in self.always), key=lambda form: loss(screened[best[form]]))
        chosen = [*ranked[: self.finalists], *(form for form in self.always if form in best)]
        return [
            Job(
                form,
                best[form].rate,
                seed,
                (*self.forms[form], f"optimizer.lr={best[form].rate:g}", *self.longer, f"seed={seed}"),
            )
            for form in chosen
            for seed in self.seeds
        ]

    def points(self, ran: Mapping[Job, Summary | None]) -> dict[str, list[float]]:
        """The losses of each form, in the order that the forms were given in."""
        found: dict[str, list[float]] = {form: [] for form in self.forms}
        for job, summary in ran.items():
            if summary is not None:
                found[job.form].append(loss(summary))
        return {form: losses for form, losses in found.items() if losses}

    def markdown(self, screened: Mapping[Job, Summary | None], final: Mapping[Job, Summary | None]) -> str:
        """A table, with a row for each form in the order that they were given in."""
        best = best_jobs(screened)
        seeds = f"seeds {', '.join(map(str, self.seeds))}"
        head = ["form", "parameters", "best rate", *(f"lr {rate:g}" for rate in self.rates)]
        head += [f"{_steps(final)}{seeds}", "seconds"]
        lines = [_row(head), "|---" * len(head) + "|"]
        for form in self.forms:
            runs = {job.rate: summary for job, summary in screened.items() if job.form == form}
            cells = [f"{loss(summary):.3f}" if summary else "failed" for summary in map(runs.get, self.rates)]
            done = [summary for job, summary in final.items() if job.form == form and summary]
            size, rate = "", ""
            if form in best and (chosen := screened[best[form]]) is not None:
                size = f"{chosen['parameters']:,}"
                edge = len(self.rates) > 2 and best[form].rate in (min(self.rates), max(self.rates))
                rate = f"{best[form].rate:g}{' (edge)' if edge else ''}"
            seconds = f"{statistics.mean(summary['train_seconds'] for summary in done):.0f}" if done else ""
            lines.append(_row([form, size, rate, *cells, mean_and_spread([loss(one) for one in done]), seconds]))
        return "\n".join(lines) + "\n"


def best_jobs(screened: Mapping[Job, Summary | None]) -> dict[str, Job]:
    """By form, the job of the first stage with the lowest loss."""
    found: dict[str, Job] = {}
    for job, summary in screened.items():
        if summary is not None and (job.form not in found or loss(summary) < loss(screened[found[job.form]])):
            found[job.form] = job
    return found


def loss(summary: Summary | None) -> float:
    """The loss on the whole validation split; infinite where there is none."""
    value = None if summary is None else summary.get("val_loss_nats")
    return float("inf") if value is None else float(value)


def mean_and_spread(values: Sequence[float]) -> str:
    """`1.612 ± 0.004`: the mean, and the standard deviation of a sample where there are two or more."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _steps(ran: Mapping[Job, Summary | None]) -> str:
    steps = sorted({summary["steps"] for summary in ran.values() if summary})
    return f"{steps[0]:,} steps, " if len(steps) == 1 else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
