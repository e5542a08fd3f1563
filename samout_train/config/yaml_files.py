"""Read the YAML files of a configuration: find the line of a key, and mistakes that Hydra misreads or cannot place."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from samout_train.config.problem import Place, Problem

# Kinds of problems that a file causes by its own content.
OF_THE_VALUE = ("value", "text", "target", "unchosen")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
FREE_BELOW = ("roles", "hydra", "defaults", "space")  # names below these may have dots
GLOBAL_PACKAGE = re.compile(r"\A(\s*#.*\n)*\s*#\s*@package\s+_global_")
PACKAGE = re.compile(r"\s*#\s*@package\s+(\S+)")
OF_ENVIRONMENT = re.compile(r"\$\{oc\.env:[^{}]*\}")


def with_places(
    problems: Sequence[Problem],
    *,
    overrides: Sequence[str],
    choices: Mapping[str, str | None],
    config_name: str,
    folders: Sequence[Path],
) -> list[Problem]:
    """Return problems, with the place of each that comes from a file and was not typed.

    Args:
        problems: Of composed settings, or of composing them.
        overrides: As typed.
        choices: The chosen option of each group, as far as known.
        config_name: The root YAML.
        folders: Folders of YAML files, the first one has priority.
    """
    typed: dict[str, str | None] = {}
    for word in overrides:
        key, _, value = word.partition("=")
        typed[key.lstrip("+~")] = value
    chosen = typed
    for path in (_file("experiment", typed.get("experiment"), folders), _file("", config_name, folders)):
        named: dict[str, str | None] = {}
        if path:
            named = _choices(path)
        chosen = {**named, **choices, **chosen}
    found = []
    for problem in problems:
        place = None
        if problem.where is None and problem.key and not _is_typed(problem, typed):
            place = _place_of(problem, chosen, config_name, folders)
        if problem.kind == "text":
            problem = replace(problem, fix=_decoded(problem, place, chosen) or problem.fix)
        if place:
            problem = replace(problem, where=place)
        found.append(problem)
    return found


def _place_of(
    problem: Problem, chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]
) -> Place | None:
    """Return where a file sets the key of a problem; None if no file does."""
    if problem.kind in OF_THE_VALUE:
        return _place(problem.key, chosen, config_name, folders)
    if problem.kind == "option" and problem.value is not None:
        return _place_of_option(problem.value, chosen, config_name, folders)
    return None


def _decoded(problem: Problem, place: Place | None, chosen: Mapping[str, str | None]) -> str | None:
    """Return what to write for text from an environment variable; None for other text."""
    raw = chosen.get(problem.key) or ""
    if place and place.line:
        raw = place.path.read_text(encoding="utf-8", errors="replace").splitlines()[place.line - 1]
    variable = OF_ENVIRONMENT.search(raw)
    if variable is None:
        return None
    if place:
        return f"write ${{oc.decode:{variable[0]}}}"
    return f"write '${{oc.decode:{variable[0]}}}', with these quotes"


def _is_typed(problem: Problem, typed: Collection[str]) -> bool:
    """Return whether the key of a problem was typed."""
    if problem.kind == "target":  # the option sets it, even if the option itself was typed
        return f"{problem.key}._target_" in typed
    return problem.key in typed


def line_of(path: Path, word: str) -> int | None:
    """Return the number of the first line that contains a word, or None."""
    pattern = re.compile(rf"(?<![\w/]){re.escape(word)}(?![\w/])")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, 1) if pattern.search(line)), None)


def yaml_problem(
    chosen: Mapping[str, str | None], *, config_name: str, folders: Sequence[Path], without_override: str | None = None
) -> Problem | None:
    """Return the first mistake in the chosen YAML files that Hydra misreads or does not explain.

    Args:
        chosen: Options by group.
        config_name: The root YAML.
        folders: Folders of YAML files, the first one has priority; the last one is conf/.
        without_override: A group that is chosen twice, to report the file that lacks `override`.
    """
    for group, path in _files(chosen, config_name, folders):
        text = path.read_text(encoding="utf-8", errors="replace")
        node = _composed(text)
        if node is not None and not isinstance(node, yaml.MappingNode):
            kind = "text"
            if isinstance(node, yaml.SequenceNode):
                kind = "a list"
            fix = "write them as `key: value`, one a line"
            return Problem(text=f"is {kind} instead of settings", fix=fix, where=Place(path))
        if without_override and path.parent != folders[-1] and (found := _chosen_again(path, without_override)):
            return found
        for number, line in enumerate(text.splitlines(), 1):
            if (package := PACKAGE.match(line)) and _is_like_global(package[1]):
                what = f"there is no package {package[1]}"
                return Problem(text=what, fix="did you mean _global_?", where=Place(path, number))
        if node is not None and (found := _key_problem(node, path)):
            return found
        if found := _circle(group, path, folders):
            return found
    return None


def _chosen_again(path: Path, group: str) -> Problem | None:
    """Return the problem of a file whose defaults choose a group that is chosen already."""
    for name, value in _named_in_defaults(path):
        if str(name.value).lstrip("/") == group:
            text = f"its defaults choose {group}, which is chosen already"
            fix = f"write `- override /{group}: {value.value}`"
            return Problem(text=text, fix=fix, where=_place_of_node(path, name))
    return None


def other_kind(
    chosen: Mapping[str, str | None], *, config_name: str, folders: Sequence[Path]
) -> tuple[str, Any, Any, Place] | None:
    """Return the first key that is a list in one file and settings in another.

    Args:
        chosen: Options by group.
        config_name: The root YAML.
        folders: As for `yaml_problem`.

    Returns:
        The key, its value, the value that it would replace (None for a whole group), and the place; or None.
    """
    files = sorted(_files(chosen, config_name, folders), key=lambda file: file[0] != "experiment")
    for group, path in files:
        if path.is_relative_to(folders[-1]):  # conf/ itself has no mistakes
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        outer = tuple(filter(None, group.split("/")))
        if GLOBAL_PACKAGE.match(text):
            outer = ()
        others = []
        for _, file in files:
            if file != path:
                others.append(file)
        for parts, name, value in _containers(_composed(text), outer):
            replaced = _node_at(parts, others, folders)
            expected: type = type(replaced)
            if len(parts) == 1 and any((folder / parts[0]).is_dir() for folder in folders):
                expected = yaml.MappingNode
            if expected in (yaml.MappingNode, yaml.SequenceNode) and type(value) is not expected:
                return ".".join(parts), _plain(value), _plain(replaced), _place_of_node(path, name)
    return None


def has_strange_keys(config: Mapping[str, Any], groups: Collection[str] = ()) -> bool:
    """Return whether a configuration has keys with dots, keys of a misspelt package, or a group that is a list.

    Args:
        config: The configuration or a part of it.
        groups: Which of its keys are groups.
    """
    for key, value in config.items():
        if DOTTED.fullmatch(str(key)) or (key in groups and isinstance(value, list)) or _is_like_global(str(key)):
            return True
        if key not in FREE_BELOW and isinstance(value, Mapping) and has_strange_keys(value):
            return True
    return False


def options_of(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the options of a group, such as `v1` and `v8` of `model`, and `deep/mini` in a subfolder of it."""
    pattern = "**/*.yaml"
    if group == ".":
        pattern = "*.yaml"
    found = set()
    for folder in folders:
        for path in (folder / group).glob(pattern):
            if path.is_file():
                found.add(path.relative_to(folder / group).with_suffix("").as_posix())
    return sorted(found)


def is_empty(path: Path) -> bool:
    """Return whether a file contains nothing but comments."""
    return _composed(path.read_text(encoding="utf-8", errors="replace")) is None


def _pairs(item: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    if isinstance(item, yaml.MappingNode):
        return list(item.value)
    return []


def _place_of_node(path: Path, node: yaml.Node) -> Place:
    return Place(path, node.start_mark.line + 1)


def _is_like_global(package: str) -> bool:
    """Return whether a package is a misspelt `_global_`."""
    return package != "_global_" and bool(difflib.get_close_matches(package.strip("_").lower(), ["global"], cutoff=0.8))


def _key_problem(node: yaml.Node, path: Path) -> Problem | None:
    """Return the problem of the first key of a file that should be nested, or is null."""
    for name, value in _pairs(node):
        place = _place_of_node(path, name)
        if name.tag == "tag:yaml.org,2002:null":
            text = f"{name.value or 'null'}: is not a key"
            return Problem(text=text, fix="give it a name, or delete the line", where=place)
        if DOTTED.fullmatch(str(name.value)):
            right = ", below it ".join(f"`{part}:`" for part in name.value.split("."))
            text = f"{name.value}: YAML takes a key with a dot for one name: nest it"
            return Problem(text=text, fix=f"write {right}", where=place)
        if name.value not in FREE_BELOW and (found := _key_problem(value, path)) is not None:
            return found
    return None


def _circle(group: str, path: Path, folders: Sequence[Path]) -> Problem | None:
    """Return the problem of a file whose defaults include it again, directly or through others."""
    waiting, seen = [path], set[Path]()
    while waiting:
        file = waiting.pop()
        for option in _parents(file):
            parent = _file(group, option, folders)
            if parent == path:
                text = f"YAML files include each other in a circle, here {option}"
                fix = "remove one of them"
                if file == path:
                    fix = "write `_self_` for the file itself"
                return Problem(text=text, fix=fix, where=Place(file, line_of(file, option)))
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return None


def _files(chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield group and path of the root and the chosen files, with their parents and those of the experiment."""
    choices: dict[str, str | None] = {}
    for path in (_file("", config_name, folders), _file("experiment", chosen.get("experiment"), folders)):
        if path:
            choices |= _choices(path)
    waiting, seen = [("", config_name)], set[Path]()
    for group, option in (choices | dict(chosen)).items():
        if option:
            waiting.append((group, option))
    while waiting:
        group, option = waiting.pop(0)
        path = _file(group, option, folders)
        if path is not None and path not in seen:
            seen.add(path)
            yield group, path
            for parent in _parents(path):
                waiting.append((group, parent))


def _containers(
    node: yaml.Node | None, outer: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], yaml.Node, yaml.Node]]:
    """Yield path, name and value of each key whose value is a list or settings, from the outside in."""
    for name, value in _pairs(node):
        is_hydras = not outer and name.value == "hydra"  # its values may be plain
        if (is_hydras or not isinstance(value, yaml.ScalarNode)) and name.value != "defaults":
            yield (*outer, str(name.value)), name, value
            yield from _containers(value, (*outer, str(name.value)))


def _node_at(parts: Sequence[str], files: Sequence[Path], folders: Sequence[Path]) -> yaml.Node | None:
    """Return the list or settings under a key in one of these files, or else in another option of its group."""
    options = []
    for folder in folders:
        options += sorted((folder / parts[0]).glob("*.yaml"))
    for path in (*files, *options):
        inner = parts
        if path.parent.name == parts[0]:
            inner = parts[1:]
        node = _composed(path.read_text(encoding="utf-8", errors="replace"))
        for part in inner:
            node = _entry(node, part)[1]
        if node is not None and not isinstance(node, yaml.ScalarNode):
            return node
    return None


def _entry(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | tuple[None, None]:
    """Return the name and the value of a key; None twice if it is missing."""
    for name, value in _pairs(node):
        if name.value == key:
            return name, value
    return None, None


def _plain(node: yaml.Node | None) -> Any:
    if node is None:
        return None
    return yaml.SafeLoader("").construct_document(node)


def _file(group: str, option: str | None, folders: Sequence[Path]) -> Path | None:
    if not option:
        return None
    for folder in folders:
        path = folder / group / f"{option}.yaml"
        if path.is_file():
            return path
    return None


def _place_of_option(
    option: str, chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]
) -> Place | None:
    """Return where the defaults of the experiment or the root name a missing option."""
    for path in (_file("experiment", chosen.get("experiment"), folders), _file("", config_name, folders)):
        if path and option in _choices(path).values() and (line := line_of(path, option)):
            return Place(path, line)
    return None


def _place(key: str, chosen: Mapping[str, str | None], config_name: str, folders: Sequence[Path]) -> Place | None:
    """Return the place that sets a key; files are searched from the last composed to the first."""
    own = key.split(".")[0]
    if key.startswith("hydra."):
        own = "/".join(key.split(".")[:2])
    for group in ("experiment", own):
        if place := _place_in_option(key, group, chosen.get(group), folders):
            return place
    experiment = _file("experiment", chosen.get("experiment"), folders)
    if key == own and experiment:
        for name, _ in _named_in_defaults(experiment):
            if _group_of(name) == key:
                return _place_of_node(experiment, name)
    root = _file("", config_name, folders)
    if root and (line := _line_of_key(root, key, "")):
        return Place(root, line)
    return None


def _place_in_option(key: str, group: str, option: str | None, folders: Sequence[Path]) -> Place | None:
    """Return where the file of an option, or one that its defaults name, sets a key."""
    if not option:
        return None
    waiting, seen = [option], set[str]()
    while waiting:
        option = waiting.pop(0)
        path = _file(group, option, folders)
        if path is None or option in seen:
            continue
        seen.add(option)
        if line := _line_of_key(path, key, group):
            return Place(path, line)
        waiting += _parents(path)
    return None


def _line_of_key(path: Path, key: str, group: str) -> int | None:
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = key.split(".")
    line = None
    if group and not GLOBAL_PACKAGE.match(text):
        outer = group.split("/")
        if parts[: len(outer)] != outer:
            return None
        parts = parts[len(outer) :]
        if not parts:
            return 1
    node = _composed(text)
    for part in parts:
        name, node = _entry(node, part)
        if name is None:
            return None
        line = name.start_mark.line + 1
    return line


def _defaults(path: Path) -> list[yaml.Node]:
    node = _composed(path.read_text(encoding="utf-8", errors="replace"))
    items = []
    for name, value in _pairs(node):
        if name.value == "defaults" and isinstance(value, yaml.SequenceNode):
            items += value.value
    return items


def _parents(path: Path) -> list[str]:
    """Return the options of the same group in a file's defaults."""
    return [item.value for item in _defaults(path) if isinstance(item, yaml.ScalarNode)]


def _named_in_defaults(path: Path) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the groups and options in a file's defaults: `override /model` and `own`."""
    pairs = []
    for item in _defaults(path):
        pairs += _pairs(item)
    return pairs


def _choices(path: Path) -> dict[str, str | None]:
    """Return the options of other groups in a file's defaults: {model: own} for `override /model: own`."""
    choices: dict[str, str | None] = {}
    for name, value in _named_in_defaults(path):
        choices[_group_of(name)] = str(value.value)
    return choices


def _group_of(name: yaml.Node) -> str:
    return str(name.value).removeprefix("override ").lstrip("/")


def _composed(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
