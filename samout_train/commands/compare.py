"""`python -m samout_train compare models=[...] match=parameters:800k`: what is better, and is that more than noise?"""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from samout_train.command_line import Request, answered, settings_of
from samout_train.config import ConfigError
from samout_train.overrides import key_of, quoted
from samout_train.ranges import Positive
from samout_train.train_keys import beside_those_of_train

if TYPE_CHECKING:
    from samout_train.comparison.jobs import Plan
    from samout_train.ledger import Outcome

OWN = ("models", "match", "lr", "seeds", "jobs", "runs", "run_dir", "seed")
SECONDS_A_LOOK, SECONDS_A_LINE = 1.0, 60.0  # at the steps of what runs, on a terminal and elsewhere
Node = dict[str, Any]


@beside_those_of_train
def keys(
    *,
    models: str | list[Any] | Node | None,
    match: str | None,
    lr: Annotated[float, Positive] | list[Annotated[float, Positive]],
    seeds: Annotated[int, Positive],
    jobs: Annotated[int, Positive],
    runs: list[str] | None,
) -> None:
    """The keys of compare.yaml; only its signature is used."""


def main(words: list[str]) -> int:
    """Compares.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code: 0 done, 1 a run failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    return answered([_with_paths(word) for word in words], "compare", keys, _compare)


def _compare(words: list[str]) -> int:
    from samout_train.stopping import StopRequestedError

    settings, request = settings_of(words, "compare", keys).config, Request(words, "compare")
    if (settings["models"] is None) == (settings["runs"] is None):
        raise ConfigError("say what to compare, one of: models=[NAME,NAME], runs=[RUN_DIR,RUN_DIR]")
    plan = _plan(settings, request)
    try:
        outcomes = _run(plan, settings["jobs"])
    except StopRequestedError as stop:
        print(f"{stop}: what ran is saved; the same command with run_dir={plan.folder} goes on", file=sys.stderr)
        return stop.exit_code
    return int(any(outcome.state != "done" for outcome in outcomes.values()))


def _plan(settings: Node, request: Request) -> "Plan":
    from samout_train.comparison.contenders import contenders, decided_problems
    from samout_train.comparison.jobs import Plan, known_sizes
    from samout_train.comparison.matching import Budget

    shared = [word for word in request.overrides if key_of(word) not in OWN]
    if found := decided_problems(shared):
        raise ConfigError("\n".join(found))
    match, folder = settings["match"], Path(settings["run_dir"])
    budget = None if match is None else Budget.of(match)
    found_before = lambda label, words: known_sizes(folder, match, label, words)  # noqa: E731
    models = contenders(settings["models"], shared, budget, config_dirs=request.config_dirs, known=found_before)
    rates = settings["lr"] if isinstance(settings["lr"], list) else [settings["lr"]]
    flags = [f"--config-dir={request.config_dirs[0]}"] if request.config_dirs else []
    plan = Plan(folder, models, sorted(set(rates)), settings["seed"], settings["seeds"], flags)
    if found := plan.problems():
        raise ConfigError("\n".join(found))
    plan.write({"command": shlex.join(_without_run_dir(request)), "match": match})
    for one in models:
        sizes = "" if one.sizes is None else ", ".join(f"{key} {size}" for key, size in one.sizes.settings.items())
        cost = "" if one.sizes is None or budget is None else f"{one.sizes.cost:,.6g} {budget.kind}"
        print(f"  {one.label:<20} {sizes:<34} {cost}", flush=True)
    return plan


def _run(plan: "Plan", at_once: int) -> "dict[str, Outcome]":
    """Makes what is missing; what became of each run, by name."""
    from tqdm import tqdm

    from samout_train.comparison.results import Contest
    from samout_train.comparison.runs import read_run
    from samout_train.ledger import Job, Outcome, described, last_step, outcome, run_jobs

    looked_at, interval = 0.0, SECONDS_A_LOOK if sys.stderr.isatty() else SECONDS_A_LINE
    with tqdm(desc="runs", unit="run", dynamic_ncols=True, smoothing=0) as bar:

        def told(job: Job, outcome: Outcome) -> None:
            bar.update()
            bar.write(f"  {described(job, outcome)}", file=sys.stdout)

        def watched(running: Sequence[Job]) -> None:
            nonlocal looked_at
            if time.monotonic() - looked_at > interval:
                looked_at = time.monotonic()
                bar.set_postfix_str(", ".join(f"{job.name} step {last_step(job.run_dir):,}" for job in running))

        def made(jobs: Sequence[Job]) -> dict[str, Outcome]:
            bar.update(sum(outcome(job.run_dir).state == "done" for job in jobs))
            return run_jobs(jobs, at_once=at_once, told=told, watched=watched)

        choosing = plan.choosing()
        bar.total = len(choosing) + len(plan.contenders) * plan.num_seeds
        outcomes = made(choosing)
        best = {one.label: plan.rates[0] for one in plan.contenders}
        if choosing:
            contest = Contest.of("", [read_run(job.run_dir) for job in choosing])
            best = {one.label: one.best_rate for one in contest.contestants if one.best_rate is not None}
        return outcomes | made(plan.counting(best))


def _without_run_dir(request: Request) -> list[str]:
    return [word for word in (*request.flags, *request.overrides) if key_of(word) != "run_dir"]


def _with_paths(word: str) -> str:
    """`runs=[a,b]` with each path in quotes: they have commas and equals signs in their names."""
    key, _, value = word.partition("=")
    if key.lstrip("+") != "runs" or value in ("", "null") or "'" in value or '"' in value:
        return word
    is_list = value.startswith("[") and value.endswith("]") and not Path(value).exists()
    return f"runs=[{','.join(map(quoted, _paths(value[1:-1].split(',') if is_list else [value])))}]"


def _paths(pieces: Sequence[str]) -> list[str]:
    """Pieces between commas as paths: the longest that are there have commas of their own."""
    paths, first = [], 0
    while first < len(pieces):
        ends = range(len(pieces), first, -1)
        end = next((end for end in ends if Path(",".join(pieces[first:end]).strip()).exists()), first + 1)
        paths.append(",".join(pieces[first:end]).strip())
        first = end
    return paths
