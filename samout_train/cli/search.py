"""`python -m samout_train search space={...} trials=20`: find the settings with the lowest validation loss."""

import importlib.util
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from samout_train.cli.request import Request
from samout_train.cli.verb import verb
from samout_train.config import ConfigError, Positive, key_of
from samout_train.runtime import (
    dashboard_command,
    install_line,
    place_problem,
    program,
    shell_word,
    text_setting,
    typed_line,
)

if TYPE_CHECKING:
    from samout_train.experiments import Search

OWN = ("space", "trials", "storage", "run_dir", "resume")
PICTURE = "search.png"


@verb
def search(request: Request, *, space: Any, trials: Annotated[int, Positive], storage: str | None, **train: Any) -> int:
    """Searches for the settings with the lowest validation loss, one run after another.

    Returns:
        The exit code: 0 done, 1 a trial failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    from samout_train.experiments import EXAMPLE, check_space, space_of

    if space is None:
        raise ConfigError(f"space: is missing: set {EXAMPLE}")
    if train["resume"] is not None:
        raise ConfigError("resume: a search resumes when it gets the same run_dir again: leave it out")
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(f"search needs Optuna, which is not installed: {install_line('search')}")
    shared = [word for word in request.overrides if key_of(word) not in OWN]
    tried, folder = space_of(space), Path(train["run_dir"])
    if found := check_space(tried, shared, config_dirs=request.config_dirs, taken=lambda key: key in OWN):
        raise ConfigError(*found)
    if problem := place_problem(folder):
        raise ConfigError(f"run_dir={folder}: {problem}")

    from samout_train.checkpoint import locked, new_directory, other_kind
    from samout_train.experiments import Search
    from samout_train.runtime import StopRequestedError

    if kind := other_kind(folder, "a search"):
        raise ConfigError(f"run_dir={folder}: holds {kind}: give a directory of its own")
    if request.is_named_by_time("run_dir"):
        folder = new_directory(folder)
    flags, seed = request.folder_flags, train["seed"]
    with locked(folder):
        search = Search(folder, storage=storage, space=tried, shared=shared, flags=flags, seed=seed)
        try:
            _with_bar(search, trials)
        except StopRequestedError as stop:
            again = shell_word(text_setting("run_dir", folder))
            print(f"{stop}: finished trials are kept; to resume, repeat the command with {again}", file=sys.stderr)
            return stop.exit_code
        _print_result(search)
    return int(any(trial.state == "FAILED" for trial in search.trials()))


def _with_bar(search: "Search", num_trials: int) -> None:
    from samout_train.runtime import Bar

    print(f"search in {search.folder}, up to {num_trials} trials", flush=True)
    with Bar(desc="trials", total=num_trials, unit="trial", dynamic_ncols=True, smoothing=0) as bar:
        bar.initial = bar.n = sum(trial.state in ("done", "pruned") for trial in search.trials())

        def show(trial: Any) -> None:
            bar.update()
            with suppress(BrokenPipeError):  # the search continues without a reader
                bar.write(f"  {trial.line()}", file=sys.stdout)
                sys.stdout.flush()

        search.run(num_trials, show)


def _print_result(search: "Search") -> None:
    """Print the best trial and its command, the importance of each key, and the path of the picture."""
    from samout_train.evaluation import draw_search, missing_charts

    best, trials = search.best(), search.trials()
    counts, points = Counter[str](), []
    for trial in trials:
        counts[trial.state] += 1
        points.append((trial.number, trial.state, trial.loss))
    print(f"{len(trials)} trials: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    if best is None:
        print("no trial has a loss")
        return
    importances = search.importances()
    if importances:
        print("importance for reaching the best trials (PED-ANOVA)")
    for key, share in importances.items():
        print(f"  {share:6.1%}  {key}")
    if draw_search(points, path=search.folder / PICTURE) is not None:
        print(f"drawn in   {search.folder / PICTURE}")
    else:
        print(missing_charts())
    print(f"best       trial {best.number}: {best.loss:.4f} nats")
    print(f"dashboard  {dashboard_command(search.folder)}")
    print(f"repeat     {typed_line([*program(), *search.flags, *search.shared, *best.words])}")
