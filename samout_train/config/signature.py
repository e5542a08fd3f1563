"""Check the arguments in a configuration against the signature of the function to call: names, types and ranges."""

import difflib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml

from samout_train.config.problem import Problem, shown
from samout_train.config.ranges import beyond_numbers, forms_of, range_of

MISSING = "???"
SEQUENCES = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)
LONGEST_LIST = 12
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
EXAMPLES = {int: 1, float: 0.5, str: "text", bool: True}
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
# Arguments that the run gives, and the keys that they come from.
SET_ELSEWHERE = {"device": "device", "precision": "precision", "seed": "seed", "batch_size": "data.batch_size"}


def check_call(
    path: str,
    target: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    late: Collection[str] = (),
    also_known: Collection[str] = (),
    elsewhere: Callable[[str], str | None] = lambda name: None,
    called: str = "",
) -> list[Problem]:
    """Return the problems of the arguments that a configuration gives to a class or function.

    Args:
        path: The key of the node, such as `model`; empty at the top.
        target: The class or function.
        given: Its arguments.
        late: Arguments that the run gives, not the configuration.
        also_known: Keys of the node that other code reads.
        elsewhere: Returns a hint for an unknown name that is valid in another place.
        called: How the run calls the target, for the message about a late argument that it does not take.
    """
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError) as error:
        return [Problem(f"{path}._target_", text=f"cannot be called with settings ({error})")]
    hints = _hints(target)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {}
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            named[name] = parameter
    known = [name for name in named if name not in late] + sorted(set(also_known) - set(named))
    prefix = f"{path}." if path else ""
    found: list[Problem] = []
    for name, value in given.items():
        key = f"{prefix}{name}"
        problem = None
        if name in late:
            problem = _given_by_the_run(key, name, value)
        elif name not in known and takes_any:
            if limit := beyond_numbers(value):
                problem = Problem(key, shown(value), text=f"must be {limit}", kind="value")
        elif name not in known:
            hint = elsewhere(str(name)) or nearest(str(name), known, prefix=prefix)
            problem = Problem(key, shown(value), text=f"no such key; {hint}", kind="value")
        elif value == MISSING:
            problem = missing(key)
        elif name not in also_known:
            problem = _check_value(key, value, hints.get(name, Any))
        if problem is not None:
            found.append(problem)
    not_taken = sorted(set(late) - set(named))
    if not_taken and not takes_any:
        for name in not_taken:
            found.append(_not_taken(path, target, name, called))
        return found
    for name, parameter in named.items():
        if name not in late and parameter.default is parameter.empty and name not in given:
            found.append(missing(f"{prefix}{name}"))
    return found


def missing(key: str) -> Problem:
    """Return the problem of a required key that is not set."""
    return Problem(key, text="is missing", fix=f"set {key}=...", kind="missing")


def _given_by_the_run(key: str, name: str, value: Any) -> Problem:
    if name in SET_ELSEWHERE:
        fix = f"write {SET_ELSEWHERE[name]}={shown(value)}"
        return Problem(key, shown(value), text="is not set here", fix=fix)
    text = "is not set in the configuration, the run gives it"
    return Problem(key, shown(value), text=text, fix="leave it out", kind="value")


def _not_taken(path: str, target: Callable[..., Any], name: str, called: str) -> Problem:
    """Return the problem of a class or function that does not take an argument that the run gives."""
    fix = f"name {called or f'a function of your own that takes {name} and returns what is built'}"
    if not str(getattr(target, "__module__", "")).startswith("torch."):
        fix = f"add it, or {fix}"
    text = f"{target.__qualname__} does not take the argument {name}, which the run gives"
    return Problem(f"{path}._target_", text=text, fix=fix)


def accepted_by(function: Callable[..., Any]) -> dict[str, str]:
    """Return what each argument of a class or function accepts, in the words of messages; empty for anything."""
    found = {}
    for name, annotation in _hints(function).items():
        found[name] = _mismatch(object(), annotation) or ""
    return found


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return `did you mean ...?`, or a list of the known names.

    Args:
        name: The unknown name.
        known: The known names, in the order of the list.
        prefix: Typed before each of them, such as `model.`.
    """
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    if not known:
        return "there are none"
    text = f"there are {', '.join(list(known)[:LONGEST_LIST])}"
    if len(known) > LONGEST_LIST:
        text += f" and {len(known) - LONGEST_LIST} more"
    return text


def name_of(key: Any) -> str:
    """Return a key as it is typed in YAML, where it may be a number, true or null."""
    if isinstance(key, str):
        return key
    return shown(key)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target
    if inspect.isclass(target):
        function = target.__init__
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError):  # a name that only type checkers import
        return {}


def _check_value(key: str, value: Any, annotation: Any) -> Problem | None:
    """Return the problem of a value that does not fit an annotation; None if it fits."""
    expected = _beyond(value, annotation) or _mismatch(value, annotation)
    if expected is None:
        return None
    right = _without_quotes(value, annotation)
    if right is None:
        return Problem(key, shown(value), text=f"must be {expected}", kind="value")
    return Problem(key, f"'{shown(value)}'", text="is text", fix=f"write {right}", kind="text")


def _beyond(value: Any, annotation: Any) -> str | None:
    """Return what is expected if a number, also in a list or mapping, is not finite or is too large; else None."""
    options = _options(annotation)
    if isinstance(value, float) and value.is_integer() and int in options and float not in options:
        value = int(value)
    limit, allowed = beyond_numbers(value), range_of(annotation)
    if limit is None or not any(map(_takes_numbers, options)):
        return None
    if isinstance(value, int) and float in options and int not in options and abs(value) < sys.float_info.max:
        return f"{limit} where it is a whole number: write {float(value):g}"
    if allowed and isinstance(value, int) and math.isfinite(allowed.high):
        return str(allowed)
    return limit


def _without_quotes(value: Any, annotation: Any) -> str | None:
    """Return what to write in place of a text whose content would fit, such as '32'; None for other values."""
    if not isinstance(value, str) or not value:
        return None
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return None
    is_plain = isinstance(read, list | dict) or shown(read) == value.lower()
    if NUMBER.fullmatch(value):  # YAML takes 1e3 for text
        is_plain = True
        read = float(value)
        if not re.search(r"[.eE]", value):
            read = int(value)
    if isinstance(read, str) or not (is_plain or isinstance(read, bool)) or _mismatch(read, annotation):
        return None
    if is_plain:
        return f"{shown(value)} without quotes"
    return shown(read)


def _mismatch(value: Any, annotation: Any) -> str | None:
    """Return what is expected if the value does not fit; None if it does."""
    options, allowed = _options(annotation), range_of(annotation)
    if any(_fits(value, option) for option in options):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if allowed and is_number and value not in allowed:
            return str(allowed)
        return None
    if forms := forms_of(annotation):
        return forms.expected(value)
    expected = " or ".join(dict.fromkeys(_described(option, value) for option in options))
    if allowed:
        expected += f", {allowed}"
    if isinstance(value, float) and value.is_integer() and int in options:
        expected += f": write {int(value)}"
    return expected


def _options(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    options = []
    for part in typing.get_args(annotation):
        options += _options(part)
    return options


def _takes_numbers(option: Any) -> bool:
    origin = typing.get_origin(option) or option
    return option in (Any, object, int, float) or origin in (tuple, *SEQUENCES, *MAPPINGS)


def _fits(value: Any, option: Any) -> bool:
    origin, inner = typing.get_origin(option) or option, typing.get_args(option)
    if option in (Any, object):
        return True
    if origin is Literal:
        return value in inner
    if option is type(None):
        return value is None
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option in (str, Path):
        return isinstance(value, str)
    if origin is bool:
        return isinstance(value, bool)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(inner) and not any(map(_mismatch, value, inner))
    if origin in SEQUENCES:
        return isinstance(value, list) and (not inner or _all_fit(value, inner[0]))
    if origin in MAPPINGS:
        if not isinstance(value, dict):
            return False
        return not inner or (_all_fit(value, inner[0]) and _all_fit(value.values(), inner[1]))
    return isinstance(value, dict) and "_target_" in value


def _all_fit(values: Iterable[Any], annotation: Any) -> bool:
    return not any(_mismatch(value, annotation) for value in values)


def _described(option: Any, value: Any = None) -> str:
    """Return in words what is expected; `value` was given, and may serve as an example of a list."""
    origin, inner = typing.get_origin(option) or option, typing.get_args(option)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if typing.get_origin(option) is Annotated:
        return " or ".join(map(_described, _options(option))) + f" {range_of(option) or ''}".rstrip()
    if origin in SEQUENCES:
        return _list_described(inner, value)
    if origin in MAPPINGS:
        if not inner:
            return "a mapping"
        return f"a mapping from {_described(inner[0])} to {_described(inner[1])}"
    return NAMES.get(origin, "a node with _target_")


def _list_described(inner: tuple[Any, ...], value: Any) -> str:
    """Return in words what is expected of a list, with an example made of the given values if they fit."""
    parts = [part for part in inner if part is not Ellipsis]
    given = [value]
    if isinstance(value, list):
        given = value
    text = f"a list such as [{', '.join(shown(_example(part, given)) for part in parts)}]"
    kinds = list(dict.fromkeys(map(_described, parts)))
    if not kinds or kinds == ["text"]:
        return text
    count = ""
    if len(parts) > 1 and value is not None:
        count = f"{len(parts)} numbers, "
    return f"{text} ({count}each {kinds[0]})"


def _example(part: Any, given: Sequence[Any]) -> Any:
    """Return an example of an item of a list: a given value that fits, or one of the same type."""
    for item in given:
        if item is not None and not _mismatch(item, part):
            return item
    for option in _options(part):
        if option in EXAMPLES:
            return EXAMPLES[option]
    return "..."


# The name of earlier versions.
mistakes_in_call = check_call
