"""The runs of a comparison: which runs there are, where each lies, and the record of them in the directory.

Each model is tried with each learning rate on one seed. It is then trained with its best rate on the seeds after that
one, and these runs are scored. With a screening, the first runs are short, and only some of the models are trained in
full. The best of the scored models, the leaders, may get further seeds. The losses of earlier runs decide which runs
come next; `stages` goes through them. Models that are trained in full may also be trained on tasks, and at further
sizes. Each task or size is a plan of its own in the same directory, with the same learning rates and seeds.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from samout_train.checkpoint import DataNow, holds_run, other_kind, other_settings
from samout_train.config import Problem, shown
from samout_train.experiments.compare.candidates import Candidate, folder_name
from samout_train.experiments.compare.choices import Choose, first_settings, with_settings, words_of
from samout_train.experiments.compare.matching import Budget, Sizes
from samout_train.experiments.compare.record import RECORD, Entry, known_sizes, label_at, read_record
from samout_train.experiments.compare.screening import FEWEST_FOR_AN_EDGE, Screening, best_rate
from samout_train.experiments.jobs import Job, outcome
from samout_train.runtime import place_problem, write_figures
from samout_train.training import source_from

# The settings of an existing run that must equal the requested ones.
DECISIVE_KEYS = ("seed", "precision", "model", "init_from", "data", "optimizer", "schedule", "trainer", "callbacks")


Losses = Mapping[str, float | None]  # of the runs that have ended, by name; None if a run has no loss


@dataclass(frozen=True)
class Stage:
    """Runs of a comparison that can be made in any order.

    Args:
        entries: The runs by the names of their directories.
        left: The largest possible number of scored runs in later stages.
        note: A line for the console on what was chosen before.
        record: The same for the record of the comparison.
    """

    entries: Mapping[str, Entry]
    left: int = 0
    note: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison.

    Args:
        folder: The directory of its runs.
        candidates: The models.
        rates: Learning rates that each is tried with, ascending.
        seed: The seed on which the best rate is chosen; the seeds after it are scored.
        num_seeds: Number of scored seeds.
        flags: The flags that the command line of each run begins with.
        screening: How models are screened; None if all are trained in full.
        extend: The most learning rates to try beyond each edge of `rates`, for a model whose best rate is at that edge.
            A grid of fewer than three rates is never extended.
        leaders: Number of models with the lowest mean loss on these seeds; they are scored on further seeds.
        leader_seeds: Number of further seeds.
        choose: Values of settings that are tried at the best rate, by dotted key.
        beside: Plans for the same models on tasks, or at other sizes. These have no such plans themselves.
        task: Whether this is the plan of a task; the data of its candidates is then the name of the task.
        budget: The budget, as typed, if this is the plan of another size; else None.
    """

    folder: Path
    candidates: Sequence[Candidate]
    rates: Sequence[float]
    seed: int
    num_seeds: int
    flags: Sequence[str] = ()
    screening: Screening | None = None
    extend: int = 0
    leaders: int = 0
    leader_seeds: int = 0
    choose: Choose = field(default_factory=dict)
    beside: Sequence["Plan"] = ()
    task: bool = False
    budget: str | None = None

    def trials(self, losses: Losses) -> dict[str, Entry]:
        """Return the runs by which the best rates are chosen, as far as these losses determine them.

        More runs may follow once these have ended. The list is complete when `losses` has all of its runs.

        Args:
            losses: Losses of the runs that have ended.
        """
        found: dict[str, Entry] = {}
        if self._chooses():
            for one in self.candidates:
                for entry in self._trials_of(one, losses):
                    found[self.name(entry)] = entry
        return found

    def best(self, losses: Losses) -> dict[str, Entry]:
        """Return the run with the lowest loss of each model by label; models without a loss are left out.

        Args:
            losses: Losses of all runs by which rates are chosen.
        """
        best: dict[str, Entry] = {}
        for one in self.candidates:
            entry: Entry | None = self._first(one, self.rates[0])
            if self._chooses():
                entry = self._lowest(self._trials_of(one, losses), losses)
            if entry is not None:
                best[one.label] = entry
        return best

    def scored(self, best: Mapping[str, Entry]) -> dict[str, Entry]:
        """Return the scored runs of the models that have a best run.

        Args:
            best: The best runs by label.
        """
        found = {}
        for one in self.candidates:
            if one.label in best:
                for seed in self._seeds():
                    entry = replace(best[one.label], seed=seed, counts=True, screening=False, tries=None)
                    found[self.name(entry)] = entry
        return found

    def leading(self, scored: Mapping[str, Entry], losses: Losses, not_causal: Collection[str] = ()) -> list[str]:
        """Return the labels of the leaders, the one with the lowest mean loss first.

        Args:
            scored: The scored runs.
            losses: Losses of these runs; a model that lacks one of them cannot lead.
            not_causal: Labels of models that see what they have to predict, which cannot lead.
        """
        by_label: dict[str, list[float | None]] = {}
        for name, entry in scored.items():
            by_label.setdefault(entry.label, []).append(losses.get(name))
        means = {}
        for label, of_model in by_label.items():
            known = [loss for loss in of_model if loss is not None]
            if len(known) == len(of_model) and label not in not_causal:
                means[label] = statistics.fmean(known)
        return sorted(means, key=lambda label: means[label])[: self.leaders]

    def further(self, best: Mapping[str, Entry], leading: Sequence[str]) -> dict[str, Entry]:
        """Return the runs of the leaders on the seeds on which only leaders are scored.

        Args:
            best: The best runs by label.
            leading: Labels of the leaders.
        """
        found = {}
        for label in leading:
            for seed in self._further_seeds():
                entry = replace(best[label], seed=seed, counts=True, screening=False, leader=True, tries=None)
                found[self.name(entry)] = entry
        return found

    def name(self, entry: Entry) -> str:
        """Return the name of the directory of a run."""
        stage = ""
        if entry.screening:
            stage = "screening-"
        changed = ""
        for key, value in entry.settings.items():
            if value != self.choose[key][0]:
                changed += f"{key}={value}-"
        if changed:
            changed = folder_name(changed)
        where = ""  # folder names of models and tasks never contain these signs
        if entry.task:
            where = f"@{folder_name(entry.data)}"
        elif entry.budget is not None:
            where = f"@{entry.budget.replace(':', '=')}"
        return f"{folder_name(entry.label)}{where}-lr{entry.rate!r}-{changed}{stage}seed{entry.seed}"

    def job(self, entry: Entry) -> Job:
        """Return the job that makes a run of this plan, or of one in `beside`."""
        for plan in self.beside:
            if plan._has(entry):
                return plan.job(entry)
        (candidate,) = (one for one in self.candidates if one.label == entry.label)
        words = [*self.flags, *candidate.words]
        if candidate.steps is not None:
            words.append(f"trainer.max_steps={candidate.steps}")
        if self.screening is not None and entry.screening:
            words += self.screening.words(candidate.config)
        words += [*words_of(entry.settings), f"optimizer.lr={entry.rate!r}", f"seed={entry.seed}"]
        return Job(self.folder / self.name(entry), tuple(words))

    def most_counting(self) -> int:
        """Return the largest possible number of scored runs, without the further seeds of the leaders."""
        return self._most_models() * self.num_seeds

    def most_further(self) -> int:
        """Return the largest possible number of the leaders' runs on further seeds."""
        return min(self._most_models(), self.leaders) * self.leader_seeds

    def _most_models(self) -> int:
        models = len(self.candidates)
        if self.screening is not None and self.screening.finalists is not None:
            models = min(models, self.screening.finalists + len(self.screening.always))
        return models

    def lines(self) -> list[str]:
        """Return lines for the console: the models at their sizes, and the number of runs."""
        lines = [*self._model_lines(), self._count_line(f"in {self.folder}")]
        for plan in self.beside:
            where = f"on the task {plan.candidates[0].data}"
            if plan.budget is not None:
                where = f"at {Budget.of(plan.budget)}"
                lines += plan._model_lines()
            lines.append(plan._count_line(where))
        return lines

    def _model_lines(self) -> list[str]:
        rows = []
        for one in self.candidates:
            sizes, cost = "", "as configured"
            if one.sizes is not None:
                sizes = ", ".join(f"{key} {size}" for key, size in one.sizes.settings.items())
                cost = f"takes {one.sizes.cost:,.6g} of the budget"
            if one.steps is not None:
                cost += f", {one.steps:,} steps"
            rows.append((one.label, sizes, cost))
        label_width = max(len(label) for label, _, _ in rows)
        sizes_width = max(len(sizes) for _, sizes, _ in rows)
        lines = []
        for label, sizes, cost in rows:
            line = f"  {label:<{label_width}}"
            if sizes_width:
                line += f"  {sizes:<{sizes_width}}"
            lines.append(f"{line}  {cost}")
        for key in self.choose:
            lacking = [one.label for one in self.candidates if key not in self._settings(one)]
            if lacking:
                lines.append(f"  {key} is not chosen for {', '.join(lacking)}: no such setting")
        return lines

    def _count_line(self, where: str) -> str:
        trying, counting, further = len(self.trials({})), self.most_counting(), self.most_further()
        settings = sum(len(self.choose[key]) - 1 for one in self.candidates for key in self._settings(one))
        seeds, chosen, at_most = "one seed", "", ""
        if self.num_seeds > 1:
            seeds = _named_seeds(self._seeds())
        if self.screening is not None:
            chosen = f"{trying + settings} of {self.screening.steps:,} steps to screen (seed {self.seed}), "
            at_most = "at most "
        elif settings:
            chosen = f"{trying + settings} to choose learning rates and settings (seed {self.seed}), "
        elif trying:
            chosen = f"{trying} to choose learning rates (seed {self.seed}), "
        total = trying + settings + counting + further
        line = f"{at_most}{total} runs {where}: {chosen}{at_most}{counting} scored ({seeds})"
        if further:
            line += f", {further} of the {self.leaders} best models ({_named_seeds(self._further_seeds())})"
        if self.extends:
            line += f"; up to {self.extend} rates more at the edge of the grid where a model's best rate lies"
        return line

    @property
    def extends(self) -> bool:
        """Return whether the learning rates of a model may be extended."""
        return self.extend > 0 and len(self.rates) >= FEWEST_FOR_AN_EDGE

    def check(self) -> list[Problem]:
        """Return why the directory cannot be used, and how the runs in it differ from the requested ones.

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
        found = self._check_runs()
        for plan in self.beside:
            found += plan._check_runs()
        return found

    def _check_runs(self) -> list[Problem]:
        problems: list[Problem] = []
        other_data: list[Problem] = []
        there_now = DataNow(source_from)
        by_label = {one.label: one for one in self.candidates}
        for name, entry in self._known().items():
            run_dir = self.folder / name
            if not holds_run(run_dir):
                continue
            one = by_label[entry.label]
            kept = {key: value for key, value in entry.settings.items() if key in self.choose}
            config = with_settings(one.config, self._settings(one) | kept)  # what is not chosen now is the model's own
            config = with_settings(config, {"optimizer.lr": entry.rate, "seed": entry.seed})
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

    def sizes_at(self, label: str, budget: str | None) -> Sizes | None:
        """Return the sizes of a model at a further budget, or at the comparison's own, which is None."""
        for plan in (self, *self.beside):
            for one in plan.candidates:
                if one.label == label and plan.budget == budget and not plan.task:
                    return one.sizes
        return None

    def has_other_sizes(self, match: str | None) -> bool:
        """Return whether the record of the comparison has other sizes for a model of this plan and its budget.

        Args:
            match: The comparison's own budget, as typed.
        """
        for plan in (self, *self.beside):
            for one in plan.candidates:
                if one.sizes is None or plan.task:
                    continue
                words, is_beside = one.words[: -len(one.sizes.settings)], plan.budget is not None
                known = known_sizes(self.folder, plan.budget or match, one.label, words, is_beside=is_beside)
                if known is not None and known.settings != one.sizes.settings:
                    return True
        return False

    def write(self, asked: Mapping[str, Any]) -> None:
        """Write the record of the comparison into its directory; sizes and runs of an earlier start are kept.

        Once there are runs, the largest number of them at a time is kept too, because their times depend on it.

        Args:
            asked: The request, and what else the page should show.

        Raises:
            OSError: if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = read_record(self.folder)
        sizes = dict(before.get("sizes", {}))
        sizes |= self._found_sizes(asked.get("match"))
        for plan in self.beside:
            if plan.budget is not None:
                sizes |= plan._found_sizes(plan.budget)
        if self.screening is not None:
            asked = {**asked, "screening": self.screening.recorded()}
        if self.extends:
            asked = {**asked, "extend_lr": self.extend}
        if self.choose:
            asked = {**asked, "choose": self.choose}
        runs = before.get("runs", {})
        if any(holds_run(self.folder / name) for name in runs):
            asked = {**asked, "jobs": max(asked.get("jobs") or 1, before.get("jobs") or 1)}
        write_figures(self.folder / RECORD, {**asked, "sizes": sizes, "runs": runs})
        self.record(self.trials({}))

    def record(self, entries: Mapping[str, Entry], further: Mapping[str, Any] | None = None) -> None:
        """Add runs to the record of the comparison, before they are made.

        Args:
            entries: The runs by name.
            further: More for the record, such as the result of the screening.
        """
        record = read_record(self.folder)
        runs = dict(record.get("runs", {}))
        for name, entry in entries.items():
            runs[name] = vars(entry)
        write_figures(self.folder / RECORD, {**record, **(further or {}), "runs": runs})

    def _found_sizes(self, match: str | None) -> dict[str, Any]:
        found = {}
        for one in self.candidates:
            if one.sizes is not None:
                found[label_at(one.label, self.budget)] = {
                    "match": match,
                    "words": list(one.words),
                    "settings": dict(one.sizes.settings),
                    "cost": one.sizes.cost,
                }
        return found

    def _has(self, entry: Entry) -> bool:
        """Return whether a run belongs to this plan: to its task, or to its size."""
        if self.task:
            return entry.task and any(one.data == entry.data for one in self.candidates)
        return not entry.task and entry.budget == self.budget

    def _seeds(self) -> range:
        return range(self.seed + 1, self.seed + 1 + self.num_seeds)

    def _further_seeds(self) -> range:
        first = self.seed + 1 + self.num_seeds
        return range(first, first + self.leader_seeds)

    def _chooses(self) -> bool:
        return len(self.rates) > 1 or self.screening is not None or bool(self.choose)

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
            more = key == "always" and set(then) <= set(now[key])  # models may be added
            if now[key] != then and not more:
                text = f"the comparison in {self.folder} has {shown(then)}"
                problems.append(Problem(key, shown(now[key]), text=text, fix="give another run_dir"))
        return problems

    def _trials_of(self, one: Candidate, losses: Losses) -> list[Entry]:
        """Return the runs by which a model's rate and settings are chosen, as far as these losses determine them."""
        tried = [self._first(one, rate) for rate in self.rates]
        while self._are_over(tried, losses):
            by_rate = {entry.rate: losses[self.name(entry)] for entry in tried}
            further = rate_beyond(by_rate, self.rates, self.extend)
            if further is None:
                break
            tried.append(self._first(one, further))
        for key in self._settings(one):
            best = self._lowest(tried, losses)
            if best is None or not self._are_over(tried, losses):
                break
            for value in self.choose[key][1:]:
                tried.append(replace(best, settings={**best.settings, key: value}, tries=key))
        return tried

    def _are_over(self, tried: Iterable[Entry], losses: Losses) -> bool:
        return all(self.name(entry) in losses for entry in tried)

    def _lowest(self, tried: Iterable[Entry], losses: Losses) -> Entry | None:
        """Return the run with the lowest loss; ties go to the smallest rate, and then to the first run."""
        best, lowest = None, math.inf
        for entry in sorted(tried, key=lambda entry: entry.rate):
            loss = losses.get(self.name(entry))
            if loss is not None and loss < lowest:
                best, lowest = entry, loss
        return best

    def _first(self, one: Candidate, rate: float) -> Entry:
        """Return the run that tries a rate."""
        screening, settings = self.screening is not None, self._settings(one)
        return Entry(
            one.label,
            one.data,
            rate,
            self.seed,
            counts=False,
            screening=screening,
            settings=settings,
            task=self.task,
            budget=self.budget,
        )

    def _settings(self, one: Candidate) -> dict[str, Any]:
        return first_settings(self.choose, one.config)

    def _known(self) -> dict[str, Entry]:
        """Return the first runs, and those that an earlier start recorded for these models."""
        labels = {one.label for one in self.candidates}
        found = {}
        for name, recorded in read_record(self.folder).get("runs", {}).items():
            entry = Entry(**recorded)
            if entry.label in labels and self._has(entry):
                found[name] = entry
        return found | self.trials({})


def rate_beyond(by_rate: Mapping[float, float | None], grid: Sequence[float], most: int) -> float | None:
    """Return the learning rate to try next if the best one is at the edge of those tried; else None.

    Args:
        by_rate: The loss with each rate tried.
        grid: The requested rates, ascending. The next rate keeps their ratio at that edge. Fewer than three have none.
        most: The most rates to try beyond that edge of the grid.
    """
    tried = sorted(by_rate)
    best = best_rate({rate: by_rate[rate] for rate in tried})
    if best is None or len(grid) < FEWEST_FOR_AN_EDGE:
        return None
    if best == tried[-1] and sum(rate > grid[-1] for rate in tried) < most:
        return _rounded(best * grid[-1] / grid[-2])
    if best == tried[0] and sum(rate < grid[0] for rate in tried) < most:
        return _rounded(best * grid[0] / grid[1])
    return None


def stages(plan: Plan) -> Iterator[Stage]:
    """Yield the stages of a comparison; each depends on the losses of the stages before it.

    The caller makes the runs of a stage before it takes the next stage; a missing run has no loss. The same losses give
    the same stages, so that an interrupted comparison resumes with the same runs. Tasks and further sizes come last,
    side by side, with the models that were trained in full.
    """
    later = sum(len(one.trials({})) + one.most_counting() for one in plan.beside)
    in_full: set[str] = set()
    for stage in _stages_of(plan):
        in_full.update(entry.label for entry in stage.entries.values() if entry.counts)
        yield replace(stage, left=stage.left + later)
    beside = []
    for plan_beside in plan.beside:
        kept = [one for one in plan_beside.candidates if one.label in in_full]
        beside.append(_stages_of(replace(plan_beside, candidates=kept)))
    for together in zip_longest(*beside):
        entries: dict[str, Entry] = {}
        left = 0
        for part in together:
            if part is not None:
                entries |= part.entries
                left += part.left
        yield Stage(entries, left)


def _stages_of(plan: Plan) -> Iterator[Stage]:
    """Yield the stages of a plan, without those in `beside`."""
    losses: dict[str, float | None] = {}
    left = plan.most_counting() + plan.most_further()
    trials = plan.trials({})
    while missing := {name: entry for name, entry in trials.items() if name not in losses}:
        yield Stage(missing, left)
        losses |= _losses(plan, missing)
        trials = plan.trials(losses)
    best, note, record = plan.best(losses), "", {}
    if plan.screening is not None:
        by_rate = _by_rate(trials, losses)
        chosen = plan.screening.chosen(by_rate, _not_causal(plan, trials))
        best = {label: best[label] for label in chosen}
        note = f"screened   {', '.join(chosen) or 'no model'} to be trained in full"
        record = {"screened": screened(by_rate, chosen)}
    scored = plan.scored(best)
    yield Stage(scored, plan.most_further(), note, record)
    if plan.leaders:
        leading = plan.leading(scored, _losses(plan, scored), _not_causal(plan, scored))
        note = f"leading    {', '.join(leading) or 'no model'} to be scored on further seeds"
        yield Stage(plan.further(best, leading), note=note, record={"leading": leading})


def _losses(plan: Plan, names: Iterable[str]) -> dict[str, float | None]:
    return {name: outcome(plan.folder / name).loss for name in names}


def _not_causal(plan: Plan, entries: Mapping[str, Entry]) -> set[str]:
    """Return the labels of the models that a finished run found to see what they have to predict."""
    return {entry.label for name, entry in entries.items() if (outcome(plan.folder / name).summary or {}).get("leak")}


def _by_rate(trials: Mapping[str, Entry], losses: Losses) -> dict[str, dict[float, float | None]]:
    """Return the lowest loss of the runs with each rate, by label and rate."""
    found: dict[str, dict[float, float | None]] = {}
    for name, entry in trials.items():
        of_model = found.setdefault(entry.label, {})
        known = [loss for loss in (of_model.get(entry.rate), losses[name]) if loss is not None]
        of_model[entry.rate] = min(known, default=None)
    return found


def screened(losses: Mapping[str, Mapping[float, float | None]], chosen: Sequence[str]) -> dict[str, Any]:
    """Return the result of the screening for the record of a comparison.

    Args:
        losses: Losses of the short runs, by label and rate.
        chosen: Labels of the models that are trained in full.
    """
    found = {}
    for label, by_rate in losses.items():
        by_name = {f"{rate!r}": loss for rate, loss in by_rate.items()}
        found[label] = {"losses": by_name, "best_rate": best_rate(by_rate), "trained_in_full": label in chosen}
    return found


def _named_seeds(seeds: range) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {seeds[0]} to {seeds[-1]}"


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")  # 0.009 rather than 0.009000000000000001
