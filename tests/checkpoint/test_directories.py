"""A directory belongs to one set of settings: runs, sweeps and their jobs that would share one."""

import copy
import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from samout_train import __version__, build_trainer, train
from samout_train.checkpoint import DirectoryRefusedError, differences, locked, new_directory, other_settings
from samout_train.cli import train as train_command
from samout_train.cli.request import last_of_each
from samout_train.config import CONF, ConfigError, compose_config, locate
from samout_train.experiments import check_job_data, doubles, outcome, sweep_jobs, write_sweep
from samout_train.experiments.compare.runs import read_run, told_apart
from samout_train.runtime import StopRequestedError, child_program
from tests.support.marks import mostly_nightly
from tests.support.program import samout

TINY = ["data=random", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "data.num_sequences=8"]
RUN = [*TINY, "device=cpu", "data.batch_size=4", "trainer=debug", "callbacks.state_health.branches=none"]


def setting(run_dir: Path, key: str) -> object:
    """A setting that a run saved."""
    return OmegaConf.select(OmegaConf.load(run_dir / ".hydra" / "config.yaml"), key)


def trained(run_dir: Path, key: str) -> object:
    """A figure of the summary, out of the process that trained."""
    return json.loads((run_dir / "summary.json").read_text())[key]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at_once(folder: Path, *commands: list[str]) -> list["subprocess.CompletedProcess[str]"]:
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda words: samout(folder, *words), commands))


def test_a_new_directory_is_one_that_no_other_start_has(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_directory(tmp_path / "runs" / "a"), range(8)))
    assert {path.name for path in made} == {"a", *(f"a-{number}" for number in range(2, 9))}


def test_a_lock_that_the_system_deletes_leaves_nothing_behind(tmp_path: Path) -> None:
    """As on Windows, where the file of a lock is deleted with it."""
    with locked(tmp_path / "run"):
        (tmp_path / "run" / ".hydra" / "lock").unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_two_runs_of_the_same_second_get_a_directory_each(tmp_path: Path) -> None:
    run_dir = "run_dir='runs/${now:%Y}'"  # a year stands for a second
    done = at_once(tmp_path, [*RUN, run_dir, "seed=1"], [*RUN, run_dir, "seed=2"])
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    first, second = sorted((tmp_path / "runs").iterdir())
    assert second.name == f"{first.name}-2"
    assert {setting(first, "seed"), setting(second, "seed")} == {1, 2}
    for path in (first, second):
        assert setting(path, "run_dir") == f"runs/{path.name}" and setting(path, "seed") == trained(path, "seed")
    again = train([*RUN, f"run_dir={tmp_path}/runs/${{now:%Y}}"])
    assert again[0]["steps"] == 2 and (tmp_path / "runs" / f"{first.name}-3" / "summary.json").exists()


@pytest.mark.slow
def test_of_two_runs_in_one_given_directory_the_second_touches_nothing(tmp_path: Path) -> None:
    long = [word for word in RUN if word != "trainer=debug"]
    words = [*long, "trainer.max_steps=100000", "data.batch_size=8"]
    command = [sys.executable, "-m", "samout_train", *words, "run_dir=here"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "here" / "metrics.jsonl").exists():  # from then on signals are heard by the run
            assert process.poll() is None
            time.sleep(0.02)
        for more in ([], ["resume=auto"]):
            other = samout(tmp_path, *RUN, "model.hidden_size=16", "run_dir=here", *more)
            assert other.returncode == 2 and "run_dir=here: " in other.stderr and len(other.stderr.splitlines()) == 1
        assert setting(tmp_path / "here", "model.hidden_size") == 8
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not (tmp_path / "here" / "failure.json").exists()
    assert samout(tmp_path, "inspect", "path=here").returncode == 0


@pytest.mark.slow
def test_a_directory_that_is_held_but_empty_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "here" / ".hydra").mkdir(parents=True)
    with FileLock(tmp_path / "here" / ".hydra" / "lock"):
        before = contents(tmp_path)
        done = samout(tmp_path, *RUN, "run_dir=here")
        assert done.returncode == 2 and "run_dir=here: another process is at a run in it" in done.stderr
        assert contents(tmp_path) == before


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (
            "run: {dir: there}",
            "hydra.run.dir=there: has no meaning here: set run_dir instead (mine/experiment/own.yaml",
        ),
        ("run: {dir: 'x/${now:%Y}'}", "hydra.run.dir=x/${now:%Y}: has no meaning here: set run_dir"),
        ("sweep: {subdir: '${hydra:job.num}'}", "hydra.sweep.subdir=${hydra:job.num}: has no meaning here"),
        ("output_subdir: null", "hydra.output_subdir=null: has no meaning here: leave it out"),
        ("job: {chdir: true}", "hydra.job.chdir=true: has no meaning here: leave it out: paths are relative"),
        ("mode: MULTIRUN", "hydra.mode=MULTIRUN: has no meaning here: leave it out, and give -m"),
    ],
)
def test_directories_that_yaml_sets_behind_the_check_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], yaml: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(f"# @package _global_\nhydra:\n  {yaml}\n")
    for more in ([], ["-m", "seed=1,2"]):
        assert train_command.train(["--config-dir", "mine", "experiment=own", *RUN, *more]) == 2
        told = capsys.readouterr().err
        assert message in told and len(told.splitlines()) == 1, told
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_a_root_yaml_that_gives_run_dir_is_checked_where_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.yaml").write_text("defaults: [config, _self_]\nrun_dir: there\n")
    words = ["--config-dir", "mine", "--config-name", "own", *RUN]
    assert samout(tmp_path, *words).returncode == 0
    before = contents(tmp_path / "there")
    again = samout(tmp_path, *words, "seed=3")
    assert again.returncode == 2 and "run_dir=there: holds a run already" in again.stderr
    assert contents(tmp_path / "there") == before


@pytest.mark.nightly
def test_two_sweeps_of_the_same_second_get_a_directory_each(tmp_path: Path) -> None:
    sweep = ["-m", *RUN, "hydra.sweep.dir='sw/${now:%Y}'", "seed=1,2"]
    done = at_once(tmp_path, [*sweep, "model.dropout=0.1"], [*sweep, "model.dropout=0.2"])
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    folders = sorted((tmp_path / "sw").iterdir())
    assert len(folders) == 2
    assert {setting(folder / "seed=1", "model.dropout") for folder in folders} == {0.1, 0.2}
    for folder in folders:
        run_dir = folder / "seed=2"
        assert setting(run_dir, "model.dropout") == setting(folder / "seed=1", "model.dropout")
        assert setting(run_dir, "run_dir") == str(run_dir), "the directory where the job lies"


@pytest.mark.slow
def test_two_sweeps_in_one_given_directory_make_each_job_once_or_the_other_is_refused(tmp_path: Path) -> None:
    sweep = ["-m", *RUN, "hydra.sweep.dir=sw", "seed=1,2"]
    same = at_once(tmp_path, sweep, sweep)
    assert [one.returncode for one in same] == [0, 0], [one.stderr for one in same]
    printed = "".join(one.stdout for one in same)
    assert printed.count("validation loss") == 2 or printed.count("dashboard") == 2, printed
    left = sum(printed.count(words) for words in ("is finished: skipped", "another process is training it"))
    assert left == 2
    before = contents(tmp_path / "sw")
    other = samout(tmp_path, *sweep, "model.dropout=0.3")
    assert other.returncode == 2 and "model.dropout=0.3" in other.stderr and "another directory" in other.stderr
    assert contents(tmp_path / "sw") == before


@pytest.mark.nightly
def test_a_sweep_that_was_recorded_keeps_out_others_before_its_jobs_begin(tmp_path: Path) -> None:
    (tmp_path / "sw").mkdir()
    record = {"command": ["-m"], "jobs": {"seed=1": [*RUN, "seed=1"], "seed=2": [*RUN, "seed=2"]}}
    (tmp_path / "sw" / "sweep.json").write_text(json.dumps(record))
    other = samout(tmp_path, "-m", *RUN, "hydra.sweep.dir=sw", "model.dropout=0.3", "seed=1,2")
    assert other.returncode == 2 and "model.dropout=0.3: it was 0.01: seed=1 is" in other.stderr, other.stderr
    assert json.loads((tmp_path / "sw" / "sweep.json").read_text()) == record
    same = samout(tmp_path, "-m", *reversed(RUN), "hydra.sweep.dir=sw", "model.dropout=0.01", "seed=1,2")
    assert same.returncode == 0, same.stderr


def test_of_a_key_that_is_given_twice_the_last_value_counts() -> None:
    assert last_of_each(["seed=7", "model.dropout=0", "+seed=1,2"]) == ["model.dropout=0", "+seed=1,2"]
    assert last_of_each(["model=v1", "model=v1,v8"]) == ["model=v1,v8"]
    assert last_of_each(["~seed", "seed=1", "callbacks=default", "+callbacks=lengths"])[:2] == ["~seed", "seed=1"]
    assert len(last_of_each(["callbacks=default", "+callbacks=lengths"])) == 2
    assert last_of_each(["seed=1", "seed=1"]) == ["seed=1"]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "words",
    mostly_nightly(
        [
            "model.hidden_size=8 model.hidden_size=12,16",
            "seed=7 seed=1,2",
            "+seed=7 seed=1,2",
            "model=v1 model=v1,v8",
        ],
        ["model.hidden_size=8 model.hidden_size=12,16"],
    ),
)
def test_a_swept_key_that_was_given_before_makes_jobs_of_their_own(tmp_path: Path, words: str) -> None:
    done = samout(tmp_path, "-m", *RUN, *words.split(), "hydra.sweep.dir=sw")
    assert done.returncode == 0, done.stderr
    key, _, values = words.split()[1].partition("=")
    for value in values.split(","):
        run_dir = tmp_path / "sw" / f"{key}={value}"
        assert outcome(run_dir).state == "done"
        assert str(trained(run_dir, "model") if key == "model" else setting(run_dir, key)) == value


@pytest.mark.nightly
def test_values_that_are_equal_are_trained_once_or_it_is_said(tmp_path: Path) -> None:
    done = samout(tmp_path, "-m", *RUN, "hydra.sweep.dir=sw", "optimizer.lr=1e-3,0.001", "model.dropout=0,0.0")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "sw").iterdir() if path.is_dir()}
    assert names == {f"model.dropout={value},optimizer.lr=0.001" for value in ("0", "0.0")}
    told = "model.dropout=0.0,optimizer.lr=0.001: has the same settings as model.dropout=0,optimizer.lr=0.001"
    assert told in done.stderr


def test_jobs_of_equal_settings_are_named() -> None:
    configs = {"a=0": {"model": {"dropout": 0}, "run_dir": "x"}, "a=0.0": {"model": {"dropout": 0.0}, "run_dir": "y"}}
    assert doubles(configs) == ["a=0.0: has the same settings as a=0: both are trained; leave one of the values out"]
    assert doubles({**configs, "a=0.0": {"model": {"dropout": 0.1}}}) == []


def test_a_job_of_another_sweep_is_refused_before_it_begins_and_the_same_in_other_words_is_not(tmp_path: Path) -> None:
    def settings_of(words: Sequence[str]) -> dict[str, object]:
        return {"model": {"dropout": float(words[-1].partition("=")[2])}}

    write_sweep(tmp_path, command=[], flags=[], jobs={"seed=1": ["seed=1", "model.dropout=0"]})
    before = contents(tmp_path)
    other = {"seed=1": ["model.dropout=0.3"], "seed=2": ["model.dropout=0.3"]}
    with pytest.raises(DirectoryRefusedError, match=r"model\.dropout=0\.3: it was 0\.0: seed=1 is another sweep's job"):
        write_sweep(tmp_path, command=[], flags=[], jobs=other, settings_of=settings_of)
    assert contents(tmp_path) == before
    write_sweep(tmp_path, command=[], flags=[], jobs={"seed=1": ["model.dropout=0.0"]}, settings_of=settings_of)
    assert sweep_jobs(tmp_path)[0].words == ("model.dropout=0.0",)
    assert sweep_jobs(tmp_path)[0].directory == Path.cwd()


def test_a_relative_path_of_a_job_is_that_of_the_directory_where_its_sweep_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    jobs = {"seed=1": ["seed=1", "data.path=small.txt"], "seed=2": ["seed=2", "data.path=/all/small.txt"]}
    monkeypatch.chdir(tmp_path / "one")
    for _ in range(2):
        write_sweep(tmp_path / "sw", command=[], flags=[], jobs=jobs)
    monkeypatch.chdir(tmp_path / "two")
    write_sweep(tmp_path / "sw", command=[], flags=[], jobs={"seed=2": jobs["seed=2"]})
    with pytest.raises(DirectoryRefusedError, match=r"data\.path=small\.txt: is relative, and this sweep was started"):
        write_sweep(tmp_path / "sw", command=[], flags=[], jobs=jobs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mark", "words", "message"),
    [
        ("sweep.json", ["run_dir=there"], "run_dir=there: holds a sweep: give another run_dir"),
        ("search.db", ["run_dir=there", "resume=auto"], "run_dir=there: holds a search: give another run_dir"),
        ("metrics.jsonl", ["-m", "hydra.sweep.dir=there", "seed=1,2"], "hydra.sweep.dir=there: holds a run: give"),
        ("comparison.json", ["-m", "hydra.sweep.dir=there", "seed=1,2"], "hydra.sweep.dir=there: holds a comparison"),
    ],
)
def test_a_directory_of_something_else_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mark: str,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / mark).touch()
    assert train_command.train([*RUN, *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["there", mark]


@pytest.mark.nightly
def test_a_finished_job_is_not_written_over_and_not_counted_for_other_settings(tmp_path: Path) -> None:
    sweep = ["-m", *RUN, "hydra.sweep.dir=sw"]
    assert samout(tmp_path, *sweep, "seed=1,2").returncode == 0
    (tmp_path / "sw" / "sweep.json").unlink()
    before = contents(tmp_path / "sw")
    other = samout(tmp_path, *sweep, "seed=1,2", "data.batch_size=2")
    assert other.returncode == 2 and "data.batch_size=2: the run in sw/seed=1 has 4" in other.stderr
    assert contents(tmp_path / "sw") == before
    again = samout(tmp_path, *sweep, "seed=1,2")
    assert again.returncode == 0 and again.stdout.count("is finished: skipped") == 2
    after = contents(tmp_path / "sw")
    assert {name: after[name] for name in before if ".hydra" in name} == {
        name: content for name, content in before.items() if ".hydra" in name
    }


@pytest.mark.nightly
def test_a_sweep_goes_on_from_another_working_directory(tmp_path: Path, small_text: Path) -> None:
    start, elsewhere = tmp_path / "start", tmp_path / "elsewhere"
    start.mkdir()
    elsewhere.mkdir()
    small_text.rename(start / "small.txt")
    text = ["data=text", "data.path=small.txt", "data.seq_len=16", "data.batch_size=4", "callbacks.lengths.times=[1]"]
    words = [*RUN[1:4], *text, "device=cpu", "trainer=debug", "callbacks.state_health.branches=none"]
    assert samout(start, "-m", *words, "hydra.sweep.dir=sw", "seed=1,2").returncode == 0
    for name in ("seed=1", "seed=2"):
        (start / "sw" / name).rename(tmp_path / name)
    done = samout(elsewhere, "sweep", "action=resume", "dir=../start/sw")
    assert done.returncode == 0 and "2 jobs in ../start/sw: 2 done" in done.stdout, done.stdout + done.stderr
    assert list(elsewhere.iterdir()) == []
    for name in ("seed=1", "seed=2"):
        (start / "sw" / name / "summary.json").unlink()
    start.rename(tmp_path / "moved")
    gone = samout(elsewhere, "sweep", "action=resume", "dir=../moved/sw")
    assert gone.returncode == 2 and f"were started in {start}, which is not there" in gone.stderr
    assert not list((tmp_path / "moved").rglob("failure.json"))


def test_one_text_in_place_of_a_list_is_named() -> None:
    for call in (build_trainer, train):
        with pytest.raises(ConfigError, match=r"overrides='model=v8': is one text: give a list"):
            call("model=v8")


ON_TEXT = [
    *("data=text", "data.seq_len=8", "data.batch_size=4", "model.hidden_size=8", "model.num_heads=2"),
    *("model.num_layers=1", "device=cpu", "trainer=debug", "callbacks=metrics_file"),
]


@pytest.mark.slow
def test_runs_of_one_directory_learn_from_the_same_data(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("a text of one kind. " * 40, "utf-8")
    words = [*ON_TEXT, f"data.path={text}"]
    folder = tmp_path / "sweep"
    config = compose_config([*words, "seed=1"]).config
    train([*words, "seed=1", f"run_dir={folder / 'seed=1'}"])
    write_sweep(folder, command=["-m"], flags=[], jobs={"seed=1": [*words, "seed=1"]})
    of_first = read_run(folder / "seed=1").config["data"]["sha256"]
    assert check_job_data(folder, [config]) == []
    text.write_text("another text, and longer. " * 40, "utf-8")
    [problem] = check_job_data(folder, [config])
    assert f"data.path={text}: is other data than the run learns from: 1,040 bytes" in str(problem)
    assert "the run has 800 bytes" in str(problem) and str(problem).endswith(
        "use the data of the existing runs, or another hydra.sweep.dir"
    )
    text.unlink()
    assert "is not there" in str(check_job_data(folder, [config])[0])
    assert check_job_data(folder, [compose_config([*words, "data.seq_len=9"]).config]) == []  # of other settings
    text.write_text("a third text. " * 40, "utf-8")
    train([*words, "seed=2", f"run_dir={folder / 'seed=2'}"])
    first, second = told_apart([read_run(folder / f"seed={seed}") for seed in (1, 2)])
    assert first.label == f"v8 data.sha256={of_first}" != second.label
    assert len(of_first) == 12 and sha256(b"a text of one kind. " * 40).hexdigest().startswith(of_first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "further"),
    [
        (["-m", "seed=1,2", "hydra.sweep.dir=many"], ["-m", "seed=1,2,3", "hydra.sweep.dir=many"]),
        pytest.param(
            ["-m", "seed=1,2", "hydra.sweep.dir=many"],
            ["-m", "seed=4,5", "hydra.sweep.dir=many"],
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ["compare", "models=[v8]", "lr=[1e-3]", "seeds=1", "run_dir=many"],
            ["compare", "models=[v8]", "lr=[1e-3]", "seeds=2", "run_dir=many"],
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ["search", "space={optimizer.lr:[1e-3,1e-2]}", "trials=1", "run_dir=many"],
            ["search", "space={optimizer.lr:[1e-3,1e-2]}", "trials=2", "run_dir=many"],
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["sweep", "other jobs of a sweep", "comparison", "search"],
)
def test_many_runs_do_not_go_on_with_another_text(tmp_path: Path, begun: list[str], further: list[str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text("a text of one kind. " * 40, "utf-8")
    words = [*ON_TEXT, "data.path=t.txt"]
    assert samout(tmp_path, *begun, *words).returncode == 0
    before = contents(tmp_path / "many")
    text.write_text("another text, and longer. " * 40, "utf-8")
    done = samout(tmp_path, *further, *words)
    assert done.returncode == 2 and "is other data than the run learns from" in done.stderr, done.stderr
    after = contents(tmp_path / "many")
    assert {name for name in after if name.endswith((".pt", "summary.json"))} == {
        name for name in before if name.endswith((".pt", "summary.json"))
    }
    text.write_text("a text of one kind. " * 40, "utf-8")
    done = samout(tmp_path, *further, *words)
    assert done.returncode == 0, done.stderr


def test_a_process_of_a_job_is_this_program_whatever_the_directory_holds(tmp_path: Path) -> None:
    for name in ("samout_train", "types", "random", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run([*child_program(), "--version"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and __version__ in done.stdout, done.stderr
    assert "the wrong one" not in done.stderr


@pytest.mark.slow
def test_a_finished_run_that_goes_on_is_not_finished_before_it_has_ended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUN, f"run_dir={tmp_path / 'run'}"]
    train(words)
    assert trained(tmp_path / "run", "steps") == 2
    before = (tmp_path / "run" / "summary.json").read_bytes()
    train([*words, "resume=auto"])  # nothing is left to do
    assert outcome(tmp_path / "run").state == "done" and not [*(tmp_path / "run").glob("summary_step_*")]

    def stopped(*arguments: object) -> None:
        raise StopRequestedError(signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(StopRequestedError):
        patched.setattr("samout_train.training.trainer.Trainer._train", stopped)
        train([*words, "resume=auto", "trainer.max_steps=4"])
    assert outcome(tmp_path / "run").state == "stopped"
    kept = json.loads((tmp_path / "run" / "summary_step_00000002.json").read_bytes())
    assert kept["weights_sha256"] == json.loads(before)["weights_sha256"]
    train([*words, "resume=auto", "trainer.max_steps=4"])
    assert outcome(tmp_path / "run").state == "done" and trained(tmp_path / "run", "steps") == 4


def test_a_run_of_before_the_keys_of_conversations_is_continued_with_their_defaults(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("data: {roles: {user: <|user|>}}\n", "utf-8")
    now: dict[str, Any] = {"data": {"roles": {"user": "<|user|>", "tool": "<|history|>"}, "learn": "all"}}
    assert other_settings(tmp_path, now, ["data"]) == []
    now["data"]["learn"] = "agent"
    assert [problem.key for problem in other_settings(tmp_path, now, ["data"])] == ["data.learn"]
    now["data"] = {"roles": {"user": "<|agent|>"}}
    assert [problem.key for problem in other_settings(tmp_path, now, ["data"])] == ["data.roles.user"]


@pytest.mark.parametrize(
    ("model", "lacking"),
    [
        (["model=maxplus"], ["mixer.b_projection"]),
        (["model=mamba2"], ["mixer.output_gate"]),
        (["model=rglru"], ["mixer.output_gate"]),
        (["model=hybrid"], ["mixers.mamba2.output_gate", "mixers.rglru.output_gate", "mixers.maxplus.b_projection"]),
    ],
)
def test_a_run_of_before_a_key_of_its_mixer_is_continued_with_its_default(model: list[str], lacking: list[str]) -> None:
    now = compose_config(model).config
    before = copy.deepcopy(now)
    for key in lacking:
        *above, last = key.split(".")
        node = before["model"]
        for name in above:
            node = node[name]
        del node[last]
        assert not differences(before, now, ["model"])
        changed = compose_config([*model, f"model.{key}={'false' if last == 'b_projection' else 'none'}"]).config
        assert len(differences(before, changed, ["model"])) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_a_setting_that_a_run_lacks_stands_for_the_default_of_what_it_builds(name: str) -> None:
    now = compose_config([f"model={name}"]).config
    nodes = {"": now["model"], "mixer": now["model"].get("mixer")}
    nodes |= {f"mixers.{key}": node for key, node in (now["model"].get("mixers") or {}).items()}
    for above, node in nodes.items():
        if node is None:
            continue
        for key, parameter in inspect.signature(locate(node["_target_"])).parameters.items():
            if key in node and parameter.default is not None and node[key] == parameter.default:
                before = copy.deepcopy(now)
                lacking = before["model"]
                for part in filter(None, above.split(".")):
                    lacking = lacking[part]
                del lacking[key]
                assert not differences(before, now, ["model"]), f"{above}.{key}"
