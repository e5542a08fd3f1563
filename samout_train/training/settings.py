"""Every mistake in a configuration, all at once, before anything is built.

The Python signatures are the schema: each node with a `_target_` is compared with the signature, the type hints and the
ranges of what it builds, and where it is right it may have a check of its own (`ranges.checked_by`). Then come the
rules between nodes.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from samout_train.config import (
    CONF,
    MISSING,
    Composed,
    ConfigError,
    DeviceName,
    Positive,
    Seed,
    Threads,
    compose_config,
    is_empty,
    locate,
    mistakes_in_call,
    model_problems,
    nearest,
    no_node,
    node_problems,
    not_divisible,
    override_problems,
    short_path,
    shown,
    with_places,
    yaml_problem,
)
from samout_train.models import no_layers
from samout_train.ops import Kernels, fused_problem
from samout_train.runtime import (
    DTYPES,
    choose_device,
    choose_precision,
    compile_problem,
    shell_word,
    tf32_problem,
)
from samout_train.training.callbacks.base import Callback
from samout_train.training.memory_check import ids_too_large, model_too_large

# What only a model that labels can have, and why another cannot.
SEES_ALL = "sees the whole sequence, and so the token that it is asked to predict"
FOR_LABELS_ONLY = (
    ("bidirectional", True, SEES_ALL),
    ("causal", False, SEES_ALL),
    ("head", "none", "has an output for each hidden unit, not for each token"),
)
GROUPS = ("model", "data", "optimizer", "schedule", "trainer", "checkpoint", "callbacks")
Node = dict[str, Any]


def top_level(
    *,
    seed: Annotated[int, Seed],
    device: DeviceName,
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    kernels: Kernels,
    threads: Annotated[int, Threads] | None = None,
    run_dir: str,
    resume: str | None,
    model: Any,
    data: Any,
    optimizer: Any,
    schedule: Any,
    trainer: Any,
    checkpoint: Any,
    callbacks: Any,
) -> None:
    """The keys of config.yaml; only its signature is used, and nodes are judged by themselves."""


def data_settings(
    *,
    batch_size: Annotated[int, Positive],
    budget_steps: Annotated[int, Positive] = 2000,
    log_every_n_steps: Annotated[int, Positive] = 10,
    eval_every_n_steps: Annotated[int, Positive] = 250,
) -> dict[str, int]:
    """The keys that every data YAML may have beside those of its source: how it is trained on."""
    return {"batch_size": batch_size, "budget_steps": budget_steps}


DATA_SETTINGS = set(inspect.signature(data_settings).parameters)


def checked_config(
    overrides: Sequence[str], *, config_name: str = "config", config_dirs: Sequence[str] = (), typed: bool = True
) -> tuple[Composed | None, list[str]]:
    """Composes a configuration and finds every mistake in it and in the overrides.

    Args:
        overrides: Such as `model=v1` or `optimizer.lr=1e-3`.
        config_name: The root YAML.
        config_dirs: Further folders to look for YAML in, absolute.
        typed: Whether text values are as a shell gave them.

    Returns:
        The configuration, None where it cannot be composed; and all mistakes.
    """
    wrong = override_problems(overrides, folders=[CONF, *map(Path, config_dirs)], typed=typed)
    # What stands below a group whose option is wrong cannot be judged.
    below = tuple(f"{word.partition('=')[0]}." for word in wrong)
    right = [word for word in overrides if word not in wrong and not word.lstrip("+~").startswith(below)]
    folders = [*map(Path, config_dirs), CONF]
    placed = partial(with_places, overrides=overrides, config_name=config_name, folders=folders)
    try:
        composed = compose_config(right, config_name=config_name, config_dirs=config_dirs, typed=typed)
    except ConfigError as error:
        return None, [*wrong.values(), *placed([str(error)], choices={})]
    if (name := composed.choices.get("experiment")) and "experiment" in composed.config:
        return composed, [*wrong.values(), _below_experiment(name, config_name, folders)]
    if name and "compare" in composed.config:
        sentence = f"experiment={name}: is a comparison of models: write samout-train compare experiment={name}"
        return composed, [*wrong.values(), sentence]
    if config_name != "config" and not {"run_dir", "trainer"} & composed.config.keys():
        root = f"--config-name {config_name}: is no root YAML: write `defaults: [/config, _self_]` at its beginning"
        return composed, [*wrong.values(), root]
    refused = tuple(f"{word.partition('=')[0].lstrip('+~')}: is missing" for word in wrong)
    found = [mistake for mistake in problems(composed.config) if not mistake.startswith(refused)]
    found += composed.misplaced
    return composed, [*wrong.values(), *placed(found, choices=composed.choices)]


def _below_experiment(name: str, config_name: str, folders: Sequence[Path]) -> str:
    """Say what an experiment lacks whose keys are no keys of the program."""
    if found := yaml_problem({"experiment": name}, config_name=config_name, folders=folders):
        return found
    path = next((path for folder in folders if (path := folder / "experiment" / f"{name}.yaml").is_file()), None)
    first = "write `# @package _global_` on the first line, with no byte order mark before it"
    if path and is_empty(path):
        return f"experiment={name}: sets nothing ({short_path(path)}): {first}, and below it what the experiment sets"
    return f"experiment={name}: its keys stand below `experiment` ({short_path(path or name)} line 1): {first}"


def model_node(name: str, *, config_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """The `model` of a configuration that chooses this one, checked.

    Args:
        name: Of a YAML in conf/model or in config_dirs.
        config_dirs: Further folders to look for YAML in, absolute.

    Raises:
        ConfigError: if the YAML is wrong.
    """
    node: dict[str, Any] = compose_config([f"model={name}"], config_dirs=config_dirs).config["model"]
    if mistakes := model_problems(node):
        raise ConfigError("\n".join(mistakes))
    return node


def data_problems(node: Node, *, for_training: bool = True) -> list[str]:
    """Return the mistakes in a data source's settings.

    Args:
        node: The data YAML's content.
        for_training: Whether what they name must be enough to train on.
    """
    settings = {key: value for key, value in node.items() if key in DATA_SETTINGS}
    found = mistakes_in_call("data", data_settings, settings) if "batch_size" in settings else []
    return found + node_problems("data", node, also_known=DATA_SETTINGS, own_checks=for_training)


def problems(config: Mapping[str, Any]) -> list[str]:
    """All mistakes, one text each; none for a configuration that can be built.

    Args:
        config: As plain dictionaries, resolved.
    """
    top = mistakes_in_call("", top_level, config, elsewhere=partial(_key_below, config))
    choose = "choose an option: {0}=NAME when you start, or `- override /{0}: NAME` under `defaults:`"
    missing = {f"{group}: is missing: set {group}=...": group for group in GROUPS}
    top = [f"{missing[text]}: is missing: {choose.format(missing[text])}" if text in missing else text for text in top]
    data = _node(config, "data")
    settings = {key: value for key, value in data.items() if key in DATA_SETTINGS}
    is_node = isinstance(config.get("data"), dict)
    by_group = {"": top, "data": mistakes_in_call("data", data_settings, settings) if is_node else []}
    source = {key: value for key, value in data.items() if key not in DATA_SETTINGS} if is_node else config.get("data")
    nodes = {**config, "data": source} if "data" in config else config
    for group in GROUPS[:-1]:
        if nodes.get(group, MISSING) != MISSING:
            also_known = DATA_SETTINGS if group == "data" else ()
            by_group.setdefault(group, []).extend(node_problems(group, nodes[group], also_known=also_known))
    by_group["callbacks"] = _mistakes_in_callbacks(config.get("callbacks", {}))
    sound = {group for group, mistakes in by_group.items() if not mistakes}
    found = [mistake for mistakes in by_group.values() for mistake in mistakes]
    return list(dict.fromkeys(found + _broken_rules(config, sound)))


def _node(config: Mapping[str, Any], name: str) -> Node:
    node = config.get(name)
    return node if isinstance(node, dict) else {}


def _key_below(config: Mapping[str, Any], name: str) -> str | None:
    """Say which key of a node is meant by one that stands at the top: `optimizer.lr` by `lr`."""
    below = {f"{group}.{key}": key for group in config for key in _node(config, group) if not key.startswith("_")}
    meant = [path for path, key in below.items() if key == name]
    if not meant and not difflib.get_close_matches(name, inspect.signature(top_level).parameters):
        close = difflib.get_close_matches(name, set(below.values()), n=1, cutoff=0.75)
        meant = [path for path, key in below.items() if key in close]
    return f"did you mean {' or '.join(meant)}?" if meant else None


def _mistakes_in_callbacks(callbacks: Any) -> list[str]:
    if not isinstance(callbacks, dict):
        return [] if callbacks == MISSING else [no_node("callbacks", callbacks)]
    found = []
    known = {*callbacks, *(path.stem for path in (CONF / "callbacks").glob("*.yaml"))} - {"default"}
    for name, node in callbacks.items():
        key = f"callbacks.{name}"
        if node is None:
            found.append(
                f"{key}=null: must be a callback: to switch it off, write {shell_word(f'~{key}')} when you start"
            )
        elif isinstance(node, dict) and "_target_" not in node and (known - {name}):
            hint = nearest(str(name), sorted(map(str, known - {name})), prefix="callbacks.")
            found.append(
                f"{key}: no such key; {hint}{'' if hint.endswith('?') else '.'} One of your own has a _target_"
            )
        else:
            found += node_problems(key, node, base=Callback)
    return found


def _broken_rules(config: Mapping[str, Any], sound: set[str]) -> list[str]:
    """The rules between nodes, as far as the nodes are right by themselves."""
    found: list[str | None] = []
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
    if {"model", "trainer"} <= sound and trainer["activation_checkpointing"]:
        model = locate(_node(config, "model")["_target_"])
        found.append(no_layers(model.__name__) if getattr(model, "is_one_module", False) else None)
    if {"model", "data"} <= sound:
        found += _misfits(_node(config, "model"), data)
    if "" in sound:
        if not config["run_dir"]:
            found.append("run_dir=: is empty: give a directory, or leave it out")
        try:
            device = choose_device(config["device"])
            found += ids_too_large(data, device) if "data" in sound else []
            found.append(model_too_large(_node(config, "model"), device) if "model" in sound else None)
            if "trainer" in sound:
                found.append(tf32_problem(trainer["tf32"], device))
                found.append(compile_problem(device) if trainer["compile"] else None)
            precision = choose_precision(config["precision"], device)
            found.append(fused_problem(config["kernels"], device.type, DTYPES.get(precision, torch.float32)))
        except ValueError as error:
            found.append(str(error))
    return [problem for problem in found if problem]


def _misfits(model: Node, data: Node) -> list[str]:
    """What speaks against a model for this data, as far as their settings show it; the rest shows when it is built."""
    found = []
    seq_len, max_seq_len = data.get("seq_len"), model.get("max_seq_len")
    if seq_len is not None and max_seq_len is not None and seq_len > max_seq_len:
        found.append(
            f"data.seq_len={seq_len}: rows are longer than model.max_seq_len ({max_seq_len}): set model.max_seq_len to "
            f"{seq_len} or more, or data.seq_len to {max_seq_len} or less"
        )
    if not getattr(locate(data["_target_"]), "labelling", False):
        found += [
            f"model.{key}={shown(value)}: this model {reason}: take that setting back, or train it to label, as "
            "data=hello does"
            for key, value, reason in FOR_LABELS_ONLY
            if model.get(key) == value
        ]
    return found
