"""serve as it is typed: it says where it listens, answers, and ends by a signal."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samout_train import train
from samout_train.cli import serve
from tests.support.program import samout

SIZES = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "device=cpu", "trainer.max_steps=2"]


def test_what_is_missing_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve.serve(["run=absent"]) == 2
    assert "pip install 'samout_train[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(("system", "wanted"), [("posix", [(1, 2, 1)]), ("nt", [(1, -5, 1)])])
def test_a_port_has_one_server(
    monkeypatch: pytest.MonkeyPatch, system: str, wanted: list[tuple[int, int, int]]
) -> None:
    """On Windows SO_REUSEADDR lets a second server share the port of the first."""
    chosen: list[Any] = []
    fake = SimpleNamespace(SOL_SOCKET=1, SO_REUSEADDR=2, SO_EXCLUSIVEADDRUSE=-5)
    monkeypatch.setitem(sys.modules, "socket", fake)
    monkeypatch.setattr(serve, "os", SimpleNamespace(name=system))
    listening: Any = SimpleNamespace(setsockopt=lambda *words: chosen.append(words))
    serve._keep_port(listening)
    assert chosen == wanted


@pytest.mark.slow
def test_it_says_where_it_listens_answers_and_ends_by_a_signal(tmp_path: Path, small_text: Path) -> None:
    words = ["data=text", f"data.path={small_text}", "data.seq_len=9", "data.batch_size=4"]
    train([*SIZES, *words, f"run_dir={tmp_path / 'run'}"])
    command = [sys.executable, "-m", "samout_train", "serve", "run=run", "port=0", "kernels=reference"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = ""
        while not (found := re.search(r"(http://127\.0\.0\.1:(\d+))/ has the chat page", told)):
            line = process.stderr.readline()
            assert line, told
            told += line
        with urllib.request.urlopen(f"{found[1]}/v1/models", timeout=60) as answer:
            assert json.load(answer)["data"][0]["id"] == "run"
        body = json.dumps({"prompt": "line ", "max_tokens": 5}).encode()
        with urllib.request.urlopen(f"{found[1]}/v1/completions", body, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 5
        with urllib.request.urlopen(f"{found[1]}/", timeout=60) as answer:
            assert b"<title>samout_train chat</title>" in answer.read()
        taken = samout(tmp_path, "serve", "run=run", f"port={found[2]}", "kernels=reference")
        assert taken.returncode == 1 and f"port={found[2]}: Address already in use: give another port" in taken.stderr
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 143 and "Traceback" not in told + rest, rest
