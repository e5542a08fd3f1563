"""The runs of a comparison: which there are, where each lies, and the record of it in the directory.

Each model is tried with each learning rate on one seed, and then trained with its best rate on the seeds after it,
which are scored. With a screening, the first runs are short, and only some of the models are trained in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from samout_train.checkpoint import DataNow, holds_run, other_kind, other_settings
from samout_train.config import Problem, shown
from samout_train.experiments.compare.candidates import Candidate, Config, folder_name
from samout_train.experiments.compare.matching import Sizes
from samout_train.experiments.compare.screening import Screening, best_rate
from samout_train.experiments.jobs import Job
from samout_train.runtime import place_problem, read_figures, write_figures
from samout_train.training import source_from

RECORD = "comparison.json"
# The settings of an existing run that must be as asked for.
DECISIVE_KEYS = ("seed", "precision", "model", "data", "optimizer", "schedule", "trainer", "callbacks")


@dataclass(frozen=True)
class Entry:
    """The identity of a run of a comparison.

    Args:
        label: Of its model.
        data: The name of the data that it is trained on.
        rate: Its learning rate.
        seed: Its seed.
        counts: Whether it is scored; else the best rate is chosen by it.
        screening: Whether it is a short run of a screening.
    """

    label: str
    data: str
    rate: float
    seed: int
    counts: bool
    screening: bool = False


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison.

    Args:
        folder: The directory of its runs.
        candidates: The models.
        rates: Learning rates that each is tried with.
        seed: The seed on which the best rate is chosen; the seeds after it are scored.
        num_seeds: Number of scored seeds.
        flags: The flags that the command line of each run begins with.
        screening: How models are screened; None where all are trained in full.
    """

    folder: Path
    candidates: Sequence[Candidate]
    rates: Sequence[float]
    seed: int
    num_seeds: int
    flags: Sequence[str] = ()
    screening: Screening | None = None

    def choosing(self) -> list[Job]:
        """Return the runs that the best rates are chosen by; none where there is nothing to choose."""
        jobs = []
        if self._chooses():
            for one in self.candidates:
                for rate in self.rates:
                    jobs.append(self._job(one, rate, self.seed, self.screening))
        return jobs

    def counting(self, best_rates: Mapping[str, float]) -> list[Job]:
        """Return the scored runs of the models that have a best rate.

        Args:
            best_rates: By label.
        """
        jobs = []
        for one in self.candidates:
            if one.label in best_rates:
                for seed in self._seeds():
                    jobs.append(self._job(one, best_rates[one.label], seed))
        return jobs

    def entries(self) -> dict[str, Entry]:
        """Return every run that this comparison may have, by the name of its directory."""
        found = {}
        for one in self.candidates:
            for rate in self.rates:
                of_rate = partial(Entry, label=one.label, data=one.data, rate=rate)
                if self._chooses():
                    short = self.screening is not None
                    name = self._job(one, rate, self.seed, self.screening).name
                    found[name] = of_rate(seed=self.seed, counts=False, screening=short)
                for seed in self._seeds():
                    found[self._job(one, rate, seed).name] = of_rate(seed=seed, counts=True)
        return found

    def most_counting(self) -> int:
        """Return the largest possible number of scored runs."""
        models = len(self.candidates)
        if self.screening is not None and self.screening.finalists is not None:
            models = min(models, self.screening.finalists + len(self.screening.always))
        return models * self.num_seeds

    def lines(self) -> list[str]:
        """Return lines for the console: the models at their sizes, and the number of runs."""
        rows = []
        for one in self.candidates:
            if one.sizes is None:
                rows.append((one.label, "", "as configured"))
            else:
                sizes = ", ".join(f"{key} {size}" for key, size in one.sizes.settings.items())
                rows.append((one.label, sizes, f"takes {one.sizes.cost:,.6g} of the budget"))
        label_width = max(len(label) for label, _, _ in rows)
        sizes_width = max(len(sizes) for _, sizes, _ in rows)
        lines = []
        for label, sizes, cost in rows:
            line = f"  {label:<{label_width}}"
            if sizes_width:
                line += f"  {sizes:<{sizes_width}}"
            lines.append(f"{line}  {cost}")
        return [*lines, self._count_line()]

    def _count_line(self) -> str:
        choosing, counting = len(self.choosing()), self.most_counting()
        seeds, chosen, at_most = "one seed", "", ""
        if self.num_seeds > 1:
            seeds = f"seeds {self.seed + 1} to {self.seed + self.num_seeds}"
        if self.screening is not None:
            chosen = f"{choosing} of {self.screening.steps:,} steps to screen (seed {self.seed}), "
            at_most = "at most "
        elif choosing:
            chosen = f"{choosing} to choose learning rates (seed {self.seed}), "
        return f"{at_most}{choosing + counting} runs in {self.folder}: {chosen}{at_most}{counting} scored ({seeds})"

    def check(self) -> list[Problem]:
        """Return why the directory cannot be taken, and the runs in it that differ from those asked for.

        Nothing is written.
        """
        problem = place_problem(self.folder)
        if problem is not None:
            return [Problem("run_dir", str(self.folder), text=problem)]
        kind = other_kind(self.folder, "a comparison")
        if kind is not None:
            fix = "give a directory of its own"
            return [Problem("run_dir", str(self.folder), text=f"holds {kind}", fix=fix)]
        changed = self._check_screening()
        if changed:
            return changed
        return self._check_runs()

    def _check_runs(self) -> list[Problem]:
        problems: list[Problem] = []
        other_data: list[Problem] = []
        there_now = DataNow(source_from)
        by_label = {one.label: one for one in self.candidates}
        for name, entry in self.entries().items():
            run_dir = self.folder / name
            if not holds_run(run_dir):
                continue
            config = _with(by_label[entry.label].config, entry.rate, entry.seed)
            if self.screening is not None and entry.screening:
                config = self.screening.shortened(config)
            for problem in other_settings(run_dir, config, DECISIVE_KEYS):
                fix = "give another run_dir"
                if problem.fix:
                    fix = f"{problem.fix}, or {fix}"
                problems.append(replace(problem, fix=fix))
            other = there_now.other_than(run_dir, config)
            if other is not None:
                other_data.append(Problem(text=f"{other}, or another run_dir"))
        return list(dict.fromkeys(problems)) or other_data[:1]

    def write(self, asked: Mapping[str, Any]) -> None:
        """Write the record of the comparison into its directory; what an earlier start recorded is kept.

        Args:
            asked: The request, and what else the page should show.

        Raises:
            OSError: if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = read_record(self.folder)
        sizes = dict(before.get("sizes", {}))
        for one in self.candidates:
            if one.sizes is not None:
                sizes[one.label] = {
                    "match": asked.get("match"),
                    "words": list(one.words),
                    "settings": dict(one.sizes.settings),
                    "cost": one.sizes.cost,
                }
        runs = dict(before.get("runs", {}))
        for name, entry in self.entries().items():
            runs[name] = vars(entry)
        if self.screening is not None:
            asked = {**asked, "screening": self.screening.recorded()}
        write_figures(self.folder / RECORD, {**asked, "sizes": sizes, "runs": runs})

    def _seeds(self) -> range:
        return range(self.seed + 1, self.seed + 1 + self.num_seeds)

    def _chooses(self) -> bool:
        return len(self.rates) > 1 or self.screening is not None

    def _check_screening(self) -> list[Problem]:
        """Return how the screening differs from that of the comparison in the directory."""
        before = read_record(self.folder)
        if "runs" not in before:
            return []
        none: dict[str, Any] = {"screen_steps": None, "finalists": None, "always": []}
        now = none
        if self.screening is not None:
            now = self.screening.recorded()
        problems = []
        for key, then in (before.get("screening") or none).items():
            if now[key] != then:
                text = f"the comparison in {self.folder} has {shown(then)}"
                problems.append(Problem(key, shown(now[key]), text=text, fix="give another run_dir"))
        return problems

    def _job(self, candidate: Candidate, rate: float, seed: int, screening: Screening | None = None) -> Job:
        words = [*self.flags, *candidate.words]
        stage = ""
        if screening is not None:
            words += screening.words(candidate.config)
            stage = "screening-"
        name = f"{folder_name(candidate.label)}-lr{rate!r}-{stage}seed{seed}"
        return Job(self.folder / name, (*words, f"optimizer.lr={rate!r}", f"seed={seed}"))


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a comparison; empty where there is none."""
    return read_figures(folder / RECORD)


def record_screening(folder: Path, losses: Mapping[str, Mapping[float, float | None]], chosen: Sequence[str]) -> None:
    """Add the result of the screening to the record of a comparison.

    Args:
        folder: Of the comparison.
        losses: Of the short runs, by label and rate.
        chosen: Labels of the models that are trained in full.
    """
    screened = {}
    for label, by_rate in losses.items():
        by_name = {f"{rate!r}": loss for rate, loss in by_rate.items()}
        screened[label] = {"losses": by_name, "best_rate": best_rate(by_rate), "trained_in_full": label in chosen}
    write_figures(folder / RECORD, {**read_record(folder), "screened": screened})


def entry_of(run_dir: Path) -> Entry | None:
    """Return the entry of a run in the comparison that it lies in; None outside of a comparison."""
    try:
        return Entry(**read_record(run_dir.parent)["runs"][run_dir.name])
    except (LookupError, TypeError):
        return None


def known_sizes(folder: Path, match: str | None, label: str, words: Sequence[str]) -> Sizes | None:
    """Return the sizes that a comparison has found for the same model and budget; None if it has not.

    Args:
        folder: Of the comparison.
        match: The budget, as typed.
        label: Of the model.
        words: Those of the model, without its sizes.
    """
    try:
        before = read_record(folder)["sizes"][label]
        settings = {str(key): int(size) for key, size in before["settings"].items()}
        full = [*words, *(f"model.{key}={size}" for key, size in settings.items())]
        if before["match"] == match and before["words"] == full:
            return Sizes(settings, float(before["cost"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        pass
    return None


def _with(config: Config, rate: float, seed: int) -> dict[str, Any]:
    return {**config, "seed": seed, "optimizer": {**config["optimizer"], "lr": rate}}
