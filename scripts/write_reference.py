"""Write docs/reference/configuration.md: every key of conf/ with its default, what it accepts, and its comment.

    python scripts/write_reference.py

Defaults and comments come from the YAML files; accepted values come from the signature of the component.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

import yaml

from samout_train.cli.main import VERBS
from samout_train.config import CONF, accepted_by, locate
from samout_train.training.settings import data_settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "configuration.md"
GROUPS = {
    "model": "Models",
    "mixer": "Mixers",
    "data": "Data",
    "optimizer": "Optimizers",
    "schedule": "Schedules",
    "trainer": "Trainer",
    "checkpoint": "Checkpoints",
    "callbacks": "Callbacks",
}
HEAD = """\
# Configuration

Every key with its default, what it accepts, and its meaning. `scripts/write_reference.py` writes this page from `conf/`
and from the signatures of what its files build. A key is set with `key=value`, an option with `group=option`.
"""


def page() -> str:
    return "\n".join([HEAD, *sections()])


def sections() -> Iterator[str]:
    yield "## train\n"
    yield from table(CONF / "config.yaml", "", accepted_by(verb_keys("train")))
    for group, title in GROUPS.items():
        yield f"## {title}\n"
        for path in sorted((CONF / group).glob("*.yaml")):
            prefix, heading = group, f"{group}={path.stem}"
            if group == "mixer":  # a part of a model, and a name in the pattern of a hybrid
                prefix, heading = "model.mixer", f"mixer {path.stem}"
            rows = list(table(path, prefix, {}))
            if rows:
                yield f"### {heading}\n"
                yield from first_comment(path)
                yield from rows
    for name in VERBS:
        if name != "train":
            yield f"## {name}\n"
            yield from table(CONF / f"{name}.yaml", "", accepted_by(verb_keys(name)))
    yield "## Experiments\n"
    yield "| `experiment=` | what it is |\n|---|---|"
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        yield f"| `{path.stem}` | {' '.join(first_comment(path)).strip()} |"
    yield ""


def verb_keys(name: str):
    return getattr(importlib.import_module(f"samout_train.cli.{name}"), name).keys


def first_comment(path: Path) -> Iterator[str]:
    """Yield the comment at the beginning of a file, as one paragraph."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.removeprefix("#").strip())
    if lines:
        yield cell(" ".join(lines)) + "\n"


def table(path: Path, prefix: str, accepted: dict[str, str]) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        return
    rows = list(keys_of(node, text.splitlines(), prefix, accepted))
    if rows:
        yield "| key | default | accepts | meaning |\n|---|---|---|---|"
        yield from rows
        yield ""


def keys_of(node: yaml.MappingNode, lines: list[str], prefix: str, accepted: dict[str, str]) -> Iterator[str]:
    """Yield a row for each key of a mapping and of the mappings in it."""
    for name, value in node.value:
        if name.value == "_target_":
            accepted = accepted_by(locate(value.value))
            if prefix == "data":
                accepted = accepted_by(data_settings) | accepted
    for name, value in node.value:
        key = f"{prefix}.{name.value}" if prefix else name.value
        if name.value in ("_target_", "_partial_", "defaults", "hydra"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from keys_of(value, lines, key, {})
            continue
        start, end = value.start_mark, value.end_mark
        shown = lines[start.line][start.column :]
        if start.line == end.line:
            shown = lines[start.line][start.column : end.column]
        accepts, means = cell(accepted.get(name.value, "")), cell(meaning(lines, name))
        yield f"| `{key}` | `{shown.strip() or 'null'}` | {accepts} | {means} |"


def meaning(lines: list[str], name: yaml.Node) -> str:
    """Return the comment after a key, and the comment lines directly above it."""
    line = name.start_mark.line
    above: list[str] = []
    for earlier in reversed(lines[1:line]):
        if not earlier.strip().startswith("#"):
            break
        above.insert(0, earlier.strip().removeprefix("#").strip())
    behind = lines[line].partition(" # ")[2]
    return " ".join([*above, behind]).strip()


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
