"""The ledger: what became of jobs, and the missing ones made."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from samout_train.checkpoint import reserve
from samout_train.experiments import (
    Job,
    Outcome,
    Plan,
    described,
    finish,
    forget_failure,
    jobs as ledger,
    make_runs,
    outcome,
    read_record,
    record_failure,
)
from samout_train.experiments.compare.candidates import Candidate
from samout_train.experiments.jobs import curve_of, last_step, run_jobs
from samout_train.runtime import StopRequestedError

DONE = json.dumps({"weights_sha256": "0", "val_loss_nats": 1.5, "train_seconds": 2.0})
# What stands in for a training: does what its first word says.
STAND_IN = """
import os, signal, sys, time
word, run_dir = sys.argv[2], [w for w in sys.argv if w.startswith("run_dir=")][0][8:]
open(os.path.join(run_dir, "metrics.jsonl"), "a").write('{"step": 7}\\n')
open(os.path.join(run_dir, "threads"), "w").write(os.environ.get("OMP_NUM_THREADS", "all"))
if word == "where": open(os.path.join(run_dir, "where"), "w").write(os.getcwd())
if word == "die": os.kill(os.getpid(), signal.SIGKILL)
if word == "fail": print("a reason\\nand the last line"); sys.exit(1)
if word == "tell": print("没有 C:/用户/张三", file=sys.stderr); sys.exit(1)
if word == "refuse": print("the first mistake\\nand another"); sys.exit(2)
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(60)
time.sleep(0.3 if word == "slow" else 0)
open(os.path.join(run_dir, "summary.json"), "w").write(DONE)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run a small program instead of a training."""
    (tmp_path / "program" / "samout_train").mkdir(parents=True)
    (tmp_path / "program" / "samout_train" / "__init__.py").touch()
    text = f"DONE = {DONE!r}\n{STAND_IN}"
    (tmp_path / "program" / "samout_train" / "__main__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "program"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def states(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: found.state for name, found in outcomes.items()}


def test_what_became_of_a_job_is_read_from_its_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "job"
    assert outcome(run_dir).state == "waiting"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").touch()
    assert outcome(run_dir).state == "stopped"
    record_failure(run_dir, "\nthe loss is NaN\nand more")
    assert outcome(run_dir) == Outcome("FAILED", error="the loss is NaN", why="error")
    assert described(Job(run_dir, ()), outcome(run_dir)) == "FAILED   job  the loss is NaN"
    (run_dir / ".hydra").mkdir()
    holder = "import filelock, sys; l = filelock.FileLock(sys.argv[1]); l.acquire(); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run_dir / ".hydra" / "lock")], stdin=-1, stdout=-1, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert outcome(run_dir).state == "running"
        record_failure(run_dir, "not mine to say")
        process.communicate("\n")
    assert outcome(run_dir).error == "the loss is NaN"
    forget_failure(run_dir)
    assert outcome(run_dir).state == "stopped"
    (run_dir / "summary.json").write_text(DONE[:20])
    assert outcome(run_dir).state == "stopped", "a summary that is cut short is none"
    (run_dir / "summary.json").write_text(DONE)
    assert described(Job(run_dir, ()), outcome(run_dir)) == "done     job  1.5000 nats, 2.0 s of training"
    (run_dir / "summary.json").unlink()
    (run_dir / "failure.json").write_text("{")
    assert "failure.json cannot be read" in str(outcome(run_dir).error)


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n' * 3000 + '{"step": 20}\n{"st')
    assert last_step(tmp_path) == 20


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("at_once", [1, 3])
def test_one_job_that_dies_stops_no_other_and_only_it_is_made_again(tmp_path: Path, at_once: int) -> None:
    words = {"a": "go", "b": "die", "c": "fail", "d": "go"}
    jobs = [Job(tmp_path / "jobs" / name, (word,)) for name, word in words.items()]
    told: list[str] = []
    found = run_jobs(jobs, at_once=at_once, report=lambda job, of: told.append(job.name))
    assert states(found) == {"a": "done", "b": "FAILED", "c": "FAILED", "d": "done"} and sorted(told) == list("abcd")
    assert found["b"].error == "killed by signal 9 (SIGKILL)"
    assert found["c"].error == "ended with exit code 1: and the last line"
    threads = (tmp_path / "jobs" / "a" / "threads").read_text()
    assert threads == ("all" if at_once == 1 else str(max(1, (os.cpu_count() or 1) // 3)))
    again: list[str] = []
    jobs[1] = Job(jobs[1].run_dir, ("go",))
    found = run_jobs(jobs, at_once=at_once, report=lambda job, of: again.append(job.name))
    assert sorted(again) == ["b", "c"], "what is done is left as it is"
    assert states(found) == {"a": "done", "b": "done", "c": "FAILED", "d": "done"}
    assert (tmp_path / "jobs" / "a" / "metrics.jsonl").read_text() == '{"step": 7}\n'


@pytest.mark.usefixtures("stand_in")
def test_a_job_runs_in_its_own_working_directory(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    job = Job(Path("jobs/a"), ("where",), tmp_path / "there")
    assert states(run_jobs([job], at_once=1)) == {"a": "done"}
    assert (tmp_path / "jobs" / "a" / "where").read_text() == str(tmp_path / "there")


@pytest.mark.usefixtures("stand_in")
def test_the_reason_of_a_failure_is_read_as_it_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the terminal's encoding, a job's standard error would be mixed with UTF-8 in the same file."""
    monkeypatch.setenv("PYTHONIOENCODING", "gbk")
    found = run_jobs([Job(tmp_path / "jobs" / "a", ("tell",))], at_once=1)["a"]
    assert found == Outcome("FAILED", error="ended with exit code 1: 没有 C:/用户/张三", why="error")


def test_a_job_that_windows_killed_is_told_from_one_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "output.txt").write_text("a line\n")
    process = object.__new__(ledger.Process)
    process.job, process._printed_from = Job(tmp_path, ()), 0
    found = process._ended(0xC0000005)  # an access violation
    assert (found.error, found.why) == ("killed by Windows (0xc0000005)", "killed")
    forget_failure(tmp_path)
    assert process._ended(1).error == "ended with exit code 1: a line"


@pytest.mark.usefixtures("stand_in")
def test_of_a_job_that_is_refused_the_first_line_is_told(tmp_path: Path) -> None:
    job = Job(tmp_path / "jobs" / "a", ("refuse",))
    for _ in range(2):
        assert run_jobs([job], at_once=1)["a"] == Outcome("FAILED", error="the first mistake", why="settings")


@pytest.mark.usefixtures("stand_in")
def test_where_the_loop_itself_fails_the_jobs_are_stopped(tmp_path: Path) -> None:
    def broken(running: object) -> None:
        if (tmp_path / "jobs" / "a" / "threads").exists():
            raise OSError("no disk")

    start = time.monotonic()
    with pytest.raises(OSError, match="no disk"):
        run_jobs([Job(tmp_path / "jobs" / "a", ("wait",))], at_once=1, watched=broken)
    assert time.monotonic() - start < 30


@pytest.mark.usefixtures("stand_in")
def test_a_job_that_another_process_took_in_the_meantime_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill right behind the start of a job, whose process did not hold its lock yet."""
    job = Job(tmp_path / "jobs" / "a", ("refuse",))
    states_of_looks = ("waiting", "waiting", "running", "running")
    looks = iter([*map(Outcome, states_of_looks), Outcome("done", {"weights_sha256": "0"})])
    monkeypatch.setattr(ledger, "outcome", lambda run_dir: next(looks))
    assert states(run_jobs([job], at_once=1)) == {"a": "done"}


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_so_many_run_at_once_and_no_more(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / "jobs" / str(number), ("slow",)) for number in range(4)]
    seen: set[int] = set()
    found = run_jobs(jobs, at_once=2, watched=lambda running: seen.add(len(running)))
    assert max(seen) == 2 and set(states(found).values()) == {"done"}


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_a_signal_reaches_the_jobs_and_is_told(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / "jobs" / name, ("wait",)) for name in "ab"]
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    start = time.monotonic()
    with pytest.raises(StopRequestedError) as stop:
        run_jobs(jobs, at_once=1)
    assert stop.value.exit_code == 143 and time.monotonic() - start < 30
    assert [outcome(job.run_dir).state for job in jobs] == ["stopped", "waiting"]


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_a_job_that_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    job = Job(tmp_path / "jobs" / "a", ("go",))
    (job.run_dir / ".hydra").mkdir(parents=True)
    script = (
        "import filelock, pathlib, sys, time\n"
        "run_dir = pathlib.Path(sys.argv[1])\n"
        "with filelock.FileLock(run_dir / '.hydra' / 'lock'):\n"
        "    print('held', flush=True); time.sleep(1)\n"
        f"    (run_dir / 'summary.json').write_text({DONE!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(job.run_dir)], stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        found = run_jobs([job], at_once=1)
    assert states(found) == {"a": "done"} and not (job.run_dir / ledger.OUTPUT).exists()
    assert not FileLock(job.run_dir / ".hydra" / "lock").is_locked


FORK = multiprocessing.get_context("fork")


def made_by(folder: Path) -> dict[str, list[str]]:
    """How often each job was begun."""
    return {path.parent.name: path.read_text().splitlines() for path in sorted(folder.glob("*/metrics.jsonl"))}


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_two_programs_make_each_job_once_and_both_wait_for_all(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / "jobs" / str(number), ("fail" if number == 3 else "slow",)) for number in range(6)]

    def share() -> None:
        told: list[str] = []
        found = run_jobs(jobs, at_once=1, report=lambda job, of: told.append(job.name))
        assert states(found) == dict.fromkeys("012345", "done") | {"3": "FAILED"} and sorted(told) == list("012345")

    programs = [FORK.Process(target=share) for _ in range(2)]
    start = time.monotonic()
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
    assert [program.exitcode for program in programs] == [0, 0] and time.monotonic() - start < 60
    assert made_by(tmp_path / "jobs") == {name: ['{"step": 7}'] for name in "012345"}


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_a_job_that_a_dead_program_has_reserved_is_made_after_the_others(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / "jobs" / name, ("go",)) for name in "ab"]

    def hold(reserved: Any) -> None:
        release = reserve(jobs[0].run_dir)
        assert release is not None
        reserved.set()
        time.sleep(60)
        release()

    reserved, order = FORK.Event(), []
    program = FORK.Process(target=hold, args=(reserved,))
    program.start()
    assert reserved.wait(30)

    def told(job: Job, found: Outcome) -> None:
        order.append(job.name)
        program.kill()

    assert states(run_jobs(jobs, at_once=1, report=told)) == {"a": "done", "b": "done"} and order == ["b", "a"]
    program.join()


def make_by_two_programs(plan: Plan) -> None:
    plan.write({"match": None})
    programs = [FORK.Process(target=make_runs, args=(plan, 1)) for _ in range(2)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
    assert [program.exitcode for program in programs] == [0, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_two_programs_make_each_run_of_the_text_and_its_tasks_once(tmp_path: Path) -> None:
    def models(data: str) -> list[Candidate]:
        return [Candidate(label, ("slow", f"data={data}"), None, {"optimizer": {"lr": 1.0}}, data) for label in "ab"]

    own = Plan(tmp_path / "all", models("text"), [1e-2], seed=0, num_seeds=2)
    tasks = [replace(own, candidates=models(task), task=True) for task in ("recall_small", "parity")]
    plan = replace(own, beside=tasks)
    make_by_two_programs(plan)
    places = [f"{label}{at}" for label in "ab" for at in ("", "@parity", "@recall_small")]
    assert made_by(plan.folder) == {f"{at}-lr0.01-seed{seed}": ['{"step": 7}'] for at in places for seed in (1, 2)}


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_two_programs_share_a_comparison_and_one_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"optimizer": {"lr": 1.0}}
    models = [Candidate(label, ("slow", f"model={label}"), None, config, "text") for label in "ab"]
    plan = Plan(tmp_path / "all", models, [1e-3, 1e-2, 1e-1], seed=0, num_seeds=1, extend=1, leaders=1, leader_seeds=1)
    make_by_two_programs(plan)
    # equal losses: the lowest rate is the best one, so the grid is extended once, below it
    counts = {f"{label}-lr{rate}-seed0": 1 for label in "ab" for rate in (0.0001, 0.001, 0.01, 0.1)}
    counts |= {"a-lr0.0001-seed1": 1, "b-lr0.0001-seed1": 1, "a-lr0.0001-seed2": 1}
    assert {name: len(lines) for name, lines in made_by(plan.folder).items()} == counts
    assert set(read_record(plan.folder)["runs"]) == set(counts)
    release = reserve(plan.folder)
    assert release is not None
    finish(plan)
    assert "another process measures the speeds, and writes the page" in capsys.readouterr().out
    assert not (plan.folder / "comparison.html").exists()
    release()


def test_a_run_with_averaged_weights_is_scored_by_them(tmp_path: Path) -> None:
    both = {"val_loss_nats": 1.75, "ema_val_loss_nats": 1.5}
    assert Outcome("done", both).loss == 1.5 and Outcome("done", {"val_loss_nats": 1.75}).loss == 1.75
    assert Outcome("done", {"val_loss_nats": None}).loss is None
    assert Outcome("done", both | {"ema_val_loss_nats": None}).loss is None  # the average is not a number
    for logged, loss in (({"val/loss_nats": 2.0}, 2.0), ({"val/loss_nats": 2.0, "val/ema_loss_nats": 1.0}, 1.0)):
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 5, **logged}) + "\n", encoding="utf-8")
        assert curve_of(tmp_path) == [(5, loss)]
