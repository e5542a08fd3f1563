"""Searching for settings: Optuna proposes, each trial is a run in a process of its own, and bad ones end early.

A space says for each key an interval, or some values to choose from. What was tried lies in Optuna's database, and each
trial's run in a directory of its own.
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
from samout_train.config import ConfigError, compose_config, shown
from samout_train.experiments.compare.plan import DECISIVE_KEYS, word_of
from samout_train.experiments.jobs import LOOK_SECONDS, Job, Outcome, Process, curve_of, outcome
from samout_train.runtime import StopSignals, ask_to_stop, read_figures, write_figures
from samout_train.training import checked_config, source_from

EXAMPLE = "space={optimizer.lr:{low:1e-4,high:1e-2,log:true},model.num_layers:[2,4]}"
Value = bool | int | float | str | None
RECORD = "search.json"
RUN_DIR, ERROR = "run_dir", "error"  # what a trial has beside Optuna's own
WARM_UP_TRIALS = 4  # before any is ended early


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, whole ones where both are, and the step, too.

    Args:
        low: The smallest.
        high: The largest.
        log: Whether it is drawn on a logarithmic scale.
        step: What values are apart by; None for any.
    """

    low: float
    high: float
    log: bool
    step: float | None

    @property
    def ends(self) -> list[Value]:
        """Return what has to be right for all between to be."""
        return [self.low, self.high]

    def draw(self, trial: Any, key: str) -> Value:
        """Return a value, as an Optuna trial proposes it."""
        step = 1 if self.step is None else self.step
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(step, int):
            whole: int = trial.suggest_int(key, self.low, self.high, log=self.log, step=step)
            return whole
        number: float = trial.suggest_float(key, self.low, self.high, log=self.log, step=self.step)
        return number


@dataclass(frozen=True)
class Choice:
    """Some values.

    Args:
        values: Numbers, text, true, false or null.
    """

    values: Sequence[Value]

    @property
    def ends(self) -> list[Value]:
        """Return all of them."""
        return list(self.values)

    def draw(self, trial: Any, key: str) -> Value:
        """Return a value, as an Optuna trial proposes it."""
        value: Value = trial.suggest_categorical(key, list(self.values))
        return value


Space = Mapping[str, Interval | Choice]


def space_of(given: Any) -> Space:
    """Reads a space.

    Args:
        given: By key of `train`, a list of values, or `low`, `high` and, as wanted, `log` and `step`.

    Raises:
        ConfigError: if it is none; the message has all that is wrong.
    """
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"space={shown(given)}: must be settings of train with what to try, such as {EXAMPLE}")
    found, mistakes = {}, []
    for key, values in given.items():
        try:
            found[str(key)] = _dimension(values)
        except ValueError as error:
            mistakes.append(f"space: {key}={shown(values)}: {error}")
    if mistakes:
        raise ConfigError(*mistakes)
    return found


def space_problems(
    space: Space, shared: Sequence[str], *, config_dirs: Sequence[str], taken: Callable[[str], bool]
) -> list[str]:
    """Return what is wrong with the values of a space, each by itself beside what holds for all trials.

    Args:
        space: What is searched.
        shared: Overrides of all trials.
        config_dirs: Further folders to look for YAML in, absolute.
        taken: Whether a key is not for a space to set.
    """
    found = [f"space: {key}: is the search's own to set: leave it out" for key in space if taken(key)]
    for key, dimension in space.items():
        for value in [] if taken(key) else dimension.ends:
            _, mistakes = checked_config([*shared, word_of(key, value)], config_dirs=config_dirs)
            found += [f"space: {mistake}" for mistake in mistakes]
    return list(dict.fromkeys(found))


def _dimension(values: Any) -> Interval | Choice:
    if isinstance(values, list):
        if not values or any(not isinstance(value, Value) for value in values):
            raise ValueError("must be a list of numbers or texts, with one at least")
        return Choice(values)
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= {"low", "high", "log", "step"}:
        raise ValueError("must be a list, or low and high, with log and step as wanted")
    low, high, log, step = values["low"], values["high"], values.get("log", False), values.get("step")
    if any(not isinstance(number, int | float) or isinstance(number, bool) for number in (low, high, step or 1)):
        raise ValueError("low, high and step must be numbers")
    if not isinstance(log, bool):
        raise ValueError("log must be true or false")
    if not low < high or (step is not None and not 0 < step <= high - low):
        raise ValueError("low must be below high, and step fit between them")
    if log and (low <= 0 or step is not None):
        raise ValueError("log wants a low above 0, and no step")
    return Interval(low, high, log, step)


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        number: From 0, as Optuna counts.
        state: `done`, `pruned`, `FAILED`, or `running` where it is unfinished.
        loss: On the whole validation split where it is done, in nats; of a pruned one, the last it reported.
        words: What it sets.
        error: Why it failed.
    """

    number: int
    state: str
    loss: float | None
    words: tuple[str, ...]
    error: str | None

    def line(self) -> str:
        """For people."""
        loss = "" if self.loss is None else f"{self.loss:.4f} nats  "
        return f"{self.state:<8} trial {self.number}  {loss}{' '.join(self.words)}  {self.error or ''}".rstrip()


class Search:
    """A search in a directory, begun or gone on with.

    Args:
        folder: Where its runs lie.
        storage: URL of Optuna's database; None for one in the folder.
        space: What is searched.
        shared: Words of `train` for all trials.
        flags: What the command line of each begins with.
        seed: Of the proposals.

    Raises:
        ConfigError: if the database holds another search, or cannot be opened.
    """

    def __init__(
        self, folder: Path, *, storage: str | None, space: Space, shared: Sequence[str], flags: Sequence[str], seed: int
    ) -> None:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.folder, self.space, self.shared, self.flags = folder, space, list(shared), list(flags)
        if storage is None and set("?%{}#") & set(str(folder)):
            raise ConfigError(f"run_dir={folder}: has a character that a database's URL has not: give another")
        url = storage or f"sqlite:///{folder / 'search.db'}"
        asked = json.dumps([{key: vars(dimension) for key, dimension in space.items()}, self.shared])
        settings = self._settings(self.shared)
        try:
            self.study: Any = optuna.create_study(
                study_name="search" if storage is None else _study_name(folder),
                storage=url,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS),
                load_if_exists=True,
            )
            if storage is not None:
                write_figures(folder / RECORD, {"study": self.study.study_name})
            before = self.study.user_attrs.get("asked", asked)
            self.study.set_user_attr("asked", before)
            then = self.study.user_attrs.get("settings", settings)
            self.study.set_user_attr("settings", then)
            # Gone on with, it goes on drawing, and not from the beginning again.
            self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(self.study.trials))
        except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"storage={url}: cannot be used: {reason}") from error
        if not self.study.trials and any(folder.glob("trial-*")):
            raise ConfigError(
                f"run_dir={folder}: holds trials, and {url} has none of them: it was emptied, or they are another "
                "search's: put that database back, or give another run_dir"
            )
        if before != asked:
            raise ConfigError(f"run_dir={folder}: holds another search (space or settings): give another run_dir")
        if found := differences(then, settings, DECISIVE_KEYS):  # the same words, and YAML that was changed since
            raise ConfigError(f"run_dir={folder}: holds a search of other settings ({found[0]}): give another run_dir")
        there_now = DataNow(source_from)
        for trial in self.study.trials:
            run_dir = folder / self._run_dir(trial)
            same_settings = not other_settings(run_dir, settings, ("data",))
            if same_settings and (other := there_now.other_than(run_dir, settings)):
                raise ConfigError(f"{other}, or another run_dir")

    def _settings(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the settings that decide about a trial of these words."""
        config_dirs = [flag.removeprefix("--config-dir=") for flag in self.flags]
        config = compose_config(words, config_dirs=config_dirs).config
        return {key: config.get(key) for key in DECISIVE_KEYS}

    def trials(self) -> list[Trial]:
        """Return all that were begun; one that was made again only as it was made last."""
        latest = {self._run_dir(trial): trial for trial in self.study.trials if trial.state.name != "WAITING"}
        return [self._described(trial) for trial in latest.values()]

    def run(self, num_trials: int, told: Callable[[Trial], None]) -> None:
        """Goes on until so many trials are done or pruned; what fails counts here, and the next call makes it again.

        Args:
            num_trials: In all.
            told: Gets each that has ended.

        Raises:
            StopRequestedError: if a signal came; the trial that ran has saved what it needs to go on.
        """
        unfinished = [trial for trial in self.study.trials if trial.state.name == "RUNNING"]
        failed = [trial for trial in self.trials() if trial.state == "FAILED"]
        by_number = {trial.number: trial for trial in self.study.trials}
        begun = {self._run_dir(trial) for trial in by_number.values() if trial.state.name in ("WAITING", "RUNNING")}
        for trial in (by_number[one.number] for one in failed):
            if self._run_dir(trial) not in begun:
                self.study.enqueue_trial(trial.params, user_attrs={RUN_DIR: self._run_dir(trial)})
        counted = sum(trial.state in ("done", "pruned") for trial in self.trials())
        with StopSignals() as signals:
            for index in range(num_trials - counted):
                import optuna

                frozen = unfinished[index] if index < len(unfinished) else None
                trial = self.study.ask() if frozen is None else optuna.Trial(self.study, frozen._trial_id)
                self._run_one(trial, signals)
                signals.check()
                told(self._described(self.study.trials[trial.number]))

    def best(self) -> Trial | None:
        """Return the trial with the lowest loss; None where none is done."""
        done = [trial for trial in self.trials() if trial.state == "done" and trial.loss is not None]
        return min(done, key=lambda trial: trial.loss or 0.0) if done else None

    def importances(self) -> dict[str, float]:
        """How much of the differences between losses each key explains, by PED-ANOVA (arXiv 2304.10255); nothing where
        there are too few trials to say."""
        import optuna

        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError):
            return {}
        return {key: share for key, share in found.items() if math.isfinite(share)}

    def _run_one(self, trial: Any, signals: StopSignals) -> None:
        from optuna.trial import TrialState

        words = [word_of(key, dimension.draw(trial, key)) for key, dimension in self.space.items()]
        if RUN_DIR not in trial.user_attrs:
            trial.set_user_attr(RUN_DIR, f"trial-{trial.number}")
        job = Job(self.folder / trial.user_attrs[RUN_DIR], (*self.flags, *self.shared, *words))
        settings = self._settings([*self.shared, *words]) if holds_run(job.run_dir) else {}
        if settings and (other := other_settings(job.run_dir, settings, DECISIVE_KEYS)):
            raise ConfigError(f"{other[0]}: give another run_dir")
        found = outcome(job.run_dir)
        while found.state == "running" or (found.state != "done" and is_taken(job.run_dir)):  # it outlived this program
            time.sleep(LOOK_SECONDS)
            signals.check()
            found = outcome(job.run_dir)
        pruned = False
        if found.state != "done":
            found, pruned = self._watched(trial, job, signals)
        if signals.received is not None and found.state != "done":
            return  # it stays unfinished, and goes on
        loss = None if found.summary is None else found.summary.get("val_loss_nats")
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif loss is not None:
            self.study.tell(trial, float(loss))
        elif found.state == "done" or found.why == "settings":  # which is what a search finds out about them
            trial.set_user_attr(ERROR, found.error or "its loss is no number")
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(ERROR, found.error or "stopped by a signal of its own")
            self.study.tell(trial, state=TrialState.FAIL)

    def _watched(self, trial: Any, job: Job, signals: StopSignals) -> tuple[Outcome, bool]:
        """Runs a trial and reports its losses on the way; also whether it was ended early."""
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
        """Reports what is new; whether the trial is to be ended."""
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
    """The name of a search in a database that others may use, too; it is kept in the folder, which may be moved."""
    known = read_figures(folder / RECORD).get("study")
    if known is None:
        # An earlier version took the folder's name.
        known = folder.name if any(folder.glob("trial-*")) else f"{folder.name}-{secrets.token_hex(4)}"
    return str(known)


@contextmanager
def _running(job: Job) -> Iterator[Process]:
    """A trial's process, which does not outlive what is done with it."""
    process = Process(job, 1)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            ask_to_stop(process.process, None)
            process.process.wait()
