"""Search for settings: Optuna proposes them, each trial is a run in a process of its own, and bad trials end early.

A space has an interval or a list of values for each key. Trials are stored in Optuna's database, and each has its run
in a directory of its own.
"""

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samout_train.checkpoint import DataNow, differences, holds_run, is_taken, other_settings
from samout_train.config import ConfigError, Problem, compose_config, require_no_problems, shown
from samout_train.experiments.compare.candidates import word_of
from samout_train.experiments.compare.plan import DECISIVE_KEYS
from samout_train.experiments.jobs import LOOK_SECONDS, Job, Outcome, Process, curve_of, outcome
from samout_train.runtime import StopSignals, ask_to_stop, read_figures, wait_for_end, write_figures
from samout_train.training import checked_config, source_from

EXAMPLE = "space={optimizer.lr:{low:1e-4,high:1e-2,log:true},model.num_layers:[2,4]}"
Value = bool | int | float | str | None
RECORD = "search.json"
RUN_DIR, ERROR = "run_dir", "error"  # attributes of a trial added to Optuna's own
WARM_UP_TRIALS = 4  # before any trial is ended early
FEWEST_FOR_IMPORTANCES = 20  # completed trials, of which the best tenth is two


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; whole numbers where both and the step are whole.

    Args:
        low: The smallest.
        high: The largest.
        log: Whether it is drawn on a logarithmic scale.
        step: Distance between values; None for any value.
    """

    low: float
    high: float
    log: bool
    step: float | None

    @property
    def ends(self) -> list[Value]:
        """Return the values to check: if both ends are valid, so are the values between them."""
        return [self.low, self.high]

    def draw(self, trial: Any, key: str) -> Value:
        """Return a value, as an Optuna trial proposes it."""
        step = self.step
        if step is None:
            step = 1
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(step, int):
            whole: int = trial.suggest_int(key, self.low, self.high, log=self.log, step=step)
            return whole
        number: float = trial.suggest_float(key, self.low, self.high, log=self.log, step=self.step)
        return number


@dataclass(frozen=True)
class Choice:
    """A list of values.

    Args:
        values: Numbers, text, true, false or null.
    """

    values: Sequence[Value]

    @property
    def ends(self) -> list[Value]:
        """Return all values."""
        return list(self.values)

    def draw(self, trial: Any, key: str) -> Value:
        """Return a value, as an Optuna trial proposes it."""
        value: Value = trial.suggest_categorical(key, list(self.values))
        return value


Space = Mapping[str, Interval | Choice]


def space_of(given: Any) -> Space:
    """Return the space of a setting as it was typed.

    Args:
        given: For each key of `train`, a list of values, or `low` and `high`, with `log` and `step` as needed.

    Raises:
        ConfigError: if it is not a space; it lists every problem.
    """
    if not isinstance(given, Mapping) or not given:
        text = f"must be settings of train with the values to try, such as {EXAMPLE}"
        raise ConfigError(Problem("space", shown(given), text=text))
    found: dict[str, Interval | Choice] = {}
    problems = []
    for key, values in given.items():
        try:
            found[str(key)] = _dimension(values)
        except ValueError as error:
            problems.append(Problem("space", text=f"{key}={shown(values)}: {error}"))
    require_no_problems(problems)
    return found


def check_space(
    space: Space, shared: Sequence[str], *, config_dirs: Sequence[str], taken: Callable[[str], bool]
) -> list[Problem]:
    """Return problems with the values of a space, each checked alone with the settings of all trials.

    Args:
        space: The space.
        shared: Overrides of all trials.
        config_dirs: Further folders to look for YAML in, absolute.
        taken: Returns whether a key may not be set by a space.
    """
    problems = []
    for key in space:
        if taken(key):
            problems.append(Problem("space", text=f"{key}: is set by the search itself", fix="leave it out"))
    for key, dimension in space.items():
        if taken(key):
            continue
        for value in dimension.ends:
            _, wrong = checked_config([*shared, word_of(key, value)], config_dirs=config_dirs)
            for problem in wrong:
                problems.append(Problem("space", text=str(problem)))
    return list(dict.fromkeys(problems))


def _dimension(values: Any) -> Interval | Choice:
    if isinstance(values, list):
        if not values or any(not isinstance(value, Value) for value in values):
            raise ValueError("must be a list of numbers or texts, with one at least")
        return Choice(values)
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= {"low", "high", "log", "step"}:
        raise ValueError("must be a list, or low and high, with log and step as needed")
    low, high, log, step = values["low"], values["high"], values.get("log", False), values.get("step")
    for number in (low, high, step or 1):
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise ValueError("low, high and step must be numbers")
    if not isinstance(log, bool):
        raise ValueError("log must be true or false")
    if not low < high or (step is not None and not 0 < step <= high - low):
        raise ValueError("low must be below high, and step must fit between them")
    if log and (low <= 0 or step is not None):
        raise ValueError("log needs a low above 0, and no step")
    return Interval(low, high, log, step)


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        number: From 0, as Optuna counts.
        state: `done`, `pruned`, `FAILED`, or `running` if it is unfinished.
        loss: In nats: on the whole validation split if it is done, the last reported loss if it is pruned.
        words: The overrides that it sets.
        error: Why it failed.
    """

    number: int
    state: str
    loss: float | None
    words: tuple[str, ...]
    error: str | None

    def line(self) -> str:
        """Return a line for the console, in columns."""
        loss = ""
        if self.loss is not None:
            loss = f"{self.loss:.4f} nats"
        return (
            f"{self.state:<8} trial {self.number:<3}  {loss:>12}  {' '.join(self.words)}  {self.error or ''}".rstrip()
        )


class Search:
    """A search in a directory, new or resumed.

    Args:
        folder: The directory of its runs.
        storage: URL of Optuna's database; None for one in the folder.
        space: The space.
        shared: Words of `train` for all trials.
        flags: The flags that the command line of each trial begins with.
        seed: Seed of the proposals.

    Raises:
        ConfigError: if the database holds another search, or cannot be opened.
    """

    def __init__(
        self, folder: Path, *, storage: str | None, space: Space, shared: Sequence[str], flags: Sequence[str], seed: int
    ) -> None:
        self.folder = folder
        self.space = space
        self.shared = list(shared)
        self.flags = list(flags)
        if storage is None and set("?%{}#") & set(str(folder)):
            text = "contains a character that is not allowed in a database URL"
            raise ConfigError(Problem("run_dir", str(folder), text=text, fix="give another directory"))
        url = storage or f"sqlite:///{folder / 'search.db'}"
        spelled = {key: vars(dimension) for key, dimension in space.items()}
        settings = self._settings(self.shared)
        asked: dict[str, Any] = {"asked": json.dumps([spelled, self.shared]), "settings": settings}
        name, record = "search", None
        if storage is not None:
            name, record = _study_name(folder), folder / RECORD
        self.study, before = _opened(url, name, record, seed=seed, asked=asked)
        if not self.study.trials and any(folder.glob("trial-*")):
            text = f"holds trials, and {url} has none of them: it was emptied, or they are another search's"
            fix = "put that database back, or give another run_dir"
            raise ConfigError(Problem("run_dir", str(folder), text=text, fix=fix))
        fix = "give another run_dir"
        if before["asked"] != asked["asked"]:
            text = "holds another search (space or settings)"
            raise ConfigError(Problem("run_dir", str(folder), text=text, fix=fix))
        # The YAML may have changed although the words are the same. A record from before a key was compared lacks it.
        found = differences(before["settings"], settings, [key for key in DECISIVE_KEYS if key in before["settings"]])
        if found:
            text = f"holds a search of other settings ({found[0]})"
            raise ConfigError(Problem("run_dir", str(folder), text=text, fix=fix))
        self._require_same_data(settings)

    def _settings(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the decisive settings of a trial with these words."""
        config_dirs = [flag.removeprefix("--config-dir=") for flag in self.flags]
        config = compose_config(words, config_dirs=config_dirs).config
        return {key: config.get(key) for key in DECISIVE_KEYS}

    def _require_same_data(self, settings: Mapping[str, Any]) -> None:
        there_now = DataNow(source_from)
        for trial in self.study.trials:
            run_dir = self.folder / self._run_dir(trial)
            if other_settings(run_dir, settings, ("data",)):
                continue
            other = there_now.other_than(run_dir, settings)
            if other:
                raise ConfigError(Problem(text=f"{other}, or another run_dir"))

    def trials(self) -> list[Trial]:
        """Return all trials that have begun; for a repeated trial, only the last attempt."""
        latest = {}
        for trial in self.study.trials:
            if trial.state.name != "WAITING":
                latest[self._run_dir(trial)] = trial
        return [self._described(trial) for trial in latest.values()]

    def run(self, num_trials: int, report: Callable[[Trial], None]) -> None:
        """Run until this many trials are done or pruned; failed trials count too, and the next call repeats them.

        Args:
            num_trials: Number of trials in all.
            report: Called with each trial that has ended.

        Raises:
            StopRequestedError: on a signal; the running trial has saved what it needs to resume.
        """
        unfinished = [trial for trial in self.study.trials if trial.state.name == "RUNNING"]
        self._repeat_failed()
        counted = sum(trial.state in ("done", "pruned") for trial in self.trials())
        with StopSignals() as signals:
            for _ in range(num_trials - counted):
                trial = self._next(unfinished)
                self._run_one(trial, signals)
                signals.check()
                report(self._described(self.study.trials[trial.number]))

    def _next(self, unfinished: list[Any]) -> Any:
        """Return the next trial: one that is unfinished, or a new one."""
        import optuna

        if unfinished:
            return optuna.Trial(self.study, unfinished.pop(0)._trial_id)
        return self.study.ask()

    def _repeat_failed(self) -> None:
        """Enqueue the failed trials, except those that are enqueued or running already."""
        by_number = {trial.number: trial for trial in self.study.trials}
        begun = set()
        for trial in by_number.values():
            if trial.state.name in ("WAITING", "RUNNING"):
                begun.add(self._run_dir(trial))
        for failed in self.trials():
            if failed.state != "FAILED":
                continue
            trial = by_number[failed.number]
            if self._run_dir(trial) not in begun:
                self.study.enqueue_trial(trial.params, user_attrs={RUN_DIR: self._run_dir(trial)})

    def best(self) -> Trial | None:
        """Return the trial with the lowest loss; None if none is done."""
        best, lowest = None, math.inf
        for trial in self.trials():
            if trial.state == "done" and trial.loss is not None and (best is None or trial.loss < lowest):
                best, lowest = trial, trial.loss
        return best

    def importances(self) -> dict[str, float]:
        """Return the importance of each key for reaching the best trials; they add up to 1. Empty for too few trials.

        By PED-ANOVA (arXiv 2304.10255): how far the values of the best tenth of the completed trials, with one key, lie
        from those of all of them. It is not a share of the variance: a key that ruins half of the trials, and makes no
        difference among the best, has little of it.
        """
        import optuna

        if sum(trial.state == "done" for trial in self.trials()) < FEWEST_FOR_IMPORTANCES:
            return {}
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError):
            return {}
        shares = {}
        for key, share in found.items():
            if math.isfinite(share):
                shares[key] = share
        return shares

    def _run_one(self, trial: Any, signals: StopSignals) -> None:
        from optuna.trial import TrialState

        words = [word_of(key, dimension.draw(trial, key)) for key, dimension in self.space.items()]
        if RUN_DIR not in trial.user_attrs:
            trial.set_user_attr(RUN_DIR, f"trial-{trial.number}")
        job = Job(self.folder / trial.user_attrs[RUN_DIR], (*self.flags, *self.shared, *words))
        if holds_run(job.run_dir):
            other = other_settings(job.run_dir, self._settings([*self.shared, *words]), DECISIVE_KEYS)
            if other:
                raise ConfigError(Problem(text=str(other[0]), fix="give another run_dir"))
        found = outcome(job.run_dir)
        while found.state == "running" or (found.state != "done" and is_taken(job.run_dir)):  # it outlived its program
            time.sleep(LOOK_SECONDS)
            signals.check()
            found = outcome(job.run_dir)
        pruned = False
        if found.state != "done":
            found, pruned = self._watched(trial, job, signals)
        if signals.received is not None and found.state != "done":
            return  # it stays unfinished, and is resumed by the next start
        loss = found.loss
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif loss is not None:
            self.study.tell(trial, loss)
        elif found.state == "done" or found.why == "settings":  # a result of the search: these settings do not train
            trial.set_user_attr(ERROR, found.error or "its loss is not a number")
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(ERROR, found.error or "stopped by a signal")
            self.study.tell(trial, state=TrialState.FAIL)

    def _watched(self, trial: Any, job: Job, signals: StopSignals) -> tuple[Outcome, bool]:
        """Run a trial, report its losses to Optuna, and return its outcome and whether it was ended early."""
        with _running(job) as process:
            reported: set[int] = set(self.study.trials[trial.number].intermediate_values)
            while (found := process.became()) is None:
                if self._report(trial, job, reported):
                    return Outcome("stopped"), True
                if signals.received is not None:
                    return Outcome("stopped"), False
                time.sleep(LOOK_SECONDS)
            self._report(trial, job, reported)
            return found, False

    def _report(self, trial: Any, job: Job, reported: set[int]) -> bool:
        """Report the new losses; return whether the trial has to end."""
        for step, loss in curve_of(job.run_dir):
            if step not in reported:
                reported.add(step)
                trial.report(loss, step)
                if trial.should_prune():
                    return True
        return False

    def _run_dir(self, trial: Any) -> str:
        return str(trial.user_attrs.get(RUN_DIR, f"trial-{trial.number}"))

    def _described(self, trial: Any) -> Trial:
        state = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "FAILED"}.get(trial.state.name, "running")
        words = tuple(word_of(key, value) for key, value in trial.params.items())
        return Trial(trial.number, state, trial.value, words, trial.user_attrs.get(ERROR))


def _study_name(folder: Path) -> str:
    """Return the name of a search in a shared database; it is kept in the folder, which may be moved."""
    known = read_figures(folder / RECORD).get("study")
    if known is not None:
        return str(known)
    if any(folder.glob("trial-*")):
        return folder.name  # as an earlier version named it
    return f"{folder.name}-{secrets.token_hex(4)}"


def _opened(
    url: str, name: str, record: Path | None, *, seed: int, asked: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Open or make a study, and return it with the request that it was made for.

    Args:
        url: URL of the database.
        name: Name of the study.
        record: A file for the name of the study; None if the database is in the search's own folder.
        seed: Seed of the proposals.
        asked: The request, which a new study stores.

    Raises:
        ConfigError: if the database cannot be used.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    before = {}
    try:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS)
        study = optuna.create_study(study_name=name, storage=url, pruner=pruner, load_if_exists=True)
        if record is not None:
            write_figures(record, {"study": study.study_name})
        for key, value in asked.items():
            before[key] = study.user_attrs.get(key, value)
            study.set_user_attr(key, before[key])
        # A resumed search draws further values instead of repeating the first ones.
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(Problem("storage", url, text=f"cannot be used: {reason}")) from error
    return study, before


@contextmanager
def _running(job: Job) -> Iterator[Process]:
    """Yield a trial's process, and stop it at the end if it still runs."""
    process = Process(job, 1)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            ask_to_stop(process.process, None)
            wait_for_end(process.process)
