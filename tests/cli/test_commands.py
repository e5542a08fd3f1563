"""The program as it is typed: exit codes, messages, signals, sweeps."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.marks import spread
from tests.support.program import samout

TINY = [
    *("data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("data.seq_len=9", "data.num_sequences=8", "data.batch_size=8"),
]


@pytest.mark.slow
def test_a_run_ends_with_its_results_and_what_to_type_next(tmp_path: Path) -> None:
    done = samout(tmp_path, "train", "model=v1", *TINY, "trainer.max_steps=4", "callbacks.report.verbose=true")
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "outputs" / "v1-random").iterdir()
    for word in ("parameters", "FLOPs", "bytes of state", "padding", "memory", "floor", "to go", "tokens/s"):
        assert word in done.stdout, word
    for part in ("embedding", "mixer", "feed-forward", "head"):
        assert part in done.stdout
    assert "--logdir outputs/v1-random\n" in done.stdout, "the folder above, in which HParams has figures"
    repeat = next(line for line in done.stdout.splitlines() if line.startswith("repeat")).split()[1:]
    go_on = next(line for line in done.stdout.splitlines() if line.startswith("resume")).split()[1:]
    assert (run_dir / "samout_train.log").read_text().count("parameters") >= 1
    first = json.loads((run_dir / "summary.json").read_text())
    assert repeat[0] == go_on[0] and repeat[1:3] == ["-m", "samout_train"]
    for again in (
        samout(tmp_path, *repeat[3:]),
        samout(tmp_path, *go_on[3:]),
    ):
        assert again.returncode == 0, again.stderr
    repeated, continued = (
        json.loads((run / "summary.json").read_text())
        for run in sorted((tmp_path / "outputs" / "v1-random").iterdir(), key=lambda run: run == run_dir)
    )
    assert repeated["weights_sha256"] == first["weights_sha256"]
    assert first["steps"] == 4 and continued["steps"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    spread(
        [
            (["trian"], "trian: no such verb; did you mean train?"),
            (["model.hiden_size=3"], "model.hiden_size=3: no such key; did you mean model.hidden_size?"),
            (["-m", "model=v1,v9"], "model=v9: no such option"),
            (["data=text", "data.path=absent.txt"], "absent.txt: is not there"),
            (["--cfg", "job", "model=v9"], "model=v9: no such option"),
            (["--foo"], "--foo: no such option"),
        ],
        2,
    ),
)
def test_a_wrong_request_is_told_in_a_few_lines_with_exit_code_2(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = samout(tmp_path, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 8


@pytest.mark.slow
def test_a_directory_that_holds_a_run_is_refused_with_nothing_in_it_touched(tmp_path: Path) -> None:
    words = [*TINY, "trainer=debug", "run_dir=here"]
    assert samout(tmp_path, *words).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("*")}
    refused = samout(tmp_path, *words)
    assert refused.returncode == 2 and "holds a run already: set resume=auto" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("*")} == before


@pytest.mark.slow
def test_when_all_checkpoints_are_damaged_the_run_ends_with_exit_code_1(tmp_path: Path) -> None:
    words = [*TINY, "trainer.max_steps=4", "checkpoint.every_n_steps=2", "run_dir=here"]
    assert samout(tmp_path, *words).returncode == 0
    damaged = sorted((tmp_path / "here" / "checkpoints").glob("*.pt"))
    for path in damaged:
        path.write_bytes(b"x")
    done = samout(tmp_path, *words, "resume=auto")
    assert done.returncode == 1 and all(path.name in done.stderr for path in damaged) and len(damaged) == 2


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(*case, marks=pytest.mark.nightly) for case in ((signal.SIGINT, 130), (signal.SIGTERM, 143))],
)
def test_a_signal_ends_a_run_that_can_be_continued(tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = [*TINY, "run_dir=here", "trainer.max_seconds=30", "schedule=constant"]
    started = subprocess.Popen(
        [sys.executable, "-m", "samout_train", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "here" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(started.pid, number)
    out, error = started.communicate(timeout=60)
    assert started.returncode == code and "Traceback" not in error, error
    assert f"stopped by {number.name}" in out and "run_dir=here resume=auto" in out
    checkpoint = max((tmp_path / "here" / "checkpoints").glob("*.pt"))
    stopped_at = int(checkpoint.stem.removeprefix("step_"))
    limit = f"trainer.max_steps={stopped_at + 5}"
    again = samout(tmp_path, *words[:-2], "schedule=constant", limit, "resume=auto")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "here" / "summary.json").read_text())["steps"] == stopped_at + 5


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_disturb_a_program_that_is_leaving() -> None:
    code = (
        "import atexit, os, signal, sys, time\n"
        "from samout_train.cli import inspect, main\n"
        "inspect.inspect = lambda words: 130\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1)))\n"
        "sys.argv = ['samout-train', 'inspect']\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.slow
def test_a_sweep_makes_one_readable_directory_a_job(tmp_path: Path) -> None:
    done = samout(tmp_path, "-m", "model=v1,v8", "optimizer.lr=1e-3,3e-4", *TINY, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == [
        "model=v1,optimizer.lr=0.0003",
        "model=v1,optimizer.lr=0.001",
        "model=v8,optimizer.lr=0.0003",
        "model=v8,optimizer.lr=0.001",
    ]
    listed = [line.split()[:2] for line in done.stdout.splitlines()[-4:]]
    assert sorted(listed) == [["done", job] for job in jobs]
    summaries = [json.loads((sweep / job / "summary.json").read_text()) for job in jobs]
    assert [summary["model"] for summary in summaries] == ["v1", "v1", "v8", "v8"]
    assert len({summary["weights_sha256"] for summary in summaries}) == 4
    for job in jobs:
        assert list((sweep / job).glob("events.out.tfevents.*")) and (sweep / job / "samout_train.log").exists()
    go_on = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("resume")][-1]
    again = samout(tmp_path, *shlex.split(go_on)[3:])
    assert again.returncode == 0, again.stderr
    assert json.loads((sweep / jobs[2] / "summary.json").read_text())["steps"] == 4


@pytest.mark.nightly
def test_a_sweep_that_is_started_again_does_what_is_left(tmp_path: Path) -> None:
    words = [*TINY, "trainer.max_steps=3", "hydra.sweep.dir=sweep"]
    assert samout(tmp_path, "-m", "seed=1,2,3", *words).returncode == 0
    sweep = tmp_path / "sweep"
    whole = {path: path.read_bytes() for path in sorted(sweep.glob("*/summary.json"))}
    assert [path.parent.name for path in whole] == ["seed=1", "seed=2", "seed=3"]
    (sweep / "seed=2" / "summary.json").write_text('{"cut": sho')
    checkpoints = {name: (sweep / name / "checkpoints/index.json").stat().st_mtime_ns for name in ("seed=1", "seed=2")}
    again = samout(tmp_path, "-m", "seed=1,2,3,4", *words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished: skipped") == 2 and "after step 3" in again.stdout
    assert (sweep / "seed=4" / "summary.json").exists()
    mended = json.loads((sweep / "seed=2" / "summary.json").read_text())
    assert mended["weights_sha256"] == json.loads(whole[sweep / "seed=2/summary.json"])["weights_sha256"]
    for name in ("seed=1", "seed=3"):
        assert (sweep / name / "summary.json").read_bytes() == whole[sweep / name / "summary.json"]
    assert (sweep / "seed=1/checkpoints/index.json").stat().st_mtime_ns == checkpoints["seed=1"]
    for setting in ("data.seq_len=11", "optimizer.lr=3e-3", "trainer.compile=true"):
        other = samout(tmp_path, "-m", "seed=1,2", *words, setting)
        key = setting.partition("=")[0]
        assert other.returncode == 2 and f"{key}=" in other.stderr and ": the run in sweep/seed=1 has " in other.stderr
    assert (sweep / "seed=1" / "summary.json").read_bytes() == whole[sweep / "seed=1/summary.json"]


@pytest.mark.nightly
def test_a_job_of_a_sweep_that_cannot_be_built_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "two documents.jsonl").write_text(
        '{"text": "one document for training"}\n{"text": "one to validate on"}\n'
    )
    sizes = [word for word in TINY if not word.startswith("data")]
    words = [*sizes, "data=jsonl", "data.seq_len=2", "data.batch_size=2", "trainer=debug"]
    done = samout(tmp_path, "-m", "data.path=one.jsonl,two documents.jsonl", *words, "data.layout=padded")
    assert done.returncode == 2 and "fewer than two tokens" in done.stderr and "Traceback" not in done.stderr
    assert len(list(tmp_path.rglob("summary.json"))) == 1


@pytest.mark.nightly
def test_tokenizing_that_is_stopped_goes_on_with_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a text that takes a while to tokenize, line after line\n" * 1_000_000)
    sizes = [word for word in TINY if not word.startswith("data")]
    words = [*sizes, "data=text", "data.path=long.txt", "data.seq_len=9", "data.batch_size=2", "trainer=debug"]
    environment = os.environ | {"SAMOUT_TRAIN_CACHE": str(tmp_path / "cache")}
    started = subprocess.Popen(
        [sys.executable, "-m", "samout_train", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cache/*.part")) and time.monotonic() < deadline:
        time.sleep(0.005)
    started.send_signal(signal.SIGINT)
    out, error = started.communicate(timeout=60)
    assert started.returncode == 130 and "Traceback" not in error, error
    assert "tokenizing stopped at" in out and "repeat the same command to resume" in out
    (part,) = tmp_path.glob("cache/*.part")
    assert 0 < part.stat().st_size < 2 * 55_000_000
    again = subprocess.run(
        [sys.executable, "-m", "samout_train", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / part.with_suffix(".bin")).stat().st_size == 2 * 55_000_000


@pytest.mark.nightly
def test_a_prompt_that_cannot_be_encoded_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("long enough " * 50)
    sizes = [word for word in TINY if not word.startswith("data")]
    words = [*sizes, "data=text", "data.path=text.txt", "data.seq_len=9", "run_dir=here", "trainer=debug"]
    for prompt, message in (("é", "'é' at position 0"), ("", "prompt is empty")):
        done = samout(tmp_path, *words, f"callbacks.sample.prompt='{prompt}'")
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert samout(tmp_path, *words, "callbacks.sample.prompt=long").returncode == 0


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("bash") is None, reason="completion is tried in bash")
def test_a_shell_completes_verbs_options_and_keys(tmp_path: Path) -> None:
    script = """
        eval "$(samout-train -sc install=bash)"
        complete_line() {
            COMP_LINE="$1"; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            hydra_bash_completion
            echo "${COMPREPLY[@]}"
        }
        complete_line "samout-train tr"
        complete_line "samout-train model="
        complete_line "samout-train train model=v1 trainer.max_"
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment
    )
    verbs, models, limits = done.stdout.splitlines()
    assert "train" in verbs.split() and {"model=v1", "model=v8"} <= set(models.split())
    assert limits.split() == ["trainer.max_epochs=", "trainer.max_seconds=", "trainer.max_steps="]


@pytest.mark.nightly
def test_python_in_the_working_directory_can_be_named_by_the_installed_command(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from samout_train.training.callbacks.base import Callback\n\n\nclass Says(Callback):\n"
        "    def on_end(self, summary):\n        print('said at step', summary['steps'])\n"
    )
    command = [str(Path(sys.executable).parent / "samout-train"), *TINY, "trainer=debug"]
    done = subprocess.run(
        [*command, "+callbacks.mine._target_=mine.Says"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "said at step 2" in done.stdout, done.stderr
