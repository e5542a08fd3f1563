"""TensorBoard's own pages over a sweep, in a real browser; pictures of them go to SAMOUT_TRAIN_PICTURES."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import samout

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
JOBS = [f"model={model},optimizer.lr={rate}" for model in ("gru", "v8") for rate in ("0.001", "0.01")]
SETTINGS = ["data=text", "data.path=small.txt", "data.seq_len=32", "data.batch_size=8", "device=cpu"]
SIZES = ["model.hidden_size=12", "model.num_layers=1", "trainer.max_steps=40", "trainer.eval_every_n_steps=10"]
# Text of the page, also of what lies in shadow roots.
TEXT = """() => {
    const parts = [];
    const walk = (node) => {
        for (const child of node.childNodes) {
            if (child.nodeType === Node.TEXT_NODE) parts.push(child.textContent.trim());
            else { if (child.shadowRoot) walk(child.shadowRoot); walk(child); }
        }
    };
    walk(document.body);
    return parts.filter(Boolean).join("\\n");
}"""
pytestmark = pytest.mark.nightly


@pytest.fixture
def address(tmp_path: Path, small_text: Path) -> Iterator[str]:
    """Of a TensorBoard over a sweep of four runs, once it has read them."""
    done = samout(
        tmp_path, "-m", "model=v8,gru", "optimizer.lr=1e-3,1e-2", *SETTINGS, *SIZES, "hydra.sweep.dir=sw", timeout=300
    )
    assert done.returncode == 0, done.stderr
    log = tmp_path / "server.log"
    with log.open("w") as output:
        words = ["--logdir", "sw", "--port", "0", "--samples_per_plugin", "scalars=30000"]
        program = [sys.executable, "-m", "tensorboard.main", *words]
        server = subprocess.Popen(program, cwd=tmp_path, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 90
        while not (found := re.search(r"http://localhost:\d+/", log.read_text())):
            assert time.monotonic() < deadline and server.poll() is None, log.read_text()
            time.sleep(0.2)
        while len(_runs(found[0])) < len(JOBS):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield found[0]
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.skipif(CHROMIUM is None, reason="wants chromium, such as Debian's package of that name")
def test_four_runs_are_four_lines_and_four_rows_with_their_metrics_a_sample_and_the_layout(address: str) -> None:
    browsing = pytest.importorskip("playwright.sync_api", reason="wants playwright")
    with browsing.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        lines = _shown(page, f"{address}?tagFilter=train/loss_nats#timeseries", JOBS, "timeseries")
        page.wait_for_selector("scalar-card", timeout=60_000)
        page.wait_for_function("document.querySelectorAll('scalar-card tb-data-table-content-row').length === 4")
        rows = _shown(
            page, f"{address}#hparams", ["model.hidden_size", "optimizer.lr", "hparam/best_val_loss_nats"], "hparams"
        )
        text = _shown(page, f"{address}#text", ["sample", "config", "commit", *JOBS], "text")
        layout = ["loss (nats a token)", "tokens a second", "norm of the state after the last token of a row"]
        _shown(page, f"{address}#custom_scalars", layout, "custom_scalars")
        browser.close()
    for job in JOBS:
        assert job in lines and job in rows and job in text
    assert [rows.splitlines().count(job) for job in JOBS] == [1] * 4, "one row a run, and no others"
    for name in ("best_val_loss_nats", "parameters", "tokens_per_second"):
        assert f"hparam/{name}" in rows


def _shown(page: Any, address: str, wanted: list[str], name: str) -> str:
    """The text of a page, once all that is wanted is on it."""
    page.goto("about:blank")
    page.goto(address)
    deadline = time.monotonic() + 60
    while missing := [word for word in wanted if word not in page.evaluate(TEXT)]:
        assert time.monotonic() < deadline, f"{name}: {missing} not shown"
        page.wait_for_timeout(500)
    if folder := os.environ.get("SAMOUT_TRAIN_PICTURES"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
    return str(page.evaluate(TEXT))


def _runs(address: str) -> list[str]:
    with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=30) as answer:
        tags = json.load(answer)
    return [run for run, of_run in tags.items() if "hparam/parameters" in of_run]
