"""Turn errors of Hydra, OmegaConf and PyYAML into short messages that say what to do."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samout_train.config.signature import nearest, shown
from samout_train.config.yaml_files import line_of, options_of, short_path

LONGEST_LINE = 300
TYPES = {"Integer": "a whole number", "Boolean": "true or false", "Float": "a number"}


def in_few_words(error: Exception, folders: Sequence[Path]) -> str:
    """Return one line for what went wrong while YAML and overrides were composed.

    Args:
        error: What was raised.
        folders: Where YAML is looked for.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{short_path(mark.name)} line {mark.line + 1}, column {mark.column + 1}: {_yaml_problem(error)}"
    if key := re.search(r"Key '(.+?)' not in '\w+'", str(error)):
        return _unknown_key(error, key[1])
    if wrong := re.search(r"Value (.+?) of type '.+?' could not be converted to (\w+)", str(error)):
        return f"{_key_in(error)}={wrong[1]}: must be {TYPES.get(wrong[2], wrong[2])}"
    if "Recursive interpolation detected" in str(error):
        key_there = _key_in(error)
        return f"{key_there}: its ${{...}} leads back to {key_there} itself: write a value in place of one of them"
    if merged := re.search(r"Error merging override \+*(.+)", str(error)):
        return f"{merged[1]}: cannot take the place of what is there, a list or settings: write the keys below it"
    if isinstance(error, RecursionError):
        return "YAML files name each other in their defaults without end: look at those that were added last"
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(folders) or str(error)
    if getattr(error, "missing_cfg_file", None):
        return _missing_file(error, folders)
    text = str(error)
    if deleted := re.search(r"Could not delete from config\. '(.+?)' does not exist", text):
        return f"~{deleted[1]}: there is no such key to take out"
    if repeated := re.search(r"Multiple values for (\S+)\. To override a value use 'override (\S+): (\S+)'", text):
        return f"+{repeated[1]}={repeated[3]}: {repeated[1]} is chosen already: write {repeated[1]}={repeated[3]}"
    if key := re.search(r"Interpolation key '(.+?)' not found", text):
        return f"{_full_key(error)}${{{key[1]}}} names a key that is not there: {_literally(key[1])}"
    if environment := re.search(r"Environment variable '(.+?)' not found", text):
        return f"{_full_key(error)}the environment variable {environment[1]} is not set"
    if resolver := re.search(r"Unsupported interpolation type (\S+)", text):
        inner = f"{resolver[1]}:..."
        return f"{_full_key(error)}${{{inner}}} is no interpolation that there is: {_literally(inner)}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "https://hydra.cc" not in line]
    return (_full_key(error) + "; ".join(lines))[:LONGEST_LINE] or type(error).__name__


def chosen_twice(error: Exception) -> str | None:
    """Return the group that two YAML files choose an option of, where an error says so."""
    found = re.search(r"Multiple values for (\S+)\. To override|^(\S+) appears more than once in the", str(error))
    return found[1] or found[2] if found else None


def is_of_kinds(error: Exception) -> bool:
    """Return whether a list met settings, which Hydra says without a place, or not at all."""
    says_nothing = type(error).__name__ == "ConfigCompositionException" and not str(error)
    return says_nothing or re.search("Cannot merge|Merge error", str(error)) is not None


def below_list(error: Exception, overrides: Sequence[str]) -> str | None:
    """Return which override names a key below a list, where an error is of that; Hydra says what is no number only."""
    found = re.search(r"invalid literal for int\(\) with base 10: '(\w+)'", str(error))
    for word in overrides if found else ():
        outer, ends, _ = word.lstrip("+").partition("=")[0].partition(f".{found[1]}" if found else "")
        if ends:
            return f"{word}: {outer} is a list: write all of it, {outer}=[...]"
    return None


def wrong_kind(key: str, value: Any, replaced: Any, place: str) -> str:
    """Return the message that a file has a list where settings stand, or the other way round.

    Args:
        key: Of the value.
        value: What the file says.
        replaced: What it would take the place of; None for a group.
        place: File and line.
    """
    if isinstance(replaced, list):
        return f"{key}={shown(value)}: must be a list such as {shown(replaced)} ({place})"
    if "." in key or key == "hydra":
        return f"{key}={shown(value)}: must be settings, `key: value`, one a line below it ({place})"
    return f"{no_node(key, value)} ({place})"


def _literally(inner: str) -> str:
    return rf"where the text itself is meant, write \${{{inner}}}, in quotes of Hydra's: '\${{{inner}}}'"


def missing_option(group: str, option: str, options: Sequence[str]) -> str:
    """Return the message that a group has no such option."""
    if option.endswith((".yaml", ".yml")) and (name := Path(option).stem) in options:
        return f"{group}={option}: no such option; leave the file's folder and ending out: {group}={name}"
    return f"{group}={option}: no such option; {nearest(option, sorted(options), prefix=f'{group}=')}"


def no_node(path: str, value: Any) -> str:
    """Return the message that a key of a group, or a part of one, has a value in place of settings."""
    if "." in path:
        return f"{path}={shown(value)}: must be settings with a _target_, one a line below it"
    name = value if isinstance(value, str) and value else "NAME"
    choose = f"to choose an option, write `- override /{path}: {name}` under `defaults:`"
    return f"{path}={shown(value)}: must be settings, one a line below it; {choose}"


def _missing_file(error: Any, folders: Sequence[Path]) -> str:
    """Return the message about a YAML that another one, or the command line, names."""
    missing = str(error.missing_cfg_file).removesuffix(".yaml")
    group, _, option = missing.rpartition("/")
    named_in = re.match(r"In '(.+?)':", str(error))
    top, _, below = missing.partition("/")
    if top != "hydra" and (own := options_of(top, folders)):
        group, option, options = top, below, own
    else:
        options = options_of(group, folders)
    if not below:
        option = missing
    if not group or not below:
        return f"--config-name {option}: there is no {option}.yaml; {nearest(option, options_of('.', folders))}"
    if named_in is None or named_in[1] in ("config", "hydra/config"):
        return missing_option(group, option, sorted({*options, *(error.options or ())}))
    where = next((path for folder in folders if (path := folder / f"{named_in[1]}.yaml").is_file()), None)
    line = line_of(where, option) if where else None
    self_meant = "did you mean _self_?" if option.strip("_").lower() in ("self", "slef") else None
    shown = f"{short_path(where or named_in[1])}{f' line {line}' if line else ''}"
    return f"{shown}: its defaults name {missing}, which is not there; {self_meant or nearest(option, options)}"


def _yaml_problem(error: Any) -> str:
    words = str(error.problem)
    if "\\t" in words:
        words = "a tab, where YAML takes spaces only"
    context = f" {error.context}" if error.context and "mapping" not in error.context else ""
    return words + context


def _not_utf8(folders: Sequence[Path]) -> str | None:
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            return f"{short_path(path)} line {line}: is no UTF-8 at byte {error.start} (0x{content[error.start]:02x})"
    return None


def _unknown_key(error: Exception, name: str) -> str:
    """Return the message about a key below `hydra`, whose keys are those of dataclasses."""
    kind = getattr(error.__cause__ or error.__context__ or error, "object_type", None)
    key = _key_in(error) or name
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    prefix = key[: -len(name)] if key.endswith(name) else ""
    return f"{key}: no such key; {nearest(name, known, prefix=prefix)}"


def _key_in(error: Exception) -> str:
    """Return the key that an error is of; what Hydra raises has it in its text only."""
    found = re.search(r"full_key: (\S+)", str(error))
    return str(getattr(error, "full_key", None) or (found[1] if found else ""))


def _full_key(error: Any) -> str:
    key = getattr(error, "full_key", None)
    return f"{key}: " if key else ""
