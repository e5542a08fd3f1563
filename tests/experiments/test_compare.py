"""compare as it is typed."""

import html
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from samout_train import train
from samout_train.cli import compare
from samout_train.config import quote_text
from samout_train.experiments import Candidate, Plan, Sizes, outcome, read_record
from tests.support.program import samout

TINY = ["model.num_heads=2", "model.num_layers=1", "device=cpu"]
TEXT = ["data=text", "data.path=small.txt", "data.seq_len=16", "data.batch_size=4", "trainer.max_steps=12"]
CHEAP = ["callbacks.state_health.branches=none", "callbacks.sample.num_samples=1", "callbacks.lengths.times=[1,4]"]


@pytest.fixture
def folder(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a text in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(folder: Path) -> dict[str, str]:
    return {path.name: outcome(path).state for path in sorted(folder.iterdir()) if path.is_dir() and "-lr" in path.name}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "choose what to compare, one of: models=[NAME,NAME], runs=[RUN_DIR,RUN_DIR]"),
        (["models=[v8]", "runs=[a]"], "choose what to compare, one of"),
        (["models=0"], "models=0: must be names, such as models=[v8,transformer]"),
        (["models=[v8,v9]"], "v9: model=v9: no such option"),
        (["modles=[v8]"], "modles=[v8]: no such key; did you mean models?"),
        (["models=[v8]", "match=800k"], "match=800k: must be a budget such as parameters:800k"),
        (["models=[v8]", "model=v8"], "model=v8: models=[...] says which: leave it out"),
        (["models=[v8]", "optimizer.lr=1"], "optimizer.lr=1: lr=[...] says which: leave it out"),
        (["models=[v8]", "lr=[]"], "lr: is empty: give at least one learning rate"),
        (["models=[v8]", "lr=[0]"], "lr=[0]: must be"),
        (["models=[v8]", "seeds=0"], "seeds=0: must be from 1 to 10000"),
        (["models=[v8]", "seeds=100000000000"], "seeds=100000000000: must be from 1 to 10000"),
        (["models=[v8]", "leaders=2"], "leaders=2: get no further seeds: set leader_seeds"),
        (["models=[v8]", "choose.model.dropout=[0,2]"], "model.dropout=2: must be"),
        (["models=[v8]", "jobs=x"], "jobs=x: must be a whole number, above 0"),
        (["models=[v8]", "data.path=no.txt"], "v8: data.path=no.txt: is not there"),
        (["models=[lstm]", "model.num_layers=4", "match=parameters:10k"], "lstm: no width"),
        (["models={v8:3}"], "v8: must be settings in braces"),
        (["runs=[absent]"], "runs=absent: is not there: give run directories, or a folder of them"),
        (["runs=empty"], "runs=empty: holds no run"),
        (["runs=empty", "data=text"], "data=text: a page of existing runs takes runs and run_dir only"),
        (["runs=[]"], "runs: is empty: give run directories"),
        (["models=[v8]", "run_dir=small.txt"], "run_dir=small.txt: is a file: give a directory"),
        (["models=[[v8,gru]]"], "must be a name, or a label with settings in braces"),
        (["models=[v8]", "-m"], "-m: compare makes no sweeps"),
        (["models=[v8]", "run_dir=run"], "run_dir=run: holds a run: give a directory of its own"),
    ],
)
def test_a_wrong_request_is_told_with_exit_code_2_and_leaves_nothing(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    (folder / "run" / "checkpoints").mkdir(parents=True)
    before = sorted(folder.rglob("*"))
    text = [] if "runs" in str(words) or "data.path" in str(words) else TEXT
    text = [word for word in TEXT if word[:9] != "data.path"] if "data.path" in str(words) else text
    assert compare.compare([*text, *words]) == 2
    out, error = capsys.readouterr()
    assert message in error and len(error.splitlines()) <= 8 and not out
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_ctrl_c_while_speeds_are_measured_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("samout_train.experiments.make_runs", lambda plan, at_once: {})
    monkeypatch.setattr("samout_train.experiments.compare.page.measured_speeds", interrupted)
    assert compare.compare(["models=[v8]", "run_dir=here", *TEXT, *TINY]) == 130
    error = capsys.readouterr().err
    assert error == "stopped by SIGINT: finished runs are kept; to resume, repeat the command with run_dir=here\n"


@pytest.mark.slow
def test_a_process_takes_the_sizes_that_another_has_measured_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one records its sizes after this one has found its own, and before it locks the directory."""
    monkeypatch.chdir(tmp_path)

    def record_others(models: list[Candidate]) -> None:
        one = models[0]
        theirs = replace(one, words=(*one.words[:-1], "model.hidden_size=4"), sizes=Sizes({"hidden_size": 4}, 60.0))
        Plan(Path("all"), [theirs], [1e-2], seed=0, num_seeds=1).write({"match": "parameters:5k"})

    plans: list[Plan] = []
    monkeypatch.setattr("samout_train.experiments.require_causal_models", record_others)
    monkeypatch.setattr("samout_train.cli.compare._make", lambda plan, at_once: plans.append(plan) or 0)
    words = ["models=[gru,lstm]", "match=parameters:5k", "sizes=[8k]", "data=recall_small", "model.num_layers=1"]
    words += ["tasks=[parity]", "lr=1e-2", "seeds=1", "device=cpu", "run_dir=all"]
    assert compare.compare(words) == 0
    (asked,) = plans
    for plan in (asked, asked.beside[1]):
        one = plan.candidates[0]
        assert one.config["model"]["hidden_size"] == 4 and "model.hidden_size=4" in one.words
    recorded = read_record(tmp_path / "all")["sizes"]
    assert recorded["gru"]["settings"] == {"hidden_size": 4} and recorded["lstm"]["settings"]["hidden_size"] > 4
    assert recorded["gru @parameters:8000"]["settings"]["hidden_size"] > 4


@pytest.mark.slow
@pytest.mark.parametrize(("rates", "short"), [("1e-2", 0), ("[1e-2,2e-2]", 4)])
def test_a_further_size_has_short_runs_only_where_they_choose(
    rates: str, short: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr("samout_train.experiments.require_causal_models", lambda models: None)
    monkeypatch.setattr("samout_train.cli.compare._make", lambda plan, at_once: plans.append(plan) or 0)
    words = ["models=[gru,lstm]", "match=parameters:5k", "sizes=[8k]", "data=recall_small", "model.num_layers=1"]
    words += ["screen_steps=1", "finalists=1", "trainer.max_steps=3", f"lr={rates}", "seeds=1", "device=cpu"]
    assert compare.compare([*words, f"run_dir={tmp_path / 'all'}"]) == 0
    assert len(plans[0].beside[0].trials({})) == short and len(plans[0].trials({})) == max(2, short)


def test_paths_keep_their_commas_and_equals_signs(folder: Path) -> None:
    for name in ("a,b=1", "c", "d[1]"):
        (folder / name).mkdir()
    assert quote_text("runs=[a,b=1,c]") == "runs=['a,b=1','c']"
    assert quote_text("runs=c") == "runs=['c']" and quote_text("runs=d[1]") == "runs=['d[1]']"
    assert quote_text("runs=[x,y]") == "runs=['x','y']" and quote_text("runs=['x']") == "runs=['x']"
    assert quote_text("models=[a,b]") == "models=[a,b]"
    assert quote_text("runs=[c,]") == "runs=['c']" and quote_text("runs=[]") == "runs=[]"
    many = [f"{'x' * 200}{number}" for number in range(90)]
    assert quote_text(f"runs=[{','.join(many)}]").count("'") == 180


@pytest.mark.slow
def test_a_page_is_made_of_runs_that_are_there(folder: Path) -> None:
    for model in ("v8", "gru"):
        for seed in (1, 2):
            sizes = ["model.hidden_size=8", "model.num_layers=1", "trainer.max_steps=2", "device=cpu"]
            heads = ["model.num_heads=2"] if model == "v8" else []
            run_dir = f"run_dir=runs/{model},seed={seed}"
            train([*TEXT, *CHEAP, *sizes, *heads, f"model={model}", f"seed={seed}", run_dir])
    done = samout(folder, "compare", "runs=[runs/v8,seed=1,runs/v8,seed=2,runs/gru,seed=1]", "run_dir=page")
    assert done.returncode == 0, done.stderr
    assert "has the lowest validation loss on text" in done.stdout and "page       page/comparison.html" in done.stdout
    page = (folder / "page" / "comparison.html").read_text("utf-8")
    assert "3 runs" in page
    paths = "['runs/v8,seed=1','runs/v8,seed=2','runs/gru,seed=1']"
    assert f'samout-train compare "runs={paths}"' in html.unescape(page)
    whole = samout(folder, "compare", "runs=runs", "run_dir=page")
    assert whole.returncode == 0 and "4 runs" in (folder / "page" / "comparison.html").read_text("utf-8")
    assert "Each model was tried with one learning rate" in whole.stdout


@pytest.mark.nightly
def test_a_comparison_that_is_killed_goes_on_with_what_is_missing(folder: Path) -> None:
    words = [
        "compare",
        "models=[v8,gru]",
        *TINY,
        *TEXT,
        *CHEAP,
        "match=parameters:5k",
        "seeds=2",
        "jobs=2",
        "run_dir=all",
    ]
    command = [sys.executable, "-m", "samout_train", *words, "lr=[1e-3,1e-2]"]
    with subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=-3, stderr=-3) as process:
        deadline = time.monotonic() + 90
        while "done" not in states(folder / "all").values() if (folder / "all").is_dir() else True:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    done_before = {name for name, state in states(folder / "all").items() if state == "done"}
    changed = {name: (folder / "all" / name / "summary.json").stat().st_mtime_ns for name in done_before}
    assert 1 <= len(done_before) < 8
    again = samout(folder, *words, "lr=[1e-3,1e-2]", timeout=300)
    assert again.returncode == 0, again.stderr
    assert list(states(folder / "all").values()) == ["done"] * 8
    for name, when in changed.items():
        assert f" {name}  " not in again.stdout and (folder / "all" / name / "summary.json").stat().st_mtime_ns == when
    assert "8 runs in all: 4 to choose learning rates (seed 0), 4 scored (seeds 1 to 2)" in again.stdout
    page = (folder / "all" / "comparison.html").read_text("utf-8")
    assert "Speed against length" in page and "samout-train compare &#39;models=[v8,gru]&#39;" in page
    sizes = [
        json.loads((folder / "all" / name / "summary.json").read_text())["parameters"]
        for name in states(folder / "all")
    ]
    assert all(abs(size / 5000 - 1) <= 0.02 for size in sizes)
    # one rate more: what is there is used, and jobs at a time make no difference
    more = samout(folder, *words, "lr=[1e-3,3e-3,1e-2]", "extend_lr=0", "jobs=1", timeout=300)
    assert more.returncode == 0 and 2 <= more.stdout.count("  done ") <= 6, more.stdout
    other = samout(folder, *words, "trainer.max_steps=13")
    assert other.returncode == 2 and "trainer.max_steps=13: the run in all/" in other.stderr


@pytest.mark.nightly
def test_a_job_that_fails_is_told_on_the_page_and_the_others_go_on(folder: Path) -> None:
    words = [
        "compare",
        "models=[v8,transformer]",
        *TINY,
        "model.hidden_size=8",
        *TEXT,
        *CHEAP,
        "seeds=1",
        "run_dir=all",
    ]
    done = samout(folder, *words, "lr=[1e-3,1e30]", timeout=300)
    assert done.returncode == 1, done.stderr
    found = states(folder / "all")
    assert found.pop("v8-lr1e+30-seed0") == "FAILED" and found.pop("transformer-lr1e+30-seed0") == "FAILED"
    assert set(found.values()) == {"done"} and len(found) == 4
    assert "  FAILED   v8-lr1e+30-seed0  " in done.stdout and "its loss is nan" in done.stdout
    page = (folder / "all" / "comparison.html").read_text("utf-8")
    assert "v8-lr1e+30-seed0 of v8 is FAILED: " in page and '<td class="text FAILED">FAILED</td>' in page
    assert "6 runs, 2 of them not done" in page


@pytest.mark.nightly
def test_a_model_under_two_names_is_within_noise_and_v8_against_maxplus_is_not(tmp_path: Path, shared: Path) -> None:
    text = [f"data.path={shared / 'data' / 'tinyshakespeare.txt'}", "trainer.max_steps=150", "device=cpu"]
    models = "models={v8:{},twin:{model:v8,model.dropout:0.011},maxplus:{}}"
    sizes = [
        "experiment=shakespeare_small",
        "model.num_layers=2",
        "match=parameters:50k",
        "trainer.final_eval_batches=100",
    ]
    done = samout(tmp_path, "compare", models, *sizes, *text, *CHEAP, "lr=3e-3", "seeds=3", "run_dir=all", timeout=400)
    assert done.returncode == 0, done.stderr
    verdict = next(line for line in done.stdout.splitlines() if "more than noise" in line.lower())
    assert done.stdout.count("maxplus has the lowest validation loss") == 1
    assert verdict.startswith("More than noise above it are ") and "v8, by " in verdict and "twin, by " in verdict
    page = (tmp_path / "all" / "comparison.html").read_text("utf-8")
    pairs = page[page.index("Pairwise differences") :]
    begin = pairs.index(">v8</span></td>")
    row = pairs[begin : pairs.index("</tr>", begin)]
    assert row.count('class="beyond"') == 1, "against maxplus, and not against its twin"
