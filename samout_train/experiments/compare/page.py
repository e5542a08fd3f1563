"""A comparison on one page that loads nothing: HTML to read, and Markdown for a README. jinja2 fills the page in."""

import base64
import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, StrictUndefined

from samout_train.evaluation import missing_charts
from samout_train.experiments.compare.drawing import Chart, charts, overview, tasks_chart
from samout_train.experiments.compare.findings import speaks_against, verdict
from samout_train.experiments.compare.labels import folder_name
from samout_train.experiments.compare.results import Contest
from samout_train.experiments.compare.tables import NOTE, loss_table, pair_table, run_rows, setting_tables
from samout_train.runtime import replace_file

HTML, MARKDOWN = "comparison.html", "comparison.md"
TEMPLATE = Path(__file__).with_name("page.html")
Record = Mapping[str, Any]
Speeds = Mapping[str, Mapping[int, float]]


def write_page(contests: Sequence[Contest], record: Record, speeds: Speeds, folder: Path) -> list[Path]:
    """Writes the page, the Markdown and its pictures.

    Args:
        contests: On each data, what its models came to.
        record: What was asked: `command`, `match`, `machine`, as far as it is known.
        speeds: Tokens a second by label and length.
        folder: Where they go.

    Returns:
        What was written, the page first.

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / HTML, folder / MARKDOWN]
    pictures: dict[str, str] = {}
    for contest in contests:
        if (png := overview(contest, speeds)) is not None:
            name = "comparison.png" if len(contests) == 1 else f"comparison_{folder_name(contest.data)}.png"
            replace_file(folder / name, partial(_write, png))
            pictures[contest.data] = name
            written.append(folder / name)
    content = html(contests, record, speeds).encode()
    replace_file(folder / HTML, partial(_write, content))
    text = markdown(contests, record, speeds, pictures).encode()
    replace_file(folder / MARKDOWN, partial(_write, text))
    return written


def html(contests: Sequence[Contest], record: Record, speeds: Speeds) -> str:
    """The page; everything that it shows is in it."""
    rows = [row for contest in contests for row in run_rows(contest)]
    unfinished = sum(row["state"] != "done" for row in rows)
    tasks = tasks_chart(contests)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        title=_title(contests),
        subtitle=_subtitle(contests, record),
        parts=[
            {
                "data": contest.data,
                "verdict": verdict(contest, record),
                "table": loss_table(contest, speeds),
                "against": speaks_against(contest, record),
                "charts": [_embedded(chart) for chart in charts(contest, speeds)],
                "pairs": pair_table(contest),
                "settings": setting_tables(contest),
            }
            for contest in contests
        ],
        missing_charts=missing_charts() or "",
        tasks=_embedded(tasks) if tasks else None,
        command=record.get("command") or "not known",
        asked=_asked(contests, record),
        runs=rows,
        count=_count(len(rows)),
        has_unfinished=unfinished > 0,
        unfinished=f", {unfinished} of them not done" if unfinished else "",
        footer=f"Made by samout_train on {datetime.date.today().isoformat()}. This page loads nothing from anywhere.",
    )


def markdown(contests: Sequence[Contest], record: Record, speeds: Speeds, pictures: Mapping[str, str]) -> str:
    """Verdict, table, picture and command.

    Args:
        contests: On each data, what its models came to.
        record: What was asked.
        speeds: Tokens a second by label and length.
        pictures: By data, the file beside it that shows the charts.
    """
    lines = [f"## {_title(contests)}", "", _subtitle(contests, record), ""]
    for contest in contests:
        lines += [f"### {contest.data}", ""] if len(contests) > 1 else []
        lines += [" ".join(verdict(contest, record)), ""]
        table = loss_table(contest, speeds)
        lines += [_row(table["head"]), "|---" * len(table["head"]) + "|", *map(_row, table["rows"]), "", NOTE, ""]
        against = speaks_against(contest, record)
        lines += ["What speaks against it:", "", *(f"- {_plain(one)}" for one in against), ""] if against else []
        lines += [f"![Charts of {contest.data}]({pictures[contest.data]})", ""] if contest.data in pictures else []
    return "\n".join([*lines, "```bash", str(record.get("command") or "not known"), "```", ""])


def summary_lines(contest: Contest, record: Record) -> list[str]:
    """For the terminal: the verdict, and what speaks against it."""
    return [*verdict(contest, record), *(f"  against it: {sentence}" for sentence in speaks_against(contest, record))]


def _title(contests: Sequence[Contest]) -> str:
    labels = list(dict.fromkeys(one.label for contest in contests for one in contest.contestants))
    return f"{', '.join(labels)} on {', '.join(contest.data for contest in contests)}"


def _subtitle(contests: Sequence[Contest], record: Record) -> str:
    runs = sum(len(contest.runs) for contest in contests)
    size = f"budget {record['match']}" if record.get("match") else "sizes as configured"
    parts = [_count(runs), size]
    return ", ".join([*parts, *(str(record[key]) for key in ("machine", "date") if record.get(key))])


def _count(runs: int) -> str:
    return f"{runs} run{'' if runs == 1 else 's'}"


def _asked(contests: Sequence[Contest], record: Record) -> str:
    """What was asked, as far as the record says it; else what the runs say."""
    ran = [one for contest in contests for one in contest.contestants]
    rates = sorted({rate for one in ran for rate in one.rates})
    counted = sorted({run.seed for one in ran for run in one.counted if run.seed is not None})
    chosen = sorted({one.choosing_seed for one in ran if len(one.rates) > 1 and one.choosing_seed is not None})
    words = [f"Learning rates: {', '.join(f'{rate:g}' for rate in rates) or 'none'}"]
    words += [f"chosen on seed {', '.join(map(str, chosen))}"] if chosen else []
    words += [f"seeds that count: {', '.join(map(str, counted)) or 'none'}"]
    words += [f"runs at a time: {record['jobs']}"] if record.get("jobs") else []
    return "; ".join(words) + "."


def _embedded(chart: Chart) -> dict[str, str]:
    uri = f"data:image/svg+xml;base64,{base64.b64encode(chart.svg).decode()}"
    return {"title": chart.title, "note": chart.note, "uri": uri}


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown does not take for a tag."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
