"""Right answers on tasks beside the loss on text."""

from dataclasses import replace
from pathlib import Path

import pytest

from samout_train.experiments.compare.answers import most_right, share_in_words
from samout_train.experiments.compare.findings import caveats, verdict
from samout_train.experiments.compare.page import html
from samout_train.experiments.compare.results import Comparison, comparisons_of
from samout_train.experiments.compare.runs import Run, read_run
from samout_train.experiments.compare.tables import loss_table
from tests.support.comparison import make_run

LOSSES = {"small": (1.9, 64), "large": (1.5, 4096), "poor": (2.0, 512)}
SHARES = {"small": (0.9, 0.92, 0.94), "large": (0.91, 0.9, 0.96), "poor": (0.5, 0.52, 0.54)}


def runs_of_text(folder: Path) -> list[Run]:
    found = []
    for label, (loss, size) in LOSSES.items():
        for seed in (1, 2, 3):
            found.append(read_run(make_run(folder / "text", label, 1e-3, seed, loss, data="text", state_bytes=size)))
    return found


def runs_of_task(folder: Path, labels: str = "small large poor") -> list[Run]:
    found = []
    for label in labels.split():
        for seed, share in enumerate(SHARES[label], start=1):
            accuracy = {"validation": {"share": 1.0}, "length_8": {"share": share}, "length_16": {"share": 0.5}}
            size = LOSSES[label][1] // 2
            made = make_run(
                folder / "task", label, 1e-3, seed, 0.1, data="bits", accuracy=accuracy, chance=0.5, state_bytes=size
            )
            found.append(read_run(made))
    return found


def joined(folder: Path) -> Comparison:
    (comparison,) = comparisons_of([*runs_of_text(folder), *runs_of_task(folder)])
    return comparison


def test_a_share_has_the_interval_of_its_seeds_within_0_and_1() -> None:
    # mean 0.92, standard deviation 0.02, t = 4.303: 4.303 * 0.02 / sqrt(3) = 0.0497
    assert share_in_words({1: 0.9, 2: 0.92, 3: 0.94}) == "0.920 (0.870 to 0.970)"
    assert share_in_words({1: 1.0, 2: 0.98, 3: 0.99}) == "0.990 (0.965 to 1.000)"
    assert share_in_words({1: 0.25}) == "0.250" and share_in_words({}) == ""


def test_runs_on_text_and_on_tasks_are_joined_by_the_labels_of_their_models(tmp_path: Path) -> None:
    comparison = joined(tmp_path)
    assert comparison.data == "text" and [task.data for task in comparison.tasks] == ["bits"]
    table = loss_table(comparison, {})
    place = table["head"].index("bits, length 8 (chance 0.5)")
    shares = {row[0]: row[place] for row in table["rows"]}
    assert shares == {
        "small": "0.920 (0.870 to 0.970)",
        "large": "0.923 (0.843 to 1.000)",
        "poor": "0.520 (0.470 to 0.570)",
    }
    state = table["head"].index("state, bytes")
    assert {row[0]: row[state] for row in table["rows"]} == {
        "small": "64 (front: both)",
        "large": "4,096 (front: both)",
        "poor": "512",
    }
    assert "with chance in brackets" in table["note"]


def test_the_verdict_says_which_models_have_the_most_right_answers(tmp_path: Path) -> None:
    told = (
        "On bits, large has the most right answers at length 8 (chance 0.5): 0.923 (0.843 to 1.000); within noise of "
        "it: small; more than noise below it: poor."
    )
    comparison = joined(tmp_path)
    assert told in verdict(comparison, {}) and list(most_right(comparison.tasks[0])) == [told]
    assert list(most_right(comparison)) == []


def test_models_are_ranked_on_the_seeds_that_all_have_where_a_run_failed(tmp_path: Path) -> None:
    shares = {"a": {1: 0.60, 2: 0.58}, "b": {1: 0.70, 2: 0.68, 3: 0.10}, "c": {1: 0.2, 3: 0.2}}
    runs = []
    for label, by_seed in shares.items():
        for seed, share in by_seed.items():
            accuracy = {"validation": {"share": 1.0}, "length_8": {"share": share}}
            made = make_run(tmp_path, label, 1e-3, seed, 0.1, data="bits", accuracy=accuracy, chance=0.5)
            runs.append(read_run(made))
    (comparison,) = comparisons_of([run for run in runs if run.label != "c"])
    (told,) = most_right(comparison)
    assert "b has the most right answers" in told and "more than noise below it: a" in told
    (comparison,) = comparisons_of(runs)  # seed 1 alone is common to all: b leads, and is above a on both of theirs
    (told,) = most_right(comparison)
    assert "b has the most right answers" in told and "unknown from the seeds in common: c" not in told


@pytest.mark.slow
def test_a_page_has_the_text_first_and_each_task_behind_it(tmp_path: Path) -> None:
    lacking = [replace(run, task=True) for run in runs_of_task(tmp_path, "small large")]
    failed = read_run(make_run(tmp_path / "task", "poor", 1e-3, 1, None, data="bits", error="it broke"))
    (comparison,) = comparisons_of([*runs_of_text(tmp_path), *lacking, replace(failed, task=True)])
    assert any("is FAILED: it broke" in caveat for caveat in caveats(comparison, {}))
    page = html([comparison], {}, {})
    assert page.index("<h3>bits: right answers against bytes of state</h3>") < page.index("<h2>Tasks</h2>")
    assert '<details class="part"><summary>bits</summary>' in page and "16 runs, 1 of them not done" in page
    assert page.count('<td class="text">bits</td>') == 7


def test_tasks_alone_stay_one_comparison_each_also_where_one_has_no_loss_yet(tmp_path: Path) -> None:
    failed = read_run(make_run(tmp_path / "other", "small", 1e-3, 1, None, data="copy", error="it broke"))
    found = comparisons_of([*runs_of_task(tmp_path), failed])
    assert [(one.data, len(one.tasks)) for one in found] == [("bits", 0), ("copy", 0)]
