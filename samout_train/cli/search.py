"""`python -m samout_train search space={...} trials=20`: the settings with the lowest validation loss."""

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from samout_train.cli.request import Request
from samout_train.cli.verb import verb
from samout_train.config import ConfigError, Positive, key_of
from samout_train.runtime import dashboard_command, place_problem, program, shell_word, text_setting, typed_line

if TYPE_CHECKING:
    from samout_train.experiments import Search

OWN = ("space", "trials", "storage", "run_dir", "resume")
PICTURE = "search.png"


@verb
def search(request: Request, *, space: Any, trials: Annotated[int, Positive], storage: str | None, **train: Any) -> int:
    """Looks for the settings with the lowest validation loss, one run after another.

    Returns:
        The exit code: 0 done, 1 a trial failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    from samout_train.experiments import EXAMPLE, space_of, check_space

    if space is None:
        raise ConfigError(f"space: is missing: set {EXAMPLE}")
    if train["resume"] is not None:
        raise ConfigError("resume: a search goes on by itself: give it the same run_dir again")
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("search wants Optuna, which is not installed: pip install 'samout_train[search]'")
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
    flags = [f"--config-dir={config_dir}" for config_dir in request.config_dirs]
    with locked(folder):
        search = Search(folder, storage=storage, space=tried, shared=shared, flags=flags, seed=train["seed"])
        try:
            _with_bar(search, trials)
        except StopRequestedError as stop:
            again = shell_word(text_setting("run_dir", folder))
            print(f"{stop}: what ran is saved; the same command with {again} goes on", file=sys.stderr)
            return stop.exit_code
        _tell(search)
    return int(any(trial.state == "FAILED" for trial in search.trials()))


def _with_bar(search: "Search", num_trials: int) -> None:
    from samout_train.runtime import Bar

    print(f"search in {search.folder}, up to {num_trials} trials", flush=True)
    with Bar(desc="trials", total=num_trials, unit="trial", dynamic_ncols=True, smoothing=0) as bar:
        bar.initial = bar.n = sum(trial.state in ("done", "pruned") for trial in search.trials())

        def told(trial: Any) -> None:
            bar.update()
            with suppress(BrokenPipeError):  # nobody reads on, and the search goes on
                bar.write(f"  {trial.line()}", file=sys.stdout)
                sys.stdout.flush()

        search.run(num_trials, told)


def _tell(search: "Search") -> None:
    """Print the best trial and its command, the importance of each key, and the picture."""
    from samout_train.evaluation import draw_search, missing_charts

    best, trials = search.best(), search.trials()
    states = [trial.state for trial in trials]
    print(f"{len(trials)} trials: {', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))}")
    if best is None:
        print("no trial came to a loss")
        return
    for key, share in search.importances().items():
        print(f"  {share:6.1%}  of the differences is explained by {key}")
    if draw_search([(one.number, one.state, one.loss) for one in trials], path=search.folder / PICTURE) is not None:
        print(f"drawn in   {search.folder / PICTURE}")
    else:
        print(missing_charts())
    print(f"best       trial {best.number}: {best.loss:.4f} nats")
    print(f"dashboard  {dashboard_command(search.folder)}")
    print(f"repeat     {typed_line([*program(), *search.flags, *search.shared, *best.words])}")
