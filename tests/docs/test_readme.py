"""Every command, every Python and every YAML in the README, run in order in a clean copy of the checkout."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
# The checks are what runs this test; the dashboard does not end by itself.
# Half an hour, two hours and one; a small part of each is tested elsewhere.
SWEEPS = (
    *(f".venv/bin/python -m samout_train -m experiment={name}" for name in ("capabilities", "maxplus_ablation")),
    ".venv/bin/samout-train compare 'models={v1:{}",
)
NOT_IN_BLOCKS = ("make test", "make torture", ".venv/bin/ruff check", "make dashboard", *SWEEPS)


@pytest.fixture
def clone(tmp_path: Path, shared: Path) -> Path:
    """What git would clone of the working tree, and the files that a reader has."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    folder = tmp_path / "clone"
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    text = (shared / "data" / "tinyshakespeare.txt").read_text("utf-8")
    (folder / "tinyshakespeare.txt").write_text(text, "utf-8")
    (folder / "my.txt").write_text(text[:500_000], "utf-8")
    (folder / "my_folder").mkdir()
    (folder / "my_folder" / "notes.md").write_text(text[:50_000], "utf-8")
    documents = text[:50_000].split("\n\n")
    (folder / "my.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    return folder


def blocks() -> Iterator[tuple[str, str]]:
    for match in BLOCK.finditer((ROOT / "README.md").read_text("utf-8")):
        yield match[1], match[2]


def shell(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200
    )


def test_each_block_says_what_it_is() -> None:
    fences = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("```")]
    assert len(fences) == 2 * len(list(blocks()))
    assert {language for language, _ in blocks()} <= {"bash", "console", "python", "yaml", "text", "powershell"}


@pytest.mark.slow
def test_everything_in_the_readme_runs(clone: Path) -> None:
    has_run = set()
    for language, content in blocks():
        if language in ("python", "yaml") and (name := FILE.match(content)):
            path = clone / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, "utf-8")
        elif language == "python":
            done = subprocess.run(
                [clone / ".venv" / "bin" / "python", "-c", content], cwd=clone, capture_output=True, text=True
            )
            assert done.returncode == 0, content + done.stderr
        elif language == "console":
            command, _, wanted = content.removeprefix("$ ").partition("\n")
            assert shell(clone, command).stdout == wanted
        elif language == "bash":
            lines = [line for line in content.splitlines() if not line.startswith(NOT_IN_BLOCKS)]
            done = shell(clone, "\n".join(lines))
            assert done.returncode == 0, content + done.stdout
            if "make dashboard" in content:
                _dashboard_answers(clone)
        has_run.add(language)
    assert has_run == {"bash", "console", "python", "yaml", "text", "powershell"}  # the last is said to be untried
    stopped = [
        log for log in clone.glob("outputs/smooth-counting/*/samout_train.log") if "is learned" in log.read_text()
    ]
    assert len(stopped) == 1, "the mixer, the data source and the callback worked together"


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
