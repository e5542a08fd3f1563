"""Lines through losses at several sizes, and whether their slopes differ."""

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samout_train.experiments.compare.charts import _has_lines, charts
from samout_train.experiments.compare.intervals import student_t
from samout_train.experiments.compare.page import markdown
from samout_train.experiments.compare.results import Comparison, comparisons_of
from samout_train.experiments.compare.runs import Run, read_run
from samout_train.experiments.compare.scaling import (
    Line,
    line_of,
    parameters_of,
    points_of,
    scaling_table,
    slope_difference,
    steepest,
    training_flops_of,
)
from tests.support.comparison import make_run

SIZES = {None: 800_000, "parameters:200000": 200_000, "parameters:3200000": 3_200_000}


def at_sizes(folder: Path, exponents: dict[str, float], *, noise: float, seeds: int = 3) -> Comparison:
    """Models whose loss is 2 (N / 800,000) to some power, times the luck of a seed, and noise of their own."""
    draw = random.Random(0)
    runs: list[Run] = []
    for budget, size in SIZES.items():
        for seed in range(1, seeds + 1):
            luck = draw.gauss(0, 0.05)
            for label, exponent in exponents.items():
                loss = 2 * (size / 800_000) ** exponent * math.exp(luck + noise * draw.gauss(0, 1))
                figures = {"parameters": size, "training_flops_per_token": 6 * size, "lengths": {}}
                made = make_run(folder / str(size), label, 1e-3, seed, loss, **figures)
                runs.append(replace(read_run(made), counts=True, budget=budget))
    (comparison,) = comparisons_of(runs)
    return comparison


def test_a_line_and_its_interval_are_those_worked_out_by_hand() -> None:
    line = Line.through([(0.0, 1.0), (1.0, 3.0), (2.0, 4.0)])
    assert line is not None and line.slope == pytest.approx(1.5) and line.intercept == pytest.approx(7 / 6)
    # squared residuals 1/36 + 4/36 + 1/36 = 1/6 with one degree of freedom, Sxx = 2, and t = 12.706
    assert line.reach == pytest.approx(12.7062047 * math.sqrt(1 / 12), rel=1e-6)
    assert Line.through([(1.0, 2.0), (3.0, 8.0)]) == Line(3.0, -1.0, None)
    assert Line.through([(1.0, 2.0), (1.0, 8.0)]) is None and Line.through([]) is None


def test_a_line_is_that_of_numpy_with_its_covariance() -> None:
    draw = random.Random(3)
    points = [(x, 3 - 0.07 * x + draw.gauss(0, 0.1)) for x in (12.2, 13.6, 15.0) for _ in range(4)]
    line = Line.through(points)
    (slope, intercept), covariance = np.polyfit(*zip(*points, strict=True), 1, cov=True)  # scaled by the residuals
    assert line is not None and line.reach is not None
    assert (line.slope, line.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    assert line.reach == pytest.approx(student_t(0.95, 10) * math.sqrt(covariance[0, 0]))


def test_the_interval_contains_the_true_slope_in_19_of_20_fits() -> None:
    draw = random.Random(1)
    inside = 0
    for _ in range(1000):
        line = Line.through([(x, 0.5 * x + draw.gauss(0, 1)) for x in (0.0, 1.0, 2.0) for _ in range(2)])
        assert line is not None and line.reach is not None
        inside += abs(line.slope - 0.5) <= line.reach
    assert 930 <= inside <= 970  # 950 expected, with a standard deviation of 7


def test_the_exponent_of_a_power_law_is_found_and_the_luck_of_seeds_cancels_between_models(tmp_path: Path) -> None:
    comparison = at_sizes(tmp_path, {"steep": -0.1, "flat": -0.05}, noise=0.0)
    assert len(comparison.sizes) == 2 and not comparison.tasks
    steep = line_of(points_of(comparison, "steep", parameters_of).values())
    assert steep is not None and steep.reach is not None and abs(steep.slope + 0.1) < steep.reach < 0.1
    found = slope_difference(comparison, "flat", "steep", parameters_of)
    assert found is not None and found.mean == pytest.approx(0.05) and found.num_pairs == 9
    assert found.low == pytest.approx(0.05) and found.within_noise is False
    (told,) = steepest(comparison)
    assert told.startswith("Over 3 sizes, the loss of steep falls fastest, as parameters to the power of -0.0")
    assert told.endswith("its slope differs by more than noise from that of flat, by 0.050 (0.050 to 0.050).")


def test_slopes_within_noise_are_not_told_apart(tmp_path: Path) -> None:
    comparison = at_sizes(tmp_path, {"one": -0.07, "other": -0.07}, noise=0.01)
    (told,) = steepest(comparison)
    assert "; its slope cannot be told from that of " in told and "more than noise" not in told
    alone = at_sizes(tmp_path / "alone", {"one": -0.07, "other": -0.05}, noise=0.01, seeds=1)
    assert slope_difference(alone, "one", "other", parameters_of) is not None  # three sizes of one seed


def test_runs_with_about_the_same_operations_have_no_exponent_of_them(tmp_path: Path) -> None:
    comparison = at_sizes(tmp_path, {"a": -0.1, "b": -0.05}, noise=0.001)
    for one in (comparison, *comparison.sizes):
        for run in one.runs:
            assert run.summary is not None
            steps = int(1e14 // run.summary["training_flops_per_token"] // 768)  # as train_flops=1e14 decides
            run.summary["steps"] = steps  # type: ignore[index]
    a = [points_of(comparison, "a", size_of).values() for size_of in (parameters_of, training_flops_of)]
    assert line_of(a[0]) is not None and len({size for size, _ in a[1]}) > 1 and line_of(a[1]) is None
    table = scaling_table(comparison)
    assert table is not None and [bool(text) for text in table["rows"][0][-2:]] == [True, False]
    assert not _has_lines(training_flops_of)(comparison, {}) and line_of([]) is None


@pytest.mark.slow
def test_the_page_draws_the_losses_over_parameters_and_operations_with_a_table(tmp_path: Path) -> None:
    comparison = at_sizes(tmp_path, {"a": -0.1, "b": -0.05}, noise=0.001)
    table = scaling_table(comparison)
    assert table is not None and table["head"][1:4] == [f"{size:,} parameters" for size in sorted(SIZES.values())]
    assert [row[0] for row in table["rows"]] == [one.label for one in comparison.ranked]
    texts = {}
    for chart in charts(comparison, {}):
        texts[chart.title] = re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg.decode())
    assert {"a", "b", "parameters", "200 k", "1 M"} <= set(texts["Loss against parameters"])
    assert "training FLOPs" in texts["Loss against training FLOPs"]
    assert training_flops_of(comparison.runs[0]) == 6 * 800_000 * 30_720
    assert "| exponent of parameters | exponent of training FLOPs |" in markdown([comparison], {}, {}, {})
    assert scaling_table(replace(comparison, sizes=[])) is None
