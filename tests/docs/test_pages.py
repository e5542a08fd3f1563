"""Commands, Python and YAML of README and docs: page by page with few steps, and at night as written."""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.marks import mostly_nightly
from tests.support.program import samout

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<content>.*?)^```$", re.M | re.S)
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
CONTINUED = re.compile(r" \\\n\s*")
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")
GENERATED = ("docs/reference/configuration.md",)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
# The checks are what runs this test; the dashboard does not end by itself.
# Half an hour to two hours each; a small part of each is tested elsewhere.
SWEEPS = (
    ".venv/bin/python -m samout_train -m experiment=capabilities",
    ".venv/bin/samout-train compare experiment=maxplus_ablation",
    ".venv/bin/samout-train compare experiment=contenders_cpu",
    ".venv/bin/samout-train compare experiment=counting",
    ".venv/bin/samout-train compare experiment=ingredients_",
    ".venv/bin/samout-train compare 'models={v1:{}",
)
NEVER = ("make test", "make torture", ".venv/bin/ruff check", "make dashboard", *SWEEPS)
# What installs, compiles a model, evaluates on a megabyte, or compares a second time: at night.
AT_NIGHT = (
    ".venv/bin/samout-train compare 'models=[v8,gru,transformer]'",
    *("python3 -m venv", ".venv/bin/python -m pip", ".venv/bin/samout-train verify"),
    ".venv/bin/python -m samout_train experiment=shakespeare_small",
    *(".venv/bin/python -m samout_train data=python_source", ".venv/bin/samout-train reproduce experiment=maxplus"),
)
SHORTER = {
    "steps=20 kills=5": "steps=4 kills=1 model.hidden_size=48 data.batch_size=8",
    "trials=6": "trials=2",
    "screen_steps=20": "screen_steps=2",
    "data.seq_len=16384": "data.seq_len=2048",
    "'lr=[1e-3,3e-3]' seeds=2": "'lr=[1e-3]' seeds=1",
    "model.hidden_size=128": "model.hidden_size=32",
    "model.num_layers=4": "model.num_layers=2",
    "reproduce experiment=hello_cell": "reproduce experiment=hello_cell steps=20",
}
PROGRAM = r"\.venv/bin/(samout-train|python (-m torch\S* --nproc-per-node 2 )?-m samout_train)"
TRAINS = re.compile(rf"^{PROGRAM} (-m )?[\w-]+=")
OURS = re.compile(r"\.venv/bin/(?:samout-train|python -m samout_train)(?: (.*))?$")
SHELL_SYNTAX = re.compile(r"[|<>;&`$*?{}]")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    content: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    found = BLOCK.finditer(text)
    return [Block(match["language"], CONTINUED.sub(" ", match["content"])) for match in found]


WITH_BLOCKS = [page for page in PAGES if any(block.language != "text" for block in blocks(page))]


def make_checkout(parent: Path, *, characters: int) -> Path:
    """Return what git would clone of the working tree, with the files that a reader has."""
    shared = Path(os.environ.get("SAMOUT_TRAIN_SHARED", ROOT.parent / "shared"))
    if not shared.is_dir():
        pytest.skip(f"{shared} is not there: the text that the pages train on lies outside the repository")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    folder = parent / "checkout"
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for kept in (ROOT / "samout_train").rglob("__pycache__"):  # what is compiled already: the files are the same
        (folder / kept.relative_to(ROOT)).symlink_to(kept)
    text = (shared / "data" / "tinyshakespeare.txt").read_text("utf-8")
    (folder / "tinyshakespeare.txt").write_text(text, "utf-8")
    (folder / "my.txt").write_text(text[:characters], "utf-8")
    (folder / "my_folder").mkdir()
    (folder / "my_folder" / "notes.md").write_text(text[:50_000], "utf-8")
    documents = text[:50_000].split("\n\n")
    (folder / "my.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    talk = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes"}]} for text in documents
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(one) + "\n" for one in talk), "utf-8")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_each_block_says_what_it_is(page: str) -> None:
    fences = [line for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("```")]
    assert len(fences) == 2 * len(blocks(page))
    assert {block.language for block in blocks(page)} <= {"bash", "console", "python", "yaml", "text", "powershell"}


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_somewhere(page: str) -> None:
    for target in LINK.findall((ROOT / page).read_text("utf-8")):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.is_file(), target
        headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in headings]


def test_the_reference_of_the_configuration_is_up_to_date() -> None:
    writer = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))
    assert writer["PAGE"].read_text("utf-8") == writer["page"](), "run: python scripts/write_reference.py"


def test_each_tag_that_a_run_writes_is_explained() -> None:
    written = set()
    for path in (ROOT / "samout_train").rglob("*.py"):
        written |= set(re.findall(r'"((?:train|val|time|memory)/\w+)"', path.read_text("utf-8")))
    assert {"train/loss_nats", "val/accuracy", "time/matmul_share"} <= written
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    assert not [tag for tag in sorted(written) if f"`{tag}`" not in page]


def test_each_extra_is_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/getting-started.md").read_text("utf-8"), re.M)
    assert sorted(name for row in rows for name in re.findall(r"`([a-z]+)`", row)) == sorted(extras)


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 220 and len(text.split()) <= 1700


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("README.md", *GENERATED)])
def test_a_page_has_a_length_that_is_read(page: str) -> None:
    assert len((ROOT / page).read_text("utf-8").splitlines()) <= 250


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            ".venv/bin/python -m samout_train data=a",
            ".venv/bin/python -m samout_train data=a trainer=debug model.hidden_size=48 data.batch_size=8",
        ),
        (
            ".venv/bin/samout-train experiment=a data=text  # why",
            ".venv/bin/samout-train experiment=a data=text trainer=debug callbacks.sample.max_new_tokens=8 "
            "callbacks.lengths.times=[]  # why",
        ),
        (
            ".venv/bin/samout-train data=a trainer.max_steps=77 model.hidden_size=8",
            ".venv/bin/samout-train data=a trainer.max_steps=7 model.hidden_size=8",
        ),
        ("train(['trainer.max_steps=300'])", "train(['trainer.max_steps=30'])"),
        (".venv/bin/samout-train inspect path=a", ".venv/bin/samout-train inspect path=a"),
        (
            "make train   # of some size",
            "make -o .venv/.installed train ARGS='model=v8 data=random model.hidden_size=48 trainer=debug'",
        ),
    ],
)
def test_a_command_is_run_with_few_steps(line: str, wanted: str) -> None:
    assert shorter(line) == wanted


def shorter(line: str) -> str:
    """A line of bash or Python that takes few steps, and does the same otherwise."""
    if line.startswith("make train"):  # without an installation into the virtual environment of the tests
        return "make -o .venv/.installed train ARGS='model=v8 data=random model.hidden_size=48 trainer=debug'"
    for long, short in SHORTER.items():
        line = line.replace(long, short)
    line = re.sub(r"trainer\.max_steps=(\d+)", lambda found: f"trainer.max_steps={max(int(found[1]) // 10, 2)}", line)
    if not TRAINS.match(line):
        return line
    command, hash_sign, comment = line.partition("  #")
    words = [command.rstrip()]
    if "trainer.max_steps" not in command and "trainer=debug" not in command:
        words.append("trainer=debug")
    if "model.hidden_size" not in command and "experiment=" not in command:
        words += ["model.hidden_size=48", "data.batch_size=8"]  # the published sizes take seconds a step
    if "data=text" in command:
        # Samples take as long as a hundred steps, and lengths, with their picture, a second.
        words += ["callbacks.sample.max_new_tokens=8", "callbacks.lengths.times=[]"]
    return " ".join(words) + hash_sign + comment


@pytest.mark.parametrize(
    ("script", "calls"),
    [
        (".venv/bin/samout-train a='b c' 'd={e:[1,2]}'  # why", [["a=b c", "d={e:[1,2]}"]]),
        (".venv/bin/python -m samout_train -m a=1\n\n.venv/bin/samout-train", [["-m", "a=1"], []]),
        (".venv/bin/samout-train a=1\necho a", None),
        (".venv/bin/samout-train a={1,2}", None),
        (".venv/bin/samout-train a=$HOME", None),
        (".venv/bin/samout-train a=1 > b", None),
        (".venv/bin/python -m samout_train_other", None),
    ],
)
def test_a_script_that_only_calls_the_program(script: str, calls: list[list[str]] | None) -> None:
    assert calls_of_the_program(script) == calls


# The other pages take 10 to 45 seconds each, and what they begin has tests of its own.
USUAL_PAGES = ("README", "getting-started", "training", "extending", "extending-training", "verification")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    mostly_nightly(
        [page for page in WITH_BLOCKS if not page.startswith("docs/results/")],
        [page for page in WITH_BLOCKS if Path(page).stem in USUAL_PAGES],
    ),
)
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path, characters=60_000)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    elsewhere = set()
    if page == "README.md":  # its longest command, with which a page of its own begins
        elsewhere = {line for block in blocks("docs/comparing.md") for line in block.content.splitlines()}
    for block in blocks(page):
        content = block.content
        if block.language == "bash":
            lines = [line for line in content.splitlines() if not line.startswith((*NEVER, *AT_NIGHT))]
            lines = [line for line in lines if line not in elsewhere]
            content = "\n".join(line if "callbacks=stop_when_learned" in line else shorter(line) for line in lines)
        elif block.language == "python":
            content = shorter(content)
        assert runs(checkout, block, content) is None
    if page == "docs/extending.md":
        _worked_together(checkout)


@pytest.mark.nightly
@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_a_page_runs_as_written(page: str, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path, characters=500_000)
    if "python3 -m venv" not in (ROOT / page).read_text("utf-8"):
        (checkout / ".venv").symlink_to(ROOT / ".venv")
    for block in blocks(page):
        lines = [line for line in block.content.splitlines(keepends=True) if not line.startswith(NEVER)]
        assert runs(checkout, block, "".join(lines) if block.language == "bash" else block.content) is None
        if block.language == "bash" and "make dashboard" in block.content:
            _dashboard_answers(checkout)
    if page == "docs/extending.md":
        _worked_together(checkout)


def runs(folder: Path, block: Block, content: str) -> str | None:
    """Runs a block, or writes the file that it is; what went wrong, None where nothing did."""
    if block.language in ("python", "yaml") and (name := FILE.match(content)):
        path = folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    elif block.language == "python":
        command = [folder / ".venv" / "bin" / "python", "-c", content]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return content + done.stderr if done.returncode else None
    elif block.language == "console":
        command, _, wanted = content.removeprefix("$ ").partition("\n")
        printed = _shell(folder, command).stdout
        return None if printed == wanted else f"{command} printed {printed}"
    elif block.language == "bash":
        calls = calls_of_the_program(content)
        if calls is None:
            done = _shell(folder, content)
            return content + done.stdout if done.returncode else None
        for words in calls:
            called = samout(folder, *words, timeout=1200)
            if called.returncode:
                return f"{words}\n{called.stdout}{called.stderr}"
    return None


def calls_of_the_program(script: str) -> list[list[str]] | None:
    """The words of each line where a script only calls the program, None where it needs a shell."""
    calls = []
    for line in filter(str.strip, script.splitlines()):
        ours = OURS.match(line)
        if ours is None or SHELL_SYNTAX.search(re.sub(r"'[^']*'", "", line)):
            return None
        calls.append(shlex.split(ours[1] or "", comments=True))
    return calls


def _shell(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200
    )


def _worked_together(folder: Path) -> None:
    """The mixer, the data source, the metric and the callback of one's own, in one run."""
    logs = folder.glob("outputs/smooth-counting/*/samout_train.log")
    (log,) = [log for log in logs if "is learned" in log.read_text()]
    assert '"val/top_5": ' in log.with_name("metrics.jsonl").read_text()


def _dashboard_answers(folder: Path) -> None:
    log = folder / "dashboard.log"
    with log.open("w") as output:
        started = subprocess.Popen(
            ["make", "dashboard"], cwd=folder, stdout=output, stderr=output, start_new_session=True, env=os.environ
        )
    try:
        deadline = time.monotonic() + 60
        while not (address := re.search(r"http://localhost:\d+/", log.read_text())) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert address, log.read_text()
        with urllib.request.urlopen(f"{address[0]}data/runs", timeout=60) as answer:
            assert b"sweeps" in answer.read()
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(timeout=30)
