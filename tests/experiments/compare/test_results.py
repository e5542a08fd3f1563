"""What is chosen, what counts, and how runs are read."""

from dataclasses import replace
from pathlib import Path

import pytest

from samout_train.experiments.compare.results import CandidateResult, comparisons_of, difference, front
from samout_train.experiments.compare.runs import read_run, run_dirs_below, told_apart
from samout_train.experiments.compare.tables import loss_table
from tests.support.comparison import make_comparison, make_run


def result_of(folder: Path, *runs: tuple[float, int, float | None]) -> CandidateResult:
    return CandidateResult("v8", [read_run(make_run(folder, "v8", *run)) for run in runs])


def test_the_rate_is_chosen_on_the_seed_that_most_were_tried_with_and_counted_on_others(tmp_path: Path) -> None:
    one = result_of(
        tmp_path, (1e-3, 0, 1.7), (3e-3, 0, 1.5), (1e-2, 0, 1.6), (3e-3, 1, 1.55), (3e-3, 2, 1.65), (1e-3, 1, 1.1)
    )
    assert one.choosing_seed == 0 and list(one.rates) == [1e-3, 3e-3, 1e-2]
    assert one.best_rate == 3e-3 and one.edge is None and not one.chosen_and_counted
    assert one.losses == {1: 1.55, 2: 1.65}  # neither seed 0 nor the other rate
    assert one.mean == pytest.approx(1.6) and one.spread == pytest.approx(0.1 / 2**0.5)


def test_where_there_is_one_rate_all_seeds_count(tmp_path: Path) -> None:
    one = result_of(tmp_path, (1e-3, 4, 1.7), (1e-3, 3, 1.5))
    assert one.losses == {3: 1.5, 4: 1.7} and one.edge is None and not one.chosen_and_counted


def test_where_there_is_no_other_seed_the_choosing_run_counts_and_that_is_said(tmp_path: Path) -> None:
    one = result_of(tmp_path, (1e-3, 0, 1.7), (3e-3, 0, 1.5), (1e-2, 0, None))
    assert one.losses == {0: 1.5} and one.chosen_and_counted
    assert one.edge is None and len(one.missing) == 1


@pytest.mark.parametrize("is_done", [True, False])
def test_of_a_screened_and_another_comparison_the_one_with_full_runs_chooses(tmp_path: Path, *, is_done: bool) -> None:
    """Short runs have other losses than full ones, so a rate is never chosen among both."""
    runs = []
    for rate, short, full in ((1e-3, 2.1, 1.7), (3e-3, 2.3, 1.5)):
        screened = read_run(make_run(tmp_path / "screened", "v8", rate, 0, short))
        runs.append(replace(screened, counts=False, screening=True))
        other = read_run(make_run(tmp_path / "other", "v8", rate, 5, full if is_done else None))
        runs.append(replace(other, counts=False))
        runs.append(replace(read_run(make_run(tmp_path, "v8", rate, 6, full + 0.01)), counts=True))
    one = CandidateResult("v8", runs)
    if is_done:
        assert (one.best_rate, one.choosing_seed, one.losses) == (3e-3, 5, {6: pytest.approx(1.51)})
        assert not one.screening_losses and {run.loss for run in one.rates.values()} == {1.7, 1.5}
    else:
        assert (one.best_rate, one.choosing_seed, one.losses) == (1e-3, 0, {6: pytest.approx(1.71)})
        assert one.screening_losses == {1e-3: 2.1, 3e-3: 2.3}


def test_a_best_rate_at_the_edge_is_named(tmp_path: Path) -> None:
    assert result_of(tmp_path / "a", (1e-3, 0, 1.5), (3e-3, 0, 1.7)).edge == "smallest"
    assert result_of(tmp_path / "b", (1e-3, 0, 1.7), (3e-3, 0, 1.5)).edge == "largest"


def test_a_model_of_which_no_run_came_to_a_loss_is_last(tmp_path: Path) -> None:
    failed = make_run(tmp_path, "a", 1e-3, 0, None, data="recall", error="boom")
    (failed / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {data: recall_small, model: v8}}}")
    runs = [failed, make_run(tmp_path, "b", 1e-3, 0, 2.0, data="recall_small")]
    (comparison,) = comparisons_of([read_run(run_dir) for run_dir in runs])
    assert [one.label for one in comparison.results] == ["b", "v8"] and len(comparison.ranked) == 1


def test_differences_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, {"a": [1.0, 1.2, 1.1], "b": [1.5, 1.8]})
    a, b = comparison.results
    found = difference(b, a)
    assert found is not None and found.num_pairs == 2 and found.mean == pytest.approx(0.55)
    assert difference(b, CandidateResult("none", [])) is None


def test_curves_lengths_and_accuracies_are_those_of_the_files(tmp_path: Path) -> None:
    accuracy = {"length_16": {"share": 0.5}, "validation": {"share": 0.9}}
    comparison = make_comparison(tmp_path, {"a": [1.0, 2.0]}, accuracy=accuracy, chance=0.125)
    (one,) = comparison.results
    assert one.counted[0].curve == [(10, 1.1), (20, 1.05), (30, pytest.approx(1 + 1 / 30)), (40, 1.025)]
    assert one.loss_by_length == [(64, 1.5), (256, 1.6), (1024, pytest.approx(1.8))]
    assert one.accuracies == {"length 16 (0.12)": 0.5}
    assert one.figure("parameters") == 800_000 and one.figure("absent") is None


def test_the_front_has_what_no_other_one_equals_in_one_figure_and_beats_in_the_other() -> None:
    places = {
        "small": (10.0, 3.0),
        "as small, worse": (10.0, 3.1),
        "larger, worse": (20.0, 3.2),
        "larger, as good": (30.0, 3.0),
        "middle": (30.0, 2.0),
        "its twin": (30.0, 2.0),
        "large": (90.0, 1.0),
        "largest": (99.0, 1.5),
    }
    assert front(places) == ["small", "middle", "its twin", "large"] and front({}) == []


def test_a_task_has_a_front_of_the_loss_and_one_of_its_accuracy(tmp_path: Path) -> None:
    figures = {
        "a": (64, 1.9, 0.5),
        "b": (64, 1.8, 0.2),
        "c": (256, 1.7, 0.4),
        "d": (512, 1.6, 0.9),
        "e": (600, 1.7, 0.8),
    }
    runs = []
    for label, (size, loss, share) in figures.items():
        accuracy = {"length_64": {"share": share}, "length_128": {"share": 1 - share}}
        runs.append(make_run(tmp_path, label, 1e-3, 1, loss, state_bytes=size, accuracy=accuracy, chance=0.1))
    (comparison,) = comparisons_of([read_run(run) for run in runs])
    assert comparison.fronts == {
        "loss": {"b": (64, 1.8), "c": (256, 1.7), "d": (512, 1.6)},
        "accuracy": {"a": (64, 0.5), "d": (512, 0.9)},
    }
    table = loss_table(comparison, {})
    marks = {row[0]: row[table["head"].index("state, bytes")] for row in table["rows"]}
    assert marks == {
        "a": "64 (front: accuracy)", "b": "64 (front: loss)", "c": "256 (front: loss)",
        "d": "512 (front: both)", "e": "600",
    }  # fmt: skip
    (alone,) = comparisons_of([read_run(runs[0])])
    assert alone.fronts == {} and "Front" not in loss_table(alone, {})["note"]


def test_a_front_is_of_the_seeds_that_all_models_have(tmp_path: Path) -> None:
    figures = {"a": {1: (2.0, 0.5), 2: (2.01, 0.5)}, "b": {1: (1.9, 0.4), 2: (1.911, 0.4), 3: (2.3, 0.9)}}
    runs = []
    for label, of_seeds in figures.items():
        for seed, (loss, share) in of_seeds.items():
            accuracy = {"length_64": {"share": share}}
            runs.append(read_run(make_run(tmp_path, label, 1e-3, seed, loss, accuracy=accuracy, chance=0.1)))
    (comparison,) = comparisons_of(runs)
    assert comparison.fronts == {"loss": {"b": (2688, pytest.approx(1.9055))}, "accuracy": {"a": (2688, 0.5)}}
    assert "means over the seeds that all models have (seeds 1, 2)." in loss_table(comparison, {})["note"]
    (disjoint,) = comparisons_of([run for run in runs if (run.label, run.seed) in (("a", 1), ("b", 3))])
    assert disjoint.fronts == {} and disjoint.by_state["loss"] == {"a": (2688, 2.0), "b": (2688, 2.3)}
    assert "Front" not in loss_table(disjoint, {})["note"]


def test_the_front_of_leaders_and_others_is_of_their_first_seeds(tmp_path: Path) -> None:
    runs = []
    for label, size, losses in (("lucky", 100, [1.0, 1.5]), ("other", 200, [1.1])):
        for seed, loss in enumerate(losses, start=1):
            run = read_run(make_run(tmp_path, label, 1e-3, seed, loss, state_bytes=size))
            runs.append(replace(run, counts=True, leader=seed > 1))
    (comparison,) = comparisons_of(runs)
    assert comparison.fronts == {"loss": {"lucky": (100, 1.0)}} and comparison.front_seeds["loss"] == [1]


def test_runs_are_found_below_a_folder_also_those_that_failed(tmp_path: Path) -> None:
    made = [make_run(tmp_path / "deep", "a", 1e-3, 0, 1.0), make_run(tmp_path / "deep", "a", 1e-3, 1, None, error="x")]
    refused = tmp_path / "deep" / "refused"
    refused.mkdir()
    (refused / "output.txt").write_text("no")
    assert run_dirs_below(tmp_path) == sorted([*made, refused])
    assert run_dirs_below(made[0]) == [made[0]]
    assert read_run(refused).rate is None and read_run(refused).outcome.state == "waiting"


def test_models_of_one_name_with_other_settings_are_told_apart(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / str(layers), "v8", 1e-3, seed, 1.0, model={"num_layers": layers}))
        for layers in (2, 4)
        for seed in (0, 1)
    ]
    runs.append(read_run(make_run(tmp_path, "gru", 1e-3, 0, 1.0)))
    assert [run.label for run in told_apart(runs)] == ["v8 num_layers=2"] * 2 + ["v8 num_layers=4"] * 2 + ["gru"]


def test_runs_that_began_with_the_weights_of_another_are_told_apart(tmp_path: Path) -> None:
    scratch = read_run(make_run(tmp_path, "v8", 1e-3, 0, 1.0))
    explicit, tuned = (replace(scratch, config={**scratch.config, "init_from": path}) for path in (None, "runs/A"))
    assert [run.label for run in told_apart([scratch, explicit, tuned])] == ["v8", "v8", "v8 init_from=runs/A"]


def test_a_run_from_before_a_setting_is_like_one_with_the_value_that_it_stands_for(tmp_path: Path) -> None:
    before = read_run(make_run(tmp_path, "gla", 1e-3, 0, 1.0))
    after, other = (
        replace(before, config={**before.config, "model": {**before.config["model"], "drop_connect": share}})
        for share in (0.0, 0.1)
    )
    assert [run.label for run in told_apart([before, after])] == ["gla", "gla"]
    assert [run.label for run in told_apart([before, other])] == ["gla", "gla drop_connect=0.1"]


def test_a_run_that_has_not_recorded_its_text_yet_keeps_the_label_of_the_others(tmp_path: Path) -> None:
    first, second = (read_run(make_run(tmp_path, "v8", 1e-3, seed, 1.0)) for seed in (1, 2))
    known = [replace(first, config={**first.config, "data": {"sha256": text}}) for text in ("0a", "0b")]
    begun = replace(second, config={**second.config, "data": {}})
    assert [run.label for run in told_apart([known[0], begun])] == ["v8", "v8"]
    assert [run.label for run in told_apart([*known, begun])] == ["v8 data.sha256=0a", "v8 data.sha256=0b", "v8"]
