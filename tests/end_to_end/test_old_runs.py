"""Runs that an earlier layout of the package made resume, generate, evaluate, verify and export as they did there.

`old_runs/` holds them as they lay when they were stopped after step 4 of 8, with what they were made from, the commands
(`commands.json`) and what the earlier layout itself made of them (`expected.json`, written by `python
tests/test_old_runs.py` there).
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samout_train.runtime import device_name
from tests.support.marks import spread
from tests.support.program import samout

OLD = Path(__file__).parent / "old_runs"
COMMANDS: dict[str, list[str]] = json.loads((OLD / "commands.json").read_text("utf-8"))
SINGLE = [name for name in COMMANDS if name not in ("sweep", "comparison", "search")]
TEXT = ["v8_text", "transformer", "v1_jsonl_bpe", "shards"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "samout_train"]
MACHINE = f"{device_name(torch.device('cpu'))}, torch {torch.__version__}"


def cleared(found: str) -> str:
    return re.sub(r"[\d.,]+ (tokens/s|s\b|ms)|\d+ of \d+ threads", "", found)


def called(folder: Path, *words: str) -> str:
    done = samout(folder, *words, environment={"SAMOUT_TRAIN_CACHE": str(folder / "cache")})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def resumed(folder: Path, name: str) -> dict[str, Any]:
    """Continue a run, and return what became of it."""
    words = [*COMMANDS[name], "resume=auto"]
    if name == "fsdp":
        done = subprocess.run([*TORCHRUN, *words], cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        called(folder, *words)
    return outcome(folder / "outputs" / name)


def outcome(run_dir: Path) -> dict[str, Any]:
    summary = json.loads((run_dir / "summary.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = {line["step"]: line["train/loss_nats"] for line in lines if "train/loss_nats" in line}
    return {name: summary[name] for name in ("steps", "val_loss_nats", "weights_sha256")} | {
        "losses": [losses[step] for step in sorted(losses)]
    }


def generated(folder: Path, name: str) -> str:
    prompt = "a state" if name != "v1_jsonl_bpe" else "text that"
    return called(folder, "generate", f"run=outputs/{name}", f"prompt={prompt}", "max_new_tokens=12", "top_k=1")


def evaluated(folder: Path, name: str) -> dict[str, Any]:
    flags = ["--config-dir", "mine"] if name == "own_mixer" else []
    called(folder, "evaluate", *flags, f"run=outputs/{name}")
    (file,) = (folder / "outputs" / name / "evaluate").rglob("evaluation.json")
    found = json.loads(file.read_text("utf-8"))
    return {key: found[key] for key in ("step", "loss_nats") if key in found}


def verified(folder: Path, name: str) -> str:
    """Return what was verified; the exit code is 0 only where all rows held."""
    flags = ["--config-dir", "mine"] if name == "own_mixer" else []
    return called(folder, "verify", *flags, f"run=outputs/{name}").splitlines()[0]


def exported(folder: Path, name: str) -> str:
    out = folder / "exported" / name
    called(folder, "export", f"run=outputs/{name}", f"out={out}")
    return str(json.loads((out / "export.json").read_text("utf-8"))["parameters"])


def several(folder: Path, name: str) -> dict[str, Any]:
    """Start a sweep, a comparison or a search again, and return what became of its runs."""
    called(folder, *COMMANDS[name])
    return {
        path.parent.name: outcome(path.parent) for path in sorted((folder / "outputs" / name).glob("*/summary.json"))
    }


def agrees(found: Any, wanted: Any, *, here: bool) -> None:
    """Compare with what the earlier layout made: every bit on its own machine, the figures elsewhere."""
    if here:
        assert found == wanted
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted.keys() - {"weights_sha256"}:
            agrees(found[key], wanted[key], here=False)
    elif isinstance(wanted, list | float):
        assert found == pytest.approx(wanted, rel=1e-4)


DONE: dict[str, tuple[list[str], Callable[[Path, str], Any]]] = {
    "resumed": (SINGLE, resumed),
    "generated": (TEXT, generated),
    "evaluated": (["v8_text", "own_mixer", "fsdp", "random_v8"], evaluated),
    "verified": (["own_mixer"], verified),
    "exported": (["v8_text", "fsdp"], exported),
    "several": (["sweep", "comparison", "search"], several),
}
SEVERAL_TIMES = [(does, name) for does, (names, _) in DONE.items() for name in names if does != "resumed"]
AT_NIGHT = [(does, name) for does, name in SEVERAL_TIMES if name != DONE[does][0][0] or does == "verified"]
AT_NIGHT.append(("resumed", "fsdp"))  # its command is `torchrun`
CASES = [("resumed", name) for name in SINGLE if name != "fsdp"] + sorted(set(SEVERAL_TIMES) - set(AT_NIGHT))
CASES += [pytest.param(*case, marks=pytest.mark.nightly) for case in AT_NIGHT]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.slow
@pytest.mark.parametrize(("does", "name"), CASES)
def test_an_old_run_is_at_home(folder: Path, does: str, name: str) -> None:
    expected = json.loads((OLD / "expected.json").read_text("utf-8"))
    found, wanted = DONE[does][1](folder, name), expected[does][name]
    if does in ("verified", "exported"):
        assert found == wanted
    else:
        agrees(found, wanted, here=expected["machine"] == MACHINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", spread(SINGLE, 4))
def test_an_old_run_is_called_whole(folder: Path, name: str) -> None:
    assert "damaged" not in called(folder, "inspect", f"path=outputs/{name}")


def _record() -> None:
    import tempfile

    found: dict[str, Any] = {"machine": MACHINE}
    for does, (names, act) in DONE.items():
        for name in names:
            with tempfile.TemporaryDirectory() as parent:
                work = Path(shutil.copytree(OLD, Path(parent, "work")))
                found.setdefault(does, {})[name] = act(work, name)
    (OLD / "expected.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    _record()
