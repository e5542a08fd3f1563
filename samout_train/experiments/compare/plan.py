"""The plan of a comparison: the models by label, each at its size, and the runs that they need.

A candidate is a model with the words that make `train` train it. Each is tried with each learning rate on one seed, and
then trained with its best rate on other seeds, which are those that count. With a screening, the first runs are short,
and only some of the models are trained further.
"""

import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from samout_train.checkpoint import DataNow, holds_run, other_kind, other_settings
from samout_train.config import TEXT_KEYS, ConfigError, as_problems, compose_config, key_of, locate, shown
from samout_train.experiments.compare.matching import Budget, Sizes, matched, model_cost, seconds_a_step, smallest_width
from samout_train.experiments.compare.screening import Screening, best_rate
from samout_train.experiments.jobs import Job
from samout_train.runtime import RESERVED, is_out_of_memory, place_problem, quoted, read_figures, write_figures
from samout_train.training import NonFiniteError, checked_config, source_from, trainer_from

Config = Mapping[str, Any]
# What a comparison decides itself, and with what.
DECIDED = {
    "model": "models=[...] says which",
    "optimizer.lr": "lr=[...] says which",
    "resume": "a comparison goes on by itself: give it the same run_dir again",
}
# What has to be the same for all models: data, and what makes a run.
FOR_ALL = ("data", "experiment", "seed", "run_dir", "device", "checkpoint", "callbacks", "kernels", "threads")
# Text that is read as nothing but text without quotes.
PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|nan|inf)$)[a-z_][\w.+/:-]*", re.IGNORECASE)
LONGEST_NAME = 120  # bytes, as of the jobs of a sweep
Models = str | Sequence[str | Mapping[str, Any]] | Mapping[str, Any]
RECORD = "comparison.json"
# Of a run that is there already, these must be as they are asked for.
DECISIVE_KEYS = ("seed", "precision", "model", "data", "optimizer", "schedule", "trainer", "callbacks")


@dataclass(frozen=True)
class Candidate:
    """A model of a comparison.

    Args:
        label: What it is called there.
        words: The command line of `train` that trains it, without learning rate, seed and run directory.
        sizes: What was found to match the budget; None where there is none.
        config: The composed configuration of these words.
        data: The name of what it is trained on.
    """

    label: str
    words: tuple[str, ...]
    sizes: Sizes | None
    config: Config
    data: str


def candidates(
    models: Models,
    shared: Sequence[str],
    budget: Budget | None,
    *,
    config_dirs: Sequence[str] = (),
    known: Callable[[str, Sequence[str]], Sizes | None] = lambda label, words: None,
) -> list[Candidate]:
    """Return all models of a comparison, checked, and at their sizes.

    Args:
        models: As typed.
        shared: What was typed for all of them, overrides of `train`. Those of `model` go to the models that have them.
        budget: What their sizes have to match; None for the sizes of the configuration.
        config_dirs: Further folders to look for YAML in, absolute.
        known: The sizes of a label with these words, where they were found before.

    Raises:
        ConfigError: if something is wrong with one of them; the message has all of it.
    """
    found: list[Candidate] = []
    mistakes: list[str] = []
    used: set[str] = set()
    for label, settings in labelled(models).items():
        own = list(settings)
        if isinstance(settings, Mapping):
            own = [word_of(key, value) for key, value in settings.items()]
        try:
            if wrong := _decided(own, budget) + ([] if found or mistakes else _decided_sizes(shared, budget)):
                raise ConfigError(*wrong)
            found.append(_candidate(label, own, shared, budget, config_dirs, known, used))
        except ValueError as error:
            mistakes += _about(label, error)
    unused = [word for word in shared if _of_model(word) and word not in used]
    mistakes += [f"{word}: no model of this comparison has it" for word in unused if not mistakes]
    if mistakes:
        raise ConfigError(*dict.fromkeys(mistakes))
    return found


Contender, contenders = Candidate, candidates  # their earlier names


def _about(label: str, error: ValueError) -> list[str]:
    """Return the lines of an error, each with the label of the model that it is about in front."""
    problems = as_problems(str(error).splitlines())
    if isinstance(error, ConfigError):
        problems = error.problems
    lines = []
    for problem in problems:
        if problem.key == label:
            lines.append(str(problem))
        else:
            lines.append(f"{label}: {problem}")
    return lines


def labelled(models: Models) -> dict[str, dict[str, Any] | list[str]]:
    """By label, the settings that make a model.

    Args:
        models: A name or a list of names; in place of a name, or of the list, labels with settings:
            `{small: {model: v8, model.num_layers: 2}}`, or with overrides: `{small: [model=v8, model.num_layers=2]}`.
            Without `model`, the label is the name.

    Raises:
        ConfigError: if it says none, or a label twice.
    """
    if isinstance(models, Mapping):
        models = [{label: settings} for label, settings in models.items()]
    found: dict[str, dict[str, Any] | list[str]] = {}
    for entry in [models] if isinstance(models, str) else models:
        if not isinstance(entry, str | Mapping):
            raise ConfigError(f"models: {shown(entry)}: must be a name, or a label with settings in braces")
        for label, settings in entry.items() if isinstance(entry, Mapping) else [(entry, {})]:
            if str(label) in found:
                raise ConfigError(f"models: {label} is there twice: write one as {{another name: {{model: {label}}}}}")
            if isinstance(settings, list | tuple):
                found[str(label)] = _words_of_label(str(label), settings)
                continue
            if not isinstance(settings, Mapping | None):
                raise ConfigError(f"models: {label}: must be settings in braces, such as {{model.num_layers: 2}}")
            found[str(label)] = {"model": label, **(settings or {})}
    by_folder = {folder_name(label).casefold(): label for label in found}  # of which some file systems make one
    if alike := [label for label in found if by_folder[folder_name(label).casefold()] != label]:
        other = by_folder[folder_name(alike[0]).casefold()]
        raise ConfigError(f"models: {alike[0]}, {other}: are one directory: rename one")
    if not found:
        raise ConfigError("models: is empty: name at least one, such as models=[v8,transformer]")
    return found


def _words_of_label(label: str, words: Sequence[Any]) -> list[str]:
    for word in words:
        if not isinstance(word, str) or "=" not in word:
            raise ConfigError(f"models: {label}: {shown(word)}: must be an override, such as model.num_layers=2")
    if any(key_of(word) == "model" for word in words):
        return list(words)
    return [f"model={label}", *words]


@dataclass(frozen=True)
class Entry:
    """The identity of a run of a comparison.

    Args:
        label: Of its model.
        data: The name of what it is trained on.
        rate: Its learning rate.
        seed: Its seed.
        counts: Whether it counts; else the best rate is chosen by it.
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
        folder: Where its runs lie.
        candidates: The models.
        rates: Learning rates that each is tried with.
        seed: That the best rate is chosen on; the seeds after it are those that count.
        num_seeds: How many these are.
        flags: What the command line of each run begins with.
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
        """Return the runs that count, of the models for which there is a best rate.

        Args:
            best_rates: By label.
        """
        rated = [one for one in self.candidates if one.label in best_rates]
        return [self._job(one, best_rates[one.label], seed) for one in rated for seed in self._seeds()]

    def entries(self) -> dict[str, Entry]:
        """Return what each run is that this comparison may have, by the name of its directory."""
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
        """Return how many runs there may be that count."""
        models = len(self.candidates)
        if self.screening is not None and self.screening.finalists is not None:
            models = min(models, self.screening.finalists + len(self.screening.always))
        return models * self.num_seeds

    def lines(self) -> list[str]:
        """For people: the models at their sizes, and how many runs there will be."""
        lines = []
        for one in self.candidates:
            sizes = {} if one.sizes is None else one.sizes.settings
            cost = "as configured" if one.sizes is None else f"takes {one.sizes.cost:,.6g} of the budget"
            lines.append(f"  {one.label:<20} {', '.join(f'{key} {size}' for key, size in sizes.items()):<32} {cost}")
        choosing, counting = len(self.choosing()), self.most_counting()
        seeds, chosen, at_most = "one seed", "", ""
        if self.num_seeds > 1:
            seeds = f"seeds {self.seed + 1} to {self.seed + self.num_seeds}"
        if self.screening is not None:
            chosen = f"{choosing} of {self.screening.steps:,} steps to screen (seed {self.seed}), "
            at_most = "at most "
        elif choosing:
            chosen = f"{choosing} to choose learning rates (seed {self.seed}), "
        total = f"{at_most}{choosing + counting} runs in {self.folder}"
        return [*lines, f"{total}: {chosen}{at_most}{counting} that count ({seeds})"]

    def problems(self) -> list[str]:
        """Return why the directory cannot be taken, and runs in it that are not those asked for; looks only."""
        if problem := place_problem(self.folder):
            return [f"run_dir={self.folder}: {problem}"]
        if kind := other_kind(self.folder, "a comparison"):
            return [f"run_dir={self.folder}: holds {kind}: give a directory of its own"]
        if changed := self._other_screening():
            return changed
        found: list[str] = []
        others: list[str | None] = []
        there_now = DataNow(source_from)
        by_label = {one.label: one for one in self.candidates}
        for name, entry in self.entries().items():
            if holds_run(self.folder / name):
                config = _with(by_label[entry.label].config, entry.rate, entry.seed)
                if self.screening is not None and entry.screening:
                    config = self.screening.shortened(config)
                found += map(str, other_settings(self.folder / name, config, DECISIVE_KEYS))
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
            for one in self.candidates
            if one.sizes is not None
        }
        before = read_record(self.folder)
        entries = {name: vars(entry) for name, entry in self.entries().items()}
        if self.screening is not None:
            asked = {**asked, "screening": self.screening.recorded()}
        content = {**asked, "sizes": before.get("sizes", {}) | sizes, "runs": before.get("runs", {}) | entries}
        write_figures(self.folder / RECORD, content)

    def _seeds(self) -> range:
        return range(self.seed + 1, self.seed + 1 + self.num_seeds)

    def _chooses(self) -> bool:
        return len(self.rates) > 1 or self.screening is not None

    def _other_screening(self) -> list[str]:
        """Return how the screening differs from that which the comparison in the directory has."""
        before = read_record(self.folder)
        if "runs" not in before:
            return []
        none: dict[str, Any] = {"screen_steps": None, "finalists": None, "always": []}
        now = none
        if self.screening is not None:
            now = self.screening.recorded()
        found = []
        for key, then in (before.get("screening") or none).items():
            if now[key] != then:
                has = f"the comparison in {self.folder} has {shown(then)}"
                found.append(f"{key}={shown(now[key])}: {has}: give another run_dir")
        return found

    def _job(self, candidate: Candidate, rate: float, seed: int, screening: Screening | None = None) -> Job:
        words = [*self.flags, *candidate.words]
        stage = ""
        if screening is not None:
            words += screening.words(candidate.config)
            stage = "screening-"
        name = f"{folder_name(candidate.label)}-lr{rate!r}-{stage}seed{seed}"
        return Job(self.folder / name, (*words, f"optimizer.lr={rate!r}", f"seed={seed}"))


def read_record(folder: Path) -> dict[str, Any]:
    """Return what a comparison left in its directory; nothing where there is none."""
    return read_figures(folder / RECORD)


def record_screening(folder: Path, losses: Mapping[str, Mapping[float, float | None]], chosen: Sequence[str]) -> None:
    """Leaves in a comparison's record what its screening came to.

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
    """Return what a run is in the comparison that it lies in; None where it lies in none."""
    try:
        return Entry(**read_record(run_dir.parent)["runs"][run_dir.name])
    except (LookupError, TypeError):
        return None


def known_sizes(folder: Path, match: str | None, label: str, words: Sequence[str]) -> Sizes | None:
    """Return the sizes that a comparison has found for a label, where it is the same model and budget; else None.

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


def decided_problems(words: Sequence[str]) -> list[str]:
    """Return what was typed although a comparison decides it."""
    return [f"{word}: {DECIDED[key_of(word)]}: leave it out" for word in words if key_of(word) in DECIDED]


def accepts(node: Config, path: Sequence[str]) -> bool:
    """Return whether what a node builds has a setting, such as `mixer`, `decay` of a model whose mixer has a decay.

    Args:
        node: With a `_target_`; without one, or with one that is not there, it may hold anything.
        path: The names of nodes down to the setting.
    """
    try:
        parameters = inspect.signature(locate(str(node["_target_"]))).parameters if path else {}
    except (LookupError, ImportError, AttributeError, ValueError, TypeError):  # whoever checks it will say so
        return True
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not path or (takes_any and path[0] not in parameters):
        return True
    below = node.get(path[0])
    return path[0] in parameters and (accepts(below, path[1:]) if isinstance(below, Mapping) else len(path) == 1)


def folder_name(label: str) -> str:
    """Return a label as the beginning of a directory's name, which is no option to a shell and no device to Windows."""
    name = re.sub(r"[^\w.+-]+", "_", label)
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(label.encode()).hexdigest()[:8]
        name = f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}"
    return f"model{name}" if name[:1] in ("", "-", ".") else f"model-{name}" if RESERVED.match(name) else name


def word_of(key: str, value: Any) -> str:
    """An override, as a person would type it."""
    if isinstance(value, str) and key not in TEXT_KEYS and not PLAIN.fullmatch(value):
        return f"{key}={quoted(value)}"
    if isinstance(value, str):
        return f"{key}={value}"
    return f"{key}={json.dumps(value)}"


def _candidate(
    label: str,
    own: Sequence[str],
    shared: Sequence[str],
    budget: Budget | None,
    config_dirs: Sequence[str],
    known: Callable[[str, Sequence[str]], Sizes | None],
    used: set[str],
) -> Candidate:
    words = _words_of(shared, own, config_dirs, used)
    # Before its size is found, a model is looked at in the smallest width that it can have with these heads.
    start = [] if budget is None else _smallest(words, config_dirs)
    composed, wrong = checked_config([*words, *start], config_dirs=config_dirs)
    if wrong or composed is None:
        raise ConfigError(*wrong)
    config, sizes = composed.config, None
    if budget is not None:
        sizes = known(label, words) or matched(label, config["model"], budget, _cost(budget, config))
        words += [f"model.{key}={size}" for key, size in sizes.settings.items()]
        config = {**config, "model": {**config["model"], **sizes.settings}}
    return Candidate(label, tuple(words), sizes, config, str(composed.choices["data"]))


def _smallest(words: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    width = smallest_width(compose_config(words, config_dirs=config_dirs).config["model"])
    return [] if width is None else [f"model.hidden_size={width}"]


def _decided(own: Sequence[str], budget: Budget | None) -> list[str]:
    """Return problems with keys that a label may not set."""
    found = decided_problems([word for word in own if key_of(word) != "model"])
    for word in own:
        if re.split(r"[./]", key_of(word))[0] in FOR_ALL:
            found.append(f"{word}: is the same for all models: give it outside of models")
    return found + _decided_sizes(own, budget)


def _decided_sizes(words: Sequence[str], budget: Budget | None) -> list[str]:
    fixed = [word for word in words if budget is not None and key_of(word) == "model.hidden_size"]
    return [f"{word}: match={budget} decides it: leave it out" for word in fixed]


def _words_of(shared: Sequence[str], own: Sequence[str], config_dirs: Sequence[str], used: set[str]) -> list[str]:
    """The words of one model: those of all that it has, its own, and none of a preset's settings that it has not."""
    others = [word for word in shared if not _of_model(word)]
    if "compare" in compose_config(others, config_dirs=config_dirs).config:  # which is for this verb alone
        others.append("~compare")
    choice, *own = sorted(own, key=lambda word: key_of(word) != "model")
    alone = set(_paths(compose_config([choice], config_dirs=config_dirs).config["model"]))
    node = compose_config([*others, choice, *own], config_dirs=config_dirs).config["model"]
    fitting = [word for word in shared if _of_model(word) and accepts(node, key_of(word).split(".")[1:])]
    used.update(fitting)
    kept = alone | {tuple(key_of(word).split(".")[1:]) for word in own}
    strange = [path for path in _paths(node) if path not in kept and not accepts(node, path)]
    return [*others, choice, *fitting, *own, *(f"~model.{'.'.join(path)}" for path in strange)]


def _cost(budget: Budget, config: Config) -> Callable[[dict[str, Any]], float]:
    """Return what a node of this configuration takes of a budget; a known size is not measured again."""
    measured: dict[str, float] = {}
    source = source_from(config)

    def cost_of(node: dict[str, Any]) -> float:
        key = json.dumps(node, sort_keys=True)
        if key not in measured and budget.kind == "seconds":
            measured[key] = _seconds({**config, "model": node}, budget)
        elif key not in measured:
            measured[key] = model_cost(
                budget.kind,
                node,
                vocab_size=source.vocab_size,
                pad_id=source.pad_id,
                seq_len=source.train.seq_len,
            )
        return measured[key]

    return cost_of


def _seconds(config: Config, budget: Budget) -> float:
    """Return the seconds that the steps of a run take; infinite where they do not fit into memory."""
    try:
        trainer = trainer_from(config)
        steps = trainer.limits.total_steps
        if steps is None:
            raise ConfigError(f"match={budget}: wants a number of steps: set trainer.max_steps")
        return seconds_a_step(trainer) * steps
    except NonFiniteError as error:
        raise ConfigError(f"match={budget}: its steps cannot be measured: {str(error).splitlines()[0]}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf


def _of_model(word: str) -> bool:
    return key_of(word).startswith("model.")


def _paths(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The settings of a node, and of the nodes in it."""
    for key, value in node.items():
        if not key.startswith("_"):
            yield (*above, key)
            if isinstance(value, Mapping):
                yield from _paths(value, (*above, key))


def _with(config: Config, rate: float, seed: int) -> dict[str, Any]:
    return {**config, "seed": seed, "optimizer": {**config["optimizer"], "lr": rate}}
