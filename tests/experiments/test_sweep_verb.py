"""The ledger of a sweep: what its jobs are, what became of them, and the missing ones made."""

import json
import signal
from pathlib import Path

import pytest

from samout_train.cli import sweep
from samout_train.config import CONF, check_overrides
from samout_train.experiments import outcome, read_sweep, record_failure, sweep_jobs, words_of_sweep, write_sweep
from samout_train.runtime import dashboard_command, program, typed_line
from tests.support.program import samout

JOBS = {"seed=1": ["seed=1", "data.path=a b"], "seed=2": ["seed=2"], "seed=3": ["seed=3"]}
TINY = ["data=random", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "data.batch_size=4"]
WORDS = [
    "-m",
    *TINY,
    "data.num_sequences=4",
    "device=cpu",
    "trainer.max_steps=3",
    "callbacks.state_health.branches=none",
]
# A callback that kills its process, or raises, once.
DEADLY = """
import os, pathlib, signal
from samout_train.training.callbacks.base import Callback

class Deadly(Callback):
    def __init__(self, *, seed: int, marker: str, how: str) -> None:
        self.seed, self.marker, self.how = seed, pathlib.Path(marker), how

    def on_start(self, context):
        self.is_it = context.seed == self.seed and not self.marker.exists()

    def on_step(self, step):
        if self.is_it and step == 2:
            self.marker.touch()
            if self.how == "raise":
                raise KeyError("a mistake of its own")
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a callback that can kill a job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deadly.py").write_text(DEADLY)
    return tmp_path


def deadly(folder: Path, *, seed: int, how: str = "kill") -> list[str]:
    node = f"{{_target_: deadly.Deadly, seed: {seed}, marker: {folder / 'died'}, how: {how}}}"
    (folder / "mine" / "experiment").mkdir(parents=True, exist_ok=True)
    yaml = f"# @package _global_\ncallbacks:\n  deadly: {node}\n"
    (folder / "mine" / "experiment" / "deadly.yaml").write_text(yaml)
    return ["--config-dir", "mine", "experiment=deadly", "hydra.sweep.dir=sw"]


def test_a_sweep_knows_its_jobs_and_a_part_of_it_takes_none_away(tmp_path: Path) -> None:
    assert sweep_jobs(tmp_path) == [] and read_sweep(tmp_path) == {}
    write_sweep(tmp_path, command=["-m", "seed=1,2"], flags=["--config-dir=x"], jobs=JOBS)
    write_sweep(tmp_path, command=["-m", "seed=3"], flags=[], jobs={"seed=3": ["seed=3"]})
    jobs = sweep_jobs(tmp_path)
    assert [job.name for job in jobs] == list(JOBS) and jobs[0].words == ("--config-dir=x", "seed=1", "data.path=a b")
    assert jobs[2].words == ("seed=3",) and read_sweep(tmp_path)["command"] == ["-m", "seed=3"]


def test_status_says_what_became_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, command=["-m"], flags=[], jobs=JOBS)
    (tmp_path / "seed=1").mkdir()
    done = json.dumps({"weights_sha256": "0", "val_loss_nats": 1.5, "train_seconds": 2.0})
    (tmp_path / "seed=1" / "summary.json").write_text(done)
    record_failure(tmp_path / "seed=2", "the loss is NaN")
    assert sweep.sweep([f"dir={tmp_path}"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "  done     seed=1  1.5000 nats, 2.0 s of training",
        "  FAILED   seed=2  the loss is NaN",
        "  waiting  seed=3  resumes when it is started again",
        f"3 jobs in {tmp_path}: 1 done, 1 FAILED, 1 waiting",
        f"dashboard  {dashboard_command(tmp_path)}",
    ]
    for name in ("seed=2", "seed=3"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "summary.json").write_text(done)
    assert sweep.sweep([f"dir={tmp_path}", "action=status"]) == 0


def test_a_comparison_has_the_same_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {f"v8-lr0.1-seed{seed}": {} for seed in (1, 2)}
    (tmp_path / "comparison.json").write_text(json.dumps({"command": "samout-train compare models=[v8]", "runs": runs}))
    record_failure(tmp_path / "v8-lr0.1-seed1", "the loss is NaN")
    assert sweep.sweep([f"dir={tmp_path}"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "  FAILED   v8-lr0.1-seed1  the loss is NaN",
        f"1 jobs in {tmp_path}: 1 FAILED",
        f"dashboard  {dashboard_command(tmp_path)}",
    ]
    assert sweep.sweep([f"dir={tmp_path}", "action=resume"]) == 2
    again = (
        f"resumed by its own command: {typed_line(program())} compare models=[v8] {typed_line([f'run_dir={tmp_path}'])}"
    )
    assert again in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "dir: is missing: set dir=..."),
        (["dir=damaged"], "dir=damaged: its sweep.json is damaged: the command that began the sweep writes it again"),
        (["dir=lost"], "dir=lost: lacks its sweep.json: the command that began the sweep writes it again"),
        (
            ["dir=absent"],
            "dir=absent: holds no sweep: give the hydra.sweep.dir of a sweep, or the run_dir of a comparison",
        ),
        (
            ["dir=staged"],
            "-m samout_train -m experiment=x",
        ),
        (["dir=staged", "action=stats"], "action=stats: must be status, resume, retry"),
        (["dir=staged", "jobs=0"], "jobs=0: must be above 0"),
        (["-m", "dir=staged"], "-m: sweep makes no sweeps"),
    ],
)
def test_a_wrong_request_is_told_with_exit_code_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(folder / "staged", command=["-m", "experiment=x"], flags=[], jobs={})
    for name, file in (("damaged", "sweep.json"), ("lost", "multirun.yaml")):
        (folder / name).mkdir()
        (folder / name / file).write_text("{")
    assert sweep.sweep(words) == 2
    out, error = capsys.readouterr()
    assert message in error and len(error.splitlines()) == 1 and not out


@pytest.mark.nightly
def test_a_sweep_that_dies_goes_on_with_what_is_missing(folder: Path) -> None:
    died = samout(folder, *WORDS, *deadly(folder, seed=2), "seed=1,2,3")
    assert died.returncode == -9
    status = samout(folder, "sweep", "dir=sw")
    assert status.returncode == 1 and "3 jobs in sw: 1 done, 1 stopped, 1 waiting" in status.stdout
    again = samout(folder, "sweep", "dir=sw", "action=resume", "jobs=2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 jobs in sw: 3 done" in again.stdout and again.stdout.count("  done ") == 2
    assert samout(folder, "sweep", "dir=sw").returncode == 0


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_says_how_to_get_it(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    word = f"hydra/launcher={launcher}"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = check_overrides([word], folders=[CONF], in_sweep=True).values()
    told = str(problem)
    assert told.startswith(f"{word}: hydra-") and told.endswith("is not installed: pip install 'samout_train[sweep]'")
    assert not check_overrides(["hydra/launcher=basic"], folders=[CONF], in_sweep=True)


@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_submitit_is_refused_where_the_signals_that_it_handles_are_not(
    launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.delattr(signal, "SIGCONT")
    word = f"hydra/launcher={launcher}"
    problem = check_overrides([word], folders=[CONF], in_sweep=True)[word]
    assert str(problem) == f"{word}: does not run on Windows: leave it out, or use hydra/launcher=joblib"


def test_slurm_is_asked_for_where_it_is() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="wants samout_train[sweep]")
    (told,) = check_overrides(["hydra/launcher=submitit_slurm"], folders=[CONF], in_sweep=True).values()
    assert "there is no srun here" in str(told)


def test_a_job_of_training_has_more_than_the_hour_that_submitit_gives_it() -> None:
    words = ["seed=1,2", "hydra/launcher=submitit_slurm"]
    assert "hydra.launcher.timeout_min=1440" in words_of_sweep(words, words, {})
    assert "hydra.launcher.timeout_min=10080" in words_of_sweep([], ["hydra/launcher=submitit_local"], {})
    own = [*words, "hydra.launcher.timeout_min=5"]
    assert [word for word in words_of_sweep(own, own, {}) if "timeout_min=" in word] == [own[-1]]
    assert not [word for word in words_of_sweep([], ["hydra/launcher=joblib"], {}) if "timeout" in word]


@pytest.mark.nightly
def test_what_failed_is_left_by_resume_and_made_again_by_retry(folder: Path) -> None:
    words = [*WORDS, *deadly(folder, seed=2, how="raise"), "seed=1,2,3"]
    done = samout(folder, *words)
    assert done.returncode == 1 and "FAILED   seed=2  KeyError: " in done.stderr
    assert "-m samout_train sweep action=retry dir=sw" in done.stderr
    resumed = samout(folder, "sweep", "dir=sw", "action=resume")
    assert resumed.returncode == 1 and "3 jobs in sw: 2 done, 1 FAILED" in resumed.stdout
    retried = samout(folder, "sweep", "dir=sw", "action=retry")
    assert retried.returncode == 0 and retried.stdout.count("  done ") == 1, retried.stdout + retried.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_of_four_jobs_of_which_one_is_killed_three_are_done_and_resume_makes_one(folder: Path, launcher: str) -> None:
    pytest.importorskip(
        f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="wants samout_train[sweep]"
    )
    words = [*WORDS, *deadly(folder, seed=2), f"hydra/launcher={launcher}", "seed=1,2,3,4"]
    done = samout(folder, *words, timeout=300)
    assert done.returncode == 1 and "-m samout_train sweep action=resume dir=sw" in done.stderr
    if launcher == "submitit_local":  # joblib's pool breaks with one of its processes
        assert [outcome(job.run_dir).state for job in sweep_jobs(folder / "sw")] == ["done", "stopped", "done", "done"]
    resumed = samout(folder, "sweep", "dir=sw", "action=resume", timeout=300)
    assert resumed.returncode == 0 and "4 jobs in sw: 4 done" in resumed.stdout, resumed.stdout + resumed.stderr
    if launcher == "submitit_local":
        assert resumed.stdout.count("  done ") == 1
