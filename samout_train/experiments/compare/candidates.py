"""The models of a comparison: read the request, give each model the shared settings that it has, and find its size.

A candidate is a model with the command line of `train` that trains it.
"""

import hashlib
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samout_train.config import (
    TEXT_KEYS,
    ConfigError,
    Problem,
    as_problems,
    compose_config,
    key_of,
    locate,
    require_no_problems,
    shown,
)
from samout_train.experiments.compare.matching import Budget, Sizes, matched, model_cost, seconds_a_step, smallest_width
from samout_train.runtime import RESERVED, is_out_of_memory, quoted
from samout_train.training import NonFiniteError, changes_nothing, checked_config, source_from, trainer_from

Config = Mapping[str, Any]
# The keys that a comparison sets itself, and what to do instead.
DECIDED = {
    "model": "models=[...] says which",
    "optimizer.lr": "lr=[...] says which",
    "resume": "a comparison resumes by itself: give it the same run_dir again",
}
# The settings that are the same for all models: the data, and the circumstances of training.
FOR_ALL = ("data", "experiment", "seed", "run_dir", "device", "checkpoint", "callbacks", "kernels", "threads")
# Text that YAML reads as text without quotes.
PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|nan|inf)$)[a-z_][\w.+/:-]*", re.IGNORECASE)
# For each key of a request that takes names: the config group of these names, and an example.
NAMED_BY = {"models": ("model", "models=[v8,transformer]"), "tasks": ("data", "tasks=[recall_small,parity]")}
OF_GROUP = {"model": "num_layers", "data": "num_pairs"}  # a setting of each group, for messages
LONGEST_NAME = 120  # bytes, as for the jobs of a sweep
Models = str | Sequence[str | Mapping[str, Any]] | Mapping[str, Any]
Known = Callable[[str, Sequence[str]], Sizes | None]


@dataclass(frozen=True)
class Candidate:
    """A model of a comparison.

    Args:
        label: Its name in the comparison.
        words: The command line of `train` that trains it, without learning rate, seed and run directory.
        sizes: The sizes that match the budget; None without a budget.
        config: The composed configuration of these words.
        data: The name of the data that it is trained on.
        steps: Training steps, if a number of operations limits them; else None.
    """

    label: str
    words: tuple[str, ...]
    sizes: Sizes | None
    config: Config
    data: str
    steps: int | None = None


def candidates(
    models: Models,
    shared: Sequence[str],
    budget: Budget | None,
    *,
    config_dirs: Sequence[str] = (),
    known: Known = lambda label, words: None,
) -> list[Candidate]:
    """Return all models of a comparison, checked, and at their sizes.

    Args:
        models: As typed.
        shared: Overrides of `train` for all models. Those of `model` apply to the models that have the setting.
        budget: The budget that their sizes must match; None for the sizes of the configuration.
        config_dirs: Further folders to look for YAML in, absolute.
        known: Returns the sizes that an earlier start found for a label with these words; None if there are none.

    Raises:
        ConfigError: if something is wrong with a model; it lists every problem.
    """
    found: list[Candidate] = []
    errors: dict[str, ValueError] = {}
    used: set[str] = set()
    for label, settings in labelled(models).items():
        own = as_words(settings)
        wrong = _check_own(own, budget)
        if not found and not errors:  # shared words are the same for all models: report them once
            wrong += _check_sizes(shared, budget)
        try:
            require_no_problems(wrong)
            found.append(_candidate(label, own, shared, budget, config_dirs, known, used))
        except ValueError as error:
            errors[label] = error
    problems = _once(errors, len(found) + len(errors))
    if not problems:
        for word in shared:
            if _is_of_model(word) and word not in used:
                problems.append(Problem.of_word(word, text="no model of this comparison has it"))
    require_no_problems(list(dict.fromkeys(problems)))
    return found


Contender, contenders = Candidate, candidates  # their earlier names


def labelled(models: Models, *, key: str = "models") -> dict[str, dict[str, Any] | list[str]]:
    """Return the settings, or the overrides, of each model or task by label.

    Args:
        models: A name or a list of names. Instead of a name, or of the list, there may be labels with settings:
            `{small: {model: v8, model.num_layers: 2}}`, or with overrides: `{small: [model=v8, model.num_layers=2]}`.
            Without `model`, the label is the name.
        key: The key of the request: `models`, or `tasks`, whose names are those of `data`.

    Raises:
        ConfigError: if there are no names, or two have the same label or directory.
    """
    entries: Any = models
    if isinstance(models, str | Mapping):
        entries = [models]
    group, example = NAMED_BY[key]
    found: dict[str, dict[str, Any] | list[str]] = {}
    for entry in entries:
        if isinstance(entry, Mapping):
            labels = entry
        elif isinstance(entry, str):
            if ":" in entry:  # bash splits {a:1,b:2} into several words
                fix = f"put quotes around settings in braces, as in '{key}={{{entry.partition(':')[0]}: {{...}}}}'"
                raise ConfigError(Problem(key, text=f"{entry}: is not a name", fix=fix))
            labels = {entry: {}}
        else:
            text = f"{shown(entry)}: must be a name, or a label with settings in braces"
            raise ConfigError(Problem(key, text=text))
        for label, settings in labels.items():
            if str(label) in found:
                fix = f"write one as {{another name: {{{group}: {label}}}}}"
                raise ConfigError(Problem(key, text=f"{label} is there twice", fix=fix))
            found[str(label)] = _settings_of_label(key, label, settings)
    if not found:
        raise ConfigError(Problem(key, text="is empty", fix=f"name at least one, such as {example}"))
    by_folder = {folder_name(label).casefold(): label for label in found}  # some file systems ignore case
    for label in found:
        other = by_folder[folder_name(label).casefold()]
        if other != label:
            raise ConfigError(Problem(key, text=f"{label}, {other}: are one directory", fix="rename one"))
    return found


def _settings_of_label(key: str, label: Any, settings: Any) -> dict[str, Any] | list[str]:
    group, _ = NAMED_BY[key]
    if isinstance(settings, list | tuple):
        return _words_of_label(key, str(label), settings)
    if not isinstance(settings, Mapping | None):
        text = f"{label}: must be settings in braces, such as {{{group}.{OF_GROUP[group]}: 2}}"
        raise ConfigError(Problem(key, text=text))
    return {group: label, **(settings or {})}


def _words_of_label(key: str, label: str, words: Sequence[Any]) -> list[str]:
    group, _ = NAMED_BY[key]
    for word in words:
        if not isinstance(word, str) or "=" not in word:
            text = f"{label}: {shown(word)}: must be an override, such as {group}.{OF_GROUP[group]}=2"
            raise ConfigError(Problem(key, text=text))
    if any(key_of(word) == group for word in words):
        return list(words)
    return [f"{group}={label}", *words]


def as_words(settings: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return settings by dotted key, or overrides, as overrides."""
    if isinstance(settings, Mapping):
        return [word_of(key, value) for key, value in settings.items()]
    return list(settings)


def check_decided(words: Sequence[str]) -> list[Problem]:
    """Return problems with words that set something that the comparison itself decides."""
    problems = []
    for word in words:
        if key_of(word) in DECIDED:
            problems.append(Problem.of_word(word, text=DECIDED[key_of(word)], fix="leave it out"))
    return problems


def _check_own(own: Sequence[str], budget: Budget | None) -> list[Problem]:
    """Return problems with keys that a label may not set."""
    problems = check_decided([word for word in own if key_of(word) != "model"])
    for word in own:
        if re.split(r"[./]", key_of(word))[0] in FOR_ALL:
            text = "is the same for all models"
            problems.append(Problem.of_word(word, text=text, fix="give it outside of models"))
    return problems + _check_sizes(own, budget)


def _check_sizes(words: Sequence[str], budget: Budget | None) -> list[Problem]:
    problems = []
    for word in words:
        if budget is not None and key_of(word) == "model.hidden_size":
            problems.append(Problem.of_word(word, text=f"match={budget} decides it", fix="leave it out"))
    return problems


def _once(errors: Mapping[str, ValueError], num_models: int) -> list[Problem]:
    """Return the problems of the models; one that all of them have, such as with the data, once and without a label.

    Args:
        errors: Errors by label, of the models that have one.
        num_models: Number of all models.
    """
    times: Counter[Problem] = Counter()
    for error in errors.values():
        times.update(set(_problems_of(error)))
    problems = []
    for label, error in errors.items():
        for problem, with_label in zip(_problems_of(error), about(label, error), strict=True):
            if num_models > 1 and times[problem] == num_models:
                with_label = problem
            problems.append(with_label)
    return problems


def _problems_of(error: ValueError) -> list[Problem]:
    if isinstance(error, ConfigError):
        return error.problems
    return as_problems([str(error)])


def about(label: str, error: ValueError) -> list[Problem]:
    """Return the problems of an error, each prefixed with the label of its model."""
    problems = []
    for problem in _problems_of(error):
        if problem.key != label:
            problem = Problem(text=f"{label}: {problem}")
        problems.append(problem)
    return problems


def _candidate(
    label: str,
    own: Sequence[str],
    shared: Sequence[str],
    budget: Budget | None,
    config_dirs: Sequence[str],
    known: Known,
    used: set[str],
) -> Candidate:
    words = _words_of(shared, own, config_dirs)
    start = []
    if budget is not None:
        # Until its size is found, a model is checked at the smallest width that it can have with these heads.
        width = smallest_width(compose_config(words, config_dirs=config_dirs).config["model"])
        if width is not None:
            start.append(f"model.hidden_size={width}")
    composed, wrong = checked_config([*words, *start], config_dirs=config_dirs, shared=set(shared) - set(own))
    if wrong or composed is None:
        raise ConfigError(*wrong)
    unheard = {problem.key for problem in changes_nothing(composed.config["model"])}
    used.update(word for word in words if key_of(word) not in unheard)
    config, sizes = composed.config, None
    if budget is not None:
        sizes = known(label, words) or matched(label, config["model"], budget, _cost(budget, config))
        words += [f"model.{key}={size}" for key, size in sizes.settings.items()]
        config = {**config, "model": {**config["model"], **sizes.settings}}
    return Candidate(label, tuple(words), sizes, config, str(composed.choices["data"]))


def _words_of(shared: Sequence[str], own: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    """Return the words of one model: the shared ones that apply to it, its own, and deletions.

    The deletions remove settings of a preset that this model lacks.
    """
    others = [word for word in shared if not _is_of_model(word)]
    if "compare" in compose_config(others, config_dirs=config_dirs).config:  # only this verb reads it
        others.append("~compare")
    choice, *own = sorted(own, key=lambda word: key_of(word) != "model")
    kept = set(_paths(compose_config([choice], config_dirs=config_dirs).config["model"]))
    kept.update(_path_of(word) for word in own)
    node = compose_config([*others, choice, *own], config_dirs=config_dirs).config["model"]
    fitting = []
    for word in shared:
        if _is_of_model(word) and accepts(node, _path_of(word)):
            fitting.append(word)
    deletions = []
    for path in _paths(node):
        if path not in kept and not accepts(node, path):
            deletions.append(f"~model.{'.'.join(path)}")
    return [*others, choice, *fitting, *own, *deletions]


def accepts(node: Config, path: Sequence[str]) -> bool:
    """Return whether the object that a node builds has a setting, such as `mixer`, `decay` if its mixer has a decay.

    Args:
        node: A node with a `_target_`. If that is missing or cannot be imported, any setting is accepted.
        path: The names of nodes down to the setting.
    """
    if not path:
        return True
    try:
        parameters = inspect.signature(locate(str(node["_target_"]))).parameters
    except (LookupError, ImportError, AttributeError, ValueError, TypeError):  # reported where the node is checked
        return True
    name, *rest = path
    if name not in parameters:
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    below = node.get(name)
    if isinstance(below, Mapping):
        return accepts(below, rest)
    return not rest


def _cost(budget: Budget, config: Config) -> Callable[[dict[str, Any]], float]:
    """Return a function that computes the cost of a node of this configuration; each size is measured once."""
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


def with_operations(candidate: Candidate, operations: float) -> Candidate:
    """Return a model with as many training steps as a number of operations allows.

    Args:
        candidate: The model, at its size.
        operations: Operations of the matrix products of its whole training.

    Raises:
        ConfigError: if its training has another limit, or the operations do not suffice for a step.
    """
    trainer, data = candidate.config["trainer"], candidate.config["data"]
    for key in ("max_steps", "max_epochs", "max_seconds"):
        if trainer[key] is not None:
            text = f"train_flops={operations:g} decides how long {candidate.label} is trained"
            raise ConfigError(Problem(f"trainer.{key}", shown(trainer[key]), text=text, fix="set one of the two"))
    source = source_from(candidate.config)
    tokens = data["batch_size"] * source.train.seq_len
    a_step = tokens * size_with(candidate.config, Budget("flops", operations))
    steps = int(operations // a_step)
    if steps < 1:
        text = f"a step of {candidate.label} takes {a_step:.3g}"
        raise ConfigError(Problem("train_flops", f"{operations:g}", text=text, fix="give more"))
    config = {**candidate.config, "trainer": {**trainer, "max_steps": steps}}
    return replace(candidate, config=config, steps=steps)


def size_with(config: Config, budget: Budget) -> float:
    """Return the amount of a budget that the model of a configuration takes."""
    return _cost(budget, config)(config["model"])


def _seconds(config: Config, budget: Budget) -> float:
    """Return the seconds that the steps of a run take; infinite if they do not fit into memory."""
    try:
        trainer = trainer_from(config)
        steps = trainer.limits.total_steps
        if steps is None:
            raise ConfigError(
                Problem("match", str(budget), text="needs a number of steps", fix="set trainer.max_steps")
            )
        return seconds_a_step(trainer) * steps
    except NonFiniteError as error:
        text = f"its steps cannot be measured: {str(error).splitlines()[0]}"
        raise ConfigError(Problem("match", str(budget), text=text)) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf


def folder_name(label: str) -> str:
    """Return a label as the start of a directory name that is neither an option to a shell nor a device to Windows."""
    name = re.sub(r"[^\w.+-]+", "_", label)
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(label.encode()).hexdigest()[:8]
        name = f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}"
    if name[:1] in ("", "-", "."):
        return f"model{name}"
    if RESERVED.match(name):
        return f"model-{name}"
    return name


def word_of(key: str, value: Any) -> str:
    """Return an override as a person would type it."""
    if isinstance(value, str) and key not in TEXT_KEYS and not PLAIN.fullmatch(value):
        return f"{key}={quoted(value)}"
    if isinstance(value, str):
        return f"{key}={value}"
    return f"{key}={json.dumps(value)}"


def _is_of_model(word: str) -> bool:
    return key_of(word).startswith("model.")


def _path_of(word: str) -> tuple[str, ...]:
    """Return the path of a setting of the model, below `model`."""
    return tuple(key_of(word).split(".")[1:])


def _paths(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the settings of a node and of the nodes in it."""
    for key, value in node.items():
        if not key.startswith("_"):
            yield (*above, key)
            if isinstance(value, Mapping):
                yield from _paths(value, (*above, key))
