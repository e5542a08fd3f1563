"""Other Pythons and systems, as far as this one can show it."""

import argparse
import ast
import inspect
import operator
import os
import re
import signal
import subprocess
from functools import partial
from multiprocessing import connection, get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from samout_train import __version__
from samout_train.checkpoint import CheckpointError, checkpoint_path, locked, newest_checkpoint
from samout_train.cli import main, verify
from samout_train.cli.request import Request
from samout_train.config import compose_config, get_args_parser, quote_text
from samout_train.data.shards import workers
from samout_train.experiments.compare.plan import folder_name
from samout_train.runtime import (
    StopSignals,
    choose_device,
    choose_precision,
    compile_problem,
    console,
    files,
    float64_place,
    list_setting,
    random_states,
    set_random_states,
    signals,
)
from samout_train.training.settings import problems
from tests.support.program import samout

PACKAGE = Path(files.__file__).parent.parent
VERBS = list(main.VERBS)
MPS = torch.device("mps")
OF_A_CONNECTION = ("_close", "_send", "_recv", "_send_bytes", "_recv_bytes", "_poll", "_write", "_read")


def test_every_help_text_passes_the_check_of_python_3_14() -> None:
    for action in get_args_parser()._actions:  # argparse of 3.14 asks this of each, in add_argument
        assert action.help is not None and "%" not in action.help  # type: ignore[comparison-overlap]
    shown = {action.dest: str(action.help) for action in get_args_parser()._actions}
    assert "Bash - Install" in shown["shell_completion"]
    assert argparse.ArgumentParser.__module__ == "argparse" and type(get_args_parser()) is not argparse.ArgumentParser
    assert "add_argument" not in vars(argparse.ArgumentParser), "other programs' parsers stay as they are"
    own = inspect.getsourcefile(argparse.ArgumentParser.add_argument)
    assert own == argparse.__file__
    others = argparse.ArgumentParser(prog="other")
    others.add_argument("--version", action="version", version="other 1")
    assert others.format_help().count("samout") == 0 and others._actions[-1].version == "other 1"  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", [["--version"], ["generate", "--version"]], ids=" ".join)
def test_the_version_is_the_programs(tmp_path: Path, words: list[str]) -> None:
    done = samout(tmp_path, *words)
    assert done.returncode == 0 and done.stdout.startswith(f"samout_train {__version__}, torch {torch.__version__}, ")


@pytest.mark.slow
def test_nothing_behind_the_program_lists_the_verbs(tmp_path: Path) -> None:
    done = samout(tmp_path)
    assert done.returncode == 0 and not done.stderr and not list(tmp_path.iterdir())
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert rows[: len(VERBS)] == sorted(VERBS, key=lambda verb: (verb != "train", verb))
    asked = samout(tmp_path, "--help").stdout
    assert all(verb in asked.partition("==")[0] for verb in VERBS if verb != "train")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lr=1", "did you mean optimizer.lr?"),
        ("batch_size=4", "did you mean data.batch_size?"),
        ("max_step=4", "did you mean trainer.max_steps?"),
        ("sed=1", "did you mean seed?"),
        ("zzzzzz=1", "there are seed, device"),
    ],
)
def test_a_key_that_stands_deeper_is_named(word: str, hint: str) -> None:
    (found,) = problems(compose_config([word]).config)
    assert str(found).startswith(f"{word}: no such key; {hint}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [r"C:\Users\me\new text\a.txt", r"D:\runs\x", "C:\\end\\", r"\\server\share\t.txt", "C:/Users/a=b,c.txt"],
)
def test_paths_of_windows_arrive_as_typed(path: str) -> None:
    config = compose_config([f"run_dir={path}", "data=text", f"data.path={path}"]).config
    assert config["run_dir"] == config["data"]["path"] == path
    assert Request.checked([f"run_dir={path}", "--cfg", "job"]).settings["run_dir"] == path


@pytest.mark.slow
def test_text_is_utf8_wherever_it_is_read_or_written() -> None:
    """The default of Windows before Python 3.15 is a code page."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            keys = {key.arg for key in call.keywords}
            given = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            is_text = {
                "read_text": not call.args,
                "write_text": len(call.args) < 2,
                "open": ast.unparse(call.func) not in ("os.open", "archive.open")
                and not any("b" in str(arg) for arg in given),
                "run": bool(keys & {"text", "universal_newlines"}),
                "Popen": bool(keys & {"text", "universal_newlines"}),
            }
            if is_text.get(name, False) and "encoding" not in keys:
                found.append(f"{path.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}")
    assert found == []


@pytest.mark.parametrize("key", ["data.paths", "runs"])
def test_lists_of_paths_of_windows_arrive_as_typed(key: str) -> None:
    paths = [r"C:\a b\x", r"D:\y", "C:\\end\\", r"\\server\share\new"]
    for word in (f"{key}=[{','.join(paths)}]", list_setting(key, paths)):
        parser = OverridesParser.create()
        assert parser.parse_override(quote_text(word)).value() == paths


@pytest.mark.slow
def test_text_ends_its_lines_the_same_way_everywhere() -> None:
    """Python writes CRLF on Windows, where it is not told otherwise; what is compared or hashed would differ."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            writes = name == "open" and any(str(mode) in ("w", "a", "x", "w+", "a+", "r+") for mode in modes)
            if (name == "write_text" or writes) and "newline" not in {key.arg for key in call.keywords}:
                found.append(f"{path.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}")
    assert found == []


@pytest.mark.parametrize("label", ["con", "NUL", "aux.small", "COM1", "lpt\xb9", "a:b", 'a<>"|?*\\b', "v8. "])
def test_folders_of_models_can_be_made_on_windows(label: str) -> None:
    name = f"{folder_name(label)}-lr0.1-seed0"
    assert not re.search(r'[<>:"/\\|?*\x00-\x1f]|[. ]$', name)
    device = name.partition(".")[0].casefold()
    assert device not in {"con", "prn", "aux", "nul", *(f"{one}{n}" for one in ("com", "lpt") for n in "0123456789¹²³")}
    assert folder_name("console") == "console" and folder_name("v8.con") == "v8.con"


def test_what_is_open_elsewhere_and_half_written_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where an open file can be neither deleted nor renamed."""
    half, damaged = tmp_path / "summary.json.123.tmp", checkpoint_path(tmp_path / "checkpoints", 1)
    damaged.parent.mkdir()
    half.touch()
    damaged.touch()
    (damaged.parent / "step_00000009.shards").mkdir()

    def refuse(*paths: Any, **settings: Any) -> None:
        raise PermissionError(13, "in use")

    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    with locked(tmp_path):
        pass
    with pytest.raises(CheckpointError, match="step_00000001"):
        newest_checkpoint(tmp_path, set_aside=True)
    assert half.exists() and damaged.exists()


def test_a_file_that_is_open_elsewhere_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a file that somebody reads cannot be replaced."""
    refusals, replace = [PermissionError(13, "in use")] * 2, Path.replace

    def replace_or_refuse(new: Path, path: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(new, path)

    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("new", "utf-8")
    old.write_text("old", "utf-8")
    monkeypatch.setattr(Path, "replace", replace_or_refuse)
    with pytest.raises(PermissionError):
        files.take_place(new, old)
    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt"))
    files.take_place(new, old)
    assert old.read_text("utf-8") == "new" and not refusals
    refusals += [PermissionError(13, "in use")] * 9
    monkeypatch.setattr(files, "SECONDS_OF_PATIENCE", 0.1)
    with pytest.raises(PermissionError):
        files.take_place(new, old)


def test_a_process_of_its_own_group_is_stopped_as_each_system_can(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    process: Any = SimpleNamespace(send_signal=sent.append, poll=lambda: None)
    assert signals.own_group() == {"start_new_session": True}
    signals.ask_to_stop(process, signal.SIGINT)
    signals.ask_to_stop(process, None)
    assert sent == [signal.SIGINT, signal.SIGTERM]
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    signals.ask_to_stop(process, signal.SIGINT)
    assert signals.own_group() == {"creationflags": 512} and sent[2:] == [1]


@pytest.mark.parametrize("error", [OSError(6, "no console"), SystemError("returned a result with an exception set")])
def test_a_process_that_cannot_be_asked_to_stop_is_killed_and_the_next_one_is_asked(error: Exception) -> None:
    """os.kill of Windows raises these without a console, and for a process that has just ended."""
    done: list[str] = []

    def refuse(number: int) -> None:
        raise error

    def kill() -> None:
        done.append("killed")
        raise PermissionError(13, "it has ended")

    process: Any = SimpleNamespace(send_signal=refuse, kill=kill, poll=lambda: None)
    signals.ask_to_stop(process, None)
    ended: Any = SimpleNamespace(poll=lambda: 0)
    signals.ask_to_stop(ended, None)
    assert done == ["killed"]


def test_the_wait_for_a_process_ends_with_it_and_a_signal_can_end_it_before() -> None:
    looks = iter([None, None, 0])
    process: Any = SimpleNamespace(poll=partial(next, looks))
    signals.wait_for_end(process)
    assert next(looks, "none left") == "none left"

    def stopped() -> None:
        raise KeyboardInterrupt

    process = SimpleNamespace(poll=stopped)
    with pytest.raises(KeyboardInterrupt):
        signals.wait_for_end(process)


def test_pipes_of_windows_which_are_no_connections_give_results(monkeypatch: pytest.MonkeyPatch) -> None:
    spawning: Any = get_context("spawn")
    base: Any = connection._ConnectionBase  # type: ignore[attr-defined]
    methods = {name: vars(connection.Connection)[name] for name in OF_A_CONNECTION}
    of_windows = type("PipeConnection", (base,), methods)

    def pipe() -> tuple[Any, Any]:
        ours, theirs = spawning.Pipe()
        return of_windows(os.dup(ours.fileno())), theirs

    context = SimpleNamespace(Pipe=pipe, Process=spawning.Process)
    monkeypatch.setattr(workers, "get_context", lambda method: context)
    with StopSignals() as stop:
        done = workers.results(operator.is_not, [1, 2], jobs=1, progress=print, signals=stop)
        assert list(done) == [(1, True), (2, True)]


def test_output_to_a_pipe_of_windows_is_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    piped: Any = SimpleNamespace(encoding="cp1252", isatty=lambda: False)
    shown: Any = SimpleNamespace(encoding="cp1252", isatty=lambda: True)
    assert console._encoding(piped, "stdout") == "cp1252"
    monkeypatch.setattr(console, "os", SimpleNamespace(name="nt", environ={}))
    assert console._encoding(piped, "stdout") == "utf-8"
    assert console._encoding(piped, "stderr") == console._encoding(shown, "stdout") == "cp1252"
    monkeypatch.setattr(console, "os", SimpleNamespace(name="nt", environ={"PYTHONIOENCODING": "cp1252"}))
    assert console._encoding(piped, "stdout") == "cp1252"


def test_mps_is_taken_where_torch_has_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"device \(mps\) is not there: .*; use device=cpu"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == MPS
    assert choose_precision("auto", MPS) == "fp32" and choose_precision("bf16", MPS) == "bf16"
    with pytest.raises(ValueError, match=r"precision \(fp16\) .* use bf16 or fp32 on mps"):
        choose_precision("fp16", MPS)
    assert float64_place(MPS).type == "cpu", "float64 is not there"
    assert "leave it out" in str(compile_problem(MPS))
    assert problems(compose_config(["device=mps"]).config) == []
    assert verify.verify(["model=v8", "device=mps"]) == 2 and "has no float64" in capsys.readouterr().err


def test_random_states_of_mps_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.arange(4, dtype=torch.uint8)
    put: list[torch.Tensor] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", put.append)
    states = random_states(MPS)
    set_random_states(states, MPS)
    assert states["cuda"] is None and put == [state]
    set_random_states(states, torch.device("cpu"))
    assert len(put) == 1
