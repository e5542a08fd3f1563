"""A call in the configuration against the signature of what it calls: names, types and ranges."""

import difflib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml

from samout_train.config.ranges import beyond_numbers, forms_of, range_of

MISSING = "???"
SEQUENCES = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)
LONGEST_LIST = 12
LONGEST_VALUE = 200
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
EXAMPLES = {int: 1, float: 0.5, str: "text", bool: True}
# Of the arguments that a run gives: which keys they come from.
SET_ELSEWHERE = {"device": "device", "precision": "precision", "seed": "seed", "batch_size": "data.batch_size"}


def mistakes_in_call(
    path: str,
    target: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    late: Collection[str] = (),
    also_known: Collection[str] = (),
    elsewhere: Callable[[str], str | None] = lambda name: None,
    called: str = "",
) -> list[str]:
    """Return what is wrong with the arguments that a configuration gives to a class or function, one text each.

    Args:
        path: The key of the node, such as `model`; empty at the top.
        target: What is called.
        given: Its arguments.
        late: Arguments that the run gives and not the configuration.
        also_known: Keys of the node that are for somebody else.
        elsewhere: What to say of an unknown name that is known in another place.
        called: How the run calls what takes the late arguments, and what it wants back.
    """
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError) as error:
        return [f"{path}._target_: cannot be called with settings ({error})"]
    hints = _hints(target)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    known = [name for name in named if name not in late] + sorted(set(also_known) - set(named))
    found = []
    for name, value in given.items():
        key = f"{path}.{name}" if path else str(name)
        if name in late:
            found.append(f"{key}={shown(value)}: {_given_by_the_run(name, value)}")
        elif name not in known:
            if takes_any:
                limit = beyond_numbers(value)
                found += [f"{key}={shown(value)}: must be {limit}"] if limit else []
            else:
                hint = elsewhere(str(name)) or nearest(str(name), known, prefix=f"{path}." if path else "")
                found.append(f"{key}={shown(value)}: no such key; {hint}")
        elif value == MISSING:
            found.append(f"{key}: is missing: set {key}=...")
        elif name not in also_known:
            annotation = hints.get(name, Any)
            if wanted := _beyond(value, annotation) or _mismatch(value, annotation):
                found.append(f"{key}={_is_text(value, annotation) or f'{shown(value)}: must be {wanted}'}")
    not_taken = [] if takes_any else sorted(set(late) - set(named))
    is_torchs = str(getattr(target, "__module__", "")).startswith("torch.")
    for name in not_taken:
        right = f"name {called or f'a function of your own that takes {name} and returns what is built'}"
        found.append(
            f"{path}._target_: {target.__qualname__} does not take the argument {name}, which the run gives: "
            f"{right if is_torchs else f'add it, or {right}'}"
        )
    for name, parameter in named.items():
        if not not_taken and name not in late and parameter.default is parameter.empty and name not in given:
            key = f"{path}.{name}" if path else name
            found.append(f"{key}: is missing: set {key}=...")
    return found


def _given_by_the_run(name: str, value: Any) -> str:
    if name in SET_ELSEWHERE:
        return f"is not set here: write {SET_ELSEWHERE[name]}={shown(value)}"
    return "is not set in the configuration, the run gives it: leave it out"


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """`did you mean ...?`, or a list of what there is.

    Args:
        name: What was given.
        known: What there is.
        prefix: What stands before each of these when it is typed.
    """
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    first = list(known)[:LONGEST_LIST]
    rest = f" and {len(known) - len(first)} more" if len(known) > len(first) else ""
    return f"there are {', '.join(first)}{rest}" if first else "there are none"


def shown(value: Any) -> str:
    """Return a value as a person would type it, not at any length."""
    text = str(value)
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def name_of(key: Any) -> str:
    """Return a key of YAML as it is typed there, also one that is a number, true or null."""
    return key if isinstance(key, str) else shown(key)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError):  # names that exist for a type checker only
        return {}


def _beyond(value: Any, annotation: Any) -> str | None:
    """Return what is wanted where a number, or one in a list or mapping, is not finite or too large."""
    if isinstance(value, float) and value.is_integer() and int in (options := _options(annotation)):
        value = value if float in options else int(value)
    limit, allowed, options = beyond_numbers(value), range_of(annotation), _options(annotation)
    if limit is None or not any(map(_takes_numbers, options)):
        return None
    if isinstance(value, int) and float in options and int not in options and abs(value) < sys.float_info.max:
        return f"{limit} where it is a whole number: write {float(value):g}"
    return str(allowed) if allowed and isinstance(value, int) and math.isfinite(allowed.high) else limit


def _is_text(value: Any, annotation: Any) -> str | None:
    """Return what to write in place of a text that says what is wanted and is none, such as '32'; None for others."""
    if not isinstance(value, str) or not value:
        return None
    is_plain = True
    if NUMBER.fullmatch(value):
        read: Any = float(value) if re.search(r"[.eE]", value) else int(value)
    else:
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            return None
        is_plain = isinstance(read, list | dict) or shown(read) == value.lower()
    if isinstance(read, str) or (is_plain is False and not isinstance(read, bool)) or _mismatch(read, annotation):
        return None
    return f"'{shown(value)}': is text: write {f'{shown(value)} without quotes' if is_plain else shown(read)}"


def _mismatch(value: Any, annotation: Any) -> str | None:
    """Return what is wanted where the value does not fit; None where it does."""
    options, allowed = _options(annotation), range_of(annotation)
    if any(_fits(value, option) for option in options):
        if allowed and isinstance(value, int | float) and not isinstance(value, bool) and value not in allowed:
            return str(allowed)
        return None
    if forms := forms_of(annotation):
        return forms.wanted(value)
    words = [_described(option, value) for option in options]
    whole = isinstance(value, float) and value.is_integer() and int in options
    return (
        " or ".join(dict.fromkeys(words))
        + (f", {allowed}" if allowed else "")
        + (f": write {int(value)}" if whole else "")
    )


def _options(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [annotation]


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
    if option in (int, float):
        return isinstance(value, int | (float if option is float else int)) and not isinstance(value, bool)
    if option in (str, Path):
        return isinstance(value, str)
    if origin is bool:
        return isinstance(value, bool)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(inner) and not any(map(_mismatch, value, inner))
    if origin in SEQUENCES:
        return isinstance(value, list) and (not inner or not any(_mismatch(item, inner[0]) for item in value))
    if origin in MAPPINGS:
        if not isinstance(value, dict):
            return False
        return not inner or not any(
            _mismatch(key, inner[0]) or _mismatch(item, inner[1]) for key, item in value.items()
        )
    return isinstance(value, dict) and "_target_" in value


def _described(option: Any, value: Any = None) -> str:
    """Return what is wanted, in words; `value` is what was given, for an example of a list."""
    origin, inner = typing.get_origin(option) or option, typing.get_args(option)
    if origin is Literal:
        return ", ".join(str(choice) for choice in inner)
    if typing.get_origin(option) is Annotated:
        return " or ".join(map(_described, _options(option))) + f" {range_of(option) or ''}".rstrip()
    if origin in SEQUENCES:
        return _list_described(inner, value)
    if origin in MAPPINGS:
        return "a mapping" + (f" from {_described(inner[0])} to {_described(inner[1])}" if inner else "")
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(origin, "a node with _target_")


def _list_described(inner: tuple[Any, ...], value: Any) -> str:
    """Return a list with an example that can be typed: what was given, where that is right by itself."""
    parts = [part for part in inner if part is not Ellipsis]
    given = [item for item in (value if isinstance(value, list) else [value]) if item is not None]
    examples = []
    for part in parts:
        wanted = next((EXAMPLES[option] for option in _options(part) if option in EXAMPLES), "...")
        examples.append(next((item for item in given if not _mismatch(item, part)), wanted))
    kinds = list(dict.fromkeys(map(_described, parts)))
    count = f"{len(parts)} numbers, " if len(parts) > 1 and value is not None else ""
    return f"a list such as [{', '.join(map(shown, examples))}]" + (
        f" ({count}each {kinds[0]})" if kinds and kinds != ["text"] else ""
    )
