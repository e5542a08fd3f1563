"""A verb: its signature is the schema of its YAML, its docstring the help, and its words are composed once."""

import importlib
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from samout_train.cli import verb as verbs
from samout_train.cli.main import VERBS
from samout_train.cli.request import Request
from samout_train.cli.train import train
from samout_train.cli.verb import Verb
from samout_train.config import CONF, Composed, compose, compose_config
from samout_train.config.hydra import Hydra
from tests.support.marks import spread

SMALL = ["model=v1", "model.hidden_size=16", "model.num_heads=2", "model.num_layers=1", "data.batch_size=4"]


def verb_of(name: str) -> Verb:
    found = getattr(importlib.import_module(f"samout_train.cli.{name}"), name)
    assert isinstance(found, Verb)
    return found


@pytest.mark.parametrize("name", VERBS)
def test_its_keys_are_those_of_its_yaml(name: str) -> None:
    root = {"train": "config"}.get(name, name)
    keys = set(compose_config([], config_name=root).config)
    signature = inspect.signature(verb_of(name).keys).parameters
    required = {key for key, parameter in signature.items() if parameter.default is parameter.empty}
    assert required <= keys <= set(signature)


@pytest.mark.parametrize("name", VERBS)
def test_its_docstring_is_its_help(name: str) -> None:
    root = OmegaConf.load(CONF / f"{({'train': 'config'}).get(name, name)}.yaml")
    header = str(OmegaConf.select(root, "hydra.help.header")).splitlines()[0]
    does = header.removeprefix("samout_train ").removeprefix(f"{name} ")
    first = str(verb_of(name).__doc__).splitlines()[0]
    assert first == does[0].upper() + does[1:]


@pytest.mark.parametrize("words", spread([[*SMALL, "optimizer.lr=1e-2", "seed=3"], SMALL], 2))
def test_a_run_is_parsed_once_and_composed_once(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"composed": 0, "parsed": 0}
    composes, parses = compose.compose, Request.__init__

    def counted(*args: Any, **settings: Any) -> Any:
        counts["composed"] += 1
        return composes(*args, **settings)

    def parsed(self: Request, *args: Any, **settings: Any) -> None:
        counts["parsed"] += 1
        parses(self, *args, **settings)

    monkeypatch.setattr(compose, "compose", counted)
    monkeypatch.setattr(verbs.Request, "__init__", parsed)
    assert train([*words, "data=random", "trainer=debug", "device=cpu", f"run_dir={tmp_path / 'run'}"]) == 0
    assert counts == {"composed": 1, "parsed": 1}
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("name", "words", "shown"),
    [
        ("train", ["--cfg", "job", "-p", "model", "model.hidden_size=12"], "hidden_size: 12\n"),
        ("train", ["--help"], "model: counting, "),
        ("train", ["--help", "-m", "seed=1,2"], "model: counting, "),
        ("verify", ["--help"], "samout_train verify checks "),
    ],
)
def test_an_answer_is_composed_once_and_leaves_the_words_of_the_program_alone(
    name: str, words: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    composed: list[bool] = []
    composes = Hydra.compose_config

    def counted(*args: Any, **settings: Any) -> Any:
        composed.append(True)
        return composes(*args, **settings)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    typed = list(sys.argv)
    assert verb_of(name)(words) == 0
    out, error = capsys.readouterr()
    assert shown in out and not error
    assert len(composed) == 1 and sys.argv == typed


def test_settings_that_refer_to_the_directory_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory named by the time is taken already, so the run gets another one than was composed."""
    sample = textwrap.indent((CONF / "callbacks" / "sample.yaml").read_text(), "  ")
    sample = sample.replace("prompt: null", "prompt: ${run_dir}/p")
    root = f"defaults: [/config, _self_]\nrun_dir: {tmp_path}/run_${{now:%%}}\n"
    (tmp_path / "mine.yaml").write_text(f"{root}callbacks:\n{sample}")
    (tmp_path / "run_%").mkdir()
    seen: list[tuple[Composed, str]] = []

    def trained(composed: Composed, *args: Any, **settings: Any) -> None:
        seen.append((composed, HydraConfig.get().job.override_dirname))

    monkeypatch.setattr("samout_train.cli.train._train", trained)
    assert train([*SMALL, "data=random", f"--config-dir={tmp_path}", "--config-name=mine"]) == 0
    [(composed, override_dirname)] = seen
    directory = f"{tmp_path}/run_%-2"
    assert composed.config["run_dir"] == directory
    assert composed.config["callbacks"]["sample"]["prompt"] == f"{directory}/p"
    assert f"prompt: {directory}/p" in composed.yaml
    assert f"++run_dir='{directory}'" in override_dirname.split(",")
