"""Check nodes with a `_target_` before anything is built from them."""

import inspect
import sys
from collections.abc import Collection
from functools import partial
from typing import Any

from samout_train.config.compose import locate, options_with
from samout_train.config.diagnostics import no_node
from samout_train.config.problem import Kind, Problem, as_problems
from samout_train.config.signature import check_call, name_of
from samout_train.runtime import shell_word

# Arguments that a node gets from the run, not from YAML.
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
# How the run calls a component, for users who write their own.
CALLED = {
    "model": "a class that takes vocab_size and pad_id by name, like samout_train/models/samout.py",
    "model.mixer": "a class that takes hidden_size and num_heads by name, like samout_train/models/maxplus.py",
    "data": "a function (*, seed, ...) that returns a Source, like samout_train/data/random_tokens.py",
    "optimizer": (
        "a function (model, *, lr, ...) for a torch optimizer, like samout_train/training/optimizers/adam.py"
    ),
}
WHAT_A_SCHEDULE_IS = (
    "name a class whose objects are called with a Progress (step, total_steps, share) and return the factor on the "
    "rate, such as 0.5, like samout_train/training/schedules.py"
)


def check_model(node: dict[str, Any]) -> list[Problem]:
    """Return the problems of a model's settings."""
    return check_node("model", node)


def check_node(
    path: str,
    node: Any,
    *,
    base: type | None = None,
    also_known: Collection[str] = (),
    own_checks: bool = True,
) -> list[Problem]:
    """Return the problems of a node with a `_target_` and of those in it.

    Args:
        path: Its key, such as `model`.
        node: Its settings.
        base: The class that it must build.
        also_known: Keys that it may have in addition to the arguments of its component.
        own_checks: Whether to run the component's own check (`ranges.checked_by`).
    """
    if wrong := _target_problem(path, node):
        return [wrong]
    target = locate(node["_target_"])
    given, own = {}, {}
    for key, value in node.items():
        if str(key).startswith("_"):
            own[key] = value
        else:
            given[name_of(key)] = value
    role = _role_of(path)
    late = LATE_ARGUMENTS.get(role, set())
    found = check_call(
        path,
        target,
        given,
        late=late,
        also_known=set(also_known),
        elsewhere=partial(_taken_elsewhere, path, node["_target_"]),
        called=CALLED.get(role, ""),
    )
    lacks_arguments = any(problem.kind == "missing" for problem in found)
    if path == "schedule" and not inspect.isclass(target) and lacks_arguments:
        return [_about_target(path, node, text="lacks arguments when it is called", fix=WHAT_A_SCHEDULE_IS)]
    found += _check_own_keys(path, own, late)
    if base is not None and inspect.isclass(target) and base not in target.__mro__:
        text = f"must be a {base.__module__}.{base.__qualname__}"
        found.append(_about_target(path, node, text=text, kind="value"))
    for key, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            found += check_node(f"{path}.{key}", value)
        elif isinstance(value, dict):
            for name, part in value.items():
                if isinstance(part, dict) and "_target_" in part:
                    found += check_node(f"{path}.{key}.{name}", part)
    own_check = getattr(target, "problems", None)
    if not found and own_checks and callable(own_check):
        found = as_problems(own_check(given, path))
    return found


def _role_of(path: str) -> str:
    """Return the key of a node in LATE_ARGUMENTS: each of several mixers counts as `model.mixer`."""
    if path.startswith("model.mixers."):
        return "model.mixer"
    return path


def _check_own_keys(path: str, own: dict[str, Any], late: set[str]) -> list[Problem]:
    """Return the problems of `_partial_` and other keys that begin with an underscore."""
    found = []
    if late and own.get("_partial_") is not True:
        text = f"must be true, since the run gives {', '.join(sorted(late))}"
        found.append(Problem(f"{path}._partial_", text=text, kind="value"))
    for key in own:
        if key not in ("_target_", "_partial_"):
            found.append(Problem(f"{path}.{key}", text="has no meaning here", fix="leave it out", kind="value"))
    if path.startswith("callbacks.") and own.get("_partial_"):
        found.append(Problem(f"{path}._partial_", text="is not for callbacks", fix="leave it out"))
    return found


def _about_target(path: str, node: dict[str, Any], *, text: str, fix: str = "", kind: Kind = "other") -> Problem:
    return Problem(f"{path}._target_", str(node["_target_"]), text=text, fix=fix, kind=kind)


def _target_problem(path: str, node: Any) -> Problem | None:
    """Return the problem of a node's `_target_`; None if it names a class or function that can be built here."""
    if not isinstance(node, dict):
        return no_node(path, node)
    if not isinstance(node.get("_target_"), str):
        fix = "name the class or function that it builds"
        if "." not in path:
            fix += f", or choose an option: `- override /{path}: NAME` under `defaults:`"
        return Problem(path, text="has no _target_", fix=fix, kind="target")
    try:
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, ImportError) and sys.flags.safe_path:
            reason += "; PYTHONSAFEPATH keeps the working directory out: set PYTHONPATH=."
        return _about_target(path, node, text=f"cannot be imported ({reason})", kind="value")
    if not callable(target):
        return _about_target(path, node, text="is not a class or function", kind="value")
    if path == "schedule" and str(getattr(target, "__module__", "")).startswith("torch."):
        return _about_target(path, node, text="torch's schedulers are not supported", fix=WHAT_A_SCHEDULE_IS)
    return None


def _taken_elsewhere(path: str, target: str, name: str) -> str | None:
    """Return what to do about a key that only other options of its group take; None if no option takes it."""
    if "." in path or not (options := options_with(path, name)):
        return None
    if not target.startswith("samout_train."):  # a user's component, in the YAML of another one
        return f"{target} does not take it: leave it out, {shell_word(f'~{path}.{name}')}"
    return f"it is one of {', '.join(f'{path}={option}' for option in options)}"


# Names of earlier versions.
model_problems, node_problems = check_model, check_node
