"""Check a whole configuration before anything is built, and report all problems at once.

The Python signatures are the schema: each node with a `_target_` is checked against the signature, the type hints and
the ranges of what it builds. A valid node may have a check of its own (`ranges.checked_by`). Rules between nodes come
last.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from samout_train.config import (
    CONF,
    MISSING,
    Composed,
    ConfigError,
    Place,
    Positive,
    Problem,
    as_problems,
    check_call,
    check_model,
    check_node,
    check_overrides,
    compose_checked,
    compose_config,
    is_empty,
    key_of,
    locate,
    nearest,
    no_node,
    not_divisible,
    require_no_problems,
    root_keys,
    shown,
    with_places,
    yaml_problem,
)
from samout_train.models import no_layers
from samout_train.ops import fused_problem
from samout_train.runtime import (
    DTYPES,
    choose_device,
    choose_precision,
    compile_problem,
    shell_word,
    tf32_problem,
)
from samout_train.training.average import decay_problem, sharding_problem
from samout_train.training.callbacks.base import Callback
from samout_train.training.cuda_graph import refused, settings_problem
from samout_train.training.memory_check import ids_too_large, model_too_large

# Settings that only a labelling model can have, and the reason.
SEES_ALL = "sees the whole sequence, and so the token that it is asked to predict"
FOR_LABELS_ONLY = (
    ("bidirectional", True, SEES_ALL),
    ("causal", False, SEES_ALL),
    ("head", "none", "has an output for each hidden unit, not for each token"),
)
GROUPS = ("model", "data", "optimizer", "schedule", "trainer", "checkpoint", "callbacks")
Node = dict[str, Any]


def data_settings(
    *,
    batch_size: Annotated[int, Positive],
    budget_steps: Annotated[int, Positive] = 2000,
    log_every_n_steps: Annotated[int, Positive] = 10,
    eval_every_n_steps: Annotated[int, Positive] = 250,
) -> dict[str, int]:
    """Return the keys that any data YAML may add to those of its source: the defaults for training on it."""
    return {"batch_size": batch_size, "budget_steps": budget_steps}


DATA_SETTINGS = set(inspect.signature(data_settings).parameters)


def checked_config(
    overrides: Sequence[str],
    *,
    config_name: str = "config",
    config_dirs: Sequence[str] = (),
    typed: bool = True,
    shared: Collection[str] = (),
) -> tuple[Composed | None, list[Problem]]:
    """Compose a configuration, and find every problem in it and in the overrides.

    Args:
        overrides: Overrides such as `model=v1` or `optimizer.lr=1e-3`.
        config_name: The root YAML.
        config_dirs: Further folders with YAML, absolute.
        typed: Whether text values are as a shell gave them.
        shared: Overrides that are meant for several models and may therefore change nothing in this one.

    Returns:
        The configuration (None if it cannot be composed), and all problems.
    """
    wrong = check_overrides(overrides, folders=[CONF, *map(Path, config_dirs)], typed=typed)
    refused = list(wrong.values())
    folders = [*map(Path, config_dirs), CONF]
    placed = partial(with_places, overrides=overrides, config_name=config_name, folders=folders)
    right = without_refused(overrides, wrong)
    try:
        composed = compose_checked(right, config_name=config_name, config_dirs=config_dirs, typed=typed)
    except ConfigError as error:
        return None, refused + placed(error.problems, choices={})
    if (name := composed.choices.get("experiment")) and "experiment" in composed.config:
        return composed, [*refused, _below_experiment(name, config_name, folders)]
    if name and "compare" in composed.config:
        fix = f"write samout-train compare experiment={name}"
        return composed, [*refused, Problem("experiment", name, text="is a comparison of models", fix=fix)]
    if config_name != "config" and not {"run_dir", "trainer"} & composed.config.keys():
        fix = "write `defaults: [/config, _self_]` at its beginning"
        return composed, [*refused, Problem(f"--config-name {config_name}", text="is no root YAML", fix=fix)]
    found = [*without_missing(check_settings(composed.config), wrong), *composed.misplaced]
    if not found:
        recomposed = partial(compose_checked, config_name=config_name, config_dirs=config_dirs, typed=typed)
        found = _without_effect(composed.config, right, shared, recomposed)
    if found:
        found = placed(found, choices=composed.choices)
    return composed, refused + found


def _without_effect(
    config: Mapping[str, Any], overrides: Sequence[str], shared: Collection[str], compose: Callable[..., Composed]
) -> list[Problem]:
    """Return the problems of overrides that would change nothing in the model.

    Settings in YAML are exempt, since they may be meant for several models. So are resumed runs, which keep the
    settings that they began with.
    """
    if config.get("resume") is not None:
        return []
    found = []
    for problem in changes_nothing(config["model"]):
        others = [word for word in overrides if key_of(word) != problem.key or word in shared]
        if len(others) < len(overrides):
            key = problem.key.removeprefix("model.")
            if compose(others).config["model"].get(key) != config["model"][key]:
                found.append(problem)
    return found


def changes_nothing(model: Node) -> list[Problem]:
    """Return the problems of a valid model's settings that change nothing in it."""
    check = getattr(locate(model["_target_"]), "without_effect", None)
    if check is None:
        return []
    try:
        return as_problems(check(model, "model"))
    except (ValueError, TypeError, RuntimeError):  # a part cannot be built: building the model reports that
        return []


def without_refused(overrides: Sequence[str], wrong: Collection[str]) -> list[str]:
    """Return overrides without the invalid ones, and without those below a group whose option is invalid.

    Args:
        overrides: As typed.
        wrong: Those that are invalid by themselves.
    """
    below = tuple(f"{word.partition('=')[0]}." for word in wrong)
    right = []
    for word in overrides:
        if word not in wrong and not word.lstrip("+~").startswith(below):
            right.append(word)
    return right


def without_missing(problems: Sequence[Problem], wrong: Collection[str]) -> list[Problem]:
    """Return the problems, leaving out keys that are missing only because their override is invalid.

    Args:
        problems: Problems of settings that were composed without the invalid overrides.
        wrong: The invalid overrides.
    """
    refused = set(map(key_of, wrong))
    kept = []
    for problem in problems:
        if problem.kind not in ("missing", "unchosen") or problem.key not in refused:
            kept.append(problem)
    return kept


def _below_experiment(name: str, config_name: str, folders: Sequence[Path]) -> Problem:
    """Return why the keys of an experiment ended up below `experiment`."""
    if found := yaml_problem({"experiment": name}, config_name=config_name, folders=folders):
        return found
    first = "write `# @package _global_` on the first line, with no byte order mark before it"
    place = Place(Path(name), 1)
    for folder in folders:
        path = folder / "experiment" / f"{name}.yaml"
        if not path.is_file():
            continue
        place = Place(path, 1)
        if is_empty(path):
            fix = f"{first}, and below it what the experiment sets"
            return Problem("experiment", name, text=f"sets nothing ({Place(path)})", fix=fix)
        break
    return Problem("experiment", name, text=f"its keys stand below `experiment` ({place})", fix=first)


def model_node(name: str, *, config_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """Return the checked `model` node of a configuration with this model.

    Args:
        name: Name of a YAML in conf/model or in config_dirs.
        config_dirs: Further folders with YAML, absolute.

    Raises:
        ConfigError: if the YAML has problems.
    """
    node: dict[str, Any] = compose_config([f"model={name}"], config_dirs=config_dirs).config["model"]
    require_no_problems(check_model(node))
    return node


def check_data(node: Node, *, for_training: bool = True) -> list[Problem]:
    """Return the problems of a data source's settings.

    Args:
        node: Content of the data YAML.
        for_training: Whether the data must suffice for training.
    """
    settings, _ = _settings_and_source(node)
    found = []
    if "batch_size" in settings:
        found = check_call("data", data_settings, settings)
    return found + check_node("data", node, also_known=DATA_SETTINGS, own_checks=for_training)


def check_settings(config: Mapping[str, Any]) -> list[Problem]:
    """Return all problems of a configuration; empty if it can be built.

    Args:
        config: Resolved, as plain dictionaries.
    """
    by_group = {"": _check_top_level(config)}
    for group in ("data", "model", "optimizer", "schedule", "trainer", "checkpoint"):
        if config.get(group, MISSING) != MISSING:
            by_group[group] = _check_group(group, config[group])
    by_group["callbacks"] = _check_callbacks(config.get("callbacks", {}))
    sound, found = set(), []
    for group, problems in by_group.items():
        found += problems
        if not problems:
            sound.add(group)
    return list(dict.fromkeys(found + _check_rules(config, sound)))


def _check_top_level(config: Mapping[str, Any]) -> list[Problem]:
    found = []
    for problem in check_call("", root_keys, config, elsewhere=partial(_key_below, config)):
        if problem.kind == "missing" and problem.key in GROUPS:
            group = problem.key
            fix = f"choose an option: {group}=NAME when you start, or `- override /{group}: NAME` under `defaults:`"
            problem = replace(problem, fix=fix, kind="unchosen")
        found.append(problem)
    return found


def _check_group(group: str, node: Any) -> list[Problem]:
    """Return the problems of a group by itself."""
    if group != "data" or not isinstance(node, dict):
        return check_node(group, node)
    settings, source = _settings_and_source(node)
    return check_call("data", data_settings, settings) + check_node("data", source, also_known=DATA_SETTINGS)


def _settings_and_source(node: Node) -> tuple[Node, Node]:
    """Split a data node into the settings of training and those of the source."""
    settings, source = {}, {}
    for key, value in node.items():
        if key in DATA_SETTINGS:
            settings[key] = value
        else:
            source[key] = value
    return settings, source


def _node(config: Mapping[str, Any], name: str) -> Node:
    node = config.get(name)
    if isinstance(node, dict):
        return node
    return {}


def _key_below(config: Mapping[str, Any], name: str) -> str | None:
    """Return a hint at the node key that an unknown top-level key may mean, such as `optimizer.lr` for `lr`."""
    below = {}
    for group in config:
        for key in _node(config, group):
            if not key.startswith("_"):
                below[f"{group}.{key}"] = key
    meant = [path for path, key in below.items() if key == name]
    if not meant and not difflib.get_close_matches(name, inspect.signature(root_keys).parameters):
        close = difflib.get_close_matches(name, set(below.values()), n=1, cutoff=0.75)
        meant = [path for path, key in below.items() if key in close]
    if not meant:
        return None
    return f"did you mean {' or '.join(meant)}?"


def _check_callbacks(callbacks: Any) -> list[Problem]:
    if callbacks == MISSING:
        return []
    if not isinstance(callbacks, dict):
        return [no_node("callbacks", callbacks)]
    found = []
    known = {*callbacks, *(path.stem for path in (CONF / "callbacks").glob("*.yaml"))} - {"default"}
    for name, node in callbacks.items():
        key = f"callbacks.{name}"
        others = sorted(map(str, known - {name}))
        if node is None:
            fix = f"to switch it off, write {shell_word(f'~{key}')} when you start"
            found.append(Problem(key, "null", text="must be a callback", fix=fix, kind="value"))
        elif isinstance(node, dict) and "_target_" not in node and others:
            hint = nearest(str(name), others, prefix="callbacks.")
            text = f"no such key, and no _target_ for one of your own; {hint}"
            found.append(Problem(key, text=text, kind="value"))
        else:
            found += check_node(key, node, base=Callback)
    return found


def _check_rules(config: Mapping[str, Any], sound: set[str]) -> list[Problem]:
    """Return the problems between nodes, each of which is valid by itself."""
    found: list[Problem | str | None] = []
    data, trainer, schedule = (_node(config, name) for name in ("data", "trainer", "schedule"))
    if {"data", "trainer"} <= sound:
        found.append(not_divisible("data.batch_size", data["batch_size"], "trainer.accumulate", trainer["accumulate"]))
    if {"trainer", "schedule"} <= sound and trainer["max_seconds"] is not None:
        by_steps = trainer["max_steps"] is not None or trainer["max_epochs"] is not None
        if getattr(locate(schedule["_target_"]), "needs_total_steps", False) and not by_steps:
            found.append(
                "trainer.max_seconds alone does not say how many steps there are, which this schedule needs: "
                "set trainer.max_steps too, or schedule=constant or schedule=wsd"
            )
    if "trainer" in sound and trainer.get("ema") is not None and trainer["ema"] < 1:
        found.append(decay_problem(trainer["ema"]))
    if "trainer" in sound and trainer["parallel"] == "fsdp":
        if trainer.get("ema") is not None:
            found.append(sharding_problem(trainer["ema"]))
        if "optimizer" in sound:
            found.append(getattr(locate(_node(config, "optimizer")["_target_"]), "sharding_problem", None))
    if {"model", "trainer"} <= sound and trainer["activation_checkpointing"]:
        model = locate(_node(config, "model")["_target_"])
        if getattr(model, "is_one_module", False):
            found.append(no_layers(model.__name__))
    if {"model", "data"} <= sound:
        found += _check_model_for_data(_node(config, "model"), data)
    if "" in sound:
        found += _check_machine(config, sound)
    return as_problems(list(filter(None, found)))


def _check_machine(config: Mapping[str, Any], sound: set[str]) -> list[Problem | str | None]:
    """Return the problems with the device, its memory and the run directory."""
    found: list[Problem | str | None] = []
    if not config["run_dir"]:
        found.append(Problem("run_dir", "", text="is empty", fix="give a directory, or leave it out"))
    try:
        device = choose_device(config["device"])
        if "data" in sound:
            found += ids_too_large(_node(config, "data"), device)
        if "model" in sound:
            found.append(model_too_large(_node(config, "model"), device))
        if "trainer" in sound:
            trainer = _node(config, "trainer")
            found.append(tf32_problem(trainer["tf32"], device))
            if trainer["compile"]:
                found.append(compile_problem(device))
        precision = choose_precision(config["precision"], device)
        if "trainer" in sound:
            found.append(_no_graph(_node(config, "trainer"), device, precision))
        found.append(fused_problem(config["kernels"], device.type, DTYPES.get(precision, torch.float32)))
    except ValueError as error:
        found.append(str(error))
    return found


def _no_graph(trainer: Node, device: torch.device, precision: str) -> str | None:
    """Return why a requested CUDA graph is impossible, judging by the settings alone."""
    if trainer.get("cuda_graph") is not True:
        return None
    problem = settings_problem(
        device=device,
        precision=precision,
        compile=trainer["compile"],
        activation_checkpointing=trainer["activation_checkpointing"],
        profile=trainer["profile"],
    )
    return problem and refused(problem)


def _check_model_for_data(model: Node, data: Node) -> list[Problem]:
    """Return the problems of a model with this data that the settings show; building shows the rest."""
    found = []
    seq_len, max_seq_len = data.get("seq_len"), model.get("max_seq_len")
    if seq_len is not None and max_seq_len is not None and seq_len > max_seq_len:
        fix = f"set model.max_seq_len to {seq_len} or more, or data.seq_len to {max_seq_len} or less"
        text = f"rows are longer than model.max_seq_len ({max_seq_len})"
        found.append(Problem("data.seq_len", str(seq_len), text=text, fix=fix))
    if getattr(locate(data["_target_"]), "labelling", False):
        return found
    for key, value, reason in FOR_LABELS_ONLY:
        if model.get(key) == value:
            fix = "remove this setting, or train the model to label, as data=hello does"
            found.append(Problem(f"model.{key}", shown(value), text=f"this model {reason}", fix=fix))
    return found


# Names of earlier versions.
problems, data_problems = check_settings, check_data
