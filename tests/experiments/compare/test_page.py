"""The page: all that was found is on it, and it loads nothing."""

import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from samout_train.cli import compare
from samout_train.experiments.compare import page
from samout_train.experiments.compare.axes import flop_unit, share_legend, time_unit, top_of
from samout_train.experiments.compare.charts import KINDS, accuracy_by_state
from samout_train.experiments.compare.findings import caveats
from samout_train.experiments.compare.page import html, markdown, write_page
from samout_train.experiments.compare.results import comparisons_of
from samout_train.experiments.compare.runs import read_run
from tests.support.comparison import make_comparison, make_run

SEVEN = ("v1", "v8", "maxplus", "transformer", "lstm", "gru", "mingru")
RECORD = {"command": "samout-train compare 'models=[v1,v8]'", "match": "parameters:800k", "machine": "a <machine>"}


class Addresses(HTMLParser):
    """All that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


@pytest.mark.slow
def test_a_page_of_42_runs_loads_nothing_and_is_small(tmp_path: Path) -> None:
    draw = random.Random(0)
    losses = {label: [draw.gauss(2, 0.1) for _ in range(3)] for label in SEVEN}
    comparison = make_comparison(tmp_path / "runs", losses)
    assert len(comparison.runs) == 42
    speeds = {label: {64: 1000.0, 256: 900.0} for label in SEVEN}
    written = write_page([comparison], RECORD, speeds, tmp_path / "page")
    assert [path.name for path in written] == ["comparison.html", "comparison.md", "comparison.png"]
    text = written[0].read_text("utf-8")
    assert len(text) < 5e6 and "7 models on shakespeare" in text
    addresses = Addresses()
    addresses.feed(text)
    assert addresses.found and all(address.startswith("data:image/svg+xml;base64,") for address in addresses.found)
    assert not {"script", "link", "iframe"} & set(addresses.tags) and "@import" not in text and "url(" not in text
    against = [f"Loss against {what}" for what in ("tokens", "length", "bytes of state", "time", "operations")]
    titles = ["Final loss", *against, "Speed against length", "Learning rates"]
    assert re.findall("<h3>(.*?)</h3>", text) == titles
    assert "a &lt;machine&gt;" in text and "samout-train compare &#39;models=[v1,v8]&#39;" in text
    assert text.count(">v1</span></td>") >= 6 and "optimizer.weight_decay" in text
    table = written[1].read_text("utf-8")
    assert "](comparison.png)" in table and table.count("\n| ") == 8 and RECORD["command"] in table


@pytest.mark.slow
def test_a_failed_run_is_on_the_page_with_its_error(tmp_path: Path) -> None:
    run_dirs = [make_run(tmp_path, "v8", 1e-3, seed, 1.0 + seed / 10) for seed in (1, 2)]
    run_dirs.append(make_run(tmp_path, "v8", 1e-3, 3, None, error="step 5: the loss is <NaN>"))
    comparisons = comparisons_of([read_run(run_dir) for run_dir in run_dirs])
    text = html(comparisons, {}, {})
    assert "3 runs, 1 of them not done" in text and "<details open>" in text
    assert '<td class="text FAILED">FAILED</td>' in text and "the loss is &lt;NaN&gt;" in text


@pytest.mark.slow
def test_tasks_are_a_heat_map_over_all_data(tmp_path: Path) -> None:
    run_dirs = [
        make_run(
            tmp_path / data,
            label,
            1e-3,
            1,
            1.0,
            data=data,
            accuracy={"length_16": {"share": share}, "validation": {"share": 1.0}},
            chance=0.5,
            lengths={},
        )
        for data in ("parity", "copy")
        for label, share in (("v8", 0.5), ("lstm", 1.0))
    ]
    comparisons = comparisons_of([read_run(run_dir) for run_dir in run_dirs])
    assert [comparison.data for comparison in comparisons] == ["copy", "parity"]
    text = html(comparisons, {}, {})
    assert "<h2>Tasks</h2>" in text and "with chance in brackets" in text and "Loss against length" not in text
    drawn = page.tasks_chart(comparisons)
    assert drawn is not None and "parity, length 16 (0.5)" in drawn.svg.decode() and "0.50" in drawn.svg.decode()
    assert "### copy" in markdown(comparisons, {}, {}, {})


@pytest.mark.slow
def test_a_task_is_drawn_over_the_state_with_a_line_for_the_widths_of_a_model(tmp_path: Path) -> None:
    figures = {"lstm": [(16, 256, 0.4), (8, 64, 0.1)], "transformer": [(8, 512, 0.9), (16, 1024, 1.0)]}
    run_dirs = [
        make_run(
            tmp_path / f"{label}{width}",
            f"{label} hidden_size={width}",
            1e-3,
            1,
            1.0,
            data="recall_64",
            accuracy={"length_64": {"share": share}},
            chance=0.5,
            state_bytes=size,
            lengths={},
        )
        for label, widths in figures.items()
        for width, size, share in widths
    ]
    (comparison,) = comparisons_of([read_run(run_dir) for run_dir in run_dirs])
    assert accuracy_by_state(comparison) == {
        "lstm": [(64, 0.1), (256, 0.4)],
        "transformer": [(512, 0.9), (1024, 1.0)],
    }
    texts = {chart.title: axes_of(chart.svg) for chart in page.charts(comparison, {})}
    assert {"share of right answers", "lstm", "front"} <= set(texts["Accuracy against bytes of state"])
    for over in ("Loss", "Accuracy"):
        ticks = texts[f"{over} against bytes of state"]
        assert {"100", "200", "500", "1 k"} <= set(ticks) and "\N{MULTIPLICATION SIGN}" not in "".join(ticks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "label"), [(5, "m{}"), (13, "transformer_modern{}"), (13, "a long name of model {}")]
)
def test_a_legend_of_many_models_covers_no_line(tmp_path: Path, models: int, label: str) -> None:
    from matplotlib.figure import Figure

    runs = [read_run(make_run(tmp_path, label.format(of), 1e-3, 1, 1 + of / 100)) for of in range(models)]
    (comparison,) = comparisons_of(runs)
    for title, _, draw, _ in KINDS:
        if title in ("Loss against tokens", "Loss against bytes of state"):
            figure = Figure(figsize=(4.5, 4.0), layout="constrained")
            axes = figure.subplots()
            draw(axes, comparison, {})
            figure.draw_without_rendering()
            legend, name = axes.get_legend(), axes.xaxis.label.get_window_extent()
            assert legend is not None
            place = legend.get_window_extent()
            assert place.y1 <= name.y0 and place.y0 >= 0 and place.x0 >= 0 and place.x1 <= figure.bbox.x1


@pytest.mark.slow
def test_charts_with_many_models_share_one_legend(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    labels = [f"transformer_modern{of}" for of in range(13)]
    runs = [read_run(make_run(tmp_path, label, 1e-3, 1, 1.0)) for label in labels]
    (comparison,) = comparisons_of(runs)
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    for place, (title, _, draw, _) in enumerate(KINDS):
        if title in ("Loss against tokens", "Loss against bytes of state"):
            draw(figure.add_subplot(1, len(KINDS), place + 1), comparison, {})
    share_legend(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*labels, "front"]
    assert all(axes.get_legend() is None for axes in figure.axes)
    place, bottoms = legend.get_window_extent(), [axes.xaxis.label.get_window_extent().y0 for axes in figure.axes]
    assert place.x0 >= 0 and place.x1 <= figure.bbox.x1 and place.y0 >= 0 and place.y1 <= min(bottoms)


@pytest.mark.slow
def test_labels_and_errors_of_any_characters_are_shown(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path / "runs", {"cost $x_$ y": [1.0, 1.1], "_hid": [2.0, 2.2]})
    runs = [*comparison.runs, read_run(make_run(tmp_path, "a", 1e-3, 1, None, data="sub/one", error="<NaN> & |"))]
    written = write_page(comparisons_of(runs), RECORD, {}, tmp_path / "page")
    (svg,) = [chart.svg.decode() for chart in page.charts(comparison, {}) if chart.title == "Loss against tokens"]
    assert "cost $x_$ y" in svg and "_hid" in svg
    assert "is FAILED: &lt;NaN> &amp; |" in written[1].read_text("utf-8")


def test_without_matplotlib_there_are_tables_and_how_to_get_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = make_comparison(tmp_path / "runs", {"v8": [1.0, 1.1], "gru": [2.0, 2.2]})
    for module in ("page", "charts"):
        monkeypatch.setattr(
            f"samout_train.experiments.compare.{module}.missing_charts", lambda: "no picture: pip install it"
        )
    written = write_page([comparison], RECORD, {}, tmp_path / "page")
    assert [path.name for path in written] == ["comparison.html", "comparison.md"]
    text = written[0].read_text("utf-8")
    assert "<img" not in text and "no picture: pip install it" in text and "1.050 ± 0.071" in text


def axes_of(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


@pytest.mark.slow
def test_axes_say_numbers_as_people_write_them(tmp_path: Path) -> None:
    big = {"tokens_seen": 200_000_000, "training_flops_per_token": 6_000_000_000, "train_seconds": 5400.0}
    comparison = make_comparison(tmp_path / "runs", {"v8": [1.0, 1.1], "gru": [2.0, 2.2]}, **big)
    texts = {chart.title: axes_of(chart.svg) for chart in page.charts(comparison, {"v8": {64: 20_000.0, 256: 9_000.0}})}
    assert "150 M" in texts["Loss against tokens"] and "tokens" in texts["Loss against tokens"]
    assert "exaFLOP" in texts["Loss against operations"] and {"0.6", "1.2"} & set(texts["Loss against operations"])
    assert "minutes" in texts["Loss against time"] and "80" in texts["Loss against time"]
    assert "20 k" in texts["Speed against length"]


@pytest.mark.parametrize(
    ("largest", "unit"),
    [(0.15, ("FLOP", 1.0)), (999.0, ("FLOP", 1.0)), (2e11, ("gigaFLOP", 1e9)), (1.1e18, ("exaFLOP", 1e18))],
)
def test_operations_have_the_unit_that_fits(largest: float, unit: tuple[str, float]) -> None:
    assert flop_unit(largest) == unit


@pytest.mark.parametrize(
    ("largest", "unit"),
    [(0.4, "seconds"), (179.0, "seconds"), (180.0, "minutes"), (10_799.0, "minutes"), (3e5, "days")],
)
def test_time_has_the_unit_that_fits(largest: float, unit: str) -> None:
    assert time_unit(largest)[0] == unit


@pytest.mark.parametrize(
    ("losses", "top"),
    [
        ([1.5, 1.6, 1.55, 2.1], 1.62),
        ([1.5, 1.6, 1.55, 1.68], None),  # 0.08 above, where the others spread 0.1
        ([1.5, 1.6, 2.1], None),  # one of three is more than a quarter
        ([1.0, 1.1, 1.05, 1.02, 1.04, 1.03, 3.0, 4.0], 1.12),
        ([1.0, 1.1, 1.05, 1.02, 1.04, 3.0, 4.0], None),
        ([1.0, 1.0, 1.0, 2.0], None),
        ([], None),
    ],
)
def test_losses_far_above_most_do_not_flatten_a_chart(losses: list[float], top: float | None) -> None:
    assert top_of(losses) == (pytest.approx(top) if top is not None else None)


def test_a_task_has_no_budget_of_operations_and_a_further_size_has_that_of_the_text(tmp_path: Path) -> None:
    runs = [replace(read_run(make_run(tmp_path / "text", "a", 1e-3, 1, 1.0)), counts=True)]
    runs.append(replace(runs[0], budget="parameters:200000"))
    for label, tokens in (("a", 10), ("b", 20)):
        made = make_run(tmp_path / "task", label, 1e-3, 1, 1.0, data="parity", tokens_seen=tokens)
        runs.append(replace(read_run(made), counts=True, task=True))
    (text,) = comparisons_of(runs)
    record = {"match": "parameters:800k", "train_flops": 1e12}
    of_task, of_size, own = (page._record_of(one, record) for one in (text.tasks[0], text.sizes[0], text))
    assert (of_task["train_flops"], of_size["train_flops"], own) == (None, 1e12, record)
    assert "The models were not trained on the same number of tokens." in caveats(text.tasks[0], of_task)


def test_charts_of_one_point_are_left_out(tmp_path: Path) -> None:
    one = {"lengths": {"loss_nats": {"64": 1.0}}}
    run_dir = make_run(tmp_path, "v8", 1e-3, 1, 1.0, **one)
    (run_dir / "metrics.jsonl").write_text('{"step": 40, "val/loss_nats": 1.0}\n')
    comparisons = comparisons_of([read_run(run_dir)])
    assert page.charts(comparisons[0], {"v8": {64: 900.0}}) == []
    written = write_page(comparisons, RECORD, {"v8": {64: 900.0}}, tmp_path / "page")
    assert [path.name for path in written] == ["comparison.html", "comparison.md"]
    two = [run_dir, make_run(tmp_path, "v8", 1e-3, 2, 1.1, **one)]
    titles = [chart.title for chart in page.charts(comparisons_of([read_run(path) for path in two])[0], {})]
    assert titles == ["Final loss"]  # the first run's curve has one point, which no line goes through


@pytest.mark.nightly
def test_a_page_takes_no_place_of_another_comparison_and_each_start_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "others"):
        make_run(tmp_path / name, "v8", 1e-3, 1, 1.5)
    (tmp_path / "mine" / "comparison.json").write_text('{"command": "samout-train compare models=[v8]", "runs": {}}')
    for runs, code in (("others", 2), ("mine", 0)):
        assert compare.compare([f"runs={runs}", "run_dir=mine"]) == code
    made = ["run_dir=pages/${now:%Y}", "runs=others"]
    assert [compare.compare(made), compare.compare(made)] == [0, 0]
    first, second = sorted((tmp_path / "pages").iterdir())
    assert second.name == f"{first.name}-2" and (first / "comparison.html").exists()
