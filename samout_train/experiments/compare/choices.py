"""Settings other than the learning rate that a comparison chooses for each model, such as dropout and weight decay.

The learning rates are tried first, with the first value of each setting. Then the settings are tried one after another
at the best learning rate, in the order of the request. A model that lacks a setting is trained without it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from samout_train.config import ConfigError, Problem, key_of, shown
from samout_train.experiments.compare.candidates import DECIDED, Candidate, Config, accepts, size_with, word_of
from samout_train.experiments.compare.matching import TOLERANCE, Budget
from samout_train.training import check_settings

GROUPS = ("model", "optimizer", "schedule")  # groups with settings that each model may choose for itself
Choose = Mapping[str, Sequence[Any]]  # values by key; runs that try learning rates use the first one


def first_settings(choose: Choose, config: Config) -> dict[str, Any]:
    """Return the settings of the runs that try learning rates: the first value of each setting that a model has.

    Args:
        choose: The request.
        config: Configuration of the model.
    """
    found = {}
    for key, values in choose.items():
        group, *path = key.split(".")
        if accepts(config[group], path):
            found[key] = values[0]
    return found


def with_settings(config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with other values of some settings, by dotted key."""
    changed = dict(config)
    for key, value in settings.items():
        *path, name = key.split(".")
        node = changed
        for part in path:
            node[part] = dict(node.get(part) or {})
            node = node[part]
        node[name] = value
    return changed


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the overrides that set these settings."""
    return [word_of(key, value) for key, value in settings.items()]


def choices_of(asked: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Return the values to choose from by dotted key.

    Args:
        asked: As typed: values by dotted key, or below nested keys.

    Raises:
        ConfigError: if a key cannot be chosen, or has fewer than two values; it lists every problem.
    """
    found: dict[str, list[Any]] = {}
    problems = []
    for key, values in flat(asked or {}):
        word = f"choose.{key}"
        if key.split(".")[0] not in GROUPS or "." not in key:
            text = f"must be a setting of {', '.join(GROUPS)}, such as model.dropout"
            problems.append(Problem(word, shown(values), text=text))
        elif key in DECIDED:
            problems.append(Problem(word, shown(values), text="is chosen by lr and extend_lr", fix="leave it out"))
        elif isinstance(values, list) and any(isinstance(value, list | dict) for value in values):
            text = "chooses among lists; values can only be numbers, words, true, false or null"
            problems.append(Problem(word, shown(values), text=text, fix="compare two models that set it, each its own"))
        elif not isinstance(values, list) or len(values) < 2:
            text = "must be a list of two values or more"
            problems.append(Problem(word, shown(values), text=text, fix=f"write {word}=[0,0.1]"))
        else:
            found[key] = values
    if problems:
        raise ConfigError(*problems)
    return found


def check_choices(choose: Choose, candidates: Sequence[Candidate], budget: Budget | None) -> list[Problem]:
    """Return the problems of choosing these settings for these models.

    Args:
        choose: The request.
        candidates: The models.
        budget: The budget that a choice must not change; None for no budget.
    """
    found = []
    for key, values in choose.items():
        having = [one for one in candidates if key in first_settings({key: values}, one.config)]
        if not having:
            found.append(Problem(f"choose.{key}", text="no model of this comparison has it"))
        for one in having:
            if any(key_of(word) == key for word in one.words):
                text = f"is chosen, and {one.label} sets it"
                found.append(Problem(f"choose.{key}", text=text, fix="leave one of the two out"))
                continue
            for value in values:
                changed = with_settings(one.config, {key: value})
                wrong = check_settings(changed)
                if not wrong and budget is not None and one.sizes is not None and key.startswith("model."):
                    wrong = _check_budget(key, value, changed, one.sizes.cost, budget)
                if not wrong and one.steps is not None and key.startswith("model."):
                    wrong = _check_operations(key, value, changed, one.config)
                found += wrong
    return list(dict.fromkeys(found))


def _check_budget(key: str, value: Any, changed: Config, cost: float, budget: Budget) -> list[Problem]:
    if budget.kind == "seconds":
        return []
    taken = size_with(changed, budget)
    if abs(taken / cost - 1) <= TOLERANCE:
        return []
    text = f"takes {taken:,.6g} of match={budget} instead of {cost:,.6g}"
    return [Problem(f"choose.{key}", shown(value), text=text, fix="choose what leaves the size as it is")]


def _check_operations(key: str, value: Any, changed: Config, config: Config) -> list[Problem]:
    """Return the problem of a choice with which the steps that `train_flops` allows would take other FLOPs."""
    budget = Budget("flops", 1.0)
    taken, cost = size_with(changed, budget), size_with(config, budget)
    if abs(taken / cost - 1) <= TOLERANCE:
        return []
    text = f"takes {taken:,.6g} FLOPs a token instead of {cost:,.6g}, from which train_flops has set the steps"
    return [Problem(f"choose.{key}", shown(value), text=text, fix="choose what leaves the size as it is")]


def flat(node: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Return values, or lists of them, by dotted key."""
    found = []
    for key, value in node.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            found += flat(value, f"{path}.")
        else:
            found.append((path, value))
    return found
