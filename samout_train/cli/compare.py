"""`python -m samout_train compare models=[...] match=parameters:800k`: which model is better, beyond noise."""

import datetime
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from samout_train.cli.request import Request
from samout_train.cli.verb import verb
from samout_train.config import ConfigError, NonNegative, Positive, Problem, Seeds, key_of, nearest
from samout_train.runtime import list_setting, place_problem, shell_word, text_setting, typed_line

if TYPE_CHECKING:
    from samout_train.experiments import Budget, Candidate, Plan, Sizes

IN_EXPERIMENT = (
    *("models", "match", "lr", "extend_lr", "choose", "seeds", "screen_steps", "finalists", "always"),
    *("leaders", "leader_seeds", "train_flops", "tasks", "sizes"),
)
OWN = (*IN_EXPERIMENT, "jobs", "runs", "run_dir", "seed")
Node = dict[str, Any]


@verb
def compare(
    request: Request,
    *,
    models: Any,
    match: str | None,
    sizes: list[str | int | float] | None,
    train_flops: Annotated[float, Positive] | None,
    tasks: Any,
    lr: Annotated[float, Positive] | list[Annotated[float, Positive]],
    extend_lr: Annotated[int, NonNegative],
    choose: Node | None,
    seeds: Annotated[int, Seeds],
    screen_steps: Annotated[int, Positive] | None,
    finalists: Annotated[int, Positive] | None,
    always: list[str],
    leaders: Annotated[int, Positive] | None,
    leader_seeds: Annotated[int, Positive] | None,
    jobs: Annotated[int, Positive],
    runs: list[str] | None,
    compare: Node | None = None,
    **train: Any,
) -> int:
    """Compares models, and reports whether the difference exceeds the noise between seeds.

    Returns:
        The exit code: 0 done, 1 a run failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    settings, gets_new_directory = request.settings, request.is_named_by_time("run_dir")
    if found := _check_experiment(settings):
        raise ConfigError(*found)
    if (settings["models"] is None) == (settings["runs"] is None):
        raise ConfigError("choose what to compare, one of: models=[NAME,NAME], runs=[RUN_DIR,RUN_DIR]")
    if not isinstance(settings["models"], str | list | dict | None):
        raise ConfigError(f"models={settings['models']}: must be names, such as models=[v8,transformer]")
    if problem := place_problem(Path(settings["run_dir"])):
        raise ConfigError(f"run_dir={settings['run_dir']}: {problem}")
    if settings["runs"] is not None:
        return _show(settings, request, gets_new_directory=gets_new_directory)

    from samout_train.checkpoint import in_turn, locked, new_directory
    from samout_train.experiments import require_causal_models

    plan = _plan(settings, request)
    if found := plan.check():
        raise ConfigError(*found)
    require_causal_models(plan.candidates)
    if gets_new_directory:
        plan = replace(plan, folder=new_directory(plan.folder))
    with in_turn(plan.folder), locked(plan.folder):
        if plan.has_other_sizes(settings["match"]):  # another process that started together with this one measured them
            plan = _plan(settings, request, before=plan)
        if found := plan.check():  # another comparison may have used the directory since the first check
            raise ConfigError(*found)
        plan.write(_asked(settings, request))
    for line in plan.lines():
        print(line, flush=True)
    return _make(plan, settings["jobs"])


def _make(plan: "Plan", at_once: int) -> int:
    """Make the runs and the page of a comparison, and return the exit code."""
    from samout_train.experiments import finish, make_runs
    from samout_train.runtime import StopRequestedError

    try:
        outcomes = make_runs(plan, at_once)
        finish(plan)
    except (StopRequestedError, KeyboardInterrupt) as error:
        stop = StopRequestedError(signal.SIGINT)  # KeyboardInterrupt, while speeds are measured
        if isinstance(error, StopRequestedError):
            stop = error
        again = shell_word(text_setting("run_dir", plan.folder))
        print(f"{stop}: finished runs are kept; to resume, repeat the command with {again}", file=sys.stderr)
        return stop.exit_code
    return int(any(outcome.state != "done" for outcome in outcomes.values()))


def _show(settings: Node, request: Request, *, gets_new_directory: bool) -> int:
    from samout_train.experiments import show

    for word in request.overrides:
        if key_of(word) not in ("runs", "run_dir"):
            raise ConfigError(f"{word}: a page of existing runs takes runs and run_dir only: leave it out")
    if not settings["runs"]:
        raise ConfigError("runs: is empty: give run directories, or a folder of them")
    command = typed_line(["samout-train", "compare", list_setting("runs", settings["runs"])])
    show(settings["runs"], command, Path(settings["run_dir"]), is_new=gets_new_directory)
    return 0


def _plan(settings: Node, request: Request, before: "Plan | None" = None) -> "Plan":
    """Return the plan of a request.

    Args:
        settings: The settings of the request.
        request: The request.
        before: An earlier plan of the request; its sizes are taken where the record of the comparison has none.
    """
    from samout_train.experiments import (
        Budget,
        Plan,
        check_choices,
        check_decided,
        check_leaders,
        check_screening,
        choices_of,
        screening_of,
        sizes_of,
        tasks_of,
    )

    screening, found = screening_of(settings["screen_steps"], settings["finalists"], settings["always"])
    if found := found + check_leaders(settings["leaders"], settings["leader_seeds"]):
        raise ConfigError(*found)
    choose, rates = choices_of(settings["choose"]), _rates(settings["lr"])
    shared = [word for word in request.overrides if key_of(word).split(".")[0] not in OWN]
    if decided := check_decided(shared):
        raise ConfigError(*decided)
    budget, tasks = None, tasks_of(settings["tasks"])
    if settings["match"] is not None:
        budget = Budget.of(settings["match"])
    further = sizes_of(settings["sizes"], budget)
    models = _candidates(settings, request, shared, budget, before)
    wrong = check_choices(choose, models, budget)
    if screening is not None:
        configs = {one.label: one.config for one in models}
        if "always" not in map(key_of, request.overrides):
            screening = replace(screening, always=_compared(screening.always, settings, configs))
        wrong += check_screening(screening, configs, rates, chooses_settings=bool(choose))
    if wrong:
        raise ConfigError(*wrong)
    plan = Plan(
        Path(settings["run_dir"]),
        models,
        rates,
        settings["seed"],
        settings["seeds"],
        flags=request.folder_flags,
        screening=screening,
        extend=settings["extend_lr"],
        leaders=settings["leaders"] or 0,
        leader_seeds=settings["leader_seeds"] or 0,
        choose=choose,
    )
    at_sizes = _at_sizes(plan, further, settings, request, shared, before)
    return replace(plan, beside=[*at_sizes, *_on_tasks(plan, tasks, request, shared)])


def _candidates(
    settings: Node,
    request: Request,
    shared: Sequence[str],
    budget: "Budget | None",
    before: "Plan | None",
    *,
    is_beside: bool = False,
) -> "list[Candidate]":
    """Return the models at the size that meets a budget."""
    from samout_train.experiments import candidates, known_sizes, with_operations

    match, of_plan = settings["match"], None
    if is_beside and budget is not None:
        match = of_plan = budget.typed

    def known(label: str, words: Sequence[str]) -> "Sizes | None":
        found = known_sizes(Path(settings["run_dir"]), match, label, words, is_beside=is_beside)
        if found is None and before is not None:
            found = before.sizes_at(label, of_plan)
        return found

    models = candidates(_models(settings), shared, budget, config_dirs=request.config_dirs, known=known)
    if settings["train_flops"] is not None:
        models = [with_operations(one, settings["train_flops"]) for one in models]
    return models


def _at_sizes(
    plan: "Plan",
    budgets: "Sequence[Budget]",
    settings: Node,
    request: Request,
    shared: Sequence[str],
    before: "Plan | None",
) -> "list[Plan]":
    """Return the plans for the same models at further sizes."""
    from samout_train.experiments import check_choices, check_screening

    found, screening = [], plan.screening
    if screening is not None:
        chooses = len(plan.rates) > 1 or plan.choose
        screening = replace(screening, finalists=None, always=()) if chooses else None
    for budget in budgets:
        models = _candidates(settings, request, shared, budget, before, is_beside=True)
        wrong = check_choices(plan.choose, models, budget)
        if screening is not None:
            configs = {one.label: one.config for one in models}
            wrong += check_screening(screening, configs, plan.rates, chooses_settings=bool(plan.choose))
        if wrong:
            raise ConfigError(*wrong)
        found.append(
            replace(plan, candidates=models, screening=screening, leaders=0, leader_seeds=0, budget=budget.typed)
        )
    return found


def _on_tasks(
    plan: "Plan", tasks: Mapping[str, Sequence[str]], request: Request, shared: Sequence[str]
) -> "list[Plan]":
    """Return the plans for the same models on tasks."""
    from samout_train.experiments import on_task

    found = []
    for label, own in tasks.items():
        models = on_task(plan.candidates, label, own, shared, request.config_dirs)
        found.append(replace(plan, candidates=models, screening=None, leaders=0, leader_seeds=0, task=True))
    return found


def _rates(lr: float | list[float]) -> list[float]:
    """Return the learning rates, each once, ascending."""
    if not isinstance(lr, list):
        lr = [lr]
    if not lr:
        raise ConfigError("lr: is empty: give at least one learning rate, such as lr=[1e-3,3e-3]")
    return sorted(set(map(float, lr)))


def _models(settings: Node) -> Any:
    """Return the models as typed, with the names of an experiment's models replaced by their settings."""
    models, made = settings["models"], (settings.get("compare") or {}).get("models")
    if isinstance(models, str):
        models = [models]
    if not isinstance(models, list) or not isinstance(made, dict):
        return models
    found = []
    for entry in models:
        if isinstance(entry, str) and entry in made:
            entry = {entry: made[entry]}
        found.append(entry)
    return found


def _compared(always: Sequence[str], settings: Node, configs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an experiment's labels without those of its models that the request leaves out."""
    made = (settings.get("compare") or {}).get("models") or {}
    return tuple(label for label in always if label in configs or label not in made)


def _check_experiment(settings: Node) -> list[Problem]:
    """Return problems with keys under `compare` that an experiment must not set."""
    found = []
    for key in settings.get("compare") or {}:
        if key not in IN_EXPERIMENT:
            found.append(Problem(f"compare.{key}", text=f"no such key; {nearest(key, IN_EXPERIMENT)}"))
    return found


def _asked(settings: Node, request: Request) -> Node:
    """Return the description of the request for the page."""
    import torch

    from samout_train.runtime import choose_device, device_name

    device, threads = device_name(choose_device(settings["device"])), "1 thread"
    if torch.get_num_threads() > 1:
        threads = f"{torch.get_num_threads()} threads"
    return {
        "command": _command(request),
        "match": settings["match"],
        "train_flops": settings["train_flops"],
        "jobs": settings["jobs"],
        "machine": f"{device}, {threads}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def _command(request: Request) -> str:
    """Return the command that repeats the comparison in another directory."""
    words = [word for word in (*request.flags, *request.overrides) if key_of(word) != "run_dir"]
    return typed_line(["samout-train", "compare", *words])
