"""How many threads a run has, how they wait, and what is said of other programs on the same cores."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samout_train import train
from samout_train.config import compose_config
from samout_train.experiments import jobs_at_once
from samout_train.runtime import (
    Others,
    available_cores,
    other_programs_message,
    share_of_cores,
    threads,
    use_threads,
    wait_shortly,
)
from samout_train.runtime.threads import ABOUT_WAITING, SHORT_WAIT, busy_seconds, quota_of_cores
from samout_train.training.settings import problems
from tests.support.program import samout

TINY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("data.seq_len=9", "data.num_sequences=20", "data.batch_size=8", "trainer.max_steps=2", "~callbacks.tensorboard"),
]


def test_threads_wait_shortly_unless_the_environment_says_how() -> None:
    environment: dict[str, str] = {"PATH": "x"}
    wait_shortly(environment)
    assert environment == {"PATH": "x", **SHORT_WAIT}
    for name in ABOUT_WAITING:
        environment = {name: "7"}
        wait_shortly(environment)
        assert environment == {name: "7"}


@pytest.mark.slow
def test_the_program_says_so_before_torch_is_there() -> None:
    code = (
        "import os, sys\n"
        "from samout_train.cli.main import main\n"
        "sys.argv = ['samout_train', 'generate', '--help']\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'), file=sys.stderr)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ABOUT_WAITING}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr.split() == ["False", SHORT_WAIT["GOMP_SPINCOUNT"]]


@pytest.mark.nightly
@pytest.mark.skipif(available_cores() < 2 or sys.platform != "linux", reason="needs two cores, and GNU's OpenMP")
def test_two_runs_side_by_side_do_not_starve_each_other(tmp_path: Path) -> None:
    """Without a short wait, such steps took 140 times as long on two cores (574 instead of 4 ms)."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def seconds_a_step(runs: int) -> float:
        folders = [tmp_path / f"{number} of {runs}" for number in range(runs)]
        words = ["model=v8", "data=random", "device=cpu", "model.hidden_size=32", "model.num_heads=2", "threads=2"]
        words += ["model.num_layers=1", "data.batch_size=8", "trainer.max_steps=150", "trainer.eval_every_n_steps=999"]
        program = [sys.executable, "-m", "samout_train", *words]
        made = [
            subprocess.Popen([*program, f"run_dir={folder}"], env=environment, stdout=-3, stderr=-3)
            for folder in folders
        ]
        assert [each.wait(timeout=300) for each in made] == [0] * runs
        return max(json.loads((folder / "summary.json").read_text())["train_seconds"] for folder in folders) / 150

    assert seconds_a_step(2) < 12 * seconds_a_step(1)


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"a/cpu.max": "150000 100000\n", "cpu.max": "max 100000\n"}, "0::/a\n", 1.5),
        ({"a/cpu.max": "max 100000\n", "cpu.max": "400000 100000\n"}, "0::/a/b\n", 4.0),
        ({"cpu.max": "200000 100000\n"}, "0::/as/it/is/called/outside\n", 2.0),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:memory:/x\n3:cpu:/x\n", 0.5),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "9\n"}, "3:cpu,cpuacct:/\n", None),
        ({"cpu.max": "what is this\n"}, "0::/\n", None),
        ({}, "", None),
    ],
)
def test_a_containers_quota_is_the_least_of_its_groups(
    files: dict[str, str], own: str, cores: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert quota_of_cores(tmp_path / "groups", tmp_path / "own") == cores
    assert quota_of_cores(tmp_path / "groups", tmp_path / "not there") is None


def test_cores_are_those_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_own_cores", lambda: [3, 5, 6, 7])
    for quota, cores in ((None, 4), (2.9, 2), (0.5, 1), (64.0, 4)):
        monkeypatch.setattr(threads, "quota_of_cores", lambda quota=quota: quota)
        assert available_cores() == cores
    assert share_of_cores(1, {}) == {} and share_of_cores(2, {}) == {"OMP_NUM_THREADS": "2"}
    assert share_of_cores(9, {}) == {"OMP_NUM_THREADS": "1"} and share_of_cores(2, {"OMP_NUM_THREADS": "4"}) == {}


@pytest.mark.slow
def test_jobs_of_submitit_on_this_machine_are_given_their_share() -> None:
    alone, local = (compose_config(words, typed=False) for words in ([], ["hydra/launcher=submitit_local"]))
    some = compose_config(["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=3"], typed=False)
    assert [jobs_at_once(common, 8) for common in (alone, local, some)] == [1, 8, 3]
    assert jobs_at_once(some, 2) == 2


@pytest.fixture
def one_thread_afterwards() -> Iterator[None]:
    yield
    use_threads(None)
    torch.set_num_threads(1)


def test_the_number_of_threads_is_that_of_the_run_alone(
    one_thread_afterwards: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(2)
    for asked, wanted in ((None, 2), (1, 1), (3, 3), (None, 2), (None, 2)):
        use_threads(asked)
        assert torch.get_num_threads() == wanted
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("samout_train.runtime.device.available_cores", lambda: 1)
    caplog.clear()
    use_threads(2)
    assert torch.get_num_threads() == 2 and "2 are more than the 1 cores here" in caplog.text
    use_threads(None)
    assert torch.get_num_threads() == 1, "what a container allows"


@pytest.mark.slow
def test_a_run_records_its_threads(one_thread_afterwards: None, tmp_path: Path) -> None:
    summary, _ = train([*TINY, "threads=2", f"run_dir={tmp_path / 'run'}"])
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "step_00000002.json").read_text())
    assert summary["threads"] == manifest["threads"] == 2
    again, _ = train([*TINY, f"run_dir={tmp_path / 'again'}"])
    assert again["threads"] == 1


@pytest.mark.parametrize("number", ["0", "1025", "-1", "1.5", "all"])
def test_other_numbers_of_threads_are_refused(number: str) -> None:
    (told,) = problems(compose_config([f"threads={number}"]).config)
    assert str(told).startswith(f"threads={number}: must be")
    assert problems(compose_config(["threads=1024"]).config) == []


@pytest.mark.parametrize("verb", ["generate", "evaluate", "verify", "compare", "search", "prove_resume", "reproduce"])
def test_each_verb_that_runs_a_model_takes_threads(verb: str, tmp_path: Path) -> None:
    needed = {"generate": ["run=x", "prompt=x"], "evaluate": ["run=x"], "verify": ["model=v8"]}.get(verb, [])
    done = samout(tmp_path, verb, *needed, "threads=0")
    assert done.returncode == 2 and "threads=0: must be from 1 to 1024" in done.stderr


STAT = """cpu  9 9 9 9 9 9 9 9 0 0
cpu0 100 20 30 5000 40 5 6 7 100 0
cpu1 1 1 1 1 1 1 1 1 0 0
cpu2 200 0 0 9000 0 0 0 0 0 0
intr 5
"""


def test_busy_seconds_are_those_of_the_cores_that_are_asked_for(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(STAT)
    assert busy_seconds([0, 2], tmp_path / "stat") == pytest.approx((168 + 200) / ticks)
    assert busy_seconds([0, 7], tmp_path / "stat") is None and busy_seconds([0], tmp_path / "none") is None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not say")
def test_what_another_program_keeps_busy_is_measured_and_not_what_this_one_does() -> None:
    others = Others()
    assert others.busy_cores() is None, "it is too soon"
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        ends = time.monotonic() + threads.LEAST_SECONDS + 0.1
        while time.monotonic() < ends:
            pass
        busy = others.busy_cores()
        program.kill()
    assert busy is not None and 0.3 < busy <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("busy", "own", "cores", "told"),
    [
        (0.2, 2, 2, None),
        (1.0, 2, 2, "other programs use 1.0 of 2 cores: threads=1 may be faster than 2"),
        (1.0, 1, 2, None),
        (1.9, 1, 2, "other programs use 1.9 of 2 cores: steps take longer than alone"),
        (3.0, 8, 64, None),
        (60.0, 64, 64, "60.0 of 64 .* threads=4 may be faster than 64"),
        (70.0, 64, 64, "64.0 of 64 .* threads=1 may be faster than 64"),
    ],
)
def test_what_is_said_of_other_programs(busy: float, own: int, cores: int, told: str | None) -> None:

    found = other_programs_message(busy, own, cores)
    assert found is None if told is None else re.search(told, str(found))


@pytest.mark.slow
def test_a_run_says_once_that_other_programs_have_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Others, "busy_cores", lambda self: float(available_cores()))
    with caplog.at_level(logging.INFO):
        train([*TINY, f"run_dir={tmp_path / 'run'}"])
    assert [record.message for record in caplog.records if "other programs" in record.message] == [
        f"cores       other programs use {available_cores()}.0 of {available_cores()} cores: steps take longer than "
        "alone"
    ]


def test_others_are_compared_with_all_cores_that_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_own_cores", lambda: list(range(64)))
    others = threads.Others()
    assert (
        others.num_cores == 64 and other_programs_message(30.0, 2, others.num_cores) is None
    )  # whatever a quota allows
