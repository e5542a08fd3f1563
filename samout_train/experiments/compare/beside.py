"""Read what a comparison trains its models on in addition to its text: tasks, and its text at further sizes.

A task has the budget, the rows and the tests of its YAML, unless the request sets others. The settings and limits of
the text do not apply to a task, but everything else does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from samout_train.config import ConfigError, Problem, compose_config, key_of, shown
from samout_train.experiments.compare.candidates import Candidate, about, as_words, labelled, word_of
from samout_train.experiments.compare.choices import flat
from samout_train.experiments.compare.matching import Budget
from samout_train.training import checked_config, source_from

LIMITS = ("max_steps", "max_epochs", "max_seconds")
OF_A_TASK = ("data", "trainer")
FIX = "name tasks, such as tasks=[recall_small,parity]"
Words = Mapping[str, Sequence[str]]  # of each task, by label


def tasks_of(asked: Any) -> dict[str, list[str]]:
    """Return the overrides of each task by label; the one that names its data comes first.

    Args:
        asked: As typed: names in `conf/data`, or labels with settings or overrides, as for models; None for no tasks.

    Raises:
        ConfigError: if anything else is typed, or a task sets what is the same for all; it lists every problem.
    """
    if asked is None or asked == []:
        return {}
    if not isinstance(asked, str | list | dict):
        raise ConfigError(Problem("tasks", shown(asked), text="must be names", fix=FIX))
    found, problems = {}, []
    for label, settings in labelled(asked, key="tasks").items():
        found[label] = sorted(as_words(settings), key=lambda word: key_of(word) != "data")
        for word in found[label]:
            if key_of(word).split(".")[0] not in OF_A_TASK:
                text = f"{label}: {word}: is the same for the text and all tasks"
                problems.append(Problem("tasks", text=text, fix="give it outside of tasks"))
    if problems:
        raise ConfigError(*problems)
    return found


def on_task(
    candidates: Sequence[Candidate], label: str, own: Sequence[str], shared: Sequence[str], config_dirs: Sequence[str]
) -> list[Candidate]:
    """Return the models of a comparison, at their sizes, to be trained on a task.

    Args:
        candidates: The models as they are trained on the text.
        label: Label of the task.
        own: The overrides of the task; the one that names its data comes first.
        shared: The overrides of all models.
        config_dirs: Further folders to look for YAML in, absolute.

    Raises:
        ConfigError: if something is wrong with the task; it lists every problem.
    """
    choice, *settings = own
    found: list[Candidate] = []
    try:
        reset = _reset(choice, settings, [word for word in shared if not key_of(word).startswith("model")], config_dirs)
        for one in candidates:
            words = [*_without_text(one.words), choice, *reset, *settings]
            composed, wrong = checked_config(words, config_dirs=config_dirs, shared=one.words)
            if wrong or composed is None:
                raise ConfigError(*wrong)
            found.append(Candidate(one.label, tuple(words), one.sizes, composed.config, label))
            if len(found) == 1 and source_from(composed.config).chance is None:
                text = "has no right answers to count, so it is no task"
                raise ConfigError(Problem("tasks", label, text=text, fix=FIX))
    except ValueError as error:
        raise ConfigError(*about("tasks", error)) from error
    return found


def sizes_of(asked: Sequence[Any] | None, match: Budget | None) -> list[Budget]:
    """Return the budgets of the further sizes, ascending.

    Args:
        asked: Amounts such as 200k, as typed.
        match: The comparison's own budget, of the same kind.

    Raises:
        ConfigError: if one is not an amount, or the comparison has no budget; it lists every problem.
    """
    if not asked:
        return []
    if match is None:
        text, fix = "are further amounts of the budget", "set match, such as match=parameters:800k"
        raise ConfigError(Problem("sizes", shown(list(asked)), text=text, fix=fix))
    found: dict[float, Budget] = {}
    problems = []
    for amount in asked:
        try:
            budget = Budget.of(f"{match.kind}:{amount}")
            found[budget.amount] = budget
        except ConfigError:
            text = f"must be an amount of {match.kind}"
            problems.append(Problem("sizes", shown(amount), text=text, fix="write sizes=[200k,3.2M]"))
    if problems:
        raise ConfigError(*problems)
    return [found[amount] for amount in sorted(found) if amount != match.amount]


def _without_text(words: Sequence[str]) -> list[str]:
    """Return the overrides, leaving out those of the text and its limits."""
    limits = [f"trainer.{key}" for key in LIMITS]
    return [word for word in words if key_of(word).split(".")[0] != "data" and key_of(word) not in limits]


def _reset(choice: str, settings: Sequence[str], shared: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    """Return overrides that undo an experiment's settings of the text and its limits, for the data of this choice."""
    alone = dict(flat(compose_config([choice], config_dirs=config_dirs).config["data"]))
    config = compose_config([*_without_text(shared), choice], config_dirs=config_dirs).config
    set_by_experiment = dict(flat(config["data"]))
    words = []
    for key, value in alone.items():
        if set_by_experiment.get(key) != value:
            words.append(word_of(f"data.{key}", value))
    words += [f"~data.{key}" for key in set_by_experiment if key not in alone]
    words += [f"trainer.{key}=null" for key in LIMITS if config["trainer"][key] is not None]
    own = set(map(key_of, settings))
    return [word for word in words if key_of(word) not in own]
