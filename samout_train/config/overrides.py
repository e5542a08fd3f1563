"""Check overrides one by one, and rewrite them for Hydra."""

import importlib.util
import re
import shutil
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from samout_train.config.diagnostics import missing_option
from samout_train.config.problem import Problem
from samout_train.config.yaml_files import options_of
from samout_train.runtime import home_path, install_line, quoted, shell_word

MAY_BE_NULL = ("experiment",)
LAUNCHERS = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
}
FREE_HYDRA_KEYS = (
    *("hydra.sweep.dir", "hydra.verbose", "hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper"),
    *("hydra/job_logging", "hydra/hydra_logging"),
)
# Keys whose values are text: commas, equals signs, brackets and digits in them mean nothing to Hydra. Hydra
# reads values in quotes, null and ${...}.
TEXT_KEYS = (
    *("run_dir", "resume", "init_from", "out", "pattern", "vocabulary_path", "storage", "hydra.sweep.dir"),
    *("data.path", "data.pattern", "data.vocabulary_path", "callbacks.sample.prompt"),
)
ADDED_ROLE = "+data.roles."
TEXT_BELOW = ("data.roles.", "roles.")
LIST_KEYS = ("runs", "data.paths")  # lists of text; a single text is a list with one item
MOST_COMMAS = 32  # in one path of a list
QUOTED = re.compile(r"""\s*(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*""", re.DOTALL)
CLOSING = {"[": "]", "{": "}"}
SWEEP_FUNCTION = re.compile(r"\s*(choice|range|interval|glob|shuffle|sort|tag|extend_list|str)\(.*\)\s*", re.DOTALL)
# Keys of the other verbs. Their values are always text, so that a prompt can be anything.
PLAIN_TEXT_KEYS = ("run", "path", "prompt", "stop", "dir", "system")


def words_for_hydra(overrides: Sequence[str], *, folders: Sequence[Path], typed: bool = True) -> list[str]:
    """Return overrides for Hydra, with text quoted and new keys allowed.

    Args:
        overrides: Such as `data.path=a,b.txt`.
        folders: Folders of YAML files.
        typed: Whether text values are as typed, without Hydra's quotes.
    """
    words = []
    for override in overrides:
        if typed:
            override = quote_text(override)
        if override.startswith(ADDED_ROLE):  # the YAML may have the role by now; ++ accepts both
            override = f"+{override}"
        words.append(_let_pass(override, folders))
    return words


def check_overrides(
    overrides: Sequence[str], *, folders: Sequence[Path], typed: bool = True, in_sweep: bool = False
) -> dict[str, Problem]:
    """Return the problems of overrides one by one: how they are written, and options that a group lacks.

    Args:
        overrides: As typed.
        folders: Folders of YAML files.
        typed: Whether text values are as typed, without Hydra's quotes.
        in_sweep: Whether keys may have several values.

    Returns:
        The problems by override.
    """
    found = {}
    for word in overrides:
        as_written = word
        if typed and not in_sweep:
            as_written = quote_text(word)
        override = _parsed(as_written)
        if override is None or not key_of(word):
            found[word] = _unreadable(word)
        elif problem := _check_override(word, override, folders, in_sweep):
            found[word] = problem
    return found


def _check_override(word: str, override: Override, folders: Sequence[Path], in_sweep: bool) -> Problem | None:
    """Return the problem of an override that Hydra can parse."""
    key = word.partition("=")[0]
    if _is_hydras_own(override.key_or_group):
        text = (
            "is set by the program; of Hydra's keys, hydra.sweep.dir, hydra.verbose, hydra/launcher and "
            "hydra/sweeper with their settings are free. A run's directory is run_dir"
        )
        return Problem.of_word(word, text=text)
    if key == "hydra/launcher" and (problem := _check_launcher(word, override.value())):
        return problem
    if override.is_sweep_override() and not in_sweep:
        text = f"several values need -m, which makes a sweep; a list is written {key}=[...]"
        return Problem.of_word(word, text=text)
    return _check_option(override, folders)


def _unreadable(word: str) -> Problem:
    """Return the problem of an override that Hydra cannot parse."""
    key, equals, value = word.partition("=")
    if not key:
        return Problem(word, text="has no key", fix="write key=value")
    if not key_of(word) or _parsed(f"{key}=1") is None:
        form = "letters, digits and _, with dots between the parts, such as model.hidden_size=64"
        return Problem.of_word(word, text=f"{key!r} is not a key", fix=f"use {form}")
    if not equals:
        return Problem.of_word(word, text="has no value", fix=f"write {word}=...")
    right = f"{key}={value.rstrip(', ')}"
    if right != word and _parsed(right):
        return Problem.of_word(word, text="cannot be read: it ends with a comma", fix=f"write {shell_word(right)}")
    right = f"{key}={value.lstrip('=')}"
    if right != word and _parsed(right):
        return Problem.of_word(word, text="cannot be read: it has more than one =", fix=f"write {shell_word(right)}")
    settings = word.split()
    if len(settings) > 1 and all("=" in setting and _parsed(setting) for setting in settings):
        fix = f"write each without: {' '.join(settings)}"
        return Problem.of_word(word, text="is several settings in one pair of quotes", fix=fix)
    if value.lstrip()[:1] in ("[", "{"):
        return _unreadable_items(word)
    right = f"{key}={quoted(value)}"
    as_it_stands = f"{key}='{value}'"  # in which ${...} keeps its meaning
    if "${" in value and _parsed(as_it_stands):
        right = as_it_stands
    fix = f"put a value with special characters in quotes of its own: {shell_word(right)}"
    return Problem.of_word(word, text="cannot be read", fix=fix)


def _unreadable_items(word: str) -> Problem:
    """Return the problem of a list or dictionary that Hydra cannot parse; quoting all of it would make it a text."""
    key, _, value = word.partition("=")
    try:
        right = f"{key}={_with_items_quoted(value.strip())}"
    except ValueError:
        return Problem.of_word(word, text="cannot be read: its brackets do not match", fix="close each bracket")
    if _parsed(right):
        text, fix = "items with special characters need quotes", f"write {shell_word(right)}"
    else:
        text, fix = "a name before a colon has quotes or special characters", "use letters, digits, _ and dots"
    return Problem.of_word(word, text=f"cannot be read: {text}", fix=fix)


def _with_items_quoted(value: str) -> str:
    """Return a list or a dictionary with quotes around each item that Hydra cannot read without them.

    Raises:
        ValueError: A bracket is not closed, or was not opened.
    """
    if value[:1] in CLOSING:
        if not value.endswith(CLOSING[value[0]]):
            raise ValueError(value)
        items = _items(value[1:-1])
        if value[0] == "[":
            return f"[{', '.join(map(_with_items_quoted, items))}]"
        entries = []
        for item in items:
            name, colon, setting = item.partition(":")
            entries.append(f"{name.rstrip()}{colon} {_with_items_quoted(setting.strip())}")
        return "{" + ", ".join(entries) + "}"
    if _parsed(f"key=[{value}]"):
        return value
    if '"' in value or "\\" in value:
        return quoted(value)
    return f'"{value}"'


def _items(text: str) -> list[str]:
    """Split at commas outside of brackets and of quotes at the beginning of an item."""
    items, start, position, depth = [], 0, 0, 0
    while position < len(text):
        begins = text[:position].rstrip()[-1:] in ("", *"[{,:")
        if begins and (found := QUOTED.match(text, position)):
            position = found.end()
            continue
        if text[position] in CLOSING:
            depth += 1
        elif text[position] in CLOSING.values():
            depth -= 1
        elif text[position] == "," and depth == 0:
            items.append(text[start:position].strip())
            start = position + 1
        if depth < 0:
            raise ValueError(text)
        position += 1
    if depth:
        raise ValueError(text)
    if last := text[start:].strip():
        items.append(last)
    return items


def _parsed(word: str) -> Override | None:
    """Return an override as Hydra reads it; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _check_launcher(word: str, name: object) -> Problem | None:
    plugin = LAUNCHERS.get(str(name))
    if plugin is not None and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        text = f"{plugin.replace('_', '-')} is not installed"
        return Problem.of_word(word, text=text, fix=install_line("sweep"))
    if str(name).startswith("submitit") and not hasattr(signal, "SIGCONT"):  # submitit handles it in every job
        fix = "leave it out, or use hydra/launcher=joblib"
        return Problem.of_word(word, text="does not run on Windows", fix=fix)
    if name == "submitit_slurm" and shutil.which("srun") is None:
        fix = "start it where SLURM is, or use hydra/launcher=submitit_local"
        return Problem.of_word(word, text="there is no srun here", fix=fix)
    return None


def _is_hydras_own(key: str) -> bool:
    return key.split(".")[0].split("/")[0] == "hydra" and not key.startswith(FREE_HYDRA_KEYS)


def _check_option(override: Override, folders: Sequence[Path]) -> Problem | None:
    group, options = override.key_or_group, options_of(override.key_or_group, folders)
    about = partial(Problem.of_word, str(override.input_line))
    if override.is_delete():
        return None
    if group.startswith("hydra/"):  # Hydra has its own options, and reports missing ones itself
        if override.value() is None:
            return about(text="is not an option", fix="leave it out")
        return None
    if not options:
        return None
    if not override.is_sweep_override():
        chosen = override.value()
    elif isinstance(override.value(), ChoiceSweep):
        chosen = list(override.sweep_iterator())
    else:
        return about(text="write the options one by one", fix=f"{group}={','.join(options[:3])}")
    if not isinstance(chosen, list):
        chosen = [chosen]
    if group in MAY_BE_NULL and chosen == [None]:
        return None
    if not all(isinstance(option, str) for option in chosen):
        if any(str(option) in options for option in chosen):
            fix = "rename the YAML so that its name begins with a letter"
            return about(text="is read as a number", fix=fix)
        return about(text=f"choose an option of {group}", fix=", ".join(options))
    for option in chosen:
        if any((folder / group / f"{option}.yml").is_file() for folder in folders):
            return about(text="its file ends with .yml, which Hydra does not read", fix="rename it to .yaml")
    for option in chosen:
        if option not in options:
            return missing_option(group, option, options)
    return None


def quote_text(override: str, *, in_sweep: bool = False) -> str:
    """Return an override with quotes around text, so that Hydra reads it as typed.

    Args:
        override: As typed.
        in_sweep: Whether commas separate the values of several jobs.
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if not equals or key.startswith("~"):
        return override
    if name in PLAIN_TEXT_KEYS:
        return f"{key}={quoted(value)}"
    is_text = name in TEXT_KEYS or name.startswith(TEXT_BELOW)
    is_hydras = value in ("", "null", "???") or "${" in value or (in_sweep and SWEEP_FUNCTION.fullmatch(value))
    if is_hydras or not (is_text or name in LIST_KEYS):
        return override
    quote = _quoted_list
    if is_text:
        quote = _quoted_text
    if not in_sweep or name == "hydra.sweep.dir":
        return f"{key}={quote(value)}"
    return f"{key}={','.join(map(quote, _parted(value)))}"


def _quoted_text(value: str) -> str:
    if value[:1] in ("'", '"', "") or value == "null":
        return value
    return quoted(value)


def _quoted_list(value: str) -> str:
    if not (value.startswith("[") and value.endswith("]")) or is_there(value):
        return f"[{_quoted_text(value)}]"
    return f"[{','.join(map(_quoted_text, _parted(value[1:-1])))}]"


def _parted(value: str) -> list[str]:
    """Split at commas, except within an existing path without quotes; the longest such path counts."""
    pieces = list(map(str.strip, _pieces(value)))
    parts, first = [], 0
    while first < len(pieces):
        end = min(len(pieces), first + MOST_COMMAS)
        while end > first + 1 and not is_there(",".join(pieces[first:end])):
            end -= 1
        if part := ",".join(pieces[first:end]):
            parts.append(part)
        first = end
    return parts


def _pieces(value: str) -> list[str]:
    """Split at commas outside of quotes and brackets."""
    pieces, start, position, depth = [], 0, 0, 0
    while position < len(value):
        begins = not value[start:position].strip(" [")
        if begins and (found := QUOTED.match(value, position)):
            position = found.end()
            continue
        depth += {"[": 1, "]": -1}.get(value[position], 0)
        if value[position] == "," and (depth <= 0 or "]" not in value[position:]):
            pieces.append(value[start:position])
            start, depth = position + 1, 0
        position += 1
    return [*pieces, value[start:]]


def is_there(path: str) -> bool:
    """Return whether a text is an existing path."""
    try:
        return bool(path) and home_path(path).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _let_pass(override: str, folders: Sequence[Path]) -> str:
    key, equals, value = override.partition("=")
    if key in MAY_BE_NULL and value == "null":
        return f"~{key}"  # Hydra does not accept null for a group
    is_group = any((folder / key).is_dir() for folder in folders)
    if not equals or not key or key[0] in "+~" or "@" in key or key.startswith("hydra") or is_group:
        return override
    return "++" + override


def key_of(override: str) -> str:
    """Return `model.hidden_size` of `++model.hidden_size=3`."""
    return override.lstrip("+~").partition("=")[0]


def as_typed(override: str) -> str:
    """Return an override that Hydra wrote for a sweep's job as a person would type it: text without escapes."""
    parsed = OverridesParser.create().parse_override(override)
    key, value = parsed.key_or_group, parsed.value()
    if key not in TEXT_KEYS or not isinstance(value, str) or "${" in value:  # ${...} keeps its escapes
        return override.removeprefix("++")
    plain = f"{key}={value}"
    if quote_text(plain) == plain:  # Hydra would read it as something else
        return f"{key}={quoted(value)}"
    return plain


# The name of earlier versions.
override_problems = check_overrides
