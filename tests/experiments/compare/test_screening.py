"""Screening: which runs there are, which models are chosen, and what is told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samout_train.cli import compare
from samout_train.config import CONF, ConfigError, compose_config
from samout_train.experiments import Plan, candidates, check_screening, read_record, screening_of
from samout_train.experiments.compare.candidates import Candidate, labelled
from samout_train.experiments.compare.findings import caveats
from samout_train.experiments.compare.page import finish, html, markdown, summary_lines
from samout_train.experiments.compare.plan import stages
from samout_train.experiments.compare.results import comparisons_of
from samout_train.experiments.compare.runs import read_run, told_apart
from samout_train.experiments.compare.screening import Losses, Screening, screening_caveat, screening_table
from samout_train.experiments.jobs import State
from samout_train.training import checked_config
from tests.support.comparison import make_run, make_stages

CONFIG: dict[str, Any] = {
    "optimizer": {"lr": 1.0},
    "trainer": {"max_steps": 20, "max_epochs": None, "max_seconds": None},
    "data": {"budget_steps": 2000},
    "callbacks": {"lengths": {"times": [1, 4]}},
}
LOSSES: dict[str, dict[float, float | None]] = {
    "a": {1e-3: 2.0, 3e-3: 1.5, 1e-2: 1.8},
    "b": {1e-3: 1.6, 3e-3: None, 1e-2: 1.4},
    "c": {1e-3: None, 3e-3: None, 1e-2: None},
    "d": {1e-3: 2.5, 3e-3: 2.4, 1e-2: 2.6},
}
SHORT = ("trainer.max_steps=5", "callbacks.lengths.times=[]")


def plan(folder: Path, screening: Screening | None, labels: str = "ab") -> Plan:
    models = [Candidate(label, (f"model={label}", "trainer.max_steps=20"), None, CONFIG, "text") for label in labels]
    return Plan(folder, models, [1e-3, 3e-3], seed=4, num_seeds=2, screening=screening)


def test_the_runs_of_both_stages_are_these(tmp_path: Path) -> None:
    asked = plan(tmp_path, Screening(5, 1))
    trials = asked.trials({})
    jobs = map(asked.job, trials.values())
    assert [(job.name, job.words) for job in jobs] == [
        ("a-lr0.001-screening-seed4", ("model=a", "trainer.max_steps=20", *SHORT, "optimizer.lr=0.001", "seed=4")),
        ("a-lr0.003-screening-seed4", ("model=a", "trainer.max_steps=20", *SHORT, "optimizer.lr=0.003", "seed=4")),
        ("b-lr0.001-screening-seed4", ("model=b", "trainer.max_steps=20", *SHORT, "optimizer.lr=0.001", "seed=4")),
        ("b-lr0.003-screening-seed4", ("model=b", "trainer.max_steps=20", *SHORT, "optimizer.lr=0.003", "seed=4")),
    ]
    best = asked.best({"b-lr0.001-screening-seed4": None, "b-lr0.003-screening-seed4": 2.0})
    jobs = map(asked.job, asked.scored(best).values())
    assert [(job.name, job.words) for job in jobs] == [
        ("b-lr0.003-seed5", ("model=b", "trainer.max_steps=20", "optimizer.lr=0.003", "seed=5")),
        ("b-lr0.003-seed6", ("model=b", "trainer.max_steps=20", "optimizer.lr=0.003", "seed=6")),
    ]
    assert asked.lines()[-1] == (
        f"at most 6 runs in {tmp_path}: 4 of 5 steps to screen (seed 4), at most 2 scored (seeds 5 to 6)"
    )
    one_rate = Plan(tmp_path, asked.candidates, [1e-3], seed=4, num_seeds=2, screening=Screening(5, 1))
    assert len(one_rate.trials({})) == 2
    assert {entry.seed for entry in trials.values() if entry.screening and not entry.counts} == {4}


@pytest.mark.parametrize(
    ("finalists", "always", "chosen"),
    [
        (1, (), ["b"]),
        (2, (), ["a", "b"]),
        (1, ("d",), ["b", "d"]),
        (1, ("b",), ["b"]),
        (1, ("c",), ["b"]),  # no run of c has a loss
        (9, (), ["a", "b", "d"]),
        (None, (), ["a", "b", "d"]),
    ],
)
def test_the_models_with_the_lowest_loss_and_those_always_there_are_chosen(
    finalists: int | None, always: tuple[str, ...], chosen: list[str]
) -> None:
    assert Screening(5, finalists, always).chosen(LOSSES) == chosen


def test_a_model_that_is_not_causal_is_no_finalist() -> None:
    assert Screening(5, 1).chosen(LOSSES, ["b"]) == ["a"] and Screening(5, 9).chosen(LOSSES, ["b"]) == ["a", "d"]
    assert Screening(5, None).chosen(LOSSES, ["b"]) == ["a", "b", "d"], "without finalists all are trained in full"


def test_short_runs_have_no_other_limit() -> None:
    config = {"trainer": {"max_steps": None, "max_epochs": None, "max_seconds": 60}, "callbacks": {}}
    assert Screening(5).words(config) == ["trainer.max_steps=5", "trainer.max_seconds=null"]
    assert Screening(5).shortened(config)["trainer"] == {"max_steps": 5, "max_epochs": None, "max_seconds": None}


def ended(losses: Losses) -> dict[str, dict[float, State]]:
    """The states of short runs that have all ended."""
    found: dict[str, dict[float, State]] = {}
    for label, by_rate in losses.items():
        found[label] = {rate: "FAILED" if loss is None else "done" for rate, loss in by_rate.items()}
    return found


def table_of(screening: Screening, losses: Losses) -> dict[str, Any]:
    return screening_table(screening, losses, ended(losses))


def test_the_table_marks_the_best_rate_the_edge_and_who_was_chosen() -> None:
    table = table_of(Screening(500, 1, ("d",)), LOSSES)
    assert table["head"] == ["model", "lr 0.001", "lr 0.003", "lr 0.01", "best rate", "trained in full"]
    rows = []
    for row in table["rows"]:
        cells = [cell["text"] + "*" * cell["best"] for cell in row["cells"]]
        rows.append((row["name"], *cells, row["rate"], row["in_full"]))
    assert rows == [
        ("b", "1.600", "failed", "1.400*", "0.01 (edge)", "yes"),
        ("a", "2.000", "1.500*", "1.800", "0.003", "no"),
        ("d", "2.500", "2.400*", "2.600", "0.003", "always"),
        ("c", "failed", "failed", "failed", "", "no: no run has a loss"),
    ]
    longer = table_of(Screening(500), LOSSES | {"a": {**LOSSES["a"], 3e-2: 1.2}})
    assert [row["rate"] for row in longer["rows"]] == ["0.03 (edge)", "0.01 (edge)", "0.003", ""]  # each of its own
    last = screening_table(Screening(500, 2), LOSSES, ended(LOSSES), ["b"])["rows"][-1]
    assert (last["label"], last["name"], last["in_full"]) == ("b", "b (not causal)", "no")
    two_rates = table_of(Screening(5), {"a": {1e-3: 1.0, 3e-3: 2.0}})
    assert two_rates["rows"][0]["rate"] == "0.001"  # of two, one is always at the edge


def test_a_run_without_a_loss_is_running_not_yet_run_stopped_or_failed() -> None:
    losses: dict[str, dict[float, float | None]] = {
        "a": dict.fromkeys((1e-3, 3e-3, 1e-2)),
        "b": {1e-3: 1.0, 3e-3: None},
    }
    states = ended(losses) | {"a": {1e-3: "running", 3e-3: "waiting", 1e-2: "stopped"}}
    a, b = sorted(screening_table(Screening(5), losses, states)["rows"], key=lambda row: str(row["label"]))
    assert [cell["text"] for cell in a["cells"]] == ["running", "not yet run", "stopped"]
    assert [cell["text"] for cell in b["cells"]] == ["1.000", "failed", ""]  # a rate that it is not tried with
    assert (a["in_full"], b["in_full"]) == ("not yet known", "yes")
    one_of_both = screening_table(Screening(5, 1), losses, states)["rows"]
    assert {row["in_full"] for row in one_of_both} == {"not yet known"}
    told = screening_caveat(Screening(5, 1), losses, states)
    assert told.endswith("The screening is not over: 3 of its 5 runs have not ended.")


def test_a_page_of_a_screening_that_is_under_way_says_what_is_missing(tmp_path: Path) -> None:
    asked = plan(tmp_path, Screening(5, 1))
    asked.write({"match": None})
    for label, rate, loss in (("a", 1e-3, 2.0), ("b", 3e-3, None)):  # one that is done, and one that was stopped
        make_run(tmp_path / "made", label, rate, 4, loss).rename(tmp_path / f"{label}-lr{rate}-screening-seed4")
    assert compare.compare([f"runs={tmp_path}", f"run_dir={tmp_path}"]) == 0
    text = (tmp_path / "comparison.md").read_text("utf-8")
    assert "| a | **2.000** | not yet run | 0.001 | not yet known |" in text
    assert "| b | not yet run | stopped |  | not yet known |" in text
    assert "Runs that are not yet run: 2." in text and "of b is stopped." in text and "failed" not in text


def screened(folder: Path) -> list[str]:
    """A comparison of a and b, of which the screening chose a. The names of its runs."""
    asked = plan(folder, Screening(5, 1))
    asked.write({"match": None})
    names = []
    for stage in stages(asked):
        asked.record(stage.entries, stage.record)
        for name, entry in stage.entries.items():
            loss = 2.0 + (entry.label == "b") - 100 * entry.rate - 0.5 * entry.counts
            run_dir = make_run(folder / "made", entry.label, entry.rate, entry.seed, loss, data="text")
            run_dir.rename(folder / name)
            names.append(name)
    return names


@pytest.mark.slow
def test_page_record_and_terminal_show_the_screening(tmp_path: Path) -> None:
    runs = [read_run(tmp_path / name) for name in screened(tmp_path)]
    (comparison,) = comparisons_of(runs)
    losses = comparison.screening_losses
    assert {label: list(by_rate) for label, by_rate in losses.items()} == {"a": [1e-3, 3e-3], "b": [1e-3, 3e-3]}
    record = read_record(tmp_path)
    assert record["screened"]["a"]["trained_in_full"] is True and record["screened"]["b"]["trained_in_full"] is False
    assert record["screened"]["a"]["best_rate"] == 3e-3 and list(record["screened"]["b"]["losses"]) == [
        "0.001",
        "0.003",
    ]
    assert [one.label for one in comparison.ranked] == ["a"] and comparison.ranked[0].counted[0].seed == 5
    told = "\n".join(summary_lines(comparison, record))
    assert "Screening: 5 steps" in told and "Not among the finalists, though" in told and told.count("*") == 2
    page = html([comparison], record, {})
    assert "<h2>Screening: 5 steps</h2>" in page and "<strong>1.700</strong>" in page and "<h3>Screening</h3>" in page
    text = markdown([comparison], record, {}, {})
    assert "| a | 1.900 | **1.700** | 0.003 | yes |" in text and "| b | 2.900 | **2.700** | 0.003 | no |" in text
    assert {run.label for run in told_apart(runs)} == {"a", "b"}


def test_full_runs_of_earlier_finalists_stay_in_the_table_after_a_model_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samout_train.experiments.compare.page.measured_speeds", lambda *given: {})
    short, full = {"a": 2.0, "b": 2.1, "c": 1.9}, {"a": 1.0, "c": 1.2}
    for labels in ("ab", "abc"):
        asked = plan(tmp_path, Screening(5, 1), labels)
        asked.write({"match": None})
        make_stages(asked, lambda entry: (short if entry.screening else full)[entry.label] + entry.seed / 100)
    finish(asked)
    record = read_record(tmp_path)
    (comparison,) = comparisons_of([read_run(tmp_path / name) for name in record["runs"]])
    for text in ((tmp_path / "comparison.md").read_text("utf-8"), markdown([comparison], record, {}, {})):
        assert text.splitlines()[4].startswith("a has the lowest validation loss")
        assert "| a | 1.055 ±" in text and "| c | 1.255 ±" in text and "| b | no scored run" not in text
        assert "Not among the finalists, though their rank might change with more steps: b." in text
    table = screening_table(Screening(5, 1), comparison.screening_losses, comparison.screening_states, (), ["a", "c"])
    assert [(row["label"], row["in_full"]) for row in table["rows"]] == [("c", "yes"), ("a", "yes"), ("b", "no")]


def test_a_page_of_a_screening_names_a_model_that_is_not_causal(tmp_path: Path) -> None:
    asked = plan(tmp_path, Screening(5, 1))
    asked.write({"match": None})
    make_stages(asked, lambda entry: 1.0 + (entry.label == "a"), ["b"])
    record = read_record(tmp_path)
    (comparison,) = comparisons_of([read_run(tmp_path / name) for name in record["runs"]])
    assert [one.label for one in comparison.ranked] == ["a"]
    assert "Not among the finalists" not in " ".join(caveats(comparison, record))  # more steps would not change that
    assert ">b (not causal)</span>" in html([comparison], record, {})
    assert "| b (not causal) | **1.000** |" in markdown([comparison], record, {}, {})
    assert any(line.strip().startswith("b (not causal)  1.000*") for line in summary_lines(comparison, record))


def test_a_run_that_tries_a_setting_and_is_not_over_leaves_the_screening_open(tmp_path: Path) -> None:
    asked = replace(plan(tmp_path, Screening(5, 1)), choose={"trainer.max_steps": [20, 30]})
    asked.write({"match": None})
    make_stages(asked, lambda entry: None if entry.tries else 1.0 + (entry.label == "a"))
    stopped = [name for name, entry in read_record(tmp_path)["runs"].items() if entry["tries"]]
    for name in stopped:
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1}\n', "utf-8")
    (comparison,) = comparisons_of([read_run(tmp_path / name) for name in read_record(tmp_path)["runs"]])
    losses, states = comparison.screening_losses, comparison.screening_states
    assert states["a"] == {1e-3: "stopped", 3e-3: "done"} and len(stopped) == 2
    assert {row["in_full"] for row in screening_table(Screening(5, 1), losses, states)["rows"]} == {"not yet known"}


def test_a_run_outside_of_a_comparison_takes_no_part_in_it(tmp_path: Path) -> None:
    asked = plan(tmp_path / "all", None)
    asked.write({"match": None})
    make_stages(asked, lambda entry: 1.0 + (entry.label == "a") / 10 - entry.rate)
    names = list(read_record(asked.folder)["runs"])
    others = [make_run(tmp_path / "own", "b", rate, seed, 0.5, data="text") for rate, seed in ((1e-2, 4), (3e-3, 5))]
    runs = [read_run(run) for run in (*(asked.folder / name for name in names), *others)]
    (comparison,) = comparisons_of([replace(run, data="text") for run in runs])
    assert {one.label: one.best_rate for one in comparison.ranked} == {"b": 3e-3, "a": 3e-3}
    assert [run.loss for run in comparison.ranked[0].counted] == [0.997, 0.997]
    assert (
        "b: not scored, because other runs of it belong to a comparison and these do not: b-lr0.01-seed4, "
        "b-lr0.003-seed5."
    ) in caveats(comparison, {})


def test_a_comparison_is_continued_with_the_same_screening_only(tmp_path: Path) -> None:
    plan(tmp_path, Screening(5, 1, ("b",))).write({})
    assert plan(tmp_path, Screening(5, 1, ("b",))).check() == []
    has = f"the comparison in {tmp_path} has"
    assert list(map(str, plan(tmp_path, Screening(6, 2, ("b",))).check())) == [
        f"screen_steps=6: {has} 5: give another run_dir",
        f"finalists=2: {has} 1: give another run_dir",
    ]
    assert plan(tmp_path, Screening(5, 1, ("c", "b"))).check() == []  # further models may be trained in full
    fewer = f"always=['c']: {has} ['b']: give another run_dir"
    assert list(map(str, plan(tmp_path, Screening(5, 1, ("c",))).check())) == [fewer]
    assert len(plan(tmp_path, None).check()) == 3
    plan(tmp_path / "without", None).write({})
    assert plan(tmp_path / "without", None).check() == []
    assert "has null" in str(plan(tmp_path / "without", Screening(5)).check()[0])


def test_wrong_combinations_are_told_by_key() -> None:
    assert screening_of(None, None, []) == (None, [])
    assert screening_of(5, 2, ["a"]) == (Screening(5, 2, ("a",)), [])
    for given, key in (((None, 2, []), "finalists=2:"), ((5, None, ["a"]), "always=")):
        screening, found = screening_of(*given)
        assert screening is None and len(found) == 1 and str(found[0]).startswith(key)
    of = {"a": CONFIG, "b": CONFIG}
    assert check_screening(Screening(5, 1, ("b",)), of, [1e-3]) == []
    assert check_screening(Screening(5), of, [1e-3, 3e-3]) == []
    (unknown,) = check_screening(Screening(5, 1, ("e",)), of, [1e-3])
    assert str(unknown).startswith("always=e: no such model") and "there are a, b" in str(unknown)
    assert check_screening(Screening(5), of, [1e-3], chooses_settings=True) == []
    (nothing,) = check_screening(Screening(5), of, [1e-3])
    assert str(nothing).startswith("screen_steps=5: one learning rate and no finalists")
    (long,) = check_screening(Screening(20, 1), of, [1e-3])
    assert str(long).startswith("screen_steps=20: the full runs have 20 steps")
    by_time = CONFIG | {"trainer": {"max_steps": None, "max_epochs": None, "max_seconds": 60}}
    assert check_screening(Screening(9000, 1), {"a": by_time}, [1e-3]) == []


def test_a_label_may_have_several_overrides() -> None:
    assert labelled({"v8": [], "deep, wide": ["model=v8", "model.num_layers=12"]}) == {
        "v8": ["model=v8"],
        "deep, wide": ["model=v8", "model.num_layers=12"],
    }
    with pytest.raises(ConfigError, match="models: v8: 3: must be an override"):
        labelled({"v8": [3]})


@pytest.mark.slow
def test_an_experiment_that_is_a_comparison_is_not_for_train(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = checked_config(["experiment=maxplus_ablation"])
    assert list(map(str, found)) == [
        "experiment=maxplus_ablation: is a comparison of models: write samout-train compare experiment=maxplus_ablation"
    ]
    composed = compose_config(["experiment=maxplus_ablation"], config_name="compare")
    settings = composed.config
    assert (settings["screen_steps"], settings["finalists"], settings["seeds"]) == (500, 4, 3)
    assert settings["lr"] == [1e-3, 3e-3, 8e-3] and len(settings["models"]) == 21 and "gru" in settings["always"]
    assert compare.compare(["experiment=maxplus_ablation", "models=[maxplus,v9]"]) == 2
    assert "v9: model=v9: no such option" in capsys.readouterr().err
    long = ["experiment=maxplus_ablation", "models=[maxplus,gru]", "screen_steps=9000"]
    assert compare.compare(long) == 2  # not for the others that the experiment always trains in full
    assert capsys.readouterr().err.splitlines() == [
        "screen_steps=9000: the full runs have 2000 steps: give fewer than those"
    ]
    assert compare.compare([*long, "always=[gru,lstm]"]) == 2
    assert "always=lstm: no such model is compared" in capsys.readouterr().err


@pytest.mark.nightly
def test_every_model_of_an_ablation_can_be_built(shared: Path) -> None:
    text = f"data.path={shared / 'data' / 'tinyshakespeare.txt'}"
    for path in (CONF / "experiment").glob("*.yaml"):
        made = compose_config([f"experiment={path.stem}"]).config.get("compare")
        if made is not None:
            found = candidates(made["models"], [f"experiment={path.stem}", text], None)
            assert [one.label for one in found] == list(made["models"])
            assert all("compare" not in one.config for one in found)
