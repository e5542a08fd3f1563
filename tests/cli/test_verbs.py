"""generate as it is typed, and wrong requests of verify."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from samout_train import generate_text, train
from samout_train.checkpoint import load_run
from samout_train.cli import generate
from tests.support.marks import spread
from tests.support.program import samout

SIZES = ["model.hidden_size=24", "model.num_heads=2", "model.num_layers=2", "device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small run lies in `run`."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "text.txt").write_text("the hands of the clock, the sands of time; " * 100, "utf-8")
    (folder / "bad.txt").write_bytes(b"\xff")
    with (folder / "large.txt").open("wb") as file:
        file.truncate((64 << 20) + 1)
    data = ["data=text", f"data.path={folder / 'text.txt'}", "data.seq_len=32", "data.batch_size=8"]
    train([*SIZES, *data, "trainer.max_steps=30", "optimizer.lr=1e-2", f"run_dir={folder / 'run'}"])
    room = ["model=transformer", "model.max_seq_len=64", "trainer.max_steps=1", f"run_dir={folder / 'room'}"]
    train([*SIZES, *data, *room])
    return folder


@pytest.mark.slow
def test_text_goes_to_standard_output_prompt_first_and_all_else_to_standard_error(folder: Path) -> None:
    words = ["generate", "run=run", "prompt=the hands, ", "max_new_tokens=40", "temperature=0"]
    done = samout(folder, *words)
    assert done.returncode == 0, done.stderr
    loaded = load_run(folder / "run")
    assert loaded.vocabulary is not None
    wanted = "".join(generate_text(loaded.model, loaded.vocabulary, "the hands, ", max_new_tokens=40, temperature=0))
    assert done.stdout == f"the hands, {wanted}\n"
    assert re.fullmatch(r"prompt: 11 tokens in [\d.]+ s; text: 40 tokens, [\d,]+ tokens/s, on cpu\n", done.stderr)
    assert not (folder / "outputs").exists(), "generate makes no run directory"
    (folder / "prompt.txt").write_text("the hands, ", "utf-8")
    assert samout(folder, *words[:2], "prompt=@prompt.txt", *words[3:]).stdout == done.stdout
    assert samout(folder, *words[:2], "prompt=-", *words[3:], text="the hands, ").stdout == done.stdout
    step = next((folder / "run" / "checkpoints").glob("step_*.pt"))
    assert samout(folder, "generate", f"run={step}", *words[2:]).stdout == done.stdout


@pytest.mark.nightly
def test_samples_differ_and_end_before_stop(folder: Path) -> None:
    words = ["generate", "run=run", "prompt=the ", "max_new_tokens=60", "num_samples=2", "top_p=0.9"]
    first, second = samout(folder, *words).stdout.splitlines()
    assert first != second
    stopped = samout(folder, *words[:4], "temperature=0", "stop=s")
    assert stopped.stdout.startswith("the ") and "s" not in stopped.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    spread(
        [
            (["generate"], "run: is missing"),
            (["generate", "run=absent", "prompt=a"], "absent is not there: give a run directory"),
            (["generate", "run=", "prompt=a"], "the path of a run is empty: give a run directory or a checkpoint file"),
            (
                ["generate", "run=text.txt", "prompt=a"],
                "text.txt is not a checkpoint: give a run directory or a checkpoint",
            ),
            (
                ["generate", "run=run/summary.json", "prompt=a"],
                "run/summary.json is not a checkpoint: give a run directory",
            ),
            (["verify", "run=run/checkpoints/index.json"], "run/checkpoints/index.json is not a checkpoint"),
            (["generate", "run=run", "prompt=é"], "character 'é' at position 0 is not in the vocabulary"),
            (["generate", "run=run", "prompt="], "the prompt is empty: give at least one token to continue"),
            (["generate", "run=run", "prompt=@absent"], "prompt=@absent: cannot be read"),
            (["generate", "run=run", "prompt=a", "tempratur=1"], "tempratur=1: no such key; did you mean temperature?"),
            (["generate", "run=run", "prompt=a", "top_p=2"], "top_p=2: must be"),
            (
                ["generate", "run=run", "prompt=@large.txt"],
                "prompt=@large.txt: has more than 67,108,864 bytes (64 MiB)",
            ),
            (
                ["generate", "run=run", "prompt=the", f"num_samples={10**11}"],
                "num_samples=100000000000: does not fit into",
            ),
            (
                ["generate", "run=run", "prompt=the", f"max_new_tokens={10**15}"],
                "max_new_tokens=1000000000000000: does",
            ),
            (
                ["generate", "run=run", "prompt=a", "num_samples=1e30"],
                "num_samples=1e+30: must be at most 9223372036854",
            ),
            (
                ["generate", "run=run", "prompt=a", "device=1"],
                "device=1: must be auto, cpu, cuda, cuda:N or mps; did you",
            ),
            (
                ["generate", "run=run", "prompt=@bad.txt"],
                "prompt=@bad.txt: bad.txt is not UTF-8 at byte",
            ),
            (["generate", "run=run", "prompt=a", f"seed={10**23}"], "must be from 0 to 9223372036854775807"),
            (["generate", "run=room", "prompt=the", "max_new_tokens=63"], "set max_new_tokens to 62 or less"),
            (["generate", "-m", "run=run", "prompt=a"], "generate makes no sweeps"),
            (
                ["generate", "run=run", "prompt=a", "model=v8"],
                "model=v8: no such key; there are run, prompt, max_new_tokens",
            ),
            (["generate", "run=run", "prompt=a", "--config-name", "nope"], "--config-name nope: generate has its own"),
            (["generate", "--cfg", "job", "tempratur=1"], "tempratur=1: no such key; did you mean temperature?"),
            (["generate", "--cfg", "job", "foo"], "foo: has no value: write foo=..."),
            (["generate", "runs/base"], "runs/base: is not a setting: write run=runs/base"),
            (["inspect", "my.txt"], "my.txt: is not a setting: write path=my.txt"),
            (["tokenize", "."], ".: is not a setting: write path=."),
            (["compare", "a/b"], "a/b: is not a setting: write runs=a/b"),
            (["sweep", "a/b"], "a/b: is not a setting: write dir=a/b"),
            (["generate", "--cfg", "job", "-p", "devic"], "--package devic: no such key; did you mean device?"),
            (["generate", "--help", "top_p=2"], "top_p=2: must be"),
            (["verify", "--cfg", "job", "model=v9"], "model=v9: no such option; there are"),
            (["verify", "model.hidden_size=3"], "model.hidden_size=3: no model is chosen: add model=NAME"),
            (["verify", "--config-name", "nope", "model=v8"], "--config-name nope: verify has its own"),
            (["verify"], "one of: model=NAME, run=RUN_DIR, models=all"),
            (["verify", "model=v9"], "model=v9: no such option; there are"),
            (["verify", "model=v8", "model.hiden_size=3"], "did you mean model.hidden_size?"),
            (["verify", "run=absent"], "absent is not there"),
        ],
        2,
    ),
)
def test_a_wrong_request_is_told_with_exit_code_2(
    folder: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert getattr(importlib.import_module(f"samout_train.cli.{words[0]}"), words[0])(words[1:]) == 2
    out, error = capsys.readouterr()
    assert message in error and len(error.splitlines()) <= 8 and not out


@pytest.mark.slow
def test_bytes_that_are_no_utf8_are_refused_wherever_they_come_from(folder: Path) -> None:
    for prompt, message in (
        (b"prompt=\xff", "cannot be read ('utf-8' codec can't"),
        (b"prompt=-", "prompt=-: standard input is not UTF-8 at byte 10 (0xff)"),
    ):
        done = samout(folder, "generate", "run=run", prompt, text="no UTF-8: \udcff")
        assert done.returncode == 2 and message in done.stderr and not done.stdout
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", spread(["generate", "verify"], 2))
def test_help_lists_the_keys(folder: Path, verb: str) -> None:
    done = samout(folder, verb, "--help")
    assert done.returncode == 0 and "device: auto" in done.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["generate", "--cfg", "job", "prompt=a,b"], "prompt: a,b"),
        (["generate", "--cfg", "job", "prompt='x"], "prompt: '''x'"),
        (["verify", "--cfg", "job", "model=v8", "model.hidden_size=3"], "  hidden_size: 3"),
    ],
)
def test_the_configuration_is_shown_as_the_shell_gave_it(folder: Path, words: list[str], line: str) -> None:
    done = samout(folder, *words)
    assert done.returncode == 0 and line in done.stdout.splitlines() and not done.stderr


@pytest.mark.nightly
def test_a_prompt_without_end_is_refused(folder: Path) -> None:
    words = [sys.executable, "-m", "samout_train", "generate", "run=run", "prompt=-"]
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        done = subprocess.run(words, cwd=folder, stdin=endless.stdout, capture_output=True, text=True)
        endless.kill()
    assert done.returncode == 2 and done.stderr.startswith("prompt=-: has more than 67,108,864 bytes (64 MiB): give")
    assert done.stdout == ""


def test_a_prompt_of_the_largest_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"a" * generate.LARGEST_PROMPT)
    assert len(generate._read(f"@{file}", "keep")) == generate.LARGEST_PROMPT
