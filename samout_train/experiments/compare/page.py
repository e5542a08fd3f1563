"""Write a comparison as one self-contained page: HTML by jinja2, and Markdown for a README.

`make_runs` makes the missing runs, `finish` measures the missing speeds; `finish` and `show` write the page.
"""

import base64
import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, StrictUndefined

from samout_train.checkpoint import in_turn, new_directory, reserve
from samout_train.config import ConfigError, Problem
from samout_train.evaluation import missing_charts
from samout_train.experiments.compare.axes import colour_of
from samout_train.experiments.compare.candidates import folder_name
from samout_train.experiments.compare.charts import Chart, Speeds, charts, overview, tasks_chart
from samout_train.experiments.compare.findings import caveats, verdict
from samout_train.experiments.compare.matching import Budget
from samout_train.experiments.compare.plan import Plan, stages
from samout_train.experiments.compare.record import Entry, read_record
from samout_train.experiments.compare.results import Comparison, comparisons_of
from samout_train.experiments.compare.runs import read_run, run_dirs_below, told_apart
from samout_train.experiments.compare.scaling import scaling_table
from samout_train.experiments.compare.screening import Screening, screening_lines, screening_table
from samout_train.experiments.compare.speed import measured_speeds, read_speeds
from samout_train.experiments.compare.tables import loss_table, pair_table, run_rows, setting_tables
from samout_train.experiments.jobs import Outcome, job_bar
from samout_train.runtime import dashboard_command, replace_file

HTML, MARKDOWN = "comparison.html", "comparison.md"
TEMPLATE = Path(__file__).with_name("page.html")
MOST_IN_TITLE = 4  # names of models; more are counted
Record = Mapping[str, Any]


def make_runs(plan: Plan, at_once: int) -> dict[str, Outcome]:
    """Make the missing runs of a comparison.

    Args:
        plan: Plan of the comparison, whose record is in its directory.
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

    If several programs share the comparison, only one of them does this.
    """
    release = reserve(plan.folder)
    if release is None:
        print("page       another process measures the speeds, and writes the page")
        return
    try:
        record = read_record(plan.folder)
        entries: dict[str, Entry] = {}
        for stage in stages(plan):
            entries |= stage.entries
        entries |= _of_former_finalists(plan, entries)
        runs = [read_run(plan.folder / name) for name in entries]
        comparisons = comparisons_of([run for run in runs if run.outcome.state != "waiting"])
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
        is_new: Whether to make a new folder, whose name gets a number if it is taken.

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


def _of_former_finalists(plan: Plan, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the scored runs of models that were finalists only before another model was added.

    Args:
        plan: Plan of the comparison.
        entries: The runs that the plan has now.
    """
    shown = {(entry.data, entry.budget) for entry in entries.values()}
    scored = {(entry.label, entry.data, entry.budget) for entry in entries.values() if entry.counts}
    labels = {one.label for one in plan.candidates}
    found = {}
    for name, recorded in read_record(plan.folder).get("runs", {}).items():
        entry = Entry(**recorded)
        is_shown = entry.label in labels and (entry.data, entry.budget) in shown
        if entry.counts and is_shown and (entry.label, entry.data, entry.budget) not in scored:
            found[name] = entry
    return found


def _not_yet_run(asked: Record, folder: Path) -> list[Path]:
    """Return the directories of a screening's short runs that are recorded but do not exist yet."""
    found = []
    for name, entry in asked.get("runs", {}).items():
        if entry.get("screening") and not (folder / name).exists():
            found.append(folder / name)
    return found


def _run_dirs(paths: Sequence[str]) -> list[Path]:
    """Return the run directories at or below some paths, each once.

    Raises:
        ConfigError: if one of the paths holds no run.
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
        folder: Folder of these files.

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
    """Return the page, which contains everything that it shows."""
    rows: list[dict[str, Any]] = []
    parts = []
    colours: dict[str, str] = {}
    every = _with_beside(comparisons)
    for comparison in every:
        rows += run_rows(comparison)
        parts.append(_part(comparison, _record_of(comparison, record), speeds))
        for one in comparison.results:
            colours[one.label] = colour_of(comparison, one.label)
    num_unfinished = sum(row["state"] != "done" for row in rows)
    unfinished, tasks = "", None
    if num_unfinished:
        unfinished = f", {num_unfinished} of them not done"
    chart = tasks_chart(every)
    if chart is not None:
        tasks = _embedded(chart)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        title=_title(comparisons),
        subtitle=_subtitle(comparisons, record),
        parts=parts[: len(comparisons)],
        beside=parts[len(comparisons) :],
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
        "name": comparison.name,
        "scaling": scaling_table(comparison),
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
        pictures: Names of the files with the charts, in the same folder, by data.
    """
    lines = [f"## {_title(comparisons)}", "", _subtitle(comparisons, record), ""]
    for comparison in comparisons:
        if len(comparisons) > 1:
            lines += [f"### {comparison.data}", ""]
        lines += [" ".join(verdict(comparison, record)), ""]
        table = loss_table(comparison, speeds, _left_out(comparison, record))
        lines += [_row(table["head"]), "|---" * len(table["head"]) + "|", *map(_row, table["rows"])]
        lines += ["", table["note"], ""]
        scaling = scaling_table(comparison)
        if scaling is not None:
            lines += [_row(scaling["head"]), "|---" * len(scaling["head"]) + "|", *map(_row, scaling["rows"])]
            lines += ["", scaling["note"], ""]
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


def _show(comparisons: Sequence[Comparison], record: dict[str, Any], speeds: dict[str, Any], folder: Path) -> None:
    page, *others = write_page(comparisons, record, speeds, folder)
    for comparison in comparisons:
        print("\n".join(summary_lines(comparison, record)))
    missing = missing_charts()
    if missing:
        print(missing)
    print(f"page       {page}")
    print(f"also       {', '.join(map(str, others))}")


def _with_beside(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons, followed by those at other sizes and on tasks, each once."""
    every = list(comparisons)
    for comparison in comparisons:
        every += [one for one in comparison.beside if all(one is not other for other in every)]
    return every


def _record_of(comparison: Comparison, record: Record) -> Record:
    """Return the request for a comparison; a task or further size has its own budget, and trains all models in full."""
    is_task = any(run.task for run in comparison.runs)
    if comparison.budget is None and not is_task:
        return record
    if is_task:
        record = {**record, "train_flops": None}
    screening = record.get("screening")
    if screening:
        screening = {**screening, "finalists": None, "always": []}
    return {**record, "match": comparison.budget, "screening": screening}


def _title(comparisons: Sequence[Comparison]) -> str:
    labels: dict[str, None] = {}
    for comparison in comparisons:
        labels |= dict.fromkeys(one.label for one in comparison.results)
    data = dict.fromkeys(comparison.data for comparison in _with_beside(comparisons))
    models = ", ".join(labels)
    if len(labels) > MOST_IN_TITLE:
        models = f"{len(labels)} models"
    return f"{models} on {', '.join(data)}"


def _subtitle(comparisons: Sequence[Comparison], record: Record) -> str:
    every = _with_beside(comparisons)
    runs = sum(len(comparison.runs) for comparison in every)
    parts = [_count(runs), "sizes as configured"]
    if record.get("match"):
        parts[1] = f"budget {record['match']}"
        further = dict.fromkeys(str(Budget.of(comparison.budget)) for comparison in every if comparison.budget)
        if further:
            parts[1] += f", and {', '.join(further)}"
    for key in ("machine", "date"):
        if record.get(key):
            parts.append(str(record[key]))
    return ", ".join(parts)


def _count(runs: int) -> str:
    if runs == 1:
        return "1 run"
    return f"{runs} runs"


def _asked(comparisons: Sequence[Comparison], record: Record) -> str:
    """Return a sentence with the learning rates and seeds of the runs, and the recorded number of runs at a time."""
    rates: set[float] = set()
    scored: set[int] = set()
    choosing: set[int] = set()
    for comparison in _with_beside(comparisons):
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
    in_full = [one.label for one in comparison.results if one.losses]
    return screening_table(screening, losses, comparison.screening_states, _not_causal(comparison), in_full)


def _left_out(comparison: Comparison, record: Record) -> set[str]:
    """Return the labels of the models that were screened, are no finalists, and have no full runs."""
    screening, losses = Screening.of_record(record), comparison.screening_losses
    if screening is None:
        return set()
    in_full = {one.label for one in comparison.results if one.losses}
    return set(losses) - set(screening.chosen(losses, _not_causal(comparison))) - in_full


def _not_causal(comparison: Comparison) -> list[str]:
    return [one.label for one in comparison.not_causal]


def _screening_markdown(table: Mapping[str, Any]) -> list[str]:
    lines = [f"{table['title']}:", "", _row(table["head"]), "|---" * len(table["head"]) + "|"]
    for row in table["rows"]:
        cells = []
        for cell in row["cells"]:
            mark = "**" * cell["best"]
            cells.append(f"{mark}{cell['text']}{mark}")
        lines.append(_row([row["name"], *cells, row["rate"], row["in_full"]]))
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
