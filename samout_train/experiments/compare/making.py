"""Making a comparison: the runs that are missing, the speeds that are not measured yet, and the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samout_train.checkpoint import new_directory
from samout_train.config import ConfigError
from samout_train.evaluation import missing_charts
from samout_train.experiments.compare.jobs import Plan, read_record
from samout_train.experiments.compare.page import summary_lines, write_page
from samout_train.experiments.compare.results import Contest, contests_of
from samout_train.experiments.compare.runs import read_run, run_dirs_below, told_apart
from samout_train.experiments.compare.speed import measured_speeds, read_speeds
from samout_train.experiments.job_progress import job_bar
from samout_train.experiments.jobs import Outcome
from samout_train.runtime import dashboard_command


def make_runs(plan: Plan, at_once: int) -> dict[str, Outcome]:
    """Makes what is missing of a comparison.

    Args:
        plan: What is asked; its record lies in its directory.
        at_once: Runs at a time.

    Returns:
        What became of each run, by name.

    Raises:
        StopRequestedError: if a signal came; what ran has saved what it needs to go on.
    """
    choosing = plan.choosing()
    with job_bar(len(choosing) + len(plan.contenders) * plan.num_seeds) as bar:
        outcomes = bar.run(choosing, at_once=at_once)
        best = {one.label: plan.rates[0] for one in plan.contenders}
        if choosing:
            contest = Contest.of("", [read_run(job.run_dir) for job in choosing])
            best = {one.label: one.best_rate for one in contest.contestants if one.best_rate is not None}
        return outcomes | bar.run(plan.counting(best), at_once=at_once)


def finish(plan: Plan) -> None:
    """Writes the page of a comparison, and again with the speeds, once they are measured."""
    record = read_record(plan.folder)
    runs = [run for name in plan.entries() if (run := read_run(plan.folder / name)).outcome.state != "waiting"]
    contests = contests_of(runs)
    write_page(contests, record, read_speeds(plan.folder), plan.folder)
    _write(contests, record, measured_speeds(plan.contenders, plan.folder), plan.folder)
    print(f"dashboard  {dashboard_command(plan.folder)}")


def show(paths: Sequence[str], command: str, folder: Path, *, is_new: bool = False) -> None:
    """Writes a page of runs that are there.

    Args:
        paths: Run directories, or folders of them.
        command: What makes this page.
        folder: Where it goes.
        is_new: Whether the folder has to be one that is not there yet.

    Raises:
        ConfigError: if there is no run at a path, or the folder holds a comparison of other runs.
    """
    if absent := [path for path in paths if not Path(path).exists()]:
        raise ConfigError(f"runs={absent[0]}: is not there: give run directories, or a folder of them")
    found = {path: run_dirs_below(Path(path)) for path in paths}
    if empty := [path for path, run_dirs in found.items() if not run_dirs]:
        raise ConfigError(f"runs={empty[0]}: holds no run: give run directories, or a folder of them")
    run_dirs = list(dict.fromkeys(run_dir for of_path in found.values() for run_dir in of_path))
    if read_record(folder) and {path.resolve() for path in run_dirs} != {p.resolve() for p in run_dirs_below(folder)}:
        raise ConfigError(f"run_dir={folder}: holds a comparison of other runs: give another directory")
    parents = {run_dir.parent for run_dir in run_dirs}
    asked, speeds = (read_record(*parents), read_speeds(*parents)) if len(parents) == 1 else ({}, {})
    if any(set(run_dirs) != set(run_dirs_below(parent)) for parent in parents):  # a part of a comparison is not it
        asked.pop("command", None)
    runs = told_apart([read_run(run_dir) for run_dir in run_dirs])
    folder = new_directory(folder) if is_new else folder
    _write(contests_of(runs), {"command": command, **asked}, speeds, folder)


def _write(contests: Sequence[Contest], record: dict[str, Any], speeds: dict[str, Any], folder: Path) -> None:
    written = write_page(contests, record, speeds, folder)
    for contest in contests:
        print("\n".join(summary_lines(contest, record)))
    if missing := missing_charts():
        print(missing)
    print(f"page       {written[0]}")
    print(f"also       {', '.join(str(path) for path in written[1:])}")
