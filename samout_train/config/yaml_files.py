"""Read the YAML files that settings are composed of: on which line a key stands, and what Hydra would take wrongly."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# A mistake of these kinds is one of the value itself, and not of what it meets elsewhere.
OF_THE_VALUE = (
    *(": no such key", ": must be", ": has no meaning", ": is not set in", ": cannot be imported", ": is no class"),
    *(" names a key that is not there", " is no interpolation", "the environment variable", " leads back to"),
    *(": is text", ": has no _target_", ": is missing: choose"),
)
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
FREE_BELOW = ("roles", "hydra", "defaults", "space")  # names below these may have dots
KEY = re.compile(r"\w[\w.]*")
GLOBAL_PACKAGE = re.compile(r"\A(\s*#.*\n)*\s*#\s*@package\s+_global_")
PACKAGE = re.compile(r"\s*#\s*@package\s+(\S+)")
PLACED = re.compile(r" \(.+ line \d+\)$")
OF_ENVIRONMENT = re.compile(r"\$\{oc\.env:[^{}]*\}")


def with_places(
    mistakes: Sequence[str],
    *,
    overrides: Sequence[str],
    choices: Mapping[str, str | None],
    config_name: str,
    folders: Sequence[Path],
) -> list[str]:
    """Return mistakes with `(FILE line N)` behind those that are in a file and not in what was typed.

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
        place, raw = None, ""
        if key and not _is_typed(mistake, typed) and not PLACED.search(mistake):
            if any(words in mistake for words in OF_THE_VALUE):
                place = _place(key[0].rstrip("."), chosen, config_name, folders)
            elif ": no such option" in mistake:
                place = _place_of_option(mistake.partition(":")[0].partition("=")[2], chosen, config_name, folders)
        if place:
            raw = place[0].read_text(encoding="utf-8", errors="replace").splitlines()[place[1] - 1]
        elif key:
            raw = chosen.get(key[0], "") or ""
        if ": is text: write " in mistake and (variable := OF_ENVIRONMENT.search(raw)):
            decoded = f"${{oc.decode:{variable[0]}}}"
            right = decoded if place else f"'{decoded}', with these quotes"
            mistake = f"{mistake.partition(': write ')[0]}: write {right}"
        found.append(f"{mistake} ({short_path(place[0])} line {place[1]})" if place else mistake)
    return found


def _is_typed(mistake: str, typed: Sequence[str]) -> bool:
    """Return whether a mistake is one of what was typed: in its key, not in what it proposes."""
    key, ends, _ = mistake.partition(": has no _target_")
    if ends:  # of the option, whether that was typed or not
        return f"{key}._target_" in typed
    head = mistake.partition(": ")[0]
    return any(re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", head) for name in typed)


def line_of(path: Path, word: str) -> int | None:
    """Return the first line of a file that has a word in it; None where none has."""
    pattern = re.compile(rf"(?<![\w/]){re.escape(word)}(?![\w/])")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, 1) if pattern.search(line)), None)


def short_path(path: str | Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
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
    for group, path in _files(chosen, config_name, folders):
        text = path.read_text(encoding="utf-8", errors="replace")
        node = _composed(text)
        if node is not None and not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "one text"
            return f"{short_path(path)}: is {kind} and no settings: write them as `key: value`, one a line"
        for name, value in (pair for item in _defaults(path) for pair in _pairs(item)):
            if str(name.value).lstrip("/") == without_override and path.parent != folders[-1]:
                where = f"{short_path(path)} line {name.start_mark.line + 1}"
                right = f"`- override /{without_override}: {value.value}`"
                return f"{where}: its defaults choose {without_override}, which is chosen already: write {right}"
        for number, line in enumerate(text.splitlines(), 1):
            if (package := PACKAGE.match(line)) and _is_like_global(package[1]):
                return f"{short_path(path)} line {number}: there is no package {package[1]}: did you mean _global_?"
        if node is not None and (problem := _key_problem(node)):
            line_number, what = problem
            return f"{short_path(path)} line {line_number}: {what}"
        if found := _circle(group, path, folders):
            return found
    return None


def other_kind(
    chosen: Mapping[str, str | None], *, config_name: str, folders: Sequence[Path]
) -> tuple[str, Any, Any, str] | None:
    """Return the first key of a file that is a list where settings stand in what it joins, or the other way round.

    Args:
        chosen: Options by group.
        config_name: The root YAML.
        folders: As for `yaml_problem`.

    Returns:
        The key, its value, the value that it would replace (None for a whole group), and the place.
    """
    files = sorted(_files(chosen, config_name, folders), key=lambda file: file[0] != "experiment")
    for group, path in files:
        if path.is_relative_to(folders[-1]):  # the program's own are right
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        outer = () if GLOBAL_PACKAGE.match(text) else tuple(filter(None, group.split("/")))
        for parts, name, value in _containers(_composed(text), outer):
            others = [file for _, file in files if file != path]
            replaced = _node_at(parts, others, folders)
            is_group = len(parts) == 1 and any((folder / parts[0]).is_dir() for folder in folders)
            wanted = yaml.MappingNode if is_group else type(replaced)
            if wanted in (yaml.MappingNode, yaml.SequenceNode) and type(value) is not wanted:
                where = f"{short_path(path)} line {name.start_mark.line + 1}"
                return ".".join(parts), _plain(value), None if replaced is None else _plain(replaced), where
    return None


def has_strange_keys(config: Mapping[str, Any], groups: Collection[str] = ()) -> bool:
    """Return whether a composed configuration has keys with dots, or of a misspelt package, or a group that is a list.

    Args:
        config: Or a part of it.
        groups: Those of its keys that are groups.
    """
    for key, value in config.items():
        if DOTTED.fullmatch(str(key)) or (key in groups and isinstance(value, list)) or _is_like_global(str(key)):
            return True
        if key not in FREE_BELOW and isinstance(value, Mapping) and has_strange_keys(value):
            return True
    return False


def options_of(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the options of a group, such as `v1` and `v8` of `model`, and `deep/mini` in a subfolder of it."""
    files = [
        (path, folder / group)
        for folder in folders
        for path in (folder / group).glob("*.yaml" if group == "." else "**/*.yaml")
    ]
    return sorted({path.relative_to(top).with_suffix("").as_posix() for path, top in files if path.is_file()})


def is_empty(path: Path) -> bool:
    """Return whether a file has remarks at the most."""
    return _composed(path.read_text(encoding="utf-8", errors="replace")) is None


def _pairs(item: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(item.value) if isinstance(item, yaml.MappingNode) else []


def _is_like_global(package: str) -> bool:
    """Return whether somebody meant `_global_`."""
    return package != "_global_" and bool(difflib.get_close_matches(package.strip("_").lower(), ["global"], cutoff=0.8))


def _key_problem(node: yaml.Node) -> tuple[int, str] | None:
    """Return the line of the first key of a file that should be nested, or is null, and what is wrong with it."""
    for name, value in _pairs(node):
        line = name.start_mark.line + 1
        if name.tag == "tag:yaml.org,2002:null":
            return line, f"{name.value or 'null'}: is no key: give it a name, or take the line out"
        if DOTTED.fullmatch(str(name.value)):
            *outer, inner = name.value.split(".")
            right = ", below it ".join(f"`{part}:`" for part in (*outer, inner))
            return line, f"{name.value}: YAML takes a key with a dot for one name: nest it: write {right}"
        if name.value not in FREE_BELOW and (found := _key_problem(value)) is not None:
            return found
    return None


def _circle(group: str, path: Path, folders: Sequence[Path]) -> str | None:
    """Return that a file names itself in its defaults, or one that names it."""
    waiting, seen = [path], set[Path]()
    while waiting:
        file = waiting.pop()
        for option in _parents(file):
            parent = _file(group, option, folders)
            if parent == path:
                line = line_of(file, option)
                where = f"{short_path(file)}{f' line {line}' if line else ''}"
                instead = "write `_self_` for the file itself" if file == path else "take one of them out"
                return f"{where}: YAML files name each other in their defaults without end, here {option}: {instead}"
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return None


def _files(chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the root and the files that are chosen, also in the experiment, each with its group and its parents."""
    root, experiment = _file("", config_name, folders), _file("experiment", chosen.get("experiment"), folders)
    choices = {**(_choices(root) if root else {}), **(_choices(experiment) if experiment else {}), **chosen}
    waiting, seen = [("", config_name), *((group, option) for group, option in choices.items() if option)], set[Path]()
    while waiting:
        group, option = waiting.pop(0)
        path = _file(group, option, folders)
        if path is not None and path not in seen:
            seen.add(path)
            yield group, path
            waiting += [(group, parent) for parent in _parents(path)]


def _containers(
    node: yaml.Node | None, outer: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], yaml.Node, yaml.Node]]:
    """Yield the keys of a file whose values are lists or settings, from the outside in: their path, name and value."""
    for name, value in _pairs(node) if node else ():
        is_hydras = not outer and name.value == "hydra"  # where one value is no setting either
        if (is_hydras or not isinstance(value, yaml.ScalarNode)) and name.value != "defaults":
            yield (*outer, str(name.value)), name, value
            yield from _containers(value, (*outer, str(name.value)))


def _node_at(parts: Sequence[str], files: Sequence[Path], folders: Sequence[Path]) -> yaml.Node | None:
    """Return the list or settings under a key in one of these files, or else in another option of its group."""
    options = [path for folder in folders for path in sorted((folder / parts[0]).glob("*.yaml"))]
    for path in (*files, *options):
        is_option = path.parent.name == parts[0]
        node = _composed(path.read_text(encoding="utf-8", errors="replace"))
        for part in parts[1:] if is_option else parts:
            node = next((value for name, value in _pairs(node) if name.value == part), None) if node else None
        if node is not None and not isinstance(node, yaml.ScalarNode):
            return node
    return None


def _plain(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def _file(group: str, option: str | None, folders: Sequence[Path]) -> Path | None:
    return next((file for folder in folders if option and (file := folder / group / f"{option}.yaml").is_file()), None)


def _place_of_option(
    option: str, chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]
) -> tuple[Path, int] | None:
    """Return where the defaults of the experiment, or of the root, name an option that is not there."""
    for path in (_file("experiment", chosen.get("experiment"), folders), _file("", config_name, folders)):
        if path and option in _choices(path).values() and (line := line_of(path, option)):
            return path, line
    return None


def _place(
    key: str, chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]
) -> tuple[Path, int] | None:
    """Return a place such as `mine/model/own.yaml`, 3; what is composed last has priority, so it is searched first."""
    own = "/".join(key.split(".")[:2]) if key.startswith("hydra.") else key.split(".")[0]
    for group in [name for name in ("experiment", own) if chosen.get(name)]:
        waiting, seen = [str(chosen[group])], set[str]()
        while waiting:
            option = waiting.pop(0)
            path = _file(group, option, folders)
            if path is None or option in seen:
                continue
            seen.add(option)
            if line := _line_of_key(path, key, group):
                return path, line
            waiting += _parents(path)
    if key == own and chosen.get("experiment") and (path := _file("experiment", chosen["experiment"], folders)):
        pairs = [pair for item in _defaults(path) for pair in _pairs(item)]
        found = [name for name, _ in pairs if str(name.value).removeprefix("override ").lstrip("/") == key]
        if found:
            return path, found[0].start_mark.line + 1
    root = _file("", config_name, folders)
    line = _line_of_key(root, key, "") if root else None
    return (root, line) if root and line else None


def _line_of_key(path: Path, key: str, group: str) -> int | None:
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = key.split(".")
    line = None
    if group and not GLOBAL_PACKAGE.match(text):
        outer = group.split("/")
        if parts[: len(outer)] != outer:
            return None
        parts = parts[len(outer) :]
        line = None if parts else 1
    node = _composed(text)
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
    """Return options of the same group that a file's defaults name."""
    return [item.value for item in _defaults(path) if isinstance(item, yaml.ScalarNode)]


def _choices(path: Path) -> dict[str, str | None]:
    """Return options of other groups that a file's defaults name: `own` for `override /model: own`."""
    pairs = [pair for item in _defaults(path) if isinstance(item, yaml.MappingNode) for pair in item.value]
    return {str(name.value).removeprefix("override ").lstrip("/"): str(value.value) for name, value in pairs}


def _composed(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
