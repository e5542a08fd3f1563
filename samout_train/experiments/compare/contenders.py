"""What is compared: models by label, each with the words that make `train` train it at its size."""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samout_train.config import ConfigError, compose_config, key_of, locate
from samout_train.experiments.compare.labels import Models, labelled, word_of
from samout_train.experiments.compare.matching import Budget, Sizes, matched, model_cost, seconds_a_step, smallest_width
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


@dataclass(frozen=True)
class Contender:
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
    found: list[Contender] = []
    mistakes: list[str] = []
    used: set[str] = set()
    for label, settings in labelled(models).items():
        own = [word_of(key, value) for key, value in settings.items()]
        try:
            if wrong := _decided(own, budget) + ([] if found or mistakes else _decided_sizes(shared, budget)):
                raise ConfigError("\n".join(wrong))
            found.append(_contender(label, own, shared, budget, config_dirs, known, used))
        except ValueError as error:
            lines = str(error).splitlines()
            mistakes += [line if line.startswith(f"{label}:") else f"{label}: {line}" for line in lines]
    unused = [word for word in shared if _of_model(word) and word not in used]
    mistakes += [f"{word}: no model of this comparison has it" for word in unused if not mistakes]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return found


def _contender(
    label: str,
    own: Sequence[str],
    shared: Sequence[str],
    budget: Budget | None,
    config_dirs: Sequence[str],
    known: Callable[[str, Sequence[str]], Sizes | None],
    used: set[str],
) -> Contender:
    words = _words_of(shared, own, config_dirs, used)
    # Before its size is found, a model is looked at in the smallest width that it can have with these heads.
    start = [] if budget is None else _smallest(words, config_dirs)
    composed, wrong = checked_config([*words, *start], config_dirs=config_dirs)
    if wrong or composed is None:
        raise ConfigError("\n".join(wrong))
    config, sizes = composed.config, None
    if budget is not None:
        sizes = known(label, words) or matched(label, config["model"], budget, _cost(budget, config))
        words += [f"model.{key}={size}" for key, size in sizes.settings.items()]
        config = {**config, "model": {**config["model"], **sizes.settings}}
    return Contender(label, tuple(words), sizes, config, str(composed.choices["data"]))


def _smallest(words: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    width = smallest_width(compose_config(words, config_dirs=config_dirs).config["model"])
    return [] if width is None else [f"model.hidden_size={width}"]


def accepts(node: Config, path: Sequence[str]) -> bool:
    """Whether what a node builds has a setting, such as `mixer`, `decay` of a model whose mixer has a decay.

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


def decided_problems(words: Sequence[str]) -> list[str]:
    """What was typed although a comparison decides it."""
    return [f"{word}: {DECIDED[key_of(word)]}: leave it out" for word in words if key_of(word) in DECIDED]


def _decided(own: Sequence[str], budget: Budget | None) -> list[str]:
    """What a label sets although it is not its own to set."""
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
    choice, *own = sorted(own, key=lambda word: key_of(word) != "model")
    alone = set(_paths(compose_config([choice], config_dirs=config_dirs).config["model"]))
    node = compose_config([*others, choice, *own], config_dirs=config_dirs).config["model"]
    fitting = [word for word in shared if _of_model(word) and accepts(node, key_of(word).split(".")[1:])]
    used.update(fitting)
    kept = alone | {tuple(key_of(word).split(".")[1:]) for word in own}
    strange = [path for path in _paths(node) if path not in kept and not accepts(node, path)]
    return [*others, choice, *fitting, *own, *(f"~model.{'.'.join(path)}" for path in strange)]


def _cost(budget: Budget, config: Config) -> Callable[[dict[str, Any]], float]:
    """What a node of this configuration takes of a budget; a size that was asked for is not measured again."""
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
    """What the steps of a run take; infinite where they do not fit into memory."""
    try:
        trainer = trainer_from(config)
        steps = trainer.limits.total_steps
        if steps is None:
            raise ConfigError(f"match={budget}: wants a number of steps: set trainer.max_steps")
        return seconds_a_step(trainer) * steps
    except NonFiniteError as error:
        raise ConfigError(f"match={budget}: its steps cannot be measured: {str(error).splitlines()[0]}") from error
    except (MemoryError, RuntimeError):
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
