"""Where in YAML a key stands, so that a mistake that is in a file is told with the file and its line."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# A mistake of these kinds is one of the value itself, and not of what it meets elsewhere.
OF_THE_VALUE = (
    *(": no such key", ": must be", ": has no meaning", ": is not set in", ": cannot be imported", ": is no class"),
    *(" names a key that is not there", " is no interpolation", "the environment variable"),
)
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
FREE_BELOW = ("roles", "hydra", "defaults", "space")  # names below these may have dots
KEY = re.compile(r"[A-Za-z_][\w.]*")
GLOBAL_PACKAGE = re.compile(r"\A(\s*#.*\n)*\s*#\s*@package\s+_global_")


def with_places(
    mistakes: Sequence[str],
    *,
    overrides: Sequence[str],
    choices: Mapping[str, str | None],
    config_name: str,
    folders: Sequence[Path],
) -> list[str]:
    """Mistakes with `(FILE line N)` behind those that are in a file and not in what was typed.

    Args:
        mistakes: Texts that begin with a key.
        overrides: What was typed.
        choices: The chosen option of each group, as far as it is known.
        config_name: The root YAML.
        folders: Where YAML is looked for; an earlier one stands before a later one.
    """
    typed = [word.lstrip("+~").partition("=")[0] for word in overrides]
    chosen: dict[str, str | None] = {key: word.partition("=")[2] for key, word in zip(typed, overrides, strict=True)}
    for path in (_file("experiment", chosen.get("experiment"), folders), _file("", config_name, folders)):
        chosen = {**(_choices(path) if path else {}), **choices, **chosen}
    found = []
    for mistake in mistakes:
        key = KEY.match(mistake)
        place = None
        if key and not any(re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", mistake) for name in typed):
            if any(words in mistake for words in OF_THE_VALUE):
                place = _place(key[0].rstrip("."), chosen, config_name, folders)
            elif ": no such option" in mistake:
                place = _place_of_option(mistake.partition(":")[0].partition("=")[2], chosen, config_name, folders)
        found.append(f"{mistake} ({place})" if place else mistake)
    return found


def line_of(path: Path, word: str) -> int | None:
    """The first line of a file that has a word in it; None where none has."""
    pattern = re.compile(rf"(?<![\w/]){re.escape(word)}(?![\w/])")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, 1) if pattern.search(line)), None)


def short_path(path: str | Path) -> str:
    """Relative to the working directory where it lies below it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def yaml_problem(
    chosen: Mapping[str, str | None], *, config_name: str, folders: Sequence[Path], without_override: str | None = None
) -> str | None:
    """Return what is wrong with the YAML files that were chosen which Hydra takes otherwise, or says of nothing.

    Args:
        chosen: Options by group.
        config_name: The root YAML.
        folders: Where YAML is looked for; an earlier one stands before a later one, the program's own is the last.
        without_override: A group that Hydra was given twice: the file is looked for that means to choose it anew.
    """
    files = [_file("", config_name, folders), *(_file(group, option, folders) for group, option in chosen.items())]
    for path in [file for file in files if file]:
        node = _composed(path.read_text(encoding="utf-8", errors="replace"))
        if node is not None and not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "one text"
            return f"{short_path(path)}: is {kind} and no settings: write them as `key: value`, one a line"
        for name, value in (pair for item in _defaults(path) for pair in _pairs(item)):
            if str(name.value).lstrip("/") == without_override and path.parent != folders[-1]:
                where = f"{short_path(path)} line {name.start_mark.line + 1}"
                right = f"`- override /{without_override}: {value.value}`"
                return f"{where}: its defaults choose {without_override}, which is chosen already: write {right}"
        if node is not None and (key := _dotted(node)) is not None:
            *outer, inner = key.value.split(".")
            right = ", below it ".join(f"`{name}:`" for name in (*outer, inner))
            where = f"{short_path(path)} line {key.start_mark.line + 1}"
            return f"{where}: {key.value}: YAML takes a key with a dot for one name: nest it: write {right}"
    return None


def has_strange_keys(config: Mapping[str, Any], groups: Collection[str] = ()) -> bool:
    """Return whether a composed configuration has keys with dots, or a group that is a list.

    Args:
        config: Or a part of it.
        groups: Those of its keys that are groups.
    """
    for key, value in config.items():
        if DOTTED.fullmatch(str(key)) or (key in groups and isinstance(value, list)):
            return True
        if key not in FREE_BELOW and isinstance(value, Mapping) and has_strange_keys(value):
            return True
    return False


def _pairs(item: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(item.value) if isinstance(item, yaml.MappingNode) else []


def _dotted(node: yaml.Node) -> yaml.Node | None:
    """The first key of a file that should be nested."""
    for name, value in _pairs(node):
        if DOTTED.fullmatch(str(name.value)):
            return name
        if name.value not in FREE_BELOW and (found := _dotted(value)) is not None:
            return found
    return None


def _file(group: str, option: str | None, folders: Sequence[Path]) -> Path | None:
    return next((file for folder in folders if option and (file := folder / group / f"{option}.yaml").is_file()), None)


def _place_of_option(
    option: str, chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]
) -> str | None:
    """Where the defaults of the experiment, or of the root, name an option that is not there."""
    for path in (_file("experiment", chosen.get("experiment"), folders), _file("", config_name, folders)):
        if path and option in _choices(path).values() and (line := line_of(path, option)):
            return f"{short_path(path)} line {line}"
    return None


def _place(key: str, chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]) -> str | None:
    """`mine/model/own.yaml line 3`: what is composed last has the last word, so it is looked at first."""
    groups = [name for name in ("experiment", key.split(".")[0]) if chosen.get(name)]
    for group in groups:
        waiting, seen = [str(chosen[group])], set[str]()
        while waiting:
            option = waiting.pop(0)
            path = _file(group, option, folders)
            if path is None or option in seen:
                continue
            seen.add(option)
            if line := _line_of_key(path, key, group):
                return f"{short_path(path)} line {line}"
            waiting += _parents(path)
    root = _file("", config_name, folders)
    line = _line_of_key(root, key, "") if root else None
    return f"{short_path(root)} line {line}" if root and line else None


def _line_of_key(path: Path, key: str, group: str) -> int | None:
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = key.split(".")
    if group and not GLOBAL_PACKAGE.match(text):
        if parts[0] != group:
            return None
        parts = parts[1:]
    node, line = _composed(text), None
    for part in parts:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, value) for name, value in entries if name.value == part), None)
        if found is None:
            return None
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _defaults(path: Path) -> list[yaml.Node]:
    node = _composed(path.read_text(encoding="utf-8", errors="replace"))
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    lists = [value for name, value in entries if name.value == "defaults" and isinstance(value, yaml.SequenceNode)]
    return [item for found in lists for item in found.value]


def _parents(path: Path) -> list[str]:
    """Options of the same group that a file's defaults name."""
    return [item.value for item in _defaults(path) if isinstance(item, yaml.ScalarNode)]


def _choices(path: Path) -> dict[str, str | None]:
    """Options of other groups that a file's defaults name: `own` for `override /model: own`."""
    pairs = [pair for item in _defaults(path) if isinstance(item, yaml.MappingNode) for pair in item.value]
    return {str(name.value).removeprefix("override ").lstrip("/"): str(value.value) for name, value in pairs}


def _composed(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
