"""The runs of a comparison, and what its record knows of them."""

from pathlib import Path

from samout_train.experiments import Plan, known_sizes, read_record, record_failure
from samout_train.experiments.compare.candidates import Candidate
from samout_train.experiments.compare.matching import Sizes
from samout_train.experiments.compare.runs import read_run

RATE = 3.1622776601683795e-4  # more digits than six
WORDS = ("model=v8", "model.hidden_size=12")


def plan(folder: Path, rates: list[float]) -> Plan:
    one = Candidate("v8, small", WORDS, Sizes({"hidden_size": 12}, 5000.0), {"optimizer": {"lr": 1.0}}, "recall_small")
    return Plan(folder, [one], rates, seed=4, num_seeds=2, flags=["--config-dir=x"])


def test_rates_are_chosen_on_one_seed_and_counted_on_those_after_it_with_all_their_digits(tmp_path: Path) -> None:
    both = plan(tmp_path, [RATE, 0.01])
    assert [job.name for job in both.choosing()] == [f"v8_small-lr{RATE!r}-seed4", "v8_small-lr0.01-seed4"]
    counting = both.counting({"v8, small": RATE})
    assert [job.words for job in counting] == [
        ("--config-dir=x", *WORDS, f"optimizer.lr={RATE!r}", f"seed={seed}") for seed in (5, 6)
    ]
    assert float(counting[0].words[-2].partition("=")[2]) == RATE and both.counting({}) == []
    one = plan(tmp_path, [RATE])
    assert one.choosing() == [] and {entry.seed for entry in one.entries().values()} == {5, 6}
    assert [entry.counts for entry in both.entries().values()] == [False, True, True] * 2


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
