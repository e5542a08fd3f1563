"""Tasks and further sizes of a comparison: what is asked for, which runs there are, and how they go on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from samout_train import train
from samout_train.cli import compare
from samout_train.config import CONF, ConfigError, compose_config
from samout_train.experiments import (
    Budget,
    Job,
    Outcome,
    Plan,
    candidates,
    finish,
    known_sizes,
    make_runs,
    on_task,
    sizes_of,
    tasks_of,
)
from samout_train.experiments.compare.candidates import Candidate
from samout_train.experiments.compare.matching import Sizes
from samout_train.experiments.compare.plan import stages
from samout_train.experiments.compare.record import Entry, read_record
from samout_train.experiments.compare.runs import read_run, told_apart
from samout_train.experiments.compare.screening import Screening
from samout_train.experiments.jobs import outcome
from samout_train.training import source_from
from tests.support.comparison import make_run, make_stages

CONFIG: dict[str, Any] = {"optimizer": {"lr": 1.0}, "trainer": {"max_steps": 20}, "callbacks": {}}


def test_tasks_are_names_or_labels_with_a_budget_of_their_own() -> None:
    assert tasks_of(None) == tasks_of([]) == {}
    assert tasks_of(["parity", {"recall": {"data.num_pairs": 4, "data": "recall_small"}}]) == {
        "parity": ["data=parity"],
        "recall": ["data=recall_small", "data.num_pairs=4"],
    }
    with pytest.raises(ConfigError, match="tasks: parity is there twice: write one as"):
        tasks_of(["parity", "parity"])
    with pytest.raises(ConfigError, match=r"tasks: parity: optimizer\.lr=1: is the same for the text and all tasks"):
        tasks_of({"parity": {"optimizer.lr": 1}})


def test_further_sizes_are_amounts_of_the_same_budget() -> None:
    own = Budget.of("parameters:800k")
    assert sizes_of(None, None) == []
    assert [one.typed for one in sizes_of(["3.2m", 200_000, "200k", "800k"], own)] == [
        "parameters:200000",
        "parameters:3200000",
    ]
    assert Budget.of(Budget.of("flops:5.5G").typed) == Budget.of("flops:5.5G")
    with pytest.raises(ConfigError, match="sizes=many: must be an amount of parameters"):
        sizes_of(["many", "200k"], own)
    with pytest.raises(ConfigError, match=r"sizes=\['200k'\]: are further amounts of the budget: set match"):
        sizes_of(["200k"], None)


@pytest.mark.slow
def test_a_task_has_its_own_rows_and_budget_whatever_is_set_of_the_text(small_text: Path) -> None:
    of_text = [f"data.path={small_text}", "data.batch_size=3", "trainer.max_steps=9", "trainer.clip_grad_norm=2.0"]
    shared = ["experiment=contenders_cpu", "data=text", *of_text, "device=cpu"]
    text = candidates({"lstm": ["model=lstm", "model.num_layers=1", "model.hidden_size=8"]}, shared, None)
    alone = compose_config(["data=parity"]).config["data"]
    (one,) = on_task(text, "bits", ["data=parity", "data.seq_len=80"], shared, [])
    assert one.config["data"] == {**alone, "seq_len": 80} and one.data == "bits"
    assert text[0].config["data"]["batch_size"] == 3
    assert one.config["model"] == text[0].config["model"] and one.config["callbacks"] == text[0].config["callbacks"]
    assert one.config["trainer"] == {**text[0].config["trainer"], "max_steps": None}
    with pytest.raises(ConfigError, match=r"tasks=text: has no right answers to count"):
        on_task(text, "text", ["data=text", of_text[0]], shared, [])
    with pytest.raises(ConfigError, match="data=parrity: no such option; did you mean data=parity"):
        on_task(text, "parrity", ["data=parrity"], shared, [])


@pytest.mark.slow
def test_the_models_of_counting_are_tested_far_beyond_the_length_of_training_on_every_task() -> None:
    asked = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / "counting.yaml"))
    assert isinstance(asked, dict)
    found = {}
    for label, words in {"parity": ["experiment=counting"], **tasks_of(asked["compare"]["tasks"])}.items():
        source = source_from(compose_config(words).config)
        found[label] = source.vocab_size, source.train.seq_len
        assert [rows.seq_len for rows in source.tests.values()] == [source.train.seq_len, 256, 1000, 16384]
    assert found == {"parity": (2, 40), "modulo_3": (3, 40), "s3": (6, 40)}
    swaps = source_from(compose_config(["experiment=counting_swaps"]).config)
    assert [rows.seq_len for rows in swaps.tests.values()] == [swaps.train.seq_len, 256, 1000, 16384]
    assert swaps.vocab_size == 120 and swaps.train.seq_len == 16


def plan(folder: Path, **settings: Any) -> Plan:
    """Two models on a text, on the task `bits`, and at another size."""

    def models(data: str, width: int) -> list[Candidate]:
        found = []
        for label in "ab":
            words = (f"model={label}", f"data={data}", f"model.hidden_size={width}")
            found.append(Candidate(label, words, Sizes({"hidden_size": width}, 1.0), CONFIG, data))
        return found

    own = Plan(folder, models("text", 8), [1e-3, 3e-3], seed=0, num_seeds=1, **settings)
    screening = own.screening and replace(own.screening, finalists=None)
    beside = [
        replace(own, candidates=models("text", 4), screening=screening, budget="parameters:200"),
        replace(own, candidates=models("bits", 8), screening=None, task=True),
    ]
    return replace(own, beside=beside)


def loss_of(entry: Entry) -> float:
    """Where the best rate is another one on the task."""
    return 1.0 + (entry.label == "b") + abs(entry.rate - (1e-3 if entry.task else 3e-3))


def test_the_models_are_trained_on_tasks_and_at_further_sizes_after_the_text_each_with_its_own_rate(
    tmp_path: Path,
) -> None:
    asked = plan(tmp_path)
    assert [line.split(":")[0] for line in asked.lines() if "runs " in line] == [
        f"6 runs in {tmp_path}",
        "6 runs at parameters",
        "6 runs on the task bits",
    ]
    asked.write({"match": "parameters:800"})
    names = make_stages(asked, loss_of)
    assert names == [
        [f"{label}-lr{rate}-seed0" for label in "ab" for rate in (1e-3, 3e-3)],
        ["a-lr0.003-seed1", "b-lr0.003-seed1"],
        [
            f"{label}@{at}-lr{rate}-seed0"
            for at in ("parameters=200", "bits")
            for label in "ab"
            for rate in (1e-3, 3e-3)
        ],
        [f"{label}@{at}-lr{rate}-seed1" for at, rate in (("parameters=200", 3e-3), ("bits", 1e-3)) for label in "ab"],
    ]
    assert make_stages(asked, loss_of) == names and list(read_record(tmp_path)["runs"]) == [*chain(*names)]
    *_, last = stages(asked)
    words = [asked.job(entry).words for entry in last.entries.values()]
    assert words[0] == ("model=a", "data=text", "model.hidden_size=4", "optimizer.lr=0.003", "seed=1")
    assert words[3] == ("model=b", "data=bits", "model.hidden_size=8", "optimizer.lr=0.001", "seed=1")
    for match, is_beside, width in (("parameters:800", False, 8), ("parameters:200", True, 4)):
        found = known_sizes(tmp_path, match, "a", ["model=a", "data=text"], is_beside=is_beside)
        assert found is not None and found.settings == {"hidden_size": width}


def test_only_the_models_that_are_trained_in_full_get_tasks_and_sizes(tmp_path: Path) -> None:
    asked = plan(tmp_path, screening=Screening(5, 1))
    asked.write({"match": "parameters:800"})
    first, *others = make_stages(asked, loss_of)
    assert len(first) == 4 and all(name.startswith("a") for names in others for name in names)
    assert others[1][0] == "a@parameters=200-lr0.001-screening-seed0" and others[1][2] == "a@bits-lr0.001-seed0"


def test_runs_of_one_model_at_several_sizes_have_one_label(tmp_path: Path) -> None:
    runs = []
    for width, budget in ((8, None), (4, "parameters:200")):
        made = make_run(tmp_path / str(width), "a", 1e-3, 1, 1.0, model={"hidden_size": width})
        runs.append(replace(read_run(made), budget=budget))
    assert [run.label for run in told_apart(runs)] == ["a", "a"]


def test_runs_that_an_earlier_version_recorded_are_of_the_text(tmp_path: Path) -> None:
    recorded = {"label": "a", "data": "text", "rate": 1e-3, "seed": 1, "counts": True, "screening": False}
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": {"a-lr0.001-seed1": recorded}}))
    run = read_run(tmp_path / "a-lr0.001-seed1")
    assert (run.task, run.budget) == (False, None) and "a-lr0.001-seed1" in plan(tmp_path)._known()


@pytest.mark.slow
def test_an_interrupted_comparison_with_a_task_and_two_sizes_goes_on_to_its_page(
    tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs are made in this process, which saves the start of one for each."""
    made: list[str] = []

    def in_this_process(most: int) -> Callable[..., dict[str, Outcome]]:
        def run_jobs(jobs: Sequence[Job], **others: Any) -> dict[str, Outcome]:
            for job in jobs:
                if outcome(job.run_dir).state != "done":
                    if len(made) == most:
                        raise KeyboardInterrupt
                    made.append(job.name)
                    train([*job.words, f"run_dir={job.run_dir}"])
            return {job.name: outcome(job.run_dir) for job in jobs}

        return run_jobs

    plans: list[Plan] = []
    monkeypatch.setattr("samout_train.cli.compare._make", lambda plan, at_once: plans.append(plan) or 0)
    monkeypatch.setattr("samout_train.experiments.compare.page.measured_speeds", lambda *given: {})
    monkeypatch.setattr("samout_train.experiments.compare.page.overview", lambda *given: None)
    monkeypatch.setattr("samout_train.experiments.compare.causality.require_causal", lambda *given, **named: None)
    words = ["models=[gru]", "data=text", f"data.path={small_text}", "data.seq_len=16", "data.batch_size=4"]
    words += ["trainer.max_steps=3", "model.num_layers=1", "match=parameters:5k", "sizes=[8k]", "lr=1e-2", "seeds=1"]
    words += ["tasks={bits:{data:parity,data.seq_len:8,data.test_lengths:[8],data.budget_steps:3}}", "device=cpu"]
    words += ["callbacks.state_health.branches=none", "callbacks.sample.num_samples=1", "callbacks.lengths.times=[]"]
    words += ["callbacks.sample.max_new_tokens=8", "trainer.final_eval_batches=2", f"run_dir={tmp_path / 'all'}"]
    assert compare.compare(words) == 0
    (asked,) = plans
    monkeypatch.setattr("samout_train.experiments.jobs.run_jobs", in_this_process(most=1))
    with pytest.raises(KeyboardInterrupt):
        make_runs(asked, 1)
    assert made == ["gru-lr0.01-seed1"]
    monkeypatch.setattr("samout_train.experiments.jobs.run_jobs", in_this_process(most=9))
    make_runs(asked, 1)
    assert made == ["gru-lr0.01-seed1", "gru@parameters=8000-lr0.01-seed1", "gru@bits-lr0.01-seed1"]
    assert asked.check() == []  # each run there has the settings that are asked for
    finish(asked)
    page = (tmp_path / "all" / "comparison.html").read_text("utf-8")
    assert "<h2>Scaling</h2>" in page and "bits, length 8 (chance 0.5)" in page and "text at parameters:8,000" in page
    assert "<h3>Loss against parameters</h3>" in page and "<h3>Loss against training FLOPs</h3>" in page
