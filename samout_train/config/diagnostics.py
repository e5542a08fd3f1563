"""Turn errors of Hydra, OmegaConf and PyYAML into problems that say what to do.

Only this module parses their messages, because the errors of these libraries have no fields.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samout_train.config.problem import Place, Problem, shown
from samout_train.config.signature import nearest
from samout_train.config.yaml_files import line_of, options_of

LONGEST_LINE = 300
INFO = "all, config, defaults, defaults-tree, plugins, searchpath"
TYPES = {"Integer": "a whole number", "Boolean": "true or false", "Float": "a number"}


def in_few_words(error: Exception, folders: Sequence[Path]) -> Problem:
    """Return the problem behind an error that composing YAML and overrides raised.

    Args:
        error: Raised by Hydra, OmegaConf or PyYAML.
        folders: Folders of YAML files.
    """
    text = str(error)
    if (mark := getattr(error, "problem_mark", None)) is not None:
        place = Place(Path(mark.name), mark.line + 1, mark.column + 1)
        return Problem(text=_yaml_problem(error), where=place)
    if isinstance(error, RecursionError):
        recursion = "YAML files include each other in a circle"
        return Problem(text=recursion, fix="look at those that were added last")
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(folders) or Problem(text=text)
    if getattr(error, "missing_cfg_file", None):
        return _missing_file(error, folders)
    return _of_key(error) or _of_interpolation(error) or Problem(_full_key(error), text=_shortened(error))


def _of_key(error: Exception) -> Problem | None:
    """Return the problem of a key that an error names; None for other errors."""
    text = str(error)
    if key := re.search(r"Key '(.+?)' not in '\w+'", text):
        return _unknown_key(error, key[1])
    if wrong := re.search(r"Value (.+?) of type '.+?' could not be converted to (\w+)", text):
        return Problem(_key_in(error), wrong[1], text=f"must be {TYPES.get(wrong[2], wrong[2])}", kind="value")
    if "Recursive interpolation detected" in text:
        name = _key_in(error)
        what = f"its ${{...}} leads back to {name} itself"
        return Problem(name, text=what, fix="write a value in place of one of them", kind="value")
    if merged := re.search(r"Error merging override \+*(.+)", text):
        what = "cannot take the place of what is there, a list or settings"
        return Problem.of_word(merged[1], text=what, fix="write the keys below it")
    if deleted := re.search(r"Could not delete from config\. '(.+?)' does not exist", text):
        return Problem(f"~{deleted[1]}", text="there is no such key to delete")
    if repeated := re.search(r"Multiple values for (\S+)\. To override a value use 'override (\S+): (\S+)'", text):
        group, _, option = repeated.groups()
        return Problem(f"+{group}", option, text=f"{group} is chosen already", fix=f"write {group}={option}")
    return None


def _of_interpolation(error: Exception) -> Problem | None:
    """Return the problem of an interpolation `${...}`; None for other errors."""
    text, key = str(error), _full_key(error)
    if name := re.search(r"Interpolation key '(.+?)' not found", text):
        what = f"${{{name[1]}}} names a key that is not there"
        return Problem(key, text=what, fix=_literally(name[1]), kind="value")
    if environment := re.search(r"Environment variable '(.+?)' not found", text):
        return Problem(key, text=f"the environment variable {environment[1]} is not set", kind="value")
    if resolver := re.search(r"Unsupported interpolation type (\S+)", text):
        inner = f"{resolver[1]}:..."
        what = f"${{{inner}}} is not a known interpolation"
        return Problem(key, text=what, fix=_literally(inner), kind="value")
    return None


def _shortened(error: Exception) -> str:
    """Return the text of an unknown error in one line of at most LONGEST_LINE characters."""
    lines = []
    for line in map(str.strip, str(error).splitlines()):
        if line and "https://hydra.cc" not in line:
            lines.append(line)
    return "; ".join(lines)[:LONGEST_LINE] or type(error).__name__


def wrong_flag(message: str, words: Sequence[str], flags: Sequence[str]) -> Problem:
    """Return the problem that argparse reports.

    Args:
        message: The message of argparse.
        words: The command line after the verb.
        flags: The known flags.
    """
    if value := re.match(r"argument --info/-i: invalid choice: '(.+?)'", message):
        return Problem(f"--info {value[1]}", text="--info stands last, or has one of these behind it", fix=INFO)
    for word in words:
        if word.startswith("-") and f": {word}" in message:
            text = f"no such option; {nearest(word, flags)}; settings have the form key=value"
            return Problem(word, text=text)
    return Problem(text=message)


def chosen_twice(error: Exception) -> str | None:
    """Return the group for which two YAML files choose an option, if an error reports that."""
    found = re.search(r"Multiple values for (\S+)\. To override|^(\S+) appears more than once in the", str(error))
    if found is None:
        return None
    return found[1] or found[2]


def is_of_kinds(error: Exception) -> bool:
    """Return whether a list was merged with settings; Hydra's error has no place, and sometimes no text."""
    says_nothing = type(error).__name__ == "ConfigCompositionException" and not str(error)
    return says_nothing or re.search("Cannot merge|Merge error", str(error)) is not None


def below_list(error: Exception, overrides: Sequence[str]) -> Problem | None:
    """Return the problem of an override below a list; Hydra's error names only the part that is not a number."""
    found = re.search(r"invalid literal for int\(\) with base 10: '(\w+)'", str(error))
    if found is None:
        return None
    for word in overrides:
        outer, ends, _ = word.partition("=")[0].lstrip("+").partition(f".{found[1]}")
        if ends:
            return Problem.of_word(word, text=f"{outer} is a list", fix=f"write all of it, {outer}=[...]")
    return None


def wrong_kind(key: str, value: Any, replaced: Any, place: Place) -> Problem:
    """Return the problem of a file that has a list in place of settings, or settings in place of a list.

    Args:
        key: The key of the value.
        value: The value in the file.
        replaced: The value that it would replace; None for a group.
        place: File and line.
    """
    if isinstance(replaced, list):
        text = f"must be a list such as {shown(replaced)}"
    elif "." in key or key == "hydra":
        text = "must be settings, `key: value`, one a line below it"
    else:
        return dataclasses.replace(no_node(key, value), where=place)
    return Problem(key, shown(value), text=text, where=place, kind="value")


def _literally(inner: str) -> str:
    return rf"to use the text itself, write \${{{inner}}}, in quotes for Hydra: '\${{{inner}}}'"


def missing_option(group: str, option: str, options: Sequence[str]) -> Problem:
    """Return the problem of an option that a group lacks."""
    name = Path(option).stem
    if option.endswith((".yaml", ".yml")) and name in options:
        text = "no such option; leave the file's folder and ending out"
        return Problem(group, option, text=text, fix=f"{group}={name}", kind="option")
    hint = nearest(option, sorted(options), prefix=f"{group}=")
    return Problem(group, option, text=f"no such option; {hint}", kind="option")


def no_node(path: str, value: Any) -> Problem:
    """Return the problem of a plain value for a group, or for a part of one, that needs settings."""
    if "." in path:
        text = "must be settings with a _target_, one a line below it"
        return Problem(path, shown(value), text=text, kind="value")
    name = "NAME"
    if isinstance(value, str) and value:
        name = value
    choose = f"to choose an option, write `- override /{path}: {name}` under `defaults:`"
    text = f"must be settings, one a line below it; {choose}"
    return Problem(path, shown(value), text=text, kind="value")


def _missing_file(error: Any, folders: Sequence[Path]) -> Problem:
    """Return the problem of a missing YAML that another YAML or the command line names."""
    missing = str(error.missing_cfg_file).removesuffix(".yaml")
    group, _, option = missing.rpartition("/")
    named_in = re.match(r"In '(.+?)':", str(error))
    top, _, below = missing.partition("/")
    options = options_of(group, folders)
    if top != "hydra" and (own := options_of(top, folders)):
        group, option, options = top, below, own
    if not below:
        option = missing
    if not group or not below:
        hint = nearest(option, options_of(".", folders))
        return Problem(f"--config-name {option}", text=f"there is no {option}.yaml; {hint}")
    if named_in is None or named_in[1] in ("config", "hydra/config"):
        return missing_option(group, option, sorted({*options, *(error.options or ())}))
    place = Place(Path(named_in[1]))
    for folder in folders:
        path = folder / f"{named_in[1]}.yaml"
        if path.is_file():
            place = Place(path, line_of(path, option))
            break
    hint = nearest(option, options)
    if option.strip("_").lower() in ("self", "slef"):
        hint = "did you mean _self_?"
    return Problem(text=f"its defaults name {missing}, which is not there; {hint}", where=place)


def _yaml_problem(error: Any) -> str:
    words = str(error.problem)
    if "\\t" in words:
        words = "a tab, where YAML takes spaces only"
    if error.context and "mapping" not in error.context:
        words += f" {error.context}"
    return words


def _not_utf8(folders: Sequence[Path]) -> Problem | None:
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            content = path.read_bytes()
            try:
                content.decode()
            except UnicodeDecodeError as error:
                place = Place(path, content.count(b"\n", 0, error.start) + 1)
                text = f"is not UTF-8 at byte {error.start} (0x{content[error.start]:02x})"
                return Problem(text=text, where=place)
    return None


def _unknown_key(error: Exception, name: str) -> Problem:
    """Return the problem of a key below `hydra`, whose keys are those of dataclasses."""
    kind = getattr(error.__cause__ or error.__context__ or error, "object_type", None)
    key = _key_in(error) or name
    known = []
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            known.append(field.name)
    prefix = ""
    if key.endswith(name):
        prefix = key.removesuffix(name)
    return Problem(key, text=f"no such key; {nearest(name, known, prefix=prefix)}", kind="value")


def _key_in(error: Exception) -> str:
    """Return the key of an error; Hydra's errors have it only in their text."""
    found = re.search(r"full_key: (\S+)", str(error))
    key = _full_key(error)
    if found and not key:
        key = found[1]
    return key


def _full_key(error: Any) -> str:
    return str(getattr(error, "full_key", None) or "")
