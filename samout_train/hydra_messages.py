"""What Hydra, OmegaConf and PyYAML say, in the words of a person who has to mend it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samout_train.signatures import nearest
from samout_train.yaml_places import line_of, short_path

LONGEST_LINE = 300


def in_few_words(error: Exception, folders: Sequence[Path]) -> str:
    """One line for what went wrong while YAML and overrides were composed.

    Args:
        error: What was raised.
        folders: Where YAML is looked for.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{short_path(mark.name)} line {mark.line + 1}, column {mark.column + 1}: {_yaml_problem(error)}"
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
    found = re.search(r"Multiple values for (\S+)\. To override", str(error))
    return found[1] if found else None


def _literally(inner: str) -> str:
    return rf"where the text itself is meant, write \${{{inner}}}, in quotes of Hydra's: '\${{{inner}}}'"


def missing_option(group: str, option: str, options: Sequence[str]) -> str:
    """That a group has no such option."""
    return f"{group}={option}: no such option; {nearest(option, sorted(options), prefix=f'{group}=')}"


def options_of(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the options of a group, such as `v1` and `v8` of `model`, and `deep/mini` in a subfolder of it."""
    files = [
        (path, folder / group)
        for folder in folders
        for path in (folder / group).glob("*.yaml" if group == "." else "**/*.yaml")
    ]
    return sorted({path.relative_to(top).with_suffix("").as_posix() for path, top in files if path.is_file()})


def _missing_file(error: Any, folders: Sequence[Path]) -> str:
    """A YAML that another one, or the command line, names."""
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
    shown = f"{short_path(where or named_in[1])}{f' line {line}' if line else ''}"
    return f"{shown}: its defaults name {missing}, which is not there; {nearest(option, options)}"


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


def _full_key(error: Any) -> str:
    key = getattr(error, "full_key", None)
    return f"{key}: " if key else ""
