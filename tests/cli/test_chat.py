"""chat as it is typed: from a pipe, in a terminal, and its commands."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samout_train import build_model, train
from samout_train.cli.chat import _from_pipe, _in_terminal, command, one_line
from samout_train.data import Bytes, Turn
from samout_train.evaluation import Conversation, Sampling, Template
from tests.support.program import samout

SIZES = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "device=cpu", "trainer.max_steps=2"]


def talk() -> Conversation:
    model = build_model("v8", vocab_size=len(Bytes()), hidden_size=12, num_heads=2, num_layers=1)
    return Conversation(model, Bytes(), Template())


def test_commands_do_what_they_say(tmp_path: Path) -> None:
    of = talk()
    assert command(of, "/system be kind") == "started a new conversation" and of.turns == [Turn("system", "be kind")]
    file = tmp_path / "a b.json"
    assert command(of, f"/save {file}") == "saved 1 turns"
    assert command(of, "/system") == "started a new conversation" and of.turns == []
    assert command(of, f"/load {file}") == "loaded 1 turns" and of.turns == [Turn("system", "be kind")]
    assert command(of, "/reset") == "started a new conversation" and of.turns == [Turn("system", "be kind")]
    assert command(of, "/undo") == "there is nothing to take back"
    assert "/undo" in command(of, "/help")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as Windows' editors and PowerShell write UTF-8
    assert command(of, f"/load {file}") == "loaded 1 turns"


def test_ctrl_d_in_a_line_ends_the_chat_where_the_terminal_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["/reset", "\x04\n", "/undo"])
    monkeypatch.setattr("samout_train.cli.chat._line_reader", lambda: partial(next, lines))
    assert _in_terminal(talk(), Sampling()) == 0
    assert next(lines) == "/undo"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sav x", "/sav: no such command; /help lists them"),
        ("/save", "/save: give a file: /save FILE"),
        ("/load absent.json", "/load absent.json: No such file"),
        ("/load .", "/load .: Is a directory"),
        ("/load bad.json", "/load bad.json: is no conversation"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError) as caught:
        command(talk(), line)
    assert message in str(caught.value)


def test_lines_of_a_pipe_are_utf_8_in_any_locale(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def answer(line: str, sampling: Any) -> list[str]:
        asked.append(line)
        return ["yes"]

    lines = b"\xef\xbb\xbf\xc3\xa4\r\n\xff\nc\n/quit\nd\n"
    stdin = SimpleNamespace(buffer=io.BytesIO(lines), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    conversation: Any = SimpleNamespace(answer=answer)
    nothing: Any = None
    assert _from_pipe(conversation, nothing) == 1
    out, err = capsys.readouterr()
    assert asked == ["ä", "c"] and out == "yes\n\nyes\n"
    assert err == "line 2 of standard input: byte 0xff at position 0 is not UTF-8: write it in UTF-8\n"


def test_an_answer_is_one_line() -> None:
    assert one_line("a\\n\nb\r") == "a\\\\n\\nb\\r"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    lines = [json.dumps({"instruction": "ab" * 9, "output": "c"}) + "\n" for _ in range(9)]
    (path / "chat.jsonl").write_text("".join(lines), "utf-8")
    words = ["data=jsonl", f"data.path={path / 'chat.jsonl'}", "data.layout=padded", "data.learn=agent"]
    train([*SIZES, *words, "data.seq_len=30", "data.batch_size=4", f"run_dir={path / 'run'}"])
    return path


@pytest.mark.slow
def test_a_pipe_gets_one_line_an_answer_and_nothing_else(folder: Path) -> None:
    words = ["chat", "run=run", "temperature=0", "max_new_tokens=5"]
    done = samout(folder, *words, text="ab\n/undo\nab\n/nothing\né\nba\n")
    lines = done.stdout.split("\n")
    assert done.returncode == 1 and len(lines) == 5 and lines[4] == "", done.stderr
    assert lines[0] == lines[1] and lines[2] == ""
    assert "taken back" in done.stderr and "/nothing: no such command" in done.stderr
    assert "character 'é' at position 0" in done.stderr and "Traceback" not in done.stderr
    generated = samout(folder, "generate", "run=run", "prompt=ab", "chat=true", "temperature=0", "max_new_tokens=5")
    assert generated.stdout == f"ab{lines[0]}\n"
    again = ["prompt=<|user|>ab<|agent|>", "chat=true", "temperature=0", "max_new_tokens=5"]
    assert samout(folder, "generate", "run=run", *again).stdout == f"<|user|>ab<|agent|>{lines[0]}\n"
    again[0] = "prompt=<|user|>ab"  # turns that end with the user's are answered
    assert samout(folder, "generate", "run=run", *again).stdout == f"<|user|>ab{lines[0]}\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_ctrl_c_in_a_terminal_stops_the_answer_and_not_the_chat(folder: Path) -> None:
    import pty

    (folder / "ab.txt").write_text("ab" * 2000, "utf-8")  # nothing after which an answer would end by itself
    words = ["data=text", f"data.path={folder / 'ab.txt'}", "data.seq_len=30", "data.batch_size=4"]
    train([*SIZES, *words, "optimizer.lr=1e-2", "trainer.max_steps=40", f"run_dir={folder / 'endless'}"])
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "samout_train", "chat", "run=endless", "max_new_tokens=1000000", "threads=1"]
    words += ["temperature=0"]
    environment = os.environ | {"TERM": "dumb"}
    process = subprocess.Popen(
        words, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment
    )
    os.close(theirs)
    seen = ""

    def wait_for(text: str) -> None:
        """Read until this is there."""
        nonlocal seen
        while text not in seen:
            assert select.select([ours], [], [], 100)[0], f"silent after {seen}"
            seen += os.read(ours, 1 << 16).decode("utf-8", "replace")
        seen = seen.partition(text)[2]

    try:
        wait_for("> ")
        os.write(ours, b"ab\n")
        wait_for("ab")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        wait_for("(stopped)")
        wait_for("> ")
        os.write(ours, b"/undo\n")
        wait_for("taken back")
        wait_for("> ")
        os.write(ours, b"/quit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
