"""The runs of a comparison, and what its record knows of them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samout_train.experiments import Plan, known_sizes, read_record, record_failure
from samout_train.experiments.compare.candidates import Candidate
from samout_train.experiments.compare.choices import choices_of, with_settings
from samout_train.experiments.compare.findings import caveats
from samout_train.experiments.compare.matching import Sizes
from samout_train.experiments.compare.plan import rate_beyond, stages
from samout_train.experiments.compare.record import Entry
from samout_train.experiments.compare.results import comparisons_of, difference
from samout_train.experiments.compare.runs import read_run
from samout_train.experiments.compare.screening import Screening
from tests.support.comparison import make_stages

RATE = 3.1622776601683795e-4  # more digits than six
WORDS = ("model=v8", "model.hidden_size=12")


def plan(folder: Path, rates: list[float]) -> Plan:
    one = Candidate("v8, small", WORDS, Sizes({"hidden_size": 12}, 5000.0), {"optimizer": {"lr": 1.0}}, "recall_small")
    return Plan(folder, [one], rates, seed=4, num_seeds=2, flags=["--config-dir=x"])


def test_rates_are_chosen_on_one_seed_and_counted_on_those_after_it_with_all_their_digits(tmp_path: Path) -> None:
    both = plan(tmp_path, [RATE, 0.01])
    trials = both.trials({})
    assert list(trials) == [f"v8_small-lr{RATE!r}-seed4", "v8_small-lr0.01-seed4"]
    best = both.best(dict(zip(trials, (2.0, 2.5), strict=True)))
    scored = [both.job(entry) for entry in both.scored(best).values()]
    assert [job.words for job in scored] == [
        ("--config-dir=x", *WORDS, f"optimizer.lr={RATE!r}", f"seed={seed}") for seed in (5, 6)
    ]
    assert float(scored[0].words[-2].partition("=")[2]) == RATE and both.scored({}) == {}
    one = plan(tmp_path, [RATE])
    (stage,) = stages(one)
    assert one.trials({}) == {} and [entry.seed for entry in stage.entries.values()] == [5, 6]


@pytest.mark.parametrize(
    ("losses", "grid", "most", "then"),
    [
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0}, [1e-3, 2e-3, 4e-3], 4, 8e-3),
        ({1e-3: 1.0, 3e-3: 2.0, 4e-3: 3.0}, [1e-3, 3e-3, 4e-3], 4, 1e-3 / 3),
        ({1e-3: 3.0, 2e-3: 1.0, 4e-3: 2.0}, [1e-3, 2e-3, 4e-3], 4, None),
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0, 8e-3: None}, [1e-3, 2e-3, 4e-3], 4, None),  # the next one failed
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0, 8e-3: 0.5}, [1e-3, 2e-3, 4e-3], 1, None),
        ({5e-4: 0.5, 1e-3: 1.0, 2e-3: 2.0, 4e-3: 3.0}, [1e-3, 2e-3, 4e-3], 2, 2.5e-4),
        ({1e-3: 2.0, 2e-3: 2.0, 4e-3: 2.0}, [1e-3, 2e-3, 4e-3], 1, 5e-4),  # of equal ones the smallest
        ({1e-3: 2.0, 2e-3: 1.0}, [1e-3, 2e-3], 4, None),  # of two, one is always at the edge
        ({1e-3: None, 2e-3: None, 4e-3: None}, [1e-3, 2e-3, 4e-3], 4, None),
    ],
)
def test_the_rate_after_an_edge_keeps_the_ratio_of_the_grid(
    losses: dict[float, float | None], grid: list[float], most: int, then: float | None
) -> None:
    assert rate_beyond(losses, grid, most) == (then and pytest.approx(then, rel=1e-5))


def test_rates_are_tried_until_the_best_lies_inside_and_a_second_start_goes_the_same_way(tmp_path: Path) -> None:
    asked = replace(plan(tmp_path, [1e-3, 2e-3, 4e-3]), extend=4)
    asked.write({"match": None})
    assert read_record(tmp_path)["extend_lr"] == 4 and "at the edge of the grid" in asked.lines()[-1]

    def loss_of(entry: Entry) -> float | None:
        return abs(math.log2(entry.rate / 16e-3)) + 0.1 * entry.seed

    names = make_stages(asked, loss_of)
    flat = [name for stage in names for name in stage]
    assert [name.removeprefix("v8_small-lr") for name in flat] == [
        *("0.001-seed4", "0.002-seed4", "0.004-seed4", "0.008-seed4", "0.016-seed4", "0.032-seed4"),
        *("0.016-seed5", "0.016-seed6"),
    ]
    assert len(names) == 5 and list(read_record(tmp_path)["runs"]) == flat
    assert make_stages(asked, loss_of) == names
    (comparison,) = comparisons_of([read_run(tmp_path / name) for name in flat])
    (one,) = comparison.results
    assert (one.best_rate, one.edge, list(one.losses)) == (16e-3, None, [5, 6])
    bounded = replace(asked, extend=1, folder=tmp_path / "bounded")
    bounded.write({})
    names = make_stages(bounded, loss_of)
    assert names[1:] == [["v8_small-lr0.008-seed4"], ["v8_small-lr0.008-seed5", "v8_small-lr0.008-seed6"]]


def several(folder: Path, labels: str, rates: list[float], **settings: Any) -> Plan:
    """A plan with models that have a dropout, apart from `c`, and an optimizer with a weight decay."""
    models = []
    for label in labels:
        cell = "torch.nn.GRU" if label != "c" else "torch.nn.GRUCell"
        config = {"model": {"_target_": cell}, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1.0}}
        models.append(Candidate(label, (f"model={label}",), None, config, "text"))
    return Plan(folder, models, rates, seed=0, **settings)


def test_the_leaders_are_scored_on_further_seeds_and_compared_on_these_alone(tmp_path: Path) -> None:
    asked = several(tmp_path, "abd", [1e-3], num_seeds=2, leaders=2, leader_seeds=3)
    assert asked.lines()[-1] == (
        f"12 runs in {tmp_path}: 6 scored (seeds 1 to 2), 6 of the 2 best models (seeds 3 to 5)"
    )
    asked.write({})
    of_label = {"a": 1.0, "b": 1.1, "d": 2.0}

    def loss_of(entry: Entry) -> float | None:
        lucky = 0.5 * (entry.label == "b" and entry.seed <= 2)  # on the seeds by which the leaders are chosen
        return of_label[entry.label] + 0.01 * entry.seed + 0.001 * (entry.seed % 2) * (entry.label == "a") - lucky

    first, then = make_stages(asked, loss_of)
    assert len(first) == 6 and read_record(tmp_path)["leading"] == ["b", "a"]
    assert then == [f"{label}-lr0.001-seed{seed}" for label in "ba" for seed in (3, 4, 5)]
    (comparison,) = comparisons_of([read_run(tmp_path / name) for name in (*first, *then)])
    a, b, d = comparison.results
    assert (a.label, b.label, d.label) == ("a", "b", "d") and list(a.losses) == [3, 4, 5] and list(d.losses) == [1, 2]
    among, against = difference(b, a), difference(d, b)
    assert among is not None and among.num_pairs == 3 and among.mean == pytest.approx(0.1 - 0.002 / 3)
    assert against is not None and against.num_pairs == 2 and against.mean == pytest.approx(1.4)
    (told,) = [caveat for caveat in caveats(comparison, {}) if "led on" in caveat]
    assert told.startswith("a, b led on seeds 1, 2, and were then scored on seeds 3, 4, 5.")
    assert not any("different seeds" in caveat for caveat in caveats(comparison, {}))


def test_a_model_that_lacks_a_seed_does_not_lead(tmp_path: Path) -> None:
    asked = several(tmp_path, "ab", [1e-3], num_seeds=2, leaders=1, leader_seeds=1)
    scored = asked.scored(asked.best({}))
    losses = {"a-lr0.001-seed1": 1.0, "a-lr0.001-seed2": None, "b-lr0.001-seed1": 3.0, "b-lr0.001-seed2": 2.0}
    assert asked.leading(scored, losses) == ["b"]


def test_a_model_that_is_not_causal_takes_no_place_of_a_finalist_or_leader(tmp_path: Path) -> None:
    screening = Screening(5, 2)
    asked = several(tmp_path, "abd", [1e-3], num_seeds=1, screening=screening, leaders=2, leader_seeds=1)
    asked.write({})
    of_label = {"a": 1.0, "b": 0.1, "d": 2.0}
    full, further = make_stages(asked, lambda entry: of_label[entry.label], not_causal=["b"])[1:]
    assert [name[0] for name in full] == ["a", "d"] and [name[0] for name in further] == ["a", "d"]
    few = several(tmp_path / "few", "ab", [1e-3], num_seeds=1, leaders=2, leader_seeds=1)
    few.write({})
    full, further = make_stages(few, lambda entry: of_label[entry.label], not_causal=["b"])
    assert [name[0] for name in full] == ["a", "b"] and [name[0] for name in further] == ["a"]


def test_settings_are_chosen_one_after_another_at_the_best_rate_of_each_model(tmp_path: Path) -> None:
    choose = choices_of({"model": {"dropout": [0.0, 0.1, 0.2]}, "optimizer.weight_decay": [0.01, 0.1]})
    asked = several(tmp_path, "ac", [1e-3, 3e-3], num_seeds=1, choose=choose)
    assert asked.lines()[-2:] == [
        "  model.dropout is not chosen for c: no such setting",
        f"10 runs in {tmp_path}: 8 to choose learning rates and settings (seed 0), 2 scored (one seed)",
    ]
    asked.write({})

    def loss_of(entry: Entry) -> float | None:
        better = {0.0: 0.0, 0.1: 0.3, 0.2: 0.1}[entry.settings.get("model.dropout", 0.0)]
        return 2.0 - 100 * entry.rate - better  # the weight decay makes no difference

    names = make_stages(asked, loss_of)
    assert names == [
        ["a-lr0.001-seed0", "a-lr0.003-seed0", "c-lr0.001-seed0", "c-lr0.003-seed0"],
        [
            *("a-lr0.003-model.dropout_0.1-seed0", "a-lr0.003-model.dropout_0.2-seed0"),
            "c-lr0.003-optimizer.weight_decay_0.1-seed0",
        ],
        ["a-lr0.003-model.dropout_0.1-optimizer.weight_decay_0.1-seed0"],
        ["a-lr0.003-model.dropout_0.1-seed1", "c-lr0.003-seed1"],
    ]
    (scored, _) = asked.scored(asked.best({name: loss_of(entry) for name, entry in asked._known().items()})).values()
    assert asked.job(scored).words[1:3] == ("model.dropout=0.1", "optimizer.weight_decay=0.01")
    assert make_stages(asked, loss_of) == names
    (comparison,) = comparisons_of([read_run(tmp_path / name) for stage in names for name in stage])
    a, c = comparison.results
    assert (list(a.rates), a.best_rate, list(a.losses)) == ([1e-3, 3e-3], 3e-3, [1])
    assert dict(a.best_settings) == {"model.dropout": 0.1, "optimizer.weight_decay": 0.01}
    assert dict(c.best_settings) == {"optimizer.weight_decay": 0.01}
    told = caveats(comparison, {})
    assert "model.dropout was not chosen for c: no such setting." in told
    assert not any("several runs" in caveat for caveat in told)
    assert (
        a.settings_at_edge == c.settings_at_edge == {"optimizer.weight_decay": "smallest"}
    )  # a dropout of 0.1 is inside
    assert (
        "The best optimizer.weight_decay is the smallest of those tried for a, c; a smaller one may be better." in told
    )


@pytest.mark.parametrize(
    ("values", "best", "edge"),
    [
        ([0.0, 0.1], 0.1, "largest"),
        ([0.1, 0.0], 0.0, None),
        ([0.1, 0.3, 0.2], 0.2, None),
        (["all", "none"], "none", None),
    ],
)
def test_a_chosen_number_at_the_edge_of_those_tried_is_told(
    tmp_path: Path, values: list[Any], best: Any, edge: str | None
) -> None:
    asked = several(tmp_path, "ab", [1e-3, 3e-3, 2e-3], num_seeds=1, choose={"model.dropout": values})
    asked.write({})
    names = make_stages(asked, lambda entry: 1.0 + entry.rate + (entry.settings["model.dropout"] != best))
    (comparison,) = comparisons_of([read_run(tmp_path / name) for stage in names for name in stage])
    assert all(one.settings_at_edge.get("model.dropout") == edge for one in comparison.results)
    assert any("The best model.dropout is the largest" in caveat for caveat in caveats(comparison, {})) == bool(edge)


def test_runs_with_a_setting_that_was_chosen_are_not_taken_for_those_without(tmp_path: Path) -> None:
    asked = several(tmp_path, "a", [1e-3], num_seeds=1, choose={"model.dropout": [0.0, 0.3]})
    asked.write({})
    names = make_stages(asked, lambda entry: 1.0 + entry.settings["model.dropout"])
    assert names[-1] == ["a-lr0.001-seed1"]
    (model,) = asked.candidates
    for name in (name for stage in names for name in stage):
        there = with_settings(model.config, {"model.dropout": 0.3 * ("0.3" in name), "optimizer.lr": 1e-3})
        there["seed"] = int(name[-1])
        (tmp_path / name / ".hydra").mkdir()
        (tmp_path / name / ".hydra" / "config.yaml").write_text(json.dumps(there))
        (tmp_path / name / "metrics.jsonl").touch()
    assert asked.check() == []
    other = replace(model, config=with_settings(model.config, {"model.dropout": 0.2}))
    found = replace(asked, candidates=[other], choose={}).check()
    assert {(problem.key, problem.value) for problem in found} == {("model.dropout", "0.2")}


def test_runs_that_began_with_other_weights_are_refused(tmp_path: Path) -> None:
    asked = several(tmp_path, "a", [1e-3], num_seeds=1)
    asked.write({})
    asked.record(asked.scored(asked.best({})))
    (model,) = asked.candidates
    run_dir = tmp_path / "a-lr0.001-seed1"
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / "metrics.jsonl").touch()
    there = {**with_settings(model.config, {"optimizer.lr": 1e-3}), "seed": 1}
    for before, now, problem in (
        ({}, {"init_from": None}, []),  # an earlier version left out the key
        ({"init_from": "runs/A"}, {"init_from": "runs/A"}, []),
        ({"init_from": "runs/A"}, {"init_from": "runs/B"}, [("init_from", "runs/B")]),
        ({}, {"init_from": "runs/B"}, [("init_from", "runs/B")]),
    ):
        (run_dir / ".hydra" / "config.yaml").write_text(json.dumps({**there, **before}))
        found = replace(asked, candidates=[replace(model, config={**model.config, **now})]).check()
        assert [(one.key, one.value) for one in found] == problem


def test_a_run_that_failed_before_it_left_a_configuration_is_known_by_the_record(tmp_path: Path) -> None:
    plan(tmp_path, [RATE, 0.01]).write({"match": "parameters:5k"})
    run_dir = tmp_path / f"v8_small-lr{RATE!r}-seed4"
    record_failure(run_dir, "killed by signal 9 (SIGKILL)", "killed")
    found = read_run(run_dir)
    assert (found.label, found.data, found.rate) == ("v8, small", "recall_small", RATE)
    assert (found.seed, found.counts) == (4, False)


def test_the_largest_number_of_runs_at_a_time_is_kept_once_there_are_runs(tmp_path: Path) -> None:
    asked = plan(tmp_path, [RATE, 0.01])
    for jobs in (4, 2):
        asked.write({"jobs": jobs})
        assert read_record(tmp_path)["jobs"] == jobs  # no run has begun
    begun = tmp_path / next(iter(asked.trials({})))
    begun.mkdir()
    (begun / "metrics.jsonl").touch()
    for jobs, most in ((1, 2), (3, 3), (1, 3)):
        asked.write({"jobs": jobs})
        assert read_record(tmp_path)["jobs"] == most


def test_sizes_are_known_for_their_own_words_and_budget_only(tmp_path: Path) -> None:
    plan(tmp_path, [RATE]).write({"match": "parameters:5k"})
    words = list(WORDS[:1])
    assert known_sizes(tmp_path, "parameters:5k", "v8, small", words) == Sizes({"hidden_size": 12}, 5000.0)
    assert known_sizes(tmp_path, "parameters:6k", "v8, small", words) is None
    assert known_sizes(tmp_path, "parameters:5k", "v8, small", [*words, "model.num_layers=2"]) is None
    assert known_sizes(tmp_path, "parameters:5k", "gru", words) is None and read_record(tmp_path / "absent") == {}
