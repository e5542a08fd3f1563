r"""Text with `\${...}` in it: it stays as it is wherever settings are composed, saved, read again and built."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from samout_train.cli.train import train as main
from samout_train.config import as_typed, build, compose_config, escaped, saved_config, saved_node
from samout_train.runtime import text_setting
from tests.support.program import samout

TINY = [
    *("data=text", "data.seq_len=8", "data.batch_size=4", "device=cpu", "kernels=reference", "model.hidden_size=8"),
    *("model.num_heads=2", "model.num_layers=1", "trainer=debug"),
]
NAME = "a${x}${oc.env:HOME} '.txt"


@pytest.mark.parametrize(
    "text", ["${x}", r"\${x}", r"\\${x}", r"a\b${x}\\", "${", "$${a}${b}", "no \\ such", "${oc.env:HOME}"]
)
def test_what_is_escaped_resolves_to_itself(text: str) -> None:
    node = {"text": text, "list": [text, {"inner": text}], "number": 3}
    assert OmegaConf.to_container(OmegaConf.create(escaped(node)), resolve=True) == node


def test_a_component_gets_what_was_composed() -> None:
    node = {"_target_": "builtins.dict", "path": "${x}", "paths": ["${y}"], "roles": {"a": "${z}"}}
    assert build(node) == {"path": "${x}", "paths": ["${y}"], "roles": {"a": "${z}"}}
    part = {"_target_": "builtins.dict", "_partial_": True, "inner": {"_target_": "builtins.list"}}
    assert build(part, late=1) == {"inner": [], "late": 1}


@pytest.mark.nightly
def test_a_run_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_text: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_text(small_text.read_text("utf-8"), "utf-8")
    words = [*TINY, text_setting("data.path", NAME), text_setting("run_dir", "run${y}")]
    assert words[-1] == r"run_dir='run\${y}'"
    assert compose_config(words).config["data"]["path"] == NAME
    assert samout(tmp_path, *words).returncode == 0
    again = samout(tmp_path, *words, "resume=auto", "trainer.max_steps=3")
    assert again.returncode == 0 and r"'run_dir='" in again.stdout and "step 2" in again.stdout, again.stdout
    saved = Path("run${y}", ".hydra", "config.yaml")
    assert saved_node(saved, "data")["path"] == NAME
    assert str(OmegaConf.to_container(OmegaConf.load(saved), resolve=True)["run_dir"]).endswith("run${y}")  # type: ignore[index, call-overload]
    assert saved_config(saved)["data"]["path"] == NAME
    assert Path("run${y}", "samout_train.log").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "run${y}", "small.txt"}
    told = samout(tmp_path, "generate", "run=run${y}", "prompt=a", "max_new_tokens=2", "device=cpu")
    assert told.returncode == 0, told.stderr


@pytest.mark.nightly
def test_a_sweep_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_text: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a${x}.txt", "b.txt"):
        Path(name).write_text(small_text.read_text("utf-8"), "utf-8")
    words = ["-m", *TINY, r"data.path='a\${x}.txt',b.txt", r"hydra.sweep.dir='s\${y}'"]
    assert samout(tmp_path, *words).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a${x}.txt", "b.txt", "s${y}", "small.txt"}
    paths = [saved_node(file, "data")["path"] for file in Path("s${y}").glob("*/.hydra/config.yaml")]
    assert sorted(paths) == ["a${x}.txt", "b.txt"]
    assert len(list(Path("s${y}").glob("*/samout_train.log"))) == 2
    again = samout(tmp_path, *words)
    assert again.returncode == 0 and again.stdout.count("is finished") == 2, again.stdout + again.stderr


def test_the_words_of_a_job_are_what_a_person_types() -> None:
    assert as_typed(r"++data.path='a\${x}.txt'") == r"data.path='a\${x}.txt'"
    assert as_typed(r"++data.path='a b.txt'") == "data.path=a b.txt"
    assert text_setting("run_dir", "a,b=c") == "run_dir=a,b=c"


@pytest.mark.slow
def test_who_means_the_text_is_told_how_to_write_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data=text", "data.path=a${x}.txt"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("data.path: ${x} names a key that is not there") and r"'\${x}'" in said
    assert main(["data=text", "data.path=a${y:x}.txt"]) == 2
    assert r"'\${y:...}'" in capsys.readouterr().err


@pytest.mark.slow
def test_hydras_help_knows_the_directories(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "samout_train", "--cfg", "hydra"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "${job_directory:}" in done.stdout
