"""Write a comparison as one page that loads nothing: HTML by jinja2, and Markdown for a README.

`make_runs` makes the missing runs, `finish` measures the missing speeds; `finish` and `show` write the page.
"""

import base64
import datetime
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, StrictUndefined

from samout_train.checkpoint import in_turn, new_directory, reserve
from samout_train.config import ConfigError, Problem, shown
from samout_train.evaluation import missing_charts
from samout_train.experiments.compare.candidates import folder_name
from samout_train.experiments.compare.charts import Chart, Speeds, charts, colour_of, overview, tasks_chart
from samout_train.experiments.compare.findings import caveats, in_words, interval, mean_and_spread, nats, verdict
from samout_train.experiments.compare.plan import Plan, read_record, stages
from samout_train.experiments.compare.results import CandidateResult, Comparison, comparisons_of, difference
from samout_train.experiments.compare.runs import read_run, run_dirs_below, told_apart
from samout_train.experiments.compare.screening import Screening, screening_lines, screening_table
from samout_train.experiments.compare.speed import measured_speeds, read_speeds
from samout_train.experiments.jobs import Outcome, job_bar
from samout_train.runtime import dashboard_command, replace_file

HTML, MARKDOWN = "comparison.html", "comparison.md"
TEMPLATE = Path(__file__).with_name("page.html")
Record = Mapping[str, Any]
NOTE = (
    "Loss: nats per token on the whole validation split, mean and standard deviation over the scored seeds, each seed "
    "in brackets. Behind the best: mean of the differences seed by seed, with its 95 % interval. Tokens per second: "
    "forward and backward pass in rows of the training length. State: of one sequence after such a row."
)
FRONT_NOTE = " Front: no other model with as small a state has as low a loss, or in a task as many right answers."
PAIRS_NOTE = (
    "Row minus column: mean of the differences seed by seed, with its 95 % interval; marked where that is more than "
    "noise. Each interval is for its pair alone: of twenty pairs that do not differ, one is marked by chance."
)
UNSAID = ("seed", "optimizer.lr")  # settings that each run has its own of


def make_runs(plan: Plan, at_once: int) -> dict[str, Outcome]:
    """Make the missing runs of a comparison.

    Args:
        plan: Of the comparison; its record lies in its directory.
        at_once: Runs at a time.

    Returns:
        The outcome of each run, by name.

    Raises:
        StopRequestedError: on a signal; the runs that were stopped have saved what they need to resume.
    """
    outcomes: dict[str, Outcome] = {}
    with job_bar(plan.most_counting()) as bar:
        for stage in stages(plan):
            with in_turn(plan.folder):
                plan.record(stage.entries, stage.record)
            if stage.note:
                bar.say([stage.note])
            bar.expect(len(outcomes) + len(stage.entries) + stage.left)
            outcomes |= bar.run([plan.job(entry) for entry in stage.entries.values()], at_once=at_once)
    return outcomes


def finish(plan: Plan) -> None:
    """Write the page of a comparison, and write it again once the speeds are measured.

    Of several programs that share the comparison, one does.
    """
    release = reserve(plan.folder)
    if release is None:
        print("page       another process measures the speeds, and writes the page")
        return
    try:
        record = read_record(plan.folder)
        runs = []
        for stage in stages(plan):
            for name in stage.entries:
                run = read_run(plan.folder / name)
                if run.outcome.state != "waiting":
                    runs.append(run)
        comparisons = comparisons_of(runs)
        with in_turn(plan.folder):
            write_page(comparisons, record, read_speeds(plan.folder), plan.folder)
        speeds = measured_speeds(plan.candidates, plan.folder)
        with in_turn(plan.folder):
            _show(comparisons, record, speeds, plan.folder)
        print(f"dashboard  {dashboard_command(plan.folder)}")
    finally:
        release()


def show(paths: Sequence[str], command: str, folder: Path, *, is_new: bool = False) -> None:
    """Write a page of existing runs.

    Args:
        paths: Run directories, or folders of them.
        command: The command that makes this page.
        folder: Where the page goes.
        is_new: Whether the folder must not exist yet; then a free name is taken.

    Raises:
        ConfigError: if there is no run at a path, or the folder holds a comparison of other runs.
    """
    run_dirs = _run_dirs(paths)
    if read_record(folder):
        there = set(map(Path.resolve, run_dirs_below(folder)))
        if there != set(map(Path.resolve, run_dirs)):
            text = "holds a comparison of other runs"
            raise ConfigError(Problem("run_dir", str(folder), text=text, fix="give another directory"))
    parents = {run_dir.parent for run_dir in run_dirs}
    asked: dict[str, Any] = {}
    speeds: dict[str, dict[int, float]] = {}
    if len(parents) == 1:
        asked, speeds = read_record(*parents), read_speeds(*parents)
    missing: list[Path] = []
    for parent in parents:
        if set(run_dirs) == set(run_dirs_below(parent)):
            missing += _not_yet_run(asked, parent)
        else:  # only a part of the comparison is shown
            asked.pop("command", None)
    runs = told_apart([read_run(run_dir) for run_dir in [*run_dirs, *missing]])
    if is_new:
        folder = new_directory(folder)
    _show(comparisons_of(runs), {"command": command, **asked}, speeds, folder)


def _not_yet_run(asked: Record, folder: Path) -> list[Path]:
    """Return the directories of the short runs of a screening that are recorded, and not there yet."""
    found = []
    for name, entry in asked.get("runs", {}).items():
        if entry.get("screening") and not (folder / name).exists():
            found.append(folder / name)
    return found


def _run_dirs(paths: Sequence[str]) -> list[Path]:
    """Return the run directories at or below some paths, each once.

    Raises:
        ConfigError: if there is none at one of them.
    """
    fix = "give run directories, or a folder of them"
    for path in paths:
        if not Path(path).exists():
            raise ConfigError(Problem("runs", path, text="is not there", fix=fix))
    found: list[Path] = []
    for path in paths:
        below = run_dirs_below(Path(path))
        if not below:
            raise ConfigError(Problem("runs", path, text="holds no run", fix=fix))
        found += below
    return list(dict.fromkeys(found))


def write_page(comparisons: Sequence[Comparison], record: Record, speeds: Speeds, folder: Path) -> list[Path]:
    """Write the page, the Markdown and its pictures.

    Args:
        comparisons: One for each data source.
        record: The request as far as it is known: `command`, `match`, `machine`.
        speeds: Tokens per second by label and length.
        folder: Where they go.

    Returns:
        The paths of the files, the page first.

    Raises:
        OSError: if one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / HTML, folder / MARKDOWN]
    pictures: dict[str, str] = {}
    for comparison in comparisons:
        png = overview(comparison, speeds)
        if png is not None:
            name = "comparison.png"
            if len(comparisons) > 1:
                name = f"comparison_{folder_name(comparison.data)}.png"
            replace_file(folder / name, partial(_write, png))
            pictures[comparison.data] = name
            written.append(folder / name)
    content = html(comparisons, record, speeds).encode()
    replace_file(folder / HTML, partial(_write, content))
    text = markdown(comparisons, record, speeds, pictures).encode()
    replace_file(folder / MARKDOWN, partial(_write, text))
    return written


def html(comparisons: Sequence[Comparison], record: Record, speeds: Speeds) -> str:
    """Return the page; everything that it shows is in it."""
    rows: list[dict[str, Any]] = []
    parts = []
    colours: dict[str, str] = {}
    for comparison in comparisons:
        rows += run_rows(comparison)
        parts.append(_part(comparison, record, speeds))
        for one in comparison.results:
            colours[one.label] = colour_of(comparison, one.label)
    num_unfinished = sum(row["state"] != "done" for row in rows)
    unfinished, tasks = "", None
    if num_unfinished:
        unfinished = f", {num_unfinished} of them not done"
    chart = tasks_chart(comparisons)
    if chart is not None:
        tasks = _embedded(chart)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        title=_title(comparisons),
        subtitle=_subtitle(comparisons, record),
        parts=parts,
        colours=colours,
        missing_charts=missing_charts() or "",
        tasks=tasks,
        command=record.get("command") or "unknown",
        asked=_asked(comparisons, record),
        runs=rows,
        count=_count(len(rows)),
        has_unfinished=num_unfinished > 0,
        unfinished=unfinished,
        footer=f"Made by samout_train on {datetime.date.today().isoformat()}. This page loads nothing from elsewhere.",
    )


def _part(comparison: Comparison, record: Record, speeds: Speeds) -> dict[str, Any]:
    """Return the part of the page about one data source."""
    return {
        "data": comparison.data,
        "verdict": verdict(comparison, record),
        "table": loss_table(comparison, speeds, _left_out(comparison, record)),
        "screening": _screening(comparison, record),
        "caveats": caveats(comparison, record),
        "charts": [_embedded(chart) for chart in charts(comparison, speeds)],
        "pairs": pair_table(comparison),
        "settings": setting_tables(comparison),
    }


def markdown(comparisons: Sequence[Comparison], record: Record, speeds: Speeds, pictures: Mapping[str, str]) -> str:
    """Return verdict, table, caveats, picture and command as Markdown.

    Args:
        comparisons: One for each data source.
        record: The request.
        speeds: Tokens per second by label and length.
        pictures: By data, the file beside it that shows the charts.
    """
    lines = [f"## {_title(comparisons)}", "", _subtitle(comparisons, record), ""]
    for comparison in comparisons:
        if len(comparisons) > 1:
            lines += [f"### {comparison.data}", ""]
        lines += [" ".join(verdict(comparison, record)), ""]
        table = loss_table(comparison, speeds, _left_out(comparison, record))
        lines += [_row(table["head"]), "|---" * len(table["head"]) + "|", *map(_row, table["rows"])]
        lines += ["", table["note"], ""]
        found = caveats(comparison, record)
        if found:
            lines += ["Caveats:", ""]
            for caveat in found:
                lines.append(f"- {_plain(caveat)}")
            lines.append("")
        screened = _screening(comparison, record)
        if screened is not None:
            lines += _screening_markdown(screened)
        if comparison.data in pictures:
            lines += [f"![Charts of {comparison.data}]({pictures[comparison.data]})", ""]
    return "\n".join([*lines, "```bash", str(record.get("command") or "unknown"), "```", ""])


def summary_lines(comparison: Comparison, record: Record) -> list[str]:
    """Return lines for the console: the screening, the verdict, and its caveats."""
    lines = []
    screened = _screening(comparison, record)
    if screened is not None:
        lines += screening_lines(screened)
    lines += verdict(comparison, record)
    for caveat in caveats(comparison, record):
        lines.append(f"caveat     {caveat}")
    return lines


def loss_table(
    comparison: Comparison, speeds: Mapping[str, Mapping[int, float]], left_out: Collection[str] = ()
) -> dict[str, Any]:
    """Return a row for each model, the best one first.

    Args:
        comparison: Models on the same data.
        speeds: Tokens per second by label and length.
        left_out: Labels of models that were not trained in full.
    """
    head = ["model", "validation loss", "behind the best", "", "learning rate", "parameters"]
    head += ["tokens per second", "FLOPs per token", "state, bytes"]
    rows, fronts = [], comparison.fronts
    for one in comparison.results:
        if one.label in left_out:
            continue
        loss = mean_and_spread(one) or "no run has a loss"
        if len(one.losses) > 1:
            loss += f" ({', '.join(nats(loss) for loss in one.losses.values())})"
        rate = _short(one.best_rate)
        if one.edge:
            rate += " (edge)"
        for key, value in one.best_settings.items():
            rate += f", {key.rpartition('.')[2]} {shown(value)}"
        speed = None
        if speeds.get(one.label):
            speed = min(speeds[one.label].items())[1]  # at the training length
        behind, word = _behind_best(comparison, one)
        rows.append(
            [
                one.label,
                loss,
                behind,
                word,
                rate,
                _number(one.figure("parameters")),
                _number(speed),
                _number(one.figure("training_flops_per_token")),
                _number(one.figure("state_bytes")) + _on_front(one, fronts),
            ]
        )
    return {"head": head, "rows": rows, "note": NOTE + FRONT_NOTE * bool(fronts)}


def pair_table(comparison: Comparison) -> dict[str, Any]:
    """Return the differences of all pairs of models, each model in a row and a column."""
    ranked = comparison.ranked
    rows = []
    for one in ranked:
        cells: list[dict[str, Any]] = [{"text": one.label, "beyond": False}]
        for other in ranked:
            found = difference(one, other)
            if one is other or found is None:
                cells.append({"text": "", "beyond": False})
            else:
                cells.append({"text": interval(found), "beyond": found.within_noise is False})
        rows.append(cells)
    return {"head": ["", *(one.label for one in ranked)], "rows": rows, "note": PAIRS_NOTE}


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each run."""
    rows = []
    for one in comparison.results:
        for run in sorted(one.runs, key=lambda run: (run.rate or 0.0, run.seed or 0)):
            loss, seed, summary = "", "", run.summary or {}
            if run.seed is not None:
                seed = str(run.seed)
            if run.loss is not None:
                loss = f"{run.loss:.4f}"
            row = {
                "label": run.label,
                "rate": _short(run.rate),
                "seed": seed,
                "state": run.outcome.state,
                "loss": loss,
                "steps": _number(summary.get("steps")),
                "seconds": _number(summary.get("train_seconds")),
                "where": run.outcome.error or str(run.run_dir),
            }
            rows.append(row)
    return rows


def setting_tables(comparison: Comparison) -> dict[str, Any]:
    """Return the settings that all models share and those that differ, by dotted key."""
    by_label = {}
    for one in comparison.results:
        config: Mapping[str, Any] = {}
        for run in one.counted or one.runs:
            config = config or run.config
        by_label[one.label] = _flat(config)
    common, differing = [], []
    for key in sorted(set().union(*by_label.values()) - set(UNSAID)):
        values = [settings.get(key, "") for settings in by_label.values()]
        if len(set(values)) == 1:
            common.append((key, values[0]))
        else:
            differing.append([key, *values])
    return {"labels": list(by_label), "common": common, "differing": differing}


def _show(comparisons: Sequence[Comparison], record: dict[str, Any], speeds: dict[str, Any], folder: Path) -> None:
    page, *others = write_page(comparisons, record, speeds, folder)
    for comparison in comparisons:
        print("\n".join(summary_lines(comparison, record)))
    missing = missing_charts()
    if missing:
        print(missing)
    print(f"page       {page}")
    print(f"also       {', '.join(map(str, others))}")


def _title(comparisons: Sequence[Comparison]) -> str:
    labels: dict[str, None] = {}
    for comparison in comparisons:
        labels |= dict.fromkeys(one.label for one in comparison.results)
    return f"{', '.join(labels)} on {', '.join(comparison.data for comparison in comparisons)}"


def _subtitle(comparisons: Sequence[Comparison], record: Record) -> str:
    runs = sum(len(comparison.runs) for comparison in comparisons)
    parts = [_count(runs), "sizes as configured"]
    if record.get("match"):
        parts[1] = f"budget {record['match']}"
    for key in ("machine", "date"):
        if record.get(key):
            parts.append(str(record[key]))
    return ", ".join(parts)


def _count(runs: int) -> str:
    if runs == 1:
        return "1 run"
    return f"{runs} runs"


def _asked(comparisons: Sequence[Comparison], record: Record) -> str:
    """Return learning rates and seeds as the runs have them, and the runs at a time as recorded."""
    rates: set[float] = set()
    scored: set[int] = set()
    choosing: set[int] = set()
    for comparison in comparisons:
        for one in comparison.results:
            rates.update(one.rates)
            scored.update(one.first_losses, one.losses)
            if len(one.rates) > 1 and one.choosing_seed is not None:
                choosing.add(one.choosing_seed)
    words = [f"Learning rates: {', '.join(f'{rate:g}' for rate in sorted(rates)) or 'none'}"]
    if choosing:
        words.append(f"chosen on seed {', '.join(map(str, sorted(choosing)))}")
    words.append(f"scored seeds: {', '.join(map(str, sorted(scored))) or 'none'}")
    if record.get("jobs"):
        words.append(f"runs at a time: {record['jobs']}")
    return "; ".join(words) + "."


def _screening(comparison: Comparison, record: Record) -> dict[str, Any] | None:
    """Return the table of the screening; None without one."""
    screening, losses = Screening.of_record(record), comparison.screening_losses
    if screening is None or not losses:
        return None
    return screening_table(screening, losses, comparison.screening_states)


def _left_out(comparison: Comparison, record: Record) -> set[str]:
    screening, losses = Screening.of_record(record), comparison.screening_losses
    if screening is None:
        return set()
    return set(losses) - set(screening.chosen(losses))


def _screening_markdown(table: Mapping[str, Any]) -> list[str]:
    lines = [f"{table['title']}:", "", _row(table["head"]), "|---" * len(table["head"]) + "|"]
    for row in table["rows"]:
        cells = []
        for cell in row["cells"]:
            mark = "**" * cell["best"]
            cells.append(f"{mark}{cell['text']}{mark}")
        lines.append(_row([row["label"], *cells, row["rate"], row["in_full"]]))
    return [*lines, "", table["note"], ""]


def _embedded(chart: Chart) -> dict[str, str]:
    uri = f"data:image/svg+xml;base64,{base64.b64encode(chart.svg).decode()}"
    return {"title": chart.title, "note": chart.note, "uri": uri}


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _row(cells: Sequence[str]) -> str:
    escaped = [_plain(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _plain(text: str) -> str:
    """Return text that Markdown does not read as a tag."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _flat(node: Any, above: str = "") -> dict[str, str]:
    """Return values as text by dotted key, nulls included."""
    if not isinstance(node, Mapping):
        return {above: shown(node)}
    found: dict[str, str] = {}
    for key, value in node.items():
        path = str(key)
        if above:
            path = f"{above}.{key}"
        found |= _flat(value, path)
    return found


def _behind_best(comparison: Comparison, one: CandidateResult) -> tuple[str, str]:
    if one.leak is not None:
        return "", "not causal"
    if not comparison.ranked or one.mean is None:
        return "", ""
    best = comparison.ranked[0]
    if one is best:
        return "", "best"
    found = difference(one, best)
    if found is None:
        return "", in_words(found)
    return interval(found), in_words(found)


def _on_front(one: CandidateResult, fronts: Mapping[str, Collection[str]]) -> str:
    """Return ` (front)`, with its name where there are several; nothing where the model is on none."""
    names = [name for name, labels in fronts.items() if one.label in labels]
    if not names:
        return ""
    if len(fronts) == 1:
        return " (front)"
    if len(names) == len(fronts):
        return " (front: both)"
    return f" (front: {names[0]})"


def _number(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}"


def _short(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:g}"
