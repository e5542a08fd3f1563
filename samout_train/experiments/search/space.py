"""What is searched: for each key an interval, or some values to choose from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samout_train.config import ConfigError, shown
from samout_train.experiments.compare.labels import word_of
from samout_train.training import checked_config

EXAMPLE = "space={optimizer.lr:{low:1e-4,high:1e-2,log:true},model.num_layers:[2,4]}"
Value = bool | int | float | str | None


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
        """What has to be right for all between to be."""
        return [self.low, self.high]

    def draw(self, trial: Any, key: str) -> Value:
        """A value, as an Optuna trial proposes it."""
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
        """All of them."""
        return list(self.values)

    def draw(self, trial: Any, key: str) -> Value:
        """A value, as an Optuna trial proposes it."""
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
        raise ConfigError("\n".join(mistakes))
    return found


def space_problems(
    space: Space, shared: Sequence[str], *, config_dirs: Sequence[str], taken: Callable[[str], bool]
) -> list[str]:
    """What is wrong with the values of a space, each by itself beside what holds for all trials.

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
