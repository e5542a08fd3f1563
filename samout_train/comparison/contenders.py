"""What is compared: models by label, each with the words that make `train` train it at its size."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samout_train.comparison.matching import Budget, Sizes, matched, model_cost, seconds_a_step
from samout_train.config import ConfigError, compose_config, locate
from samout_train.overrides import TEXT_KEYS, key_of, quoted
from samout_train.problems import checked_config
from samout_train.run import source_from, trainer_from

Models = str | Sequence[str | Mapping[str, Any]] | Mapping[str, Any]
Config = Mapping[str, Any]
# What a comparison decides itself, and with what.
DECIDED = {
    "model": "models=[...] says which",
    "optimizer.lr": "lr=[...] says which",
    "resume": "a comparison goes on by itself: give it the same run_dir again",
}
SIZES = ("model.hidden_size", "model.ffn_size")


@dataclass(frozen=True)
class Contender:
    """A model of a comparison.

    Args:
        label: What it is called there.
        words: The command line of `train` that trains it, without learning rate, seed and run directory.
        sizes: What was found to match the budget; None where there is none.
        config: The composed configuration of these words.
    """

    label: str
    words: tuple[str, ...]
    sizes: Sizes | None
    config: Config


def labelled(models: Models) -> dict[str, dict[str, Any]]:
    """By label, the settings that make a model.

    Args:
        models: A name or a list of names; in place of a name, or of the list, labels with settings:
            `{small: {model: v8, model.num_layers: 2}}`. Without `model`, the label is the name.

    Raises:
        ConfigError: if it says none, or a label twice.
    """
    if isinstance(models, Mapping):
        models = [{label: settings} for label, settings in models.items()]
    found: dict[str, dict[str, Any]] = {}
    for entry in [models] if isinstance(models, str) else models:
        for label, settings in entry.items() if isinstance(entry, Mapping) else [(entry, {})]:
            if label in found:
                raise ConfigError(f"models: {label} is there twice: write one as {{another name: {{model: {label}}}}}")
            if not isinstance(settings, Mapping | None):
                raise ConfigError(f"models: {label}: must be settings in braces, such as {{model.num_layers: 2}}")
            found[str(label)] = {"model": label, **(settings or {})}
    by_folder = {folder_name(label): label for label in found}
    if alike := [label for label in found if by_folder[folder_name(label)] != label]:
        raise ConfigError(f"models: {alike[0]}, {by_folder[folder_name(alike[0])]}: are one directory: rename one")
    if not found:
        raise ConfigError("models: is empty: name at least one, such as models=[v8,transformer]")
    return found


def folder_name(label: str) -> str:
    """A label as part of a directory's name."""
    return re.sub(r"[^\w.+-]+", "_", label)


def contenders(
    models: Models,
    shared: Sequence[str],
    budget: Budget | None,
    *,
    config_dirs: Sequence[str] = (),
    known: Callable[[str, Sequence[str]], Sizes | None] = lambda label, words: None,
) -> list[Contender]:
    """All models of a comparison, checked, and at their sizes.

    Args:
        models: As typed.
        shared: What was typed for all of them, overrides of `train`. Those of `model` go to the models that have them.
        budget: What their sizes have to match; None for the sizes of the configuration.
        config_dirs: Further folders to look for YAML in, absolute.
        known: The sizes of a label with these words, where they were found before.

    Raises:
        ConfigError: if something is wrong with one of them; the message has all of it.
    """
    found, mistakes = [], []
    used: set[str] = set()
    for label, settings in labelled(models).items():
        own = [_word(key, value) for key, value in settings.items()]
        fixed = [key for key in map(key_of, [*shared, *own]) if budget is not None and key in SIZES[:1]]
        if fixed:
            mistakes.append(f"{fixed[0]}: match={budget} decides it: leave it out")
            continue
        try:
            words = _words_of(shared, own, config_dirs, used)
            composed, wrong = checked_config(words, config_dirs=config_dirs)
            if wrong or composed is None:
                raise ConfigError("\n".join(wrong))
            config, sizes = composed.config, None
            if budget is not None:
                sizes = known(label, words) or matched(label, config["model"], budget, _cost(budget, config))
                words += [f"model.{key}={size}" for key, size in sizes.settings.items()]
                config = {**config, "model": {**config["model"], **sizes.settings}}
            found.append(Contender(label, tuple(words), sizes, config))
        except ValueError as error:
            mistakes += [
                line if line.startswith(f"{label}:") else f"{label}: {line}" for line in str(error).splitlines()
            ]
    mistakes += [
        f"{word}: no model of this comparison has it" for word in shared if _of_model(word) and word not in used
    ]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return found


def accepts(node: Config, path: Sequence[str]) -> bool:
    """Whether what a node builds has a setting, such as `mixer`, `decay` of a model whose mixer has a decay.

    Args:
        node: With a `_target_`; without one it is a setting itself, which may hold anything.
        path: The names of nodes down to the setting.
    """
    if not path or not isinstance(node.get("_target_"), str):
        return True
    parameters = inspect.signature(locate(node["_target_"])).parameters
    below = node.get(path[0])
    return path[0] in parameters and (accepts(below, path[1:]) if isinstance(below, dict) else len(path) == 1)


def decided_problems(words: Sequence[str]) -> list[str]:
    """What was typed although a comparison decides it."""
    return [f"{word}: {DECIDED[key_of(word)]}: leave it out" for word in words if key_of(word) in DECIDED]


def _words_of(shared: Sequence[str], own: Sequence[str], config_dirs: Sequence[str], used: set[str]) -> list[str]:
    """The words of one model: those of all that it has, its own, and none of a preset's settings that it has not."""
    others = [word for word in shared if not _of_model(word)]
    choice, *own = sorted(own, key=lambda word: key_of(word) != "model")
    node = compose_config([*others, choice, *own], config_dirs=config_dirs).config["model"]
    fitting = [word for word in shared if _of_model(word) and accepts(node, key_of(word).split(".")[1:])]
    used.update(fitting)
    typed = {key_of(word) for word in own}
    strange = [path for path in _paths(node) if not accepts(node, path) and f"model.{'.'.join(path)}" not in typed]
    return [*others, choice, *fitting, *own, *(f"~model.{'.'.join(path)}" for path in strange)]


def _cost(budget: Budget, config: Config) -> Callable[[dict[str, Any]], float]:
    """What a node of this configuration takes of a budget; a size that was asked for is not measured again."""
    measured: dict[str, float] = {}
    source = source_from(config)

    def cost_of(node: dict[str, Any]) -> float:
        key = json.dumps(node, sort_keys=True)
        if key not in measured and budget.kind == "seconds":
            trainer = trainer_from({**config, "model": node})
            if trainer.limits.total_steps is None:
                raise ConfigError(f"match={budget}: wants a number of steps: set trainer.max_steps")
            measured[key] = seconds_a_step(trainer) * trainer.limits.total_steps
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


def _of_model(word: str) -> bool:
    return key_of(word).startswith("model.")


def _paths(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The settings of a node, and of the nodes in it."""
    for key, value in node.items():
        if not key.startswith("_"):
            yield (*above, key)
            if isinstance(value, Mapping):
                yield from _paths(value, (*above, key))


def _word(key: str, value: Any) -> str:
    """An override, as a person would type it."""
    if isinstance(value, str) and key not in TEXT_KEYS and not re.fullmatch(r"[\w.+/:-]+", value):
        return f"{key}={quoted(value)}"
    if isinstance(value, str):
        return f"{key}={value}"
    return f"{key}={json.dumps(value)}"
