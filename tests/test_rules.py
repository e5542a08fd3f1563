"""What a machine can hold of the design: import rows, late imports, sizes, and that every YAML works."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from samout_train.cli import main, tokenize
from samout_train.config import CONF, compose_config
from samout_train.training import train, trainer_from
from samout_train.training.settings import problems
from tests.support.marks import mostly_nightly

PACKAGE = Path(__file__).resolve().parent.parent / "samout_train"
# A package uses those of upper rows, and none of its own row.
ROWS = [
    ("runtime",),
    ("ops", "config"),
    ("models", "data"),
    ("evaluation", "checkpoint"),
    ("training",),
    ("experiments",),
]
ROWS += [("cli",), ("__init__", "__main__")]
HYDRA_ALLOWED = {"config", "cli"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def top_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def row_of(part: str) -> int:
    return next(index for index, row in enumerate(ROWS) if part in row)


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def of_other_packages(path: Path) -> set[str]:
    """The names of other packages that a file imports, such as `runtime.Clock`."""
    names = [name.removeprefix("samout_train.") for name in imported(path) if name.startswith("samout_train.")]
    return {name for name in names if (PACKAGE / name.split(".")[0]).is_dir() and name.split(".")[0] != top_of(path)}


@pytest.mark.parametrize("package", [package for row in ROWS for package in row])
def test_a_package_uses_those_above_it_alone(package: str) -> None:
    used = {name.split(".")[0] for path in modules() if top_of(path) == package for name in of_other_packages(path)}
    assert {other for other in used if row_of(other) >= row_of(package)} == set()


@pytest.mark.slow
def test_a_package_is_entered_through_its_init() -> None:
    for path in modules():
        for name in of_other_packages(path) - {"cli.main"}:
            *folders, last = name.split(".")
            is_module = (PACKAGE.joinpath(*folders) / f"{last}.py").is_file()
            offered = PACKAGE.joinpath(*folders) / "__init__.pyi"
            is_offered = offered.is_file() and f" as {last}" in offered.read_text("utf-8")
            assert not is_module or is_offered, (
                f"{path} imports the module {name}: import what it needs from its package"
            )


def test_the_package_has_the_parts_that_the_rows_name() -> None:
    assert {top_of(path) for path in modules()} == set().union(*ROWS)


def test_hydra_stays_above() -> None:
    with_hydra = {
        path for path in modules() if {"hydra", "omegaconf"} & {name.split(".")[0] for name in imported(path)}
    }
    assert {path for path in with_hydra if top_of(path) not in HYDRA_ALLOWED} == set()


def test_files_functions_and_docstrings_keep_to_the_budget() -> None:
    assert [problem for path in modules() for problem in over_budget(path)] == []


def test_docstrings_begin_with_a_verb() -> None:
    """None begins with a relative clause instead."""
    docstrings = [
        ast.get_docstring(node) or ""
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
    ]
    assert [text for text in docstrings if text.startswith(("What ", "Whether ", "Where "))] == []


def over_budget(path: Path) -> Iterator[str]:
    """What a file has too much of, or lacks."""
    text = path.read_text(encoding="utf-8")
    if len(text.splitlines()) > 600:
        yield f"{path}: is longer than 600 lines"
    tree = ast.parse(text)
    if not ast.get_docstring(tree):
        yield f"{path}: has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
            yield f"{path}: {node.name} is longer than 60 lines"
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for node in (node for body in bodies for node in body):
        is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if is_public and not ast.get_docstring(node):
            yield f"{path}: {node.name} has no docstring"


VERBS = list(main.VERBS)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]], ids=" ".join)
@pytest.mark.parametrize(
    "verb", [[], *(pytest.param([verb], marks=pytest.mark.nightly) for verb in VERBS)], ids=["none", *VERBS]
)
def test_torch_is_not_imported_for_information(verb: list[str], flags: list[str]) -> None:
    code = (
        "import sys, samout_train\n"
        "from samout_train.cli.main import main\n"
        f"sys.argv = ['samout_train', *{[*verb, *flags]!r}]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.strip() == "False", done.stderr
    of_verb = {"export": "out: null", "inspect": "path: ", "sweep": "action: ", "tokenize": "part_bytes: 64MiB"}
    assert of_verb.get(verb[0] if verb else "", "device: auto") in done.stdout


POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_nothing_of_one_operating_system_only_is_imported() -> None:
    for path in modules():
        assert not POSIX_ONLY & {name.split(".")[0] for name in imported(path)}, path


@pytest.mark.nightly
def test_a_spawned_process_trains_to_the_same_weights(tmp_path: Path) -> None:
    overrides = overrides_for("data", "random", tmp_path / "unused.txt", tmp_path)
    words = [*overrides, "trainer=debug", "trainer.max_steps=2"]
    here, _ = train([*words, f"run_dir={tmp_path / 'here'}"])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there, _ = pool.submit(train, [*words, f"run_dir={tmp_path / 'there'}"]).result(timeout=100)
    assert here["weights_sha256"] == there["weights_sha256"]


def options(group: str) -> list[str]:
    """The options that `train` takes: experiments that are a comparison of models belong to `compare`."""
    files = (CONF / group).glob("*.yaml")
    return sorted(path.stem for path in files if "\ncompare:\n" not in path.read_text("utf-8"))


EVALUATED_ONLY = {"choices"}


def overrides_for(group: str, option: str, text: Path, shared: Path) -> list[str]:
    """A tiny run in which this option is used."""
    jsonl = text.with_suffix(".jsonl")
    if option == "jsonl":
        lines = text.read_text("utf-8").splitlines()
        jsonl.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), "utf-8")
    if option == "chat_small":
        talks = [{"instruction": line, "output": line} for line in text.read_text("utf-8").splitlines()]
        jsonl.write_text("".join(json.dumps(talk) + "\n" for talk in talks), "utf-8")
    if option == "shards" and not (folder := text.with_suffix(".shards")).exists():
        assert tokenize.tokenize([f"path={text}", f"out={folder}", "vocabulary=bytes", "jobs=1"]) == 0
    files = {"text": text, "jsonl": jsonl, "shakespeare": shared / "data" / "tinyshakespeare.txt"}
    splits = text.parent / "splits"
    files |= {"choices": text, "enwik8": text, "text8": text, "wikitext103": splits, "tinystories": splits}
    if files.get(option) == splits:
        splits.mkdir(exist_ok=True)
        for name in ("wiki.train.tokens", "wiki.valid.tokens", "TinyStories-train.txt", "TinyStories-valid.txt"):
            (splits / name).write_bytes(text.read_bytes())
    composed = compose_config([f"{group}={option}"])
    chosen = composed.config
    tiny = ["device=cpu"]
    if option.startswith("hello"):
        return [f"{group}={option}", *tiny]
    sizes = {
        "model": {"hidden_size": 12, "num_layers": 1, "num_heads": 2},
        "data": {"seq_len": 16, "batch_size": 4, "num_test_sequences": 100, "num_sequences": 8},
    }
    if chosen["data"].get("num_pairs", 0) > 4:
        del sizes["data"]["seq_len"]  # a row has four tokens for each pair
    for part, settings in sizes.items():
        tiny += [f"{part}.{key}={size}" for key, size in settings.items() if key in chosen[part]]
    needed = composed.choices["data"]
    path = [f"data.path={files[needed]}"] if needed in files else []
    path += [f"data.paths=[{text.with_suffix('.shards')}]"] if needed == "shards" else []
    return [f"{group}={option}", *tiny, *path]


GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "mixer"))


@pytest.mark.slow
@pytest.mark.parametrize("group", mostly_nightly(GROUPS, set(GROUPS) - {"experiment"}))
def test_every_yaml_composes_and_builds(group: str, small_text: Path, shared: Path) -> None:
    assert options(group)
    for option in options(group):
        if group == "callbacks" and option not in ("default", "early_stopping"):
            continue  # a single callback: a part of these
        composed = compose_config(overrides_for(group, option, small_text, shared))
        if option in EVALUATED_ONLY:
            (problem,) = problems(composed.config)
            assert "evaluated on, not trained on" in str(problem)
            continue
        assert problems(composed.config) == [], option
        assert trainer_from(composed.config).step().isfinite(), option


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    mostly_nightly(options("experiment"), {"hello_cell", "published_v8"}),
)
def test_every_experiment_runs_its_debug_form(option: str, tmp_path: Path, small_text: Path, shared: Path) -> None:
    overrides = [
        *overrides_for("experiment", option, small_text, shared),
        "trainer=debug",
        f"run_dir={tmp_path / 'run'}",
    ]
    summary, _ = train(overrides)
    assert summary["steps"] == 2
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.jsonl", "summary.json", "checkpoints", ".hydra"} <= written
