"""search as it is typed, and its trials."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samout_train.cli import search
from samout_train.config import ConfigError
from samout_train.experiments import Outcome, Search, space_of
from samout_train.experiments.search import Choice, Interval
from tests.support.program import samout

pytest.importorskip("optuna", reason="wants samout_train[search]")
TINY = ["model=v8", "model.num_heads=2", "model.num_layers=1", "model.hidden_size=8", "device=cpu"]
TEXT = ["data=text", "data.path=small.txt", "data.seq_len=16", "data.batch_size=4", "trainer.max_steps=12"]
CHEAP = ["callbacks.state_health.branches=none", "callbacks.sample.num_samples=1", "callbacks.lengths.times=[]"]
RATES = "space={optimizer.lr:{low:1e-3,high:1e-2,log:true},model.dropout:[0.0,0.1]}"
DEADLY = """
import os, pathlib, signal
from samout_train.training.callbacks.base import Callback

class Deadly(Callback):
    def on_start(self, context):
        self.is_it = context.run_dir.name == "trial-1" and not pathlib.Path("died").exists()

    def on_step(self, step):
        if self.is_it and step == 6:
            pathlib.Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a text in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_space_is_lists_and_intervals() -> None:
    given = {"a": [1, "x", None], "b": {"low": 2, "high": 8, "step": 2}, "c": {"low": 1e-4, "high": 1, "log": True}}
    assert space_of(given) == {
        "a": Choice([1, "x", None]),
        "b": Interval(2, 8, False, 2),
        "c": Interval(1e-4, 1, True, None),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "must be settings of train with the values to try, such as space={optimizer.lr:"),
        ({"a": []}, "space: a=[]: must be a list of numbers or texts, with one at least"),
        ({"a": [[1]]}, "must be a list of numbers or texts"),
        ({"a": 3}, "space: a=3: must be a list, or low and high"),
        ({"a": {"low": 1}}, "must be a list, or low and high"),
        ({"a": {"low": 1, "high": 2, "lo": 3}}, "must be a list, or low and high"),
        ({"a": {"low": "x", "high": 2}}, "low, high and step must be numbers"),
        ({"a": {"low": 2, "high": 2}}, "low must be below high"),
        ({"a": {"low": 1, "high": 2, "step": 5}}, "step must fit between them"),
        ({"a": {"low": 0, "high": 2, "log": True}}, "log needs a low above 0"),
        ({"a": {"low": 1, "high": 2, "log": "no"}}, "log must be true or false"),
    ],
)
def test_what_is_no_space_is_told(given: object, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        space_of(given)
    assert message in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "space: is missing: set space={optimizer.lr:{low:1e-4"),
        (["space=3"], "space=3: must be settings of train with the values to try"),
        (["space={optimizer.rate:[1]}"], "space: optimizer.rate=1: no such key"),
        (["space={optimizer.lr:{low:-1,high:1}}"], "space: optimizer.lr=-1: must be above 0"),
        (["space={run_dir:[a]}"], "space: run_dir: is set by the search itself: leave it out"),
        (["space={model:[v8,v9]}"], "space: model=v9: no such option"),
        ([RATES, "trials=0"], "trials=0: must be above 0"),
        ([RATES, "resume=auto"], "resume: a search resumes when it gets the same run_dir again"),
        ([RATES, "run_dir=small.txt"], "run_dir=small.txt: is a file: give a directory"),
        ([RATES, "storage=nowhere://x"], "storage=nowhere://x: cannot be used: "),
        ([RATES, "-m"], "-m: search makes no sweeps"),
    ],
)
def test_a_wrong_request_is_told_with_exit_code_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search.search([*TINY, *TEXT, *words]) == 2
    out, error = capsys.readouterr()
    assert message in error and len(error.splitlines()) <= 8 and not out
    assert not list(folder.rglob("trial-*"))


def test_a_fractional_step_between_whole_numbers_is_drawn_as_it_is() -> None:
    import optuna

    study = optuna.create_study()
    drawn = {Interval(0, 1, False, 0.25).draw(study.ask(), "x") for _ in range(60)}
    assert drawn == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert all(isinstance(Interval(2, 8, False, 2).draw(study.ask(), "n"), int) for _ in range(3))


@pytest.mark.slow
def test_a_search_that_goes_on_draws_other_settings(tmp_path: Path) -> None:
    space = space_of({"optimizer.lr": {"low": 0.1, "high": 0.2}})
    drawn = []
    for _ in range(3):
        found = Search(tmp_path, storage=None, space=space, shared=[], flags=[], seed=0)
        trial = found.study.ask()
        drawn.append(space["optimizer.lr"].draw(trial, "optimizer.lr"))
        found.study.tell(trial, 1.0)
    assert len(set(drawn)) == 3


def in_memory(monkeypatch: pytest.MonkeyPatch, before: dict[str, object]) -> None:
    """Let each search open a study in memory, with what an earlier start has recorded, if anything."""
    import optuna

    def opened(url: str, name: str, record: object, *, seed: int, asked: dict[str, object]) -> tuple[object, object]:
        return optuna.create_study(), asked | before

    monkeypatch.setattr("samout_train.experiments.search._opened", opened)


def test_a_search_goes_on_only_from_the_weights_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(path: str) -> Search:
        return Search(tmp_path, storage=None, space={}, shared=[f"init_from={path}"], flags=[], seed=0)

    before: dict[str, object] = {}
    in_memory(monkeypatch, before)
    recorded = begin("runs/A")._settings(["init_from=runs/A"])
    before |= {"asked": '[{}, ["init_from=runs/A"]]', "settings": recorded}
    begin("runs/A")
    before["settings"] = {**recorded, "init_from": "runs/B"}  # from a YAML that has changed
    with pytest.raises(ConfigError, match=r"holds a search of other settings \(init_from=runs/A: it was runs/B\)"):
        begin("runs/A")
    before["settings"] = {key: value for key, value in recorded.items() if key != "init_from"}  # of an earlier version
    begin("runs/A")


def test_keys_are_said_to_be_important_for_the_best_trials_once_there_are_20(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory(monkeypatch, {})
    monkeypatch.setattr("samout_train.evaluation.draw_search", lambda *given, **named: None)
    space = space_of({"seed": {"low": 0.0, "high": 1.0}, "optimizer.lr": {"low": 0.1, "high": 1.0}})
    found = Search(tmp_path, storage=None, space=space, shared=[], flags=[], seed=0)
    for number in range(20):
        assert found.importances() == {}
        trial = found.study.ask()
        seed, _ = (dimension.draw(trial, key) for key, dimension in space.items())
        found.study.tell(trial, float(str(seed)) + number)
    importances = found.importances()
    assert set(importances) == set(space) and sum(importances.values()) == pytest.approx(1)
    search._print_result(found)
    out = capsys.readouterr().out
    assert "importance for reaching the best trials (PED-ANOVA)\n" in out and "%  optimizer.lr\n" in out


def test_runs_that_are_of_no_trial_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "trial-0").mkdir()
    with pytest.raises(ConfigError, match=r"search\.db has none of them: .*or give another run_dir"):
        Search(tmp_path, storage=None, space={}, shared=[], flags=[], seed=0)
    with pytest.raises(ConfigError, match="contains a character that is not allowed in a database URL"):
        Search(tmp_path / "what?", storage=None, space={}, shared=[], flags=[], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "state"),
    [
        (Outcome("done", {"val_loss_nats": 1.5}), "done"),
        (Outcome("done", {"val_loss_nats": None}), "pruned"),
        (Outcome("FAILED", error="its loss is nan", why="settings"), "pruned"),
        (Outcome("FAILED", error="killed by signal 9 (SIGKILL)", why="killed"), "FAILED"),
        (Outcome("stopped"), "FAILED"),
    ],
)
def test_what_a_trial_came_to_counts_unless_it_was_not_its_settings_fault(
    tmp_path: Path, found: Outcome, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Search(tmp_path, storage=None, space=space_of({"seed": [1, 2]}), shared=[], flags=[], seed=0)
    monkeypatch.setattr(Search, "_watched", lambda *given: (found, False))
    one.run(1, lambda trial: None)
    assert [trial.state for trial in one.trials()] == [state]
    again: list[int] = []
    one.run(1, lambda trial: again.append(trial.number))
    assert again == ([] if state != "FAILED" else [1]) and len(one.trials()) == 1


def test_without_optuna_there_is_a_word_on_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert search.search([*TINY, *TEXT, RATES]) == 2
    assert "pip install 'samout_train[search]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_of_two_trials_is_named_with_its_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, *TEXT, *CHEAP, "space={optimizer.lr:[1e-6,1e-2]}", "trials=2", "run_dir=s"]
    assert search.search(words) == 0
    out = capsys.readouterr().out
    losses = [json.loads((folder / "s" / f"trial-{n}" / "summary.json").read_text())["val_loss_nats"] for n in (0, 1)]
    best = losses.index(min(losses))
    assert f"best       trial {best}: {losses[best]:.4f} nats" in out and "2 trials: 2 done" in out
    assert out.splitlines()[-1].endswith(" optimizer.lr=0.01"), "1e-6 learns nothing in 12 steps"
    assert (folder / "s" / "search.png").stat().st_size > 1000


@pytest.mark.nightly
def test_of_four_trials_of_which_one_is_killed_three_are_done_and_the_same_command_makes_one(folder: Path) -> None:
    (folder / "deadly.py").write_text(DEADLY)
    (folder / "mine" / "experiment").mkdir(parents=True)
    yaml = "# @package _global_\ncallbacks:\n  deadly: {_target_: deadly.Deadly}\n"
    (folder / "mine" / "experiment" / "deadly.yaml").write_text(yaml)
    settings = ["--config-dir", "mine", "experiment=deadly", *TINY, *TEXT, *CHEAP, "trials=4", "run_dir=s"]
    words = ["search", *settings, RATES]
    first = samout(folder, *words, timeout=300)
    assert first.returncode == 1 and "4 trials: " in first.stdout and "1 FAILED" in first.stdout, first.stderr
    assert "FAILED   trial 1  " in first.stdout and "killed by signal 9 (SIGKILL)" in first.stdout
    again = samout(folder, *words, timeout=300)
    assert again.returncode == 0 and "FAILED" not in again.stdout and "4 trials: " in again.stdout, again.stderr
    assert again.stdout.count(" trial 4  ") == 1, "the fourth is the first again, with what the second had"
    log = (folder / "s" / "trial-1" / "output.txt").read_text()
    assert "repeat " in log and sorted(path.name for path in (folder / "s").glob("trial-*")) == [
        f"trial-{number}" for number in range(4)
    ]
    assert "best       trial " in again.stdout and "-m samout_train --config-dir" in again.stdout
    assert (folder / "s" / "search.png").stat().st_size > 1000
    other = samout(folder, "search", *settings, "space={optimizer.lr:[1e-3]}")
    assert other.returncode == 2 and "holds another search (space or settings)" in other.stderr


@pytest.mark.nightly
def test_a_search_that_is_killed_goes_on(folder: Path) -> None:
    words = ["search", *TINY, *TEXT, *CHEAP, "trainer.max_steps=60", RATES, "trials=3", "run_dir=s"]
    program = [sys.executable, "-m", "samout_train", *words]
    with subprocess.Popen(program, cwd=folder, start_new_session=True, stdout=-3, stderr=-3) as process:
        deadline = time.monotonic() + 120
        while not (folder / "s" / "trial-1" / "metrics.jsonl").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    done = samout(folder, *words, timeout=300)
    assert done.returncode == 0 and "3 trials: " in done.stdout, done.stdout + done.stderr
    assert " trial 0  " not in done.stdout.partition("3 trials: ")[0], "what was done is left as it is"
    assert len(list((folder / "s").glob("trial-*"))) == 3


@pytest.mark.slow
def test_two_searches_of_one_database_in_folders_of_one_name_are_two(folder: Path) -> None:
    shared, space = [*TINY, *TEXT], space_of({"optimizer.lr": [1e-3]})
    given = {"storage": f"sqlite:///{folder / 'all.db'}", "space": space, "flags": [], "seed": 0}
    for name in "ab":
        (folder / name / "search").mkdir(parents=True)
    first = Search(folder / "a" / "search", shared=shared, **given)
    first.study.ask()
    second = Search(folder / "b" / "search", shared=[*shared, "model.dropout=0.5"], **given)
    assert second.study.study_name != first.study.study_name and not second.study.trials
    (folder / "a").rename(folder / "moved")
    assert len(Search(folder / "moved" / "search", shared=shared, **given).study.trials) == 1


@pytest.mark.slow
def test_a_search_of_yaml_that_was_changed_since_is_refused(folder: Path) -> None:
    (folder / "mine" / "experiment").mkdir(parents=True)
    yaml = folder / "mine" / "experiment" / "own.yaml"
    yaml.write_text("# @package _global_\nmodel:\n  dropout: 0.1\n")
    given = {"storage": None, "space": space_of({"optimizer.lr": [1e-3]}), "seed": 0}
    given |= {"shared": [*TINY, *TEXT, "experiment=own"], "flags": [f"--config-dir={folder / 'mine'}"]}
    assert Search(folder, **given).study.trials == []
    yaml.write_text("# @package _global_\nmodel:\n  dropout: 0.2\n")
    with pytest.raises(ConfigError, match=r"model\.dropout=0\.2: it was 0\.1"):
        Search(folder, **given)
