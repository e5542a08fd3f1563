"""The runs of a comparison: each model with each learning rate on one seed, then with its best rate on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samout_train.checkpoint import DataNow, holds_run, other_kind, other_settings
from samout_train.experiments.compare.contenders import Config, Contender
from samout_train.experiments.compare.labels import folder_name
from samout_train.experiments.compare.matching import Sizes
from samout_train.experiments.jobs import Job
from samout_train.runtime import place_problem, read_figures, write_figures

RECORD = "comparison.json"
# Of a run that is there already, these must be as they are asked for.
DECISIVE_KEYS = ("seed", "precision", "model", "data", "optimizer", "schedule", "trainer", "callbacks")


@dataclass(frozen=True)
class Entry:
    """What a run of a comparison is.

    Args:
        label: Of its model.
        data: The name of what it is trained on.
        rate: Its learning rate.
        seed: Its seed.
        counts: Whether it counts; else the best rate is chosen by it.
    """

    label: str
    data: str
    rate: float
    seed: int
    counts: bool


@dataclass(frozen=True)
class Plan:
    """What is asked of a comparison.

    Args:
        folder: Where its runs lie.
        contenders: The models.
        rates: Learning rates that each is tried with.
        seed: That the best rate is chosen on; the seeds after it are those that count.
        num_seeds: How many these are.
        flags: What the command line of each run begins with.
    """

    folder: Path
    contenders: Sequence[Contender]
    rates: Sequence[float]
    seed: int
    num_seeds: int
    flags: Sequence[str] = ()

    def choosing(self) -> list[Job]:
        """The runs that the best rates are chosen by; none where there is nothing to choose."""
        if len(self.rates) == 1:
            return []
        return [self._job(one, rate, self.seed) for one in self.contenders for rate in self.rates]

    def counting(self, best_rates: Mapping[str, float]) -> list[Job]:
        """The runs that count, of the models for which there is a best rate.

        Args:
            best_rates: By label.
        """
        rated = [one for one in self.contenders if one.label in best_rates]
        return [self._job(one, best_rates[one.label], seed) for one in rated for seed in self._seeds()]

    def entries(self) -> dict[str, Entry]:
        """What each run is that this comparison may have, by the name of its directory."""
        found = {}
        for one in self.contenders:
            for rate in self.rates:
                for seed in [*([self.seed] if len(self.rates) > 1 else []), *self._seeds()]:
                    entry = Entry(label=one.label, data=one.data, rate=rate, seed=seed, counts=seed != self.seed)
                    found[self._job(one, rate, seed).name] = entry
        return found

    def lines(self) -> list[str]:
        """For people: the models at their sizes, and how many runs there will be."""
        lines = []
        for one in self.contenders:
            sizes = {} if one.sizes is None else one.sizes.settings
            cost = "as configured" if one.sizes is None else f"takes {one.sizes.cost:,.6g} of the budget"
            lines.append(f"  {one.label:<20} {', '.join(f'{key} {size}' for key, size in sizes.items()):<32} {cost}")
        choosing, counting = len(self.choosing()), len(self.contenders) * self.num_seeds
        seeds = f"seeds {self.seed + 1} to {self.seed + self.num_seeds}" if self.num_seeds > 1 else "one seed"
        chosen = f"{choosing} to choose learning rates (seed {self.seed}), " if choosing else ""
        return [*lines, f"{choosing + counting} runs in {self.folder}: {chosen}{counting} that count ({seeds})"]

    def problems(self) -> list[str]:
        """What speaks against the directory, and runs in it that are not those that are asked for; looks only."""
        if problem := place_problem(self.folder):
            return [f"run_dir={self.folder}: {problem}"]
        if kind := other_kind(self.folder, "a comparison"):
            return [f"run_dir={self.folder}: holds {kind}: give a directory of its own"]
        found: list[str] = []
        others: list[str | None] = []
        from samout_train.training import source_from

        there_now = DataNow(source_from)
        by_label = {one.label: one for one in self.contenders}
        for name, entry in self.entries().items():
            if holds_run(self.folder / name):
                config = _with(by_label[entry.label].config, entry.rate, entry.seed)
                found += other_settings(self.folder / name, config, DECISIVE_KEYS)
                others.append(there_now.other_than(self.folder / name, config))
        problems = [f"{difference}: give another run_dir" for difference in dict.fromkeys(found)]
        return problems or [f"{other}, or another run_dir" for other in others if other is not None][:1]

    def write(self, asked: Mapping[str, Any]) -> None:
        """Leaves in the directory what its runs are, beside those that it knew of before.

        Args:
            asked: What was typed, and what else a page should say.

        Raises:
            OSError: if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {
            one.label: {
                "match": asked.get("match"),
                "words": list(one.words),
                "settings": dict(one.sizes.settings),
                "cost": one.sizes.cost,
            }
            for one in self.contenders
            if one.sizes is not None
        }
        before = read_record(self.folder)
        entries = {name: vars(entry) for name, entry in self.entries().items()}
        content = {**asked, "sizes": before.get("sizes", {}) | sizes, "runs": before.get("runs", {}) | entries}
        write_figures(self.folder / RECORD, content)

    def _seeds(self) -> range:
        return range(self.seed + 1, self.seed + 1 + self.num_seeds)

    def _job(self, contender: Contender, rate: float, seed: int) -> Job:
        name = f"{folder_name(contender.label)}-lr{rate!r}-seed{seed}"
        words = (*self.flags, *contender.words, f"optimizer.lr={rate!r}", f"seed={seed}")
        return Job(self.folder / name, words)


def read_record(folder: Path) -> dict[str, Any]:
    """What a comparison left in its directory; nothing where there is none."""
    return read_figures(folder / RECORD)


def entry_of(run_dir: Path) -> Entry | None:
    """What a run is in the comparison that it lies in; None where it lies in none."""
    try:
        return Entry(**read_record(run_dir.parent)["runs"][run_dir.name])
    except (LookupError, TypeError):
        return None


def known_sizes(folder: Path, match: str | None, label: str, words: Sequence[str]) -> Sizes | None:
    """The sizes that a comparison has found for a label, where it is the same model and budget; else None.

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
        same = before["match"] == match and before["words"] == full
        return Sizes(settings, float(before["cost"])) if same else None
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _with(config: Config, rate: float, seed: int) -> dict[str, Any]:
    return {**config, "seed": seed, "optimizer": {**config["optimizer"], "lr": rate}}
