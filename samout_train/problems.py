"""Every mistake in a configuration, all at once, before anything is built.

The Python signatures are the schema: each node with a `_target_` is compared with the signature, the type hints and the
ranges of what it builds. Then come the rules between keys.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from samout_train.config import locate
from samout_train.ranges import NonNegative, Positive, not_divisible, range_of
from samout_train.runtime import choose_device, choose_precision

MISSING = "???"
# What a node gets from the run and not from YAML.
LATE_ARGUMENTS: dict[str, set[str]] = {
    "model": {"vocab_size", "pad_id"},
    "model.mixer": {"hidden_size", "num_heads"},
    "data": {"seed"},
    "optimizer": {"model"},
    "checkpoint": {"directory"},
    "trainer": {
        *("model", "source", "build_optimizer", "schedule", "device", "precision"),
        *("seed", "batch_size", "budget_steps"),
    },
}
Node = dict[str, Any]


def top_level(
    *,
    seed: Annotated[int, NonNegative],
    device: str,
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    run_dir: str,
    resume: str | None,
    model: Node,
    data: Node,
    optimizer: Node,
    schedule: Node,
    trainer: Node,
    checkpoint: Node,
    callbacks: Node,
) -> None:
    """The keys of config.yaml; only its signature is used."""


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


def problems(config: Mapping[str, Any]) -> list[str]:
    """All mistakes, one text each; none for a configuration that can be built.

    Args:
        config: As plain dictionaries, resolved.
    """
    found = _check_call("", top_level, config, set())
    data = config.get("data") or {}
    found += _check_call("data", data_settings, {k: v for k, v in data.items() if k in DATA_SETTINGS}, set())
    for name in ("model", "optimizer", "schedule", "trainer", "checkpoint"):
        found += _check_node(name, config.get(name))
    found += _check_node("data", {key: value for key, value in data.items() if key not in DATA_SETTINGS})
    for name, node in (config.get("callbacks") or {}).items():
        found += _check_node(f"callbacks.{name}", node)
    return found or _broken_rules(config)


def _check_node(path: str, node: Any) -> list[str]:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return [f"{path}: has no _target_: name the class or function that it builds"]
    try:
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        return [f"{path}._target_={node['_target_']}: cannot be imported ({str(error).splitlines()[0]})"]
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    found = _check_call(path, target, given, LATE_ARGUMENTS.get(path, set()))
    for key, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            found += _check_node(f"{path}.{key}", value)
    return found


def _check_call(path: str, target: Callable[..., Any], given: Mapping[str, Any], late: set[str]) -> list[str]:
    function = target.__init__ if inspect.isclass(target) else target
    parameters = dict(inspect.signature(target).parameters)
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [
        name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in late
    ]
    if path == "data":
        known += sorted(DATA_SETTINGS - set(known))
    found = []
    for name, value in given.items():
        key = f"{path}.{name}" if path else str(name)
        if name in late:
            found.append(f"{key}={value}: is not set in the configuration, the run gives it: leave it out")
        elif name not in known:
            if not takes_any:
                found.append(f"{key}={value}: no such key; {_nearest(str(name), known, path)}")
        elif value == MISSING:
            found.append(f"{key}: is missing: set {key}=...")
        elif wanted := _mismatch(value, hints.get(name, Any)):
            found.append(f"{key}={'null' if value is None else value}: must be {wanted}")
    for name in known:
        if name in parameters and parameters[name].default is inspect.Parameter.empty and name not in given:
            key = f"{path}.{name}" if path else name
            found.append(f"{key}: is missing: set {key}=...")
    return found


def _nearest(name: str, known: list[str], path: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    prefix = f"{path}." if path else ""
    return f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(known)}"


def _mismatch(value: Any, annotation: Any) -> str | None:
    """What is wanted where the value does not fit; None where it does."""
    options = _options(annotation)
    if any(_fits(value, option) for option in options):
        allowed = range_of(annotation)
        if allowed and isinstance(value, int | float) and not isinstance(value, bool) and value not in allowed:
            return str(allowed)
        return None
    allowed = range_of(annotation)
    words = [_described(option) for option in options]
    return " or ".join(dict.fromkeys(words)) + (f", {allowed}" if allowed else "")


def _options(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [annotation]


def _fits(value: Any, option: Any) -> bool:
    origin = typing.get_origin(option) or option
    if origin is Literal:
        return value in typing.get_args(option)
    if option is type(None):
        return value is None
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if option in (str, Path):
        return isinstance(value, str)
    if origin in (list, tuple):
        inner = [part for part in typing.get_args(option) if part is not Ellipsis]
        fixed = origin is tuple and Ellipsis not in typing.get_args(option)
        return (
            isinstance(value, list)
            and (not fixed or len(value) == len(inner))
            and all(not inner or _fits(item, inner[0]) for item in value)
        )
    if origin in (bool, dict):
        return isinstance(value, origin)
    return (
        isinstance(value, dict)
        if isinstance(value, dict | str | int | float | list | None) and option is not Any
        else True
    )


def _described(option: Any) -> str:
    origin = typing.get_origin(option) or option
    if origin is Literal:
        return ", ".join(str(choice) for choice in typing.get_args(option))
    if origin in (list, tuple):
        return f"a list such as [{', '.join(_described(part) for part in typing.get_args(option))}]"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(origin, "a node with _target_")


def _broken_rules(config: Mapping[str, Any]) -> list[str]:
    found: list[str | None] = []
    model, data, trainer, schedule = (config[name] for name in ("model", "data", "trainer", "schedule"))
    if "num_heads" in model:
        found.append(not_divisible("model.hidden_size", model["hidden_size"], "model.num_heads", model["num_heads"]))
    found.append(not_divisible("data.batch_size", data["batch_size"], "trainer.accumulate", trainer["accumulate"]))
    if data.get("pad_id", data.get("ignore_index")) != data.get("ignore_index"):
        found.append(
            f"data.pad_id ({data['pad_id']}) must be data.ignore_index ({data['ignore_index']}), or padding is learned:"
            f" set data.ignore_index={data['pad_id']}"
        )
    by_steps = trainer["max_steps"] is not None or trainer["max_epochs"] is not None
    if locate(schedule["_target_"]).needs_total_steps and trainer["max_seconds"] is not None and not by_steps:
        found.append(
            "trainer.max_seconds alone does not say how many steps there are, which this schedule needs: "
            "set trainer.max_steps too, or schedule=constant or schedule=wsd"
        )
    if "path" in data and not Path(str(data["path"])).expanduser().exists():
        found.append(f"data.path={data['path']}: is not there: give a file or a folder")
    try:
        choose_precision(config["precision"], choose_device(config["device"]))
    except ValueError as error:
        found.append(str(error))
    return [problem for problem in found if problem]
