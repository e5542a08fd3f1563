"""TensorBoard's HParams over HTTP, with the --logdir that each kind of run prints: figures, and settings."""

import json
import re
import shlex
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import samout

SETTINGS = ["model=gru", "model.num_layers=1", "data=random", "data.batch_size=4", "device=cpu", "trainer=debug"]
SIZE = "model.hidden_size=8"
pytestmark = pytest.mark.slow


def asked(address: str, name: str, question: dict[str, Any]) -> dict[str, Any]:
    """What the page of HParams is answered."""
    body = json.dumps({"experimentName": "", **question}).encode()
    request = urllib.request.Request(f"{address}data/plugin/hparams/{name}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def session_groups(folder: Path, command: str, wanted: int) -> list[dict[str, Any]]:
    """The rows of HParams behind a printed command, as soon as there are as many as wanted and each has figures."""
    log, deadline = folder / "server.log", time.monotonic() + 60
    with log.open("w") as output:
        server = subprocess.Popen([*shlex.split(command), "--port", "0"], cwd=folder, stdout=output, stderr=output)
    try:
        while not (found := re.search(r"http://localhost:\d+/", log.read_text())):
            assert time.monotonic() < deadline and server.poll() is None, log.read_text()
            time.sleep(0.1)
        while True:
            columns = asked(found[0], "experiment", {})
            shown = [{"metric": each["name"], "includeInResult": True} for each in columns.get("metricInfos", [])]
            shown += [{"hparam": each["name"], "includeInResult": True} for each in columns.get("hparamInfos", [])]
            statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
            question = {"allowedStatuses": statuses, "colParams": shown, "startIndex": 0, "sliceSize": 100}
            groups: list[dict[str, Any]] = asked(found[0], "session_groups", question).get("sessionGroups", [])
            if len(groups) >= wanted and all(group.get("metricValues") for group in groups):
                return groups
            assert time.monotonic() < deadline, groups
            time.sleep(0.3)
    finally:
        server.terminate()
        server.wait(timeout=30)


def printed_command(text: str) -> str:
    return next(line.partition("dashboard")[2].strip() for line in reversed(text.splitlines()) if "dashboard  " in line)


@pytest.mark.nightly
def test_the_printed_dashboard_has_the_figures_of_one_run_and_of_a_continued_one(tmp_path: Path) -> None:
    for further in ([], ["resume=auto", "trainer.max_steps=4"]):
        done = samout(tmp_path, *SETTINGS, SIZE, "run_dir=runs/one", *further)
        assert done.returncode == 0, done.stderr
        (row,) = session_groups(tmp_path, printed_command(done.stdout + done.stderr), 1)
        figures = {each["name"]["tag"]: each for each in row["metricValues"]}
        summary = json.loads((tmp_path / "runs/one/summary.json").read_text())
        for name in ("val_loss_nats", "parameters", "tokens_per_second"):
            assert figures[f"hparam/{name}"]["value"] == pytest.approx(summary[name], rel=1e-6)
        assert figures["train/loss_nats"]["trainingStep"] == summary["steps"]
        assert row["hparams"]["model.hidden_size"] == 8 and row["hparams"]["optimizer.lr"] == 1e-3


@pytest.mark.nightly
def test_the_printed_dashboard_has_a_row_for_each_job_of_a_sweep(tmp_path: Path) -> None:
    done = samout(tmp_path, "-m", *SETTINGS, "model.hidden_size=4,8", "hydra.sweep.dir=sweep", timeout=240)
    assert done.returncode == 0, done.stderr
    rows = session_groups(tmp_path, printed_command(done.stdout + done.stderr), 2)
    assert sorted(row["hparams"]["model.hidden_size"] for row in rows) == [4, 8]
    assert all("hparam/val_loss_nats" in {each["name"]["tag"] for each in row["metricValues"]} for row in rows)
