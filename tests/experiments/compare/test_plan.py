"""The runs of a comparison, and what its record knows of them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from samout_train.experiments import Plan, known_sizes, read_record, record_failure
from samout_train.experiments.compare.candidates import Candidate
from samout_train.experiments.compare.matching import Sizes
from samout_train.experiments.compare.plan import Entry, rate_beyond, stages
from samout_train.experiments.compare.results import comparisons_of
from samout_train.experiments.compare.runs import read_run

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


def made(asked: Plan, loss_of: Callable[[Entry], float | None]) -> list[list[str]]:
    """Make the runs of all stages of a plan, as far as they are missing, and return their names by stage."""
    names = []
    for stage in stages(asked):
        asked.record(stage.entries, stage.record)
        for name, entry in stage.entries.items():
            (asked.folder / name).mkdir(exist_ok=True, parents=True)
            if (loss := loss_of(entry)) is not None:
                text = json.dumps({"weights_sha256": "0", "val_loss_nats": loss})
                (asked.folder / name / "summary.json").write_text(text)
        names.append(list(stage.entries))
    return names


def test_rates_are_tried_until_the_best_lies_inside_and_a_second_start_goes_the_same_way(tmp_path: Path) -> None:
    asked = replace(plan(tmp_path, [1e-3, 2e-3, 4e-3]), extend=4)
    asked.write({"match": None})
    assert read_record(tmp_path)["extend_lr"] == 4 and "at the edge of the grid" in asked.lines()[-1]

    def loss_of(entry: Entry) -> float | None:
        return abs(math.log2(entry.rate / 16e-3)) + 0.1 * entry.seed

    names = made(asked, loss_of)
    flat = [name for stage in names for name in stage]
    assert [name.removeprefix("v8_small-lr") for name in flat] == [
        *("0.001-seed4", "0.002-seed4", "0.004-seed4", "0.008-seed4", "0.016-seed4", "0.032-seed4"),
        *("0.016-seed5", "0.016-seed6"),
    ]
    assert len(names) == 5 and list(read_record(tmp_path)["runs"]) == flat
    assert made(asked, loss_of) == names
    (comparison,) = comparisons_of([read_run(tmp_path / name) for name in flat])
    (one,) = comparison.results
    assert (one.best_rate, one.edge, list(one.losses)) == (16e-3, None, [5, 6])
    bounded = replace(asked, extend=1, folder=tmp_path / "bounded")
    bounded.write({})
    names = made(bounded, loss_of)
    assert names[1:] == [["v8_small-lr0.008-seed4"], ["v8_small-lr0.008-seed5", "v8_small-lr0.008-seed6"]]


def test_a_run_that_failed_before_it_left_a_configuration_is_known_by_the_record(tmp_path: Path) -> None:
    plan(tmp_path, [RATE, 0.01]).write({"match": "parameters:5k"})
    run_dir = tmp_path / f"v8_small-lr{RATE!r}-seed4"
    record_failure(run_dir, "killed by signal 9 (SIGKILL)", "killed")
    found = read_run(run_dir)
    assert (found.label, found.data, found.rate) == ("v8, small", "recall_small", RATE)
    assert (found.seed, found.counts) == (4, False)


def test_sizes_are_known_for_their_own_words_and_budget_only(tmp_path: Path) -> None:
    plan(tmp_path, [RATE]).write({"match": "parameters:5k"})
    words = list(WORDS[:1])
    assert known_sizes(tmp_path, "parameters:5k", "v8, small", words) == Sizes({"hidden_size": 12}, 5000.0)
    assert known_sizes(tmp_path, "parameters:6k", "v8, small", words) is None
    assert known_sizes(tmp_path, "parameters:5k", "v8, small", [*words, "model.num_layers=2"]) is None
    assert known_sizes(tmp_path, "parameters:5k", "gru", words) is None and read_record(tmp_path / "absent") == {}
