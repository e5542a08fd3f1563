"""What is wrong with a node that names by `_target_` what it builds, seen before it is built."""

import inspect
import sys
from collections.abc import Collection
from functools import partial
from typing import Any

from samout_train.config.compose import locate, options_with
from samout_train.config.diagnostics import no_node
from samout_train.config.signature import mistakes_in_call, name_of
from samout_train.runtime import shell_word

# What a node gets from the run and not from YAML.
LATE_ARGUMENTS: dict[str, set[str]] = {
    "model": {"vocab_size", "pad_id"},
    "model.mixer": {"hidden_size", "num_heads"},
    "data": {"seed"},
    "optimizer": {"model"},
    "checkpoint": {"directory", "about"},
    "trainer": {
        *("model", "source", "build_optimizer", "schedule", "device", "precision"),
        *("seed", "batch_size", "budget_steps"),
    },
}
# How the run calls what a node builds, for who writes one of their own.
CALLED = {
    "model": "a class that takes vocab_size and pad_id by name, as samout_train/models/samout.py has one",
    "model.mixer": "a class that takes hidden_size and num_heads by name, as samout_train/models/maxplus.py has one",
    "data": "a function (*, seed, ...) that returns a Source, as samout_train/data/random_tokens.py has one",
    "optimizer": (
        "a function (model, *, lr, ...) for a torch optimizer, as samout_train/training/optimizers/adam.py has one"
    ),
}
WHAT_A_SCHEDULE_IS = (
    "name a class whose objects are called with a Progress (step, total_steps, share) and return the factor on the "
    "rate, such as 0.5, as samout_train/training/schedules.py has them"
)


def model_problems(node: dict[str, Any]) -> list[str]:
    """Return the problems of a model's settings."""
    return node_problems("model", node)


def node_problems(
    path: str,
    node: Any,
    *,
    base: type | None = None,
    also_known: Collection[str] = (),
    own_checks: bool = True,
) -> list[str]:
    """Return the problems of a node with a `_target_` and of those in it, one text each.

    Args:
        path: Its key, such as `model`.
        node: What stands there.
        base: The class that it has to build.
        also_known: Keys that it may have beside those of what it builds.
        own_checks: Whether what it builds checks it too (`ranges.checked_by`).
    """
    if wrong := _target_problem(path, node):
        return [wrong]
    target = locate(node["_target_"])
    given = {name_of(key): value for key, value in node.items() if not str(key).startswith("_")}
    late = LATE_ARGUMENTS.get(path, set())

    found = mistakes_in_call(
        path,
        target,
        given,
        late=late,
        also_known=set(also_known),
        elsewhere=partial(_taken_elsewhere, path, node["_target_"]),
        called=CALLED.get(path, ""),
    )
    if path == "schedule" and not inspect.isclass(target) and any(": is missing" in mistake for mistake in found):
        return [f"{path}._target_={node['_target_']}: lacks arguments when it is called: {WHAT_A_SCHEDULE_IS}"]
    if late and node.get("_partial_") is not True:
        found.append(f"{path}._partial_: must be true, since the run gives {', '.join(sorted(late))}")
    strange = [key for key in node if str(key).startswith("_") and key not in ("_target_", "_partial_")]
    found += [f"{path}.{key}: has no meaning here: leave it out" for key in strange]
    if path.startswith("callbacks.") and node.get("_partial_"):
        found.append(f"{path}._partial_: is not for callbacks: leave it out")
    if base is not None and inspect.isclass(target) and base not in target.__mro__:
        found.append(f"{path}._target_={node['_target_']}: must be a {base.__module__}.{base.__qualname__}")
    for key, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            found += node_problems(f"{path}.{key}", value)
    own_check = getattr(target, "problems", None) if own_checks else None
    return found or (list(own_check(given, path)) if callable(own_check) else [])


def _target_problem(path: str, node: Any) -> str | None:
    """Return what keeps a node from naming a class or function that this path can have; None where nothing does."""
    if not isinstance(node, dict):
        return no_node(path, node)
    if not isinstance(node.get("_target_"), str):
        rest = f", or choose an option: `- override /{path}: NAME` under `defaults:`" if "." not in path else ""
        return f"{path}: has no _target_: name the class or function that it builds{rest}"
    try:
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, ImportError) and sys.flags.safe_path:
            reason += "; PYTHONSAFEPATH keeps the working directory out: set PYTHONPATH=."
        return f"{path}._target_={node['_target_']}: cannot be imported ({reason})"
    if not callable(target):
        return f"{path}._target_={node['_target_']}: is no class or function, so it builds nothing"
    if path == "schedule" and str(getattr(target, "__module__", "")).startswith("torch."):
        return f"{path}._target_={node['_target_']}: torch's schedulers are not taken: {WHAT_A_SCHEDULE_IS}"
    return None


def _taken_elsewhere(path: str, target: str, name: str) -> str | None:
    """Return what to do about a key that a target does not take and others of its group do; None where none does."""
    options = options_with(path, name) if "." not in path else []
    if not options:
        return None
    if not target.startswith("samout_train."):  # of one's own: what the chosen YAML has for another one is left
        return f"{target} does not take it: leave it out, {shell_word(f'~{path}.{name}')}"
    return f"it is one of {', '.join(f'{path}={option}' for option in options)}"
