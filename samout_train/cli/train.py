"""`python -m samout_train [train] key=value ...`: trains a model, or with -m several of them one after another."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from samout_train.checkpoint import DirectoryRefusedError, TakenError, check_content, locked
from samout_train.cli.request import Request
from samout_train.cli.verb import RunVerb
from samout_train.config import (
    CONF,
    Composed,
    ConfigError,
    Problem,
    as_typed,
    compose_config,
    escaped,
    resolve,
    run_hydra,
    unresolved,
    words_for_hydra,
)
from samout_train.experiments import (
    FAILURE,
    Why,
    data_problems,
    described,
    doubles,
    finished,
    forget_failure,
    has_checkpoint,
    job_problems,
    outcome,
    problems_where_taken,
    record_failure,
    register_job_directory,
    sweep_jobs,
    wait_for_others,
    words_of_sweep,
    write_sweep,
)
from samout_train.runtime import (
    Launch,
    is_of_a_place,
    message_of,
    program,
    quoted,
    share_of_cores,
    typed_line,
)

log = logging.getLogger(__name__)


@RunVerb
def train(request: Request, **train: Any) -> int:
    """Trains causal language models with and without attention, and compares them fairly.

    With -m, it makes a sweep: several runs, one after another or as its launcher makes them.

    Returns:
        The exit code: 0 done, 1 something failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    register_job_directory()
    is_sweep = request.in_sweep and not request.asks_only
    os.environ.update(share_of_cores(request.at_once))  # which jobs in processes of their own get
    flags = [f"--config-dir={folder}" for folder in [request.arguments.config_dir] if folder]
    flags += [f"--config-name={name}" for name in [request.arguments.config_name] if name]
    if is_sweep:
        return _sweep(request, flags)
    if request.composed is None:  # a question, which Hydra answers
        settings = request.overrides
        if not request.arguments.shell_completion:
            settings = words_for_hydra(settings, folders=request.folders)
        run_hydra([*settings, *request.flags], lambda config: None, folder=CONF, config_name=request.config_name)
        return 0
    return _run(request, request.composed, flags)


def _run(request: Request, composed: Composed, flags: list[str]) -> int:
    """Make one run of the settings as they were checked."""
    launch = Launch.of_environment()
    is_first = _is_first(launch)
    if not is_first:
        reported = f"process {launch.rank if launch else 0}: %(message)s"
        logging.basicConfig(level=logging.ERROR, format=reported)
    assert request.run_dir is not None and composed.run is not None
    words = [*flags, *request.overrides]
    failures: list[int] = []
    try:
        composed.run.start(
            # Resolved again: the directory may be another one than was composed, and settings may refer to it.
            lambda config: _train(resolve(config), words, failures, in_sweep=False),
            run_dir=escaped(request.run_dir),
            words=[f"++run_dir={quoted(request.run_dir)}"],
            logs=is_first,
        )
    finally:  # where a signal came before anything was in it
        if request.made_run_dir:
            with suppress(OSError):
                Path(request.run_dir).rmdir()
    if failures and request.made_run_dir:
        _leave_nothing(Path(request.run_dir))
    return failures[0] if failures else 0


def _sweep(request: Request, flags: list[str]) -> int:
    """Make a sweep, as Hydra's launcher and sweeper make its jobs."""
    assert request.run_dir is not None
    if (refusal := _recorded(request)) is not None:
        print(refusal, file=sys.stderr)
        return 2
    settings = words_for_hydra(request.overrides, folders=request.folders, typed=False)
    settings = words_of_sweep(settings, request.overrides, request.swept)
    # Hydra would write its files before the directory is known to be this run's.
    settings += ["hydra.output_subdir=null", f"hydra.sweep.dir={quoted(request.run_dir)}"]
    failures: list[int] = []
    job = partial(_job, flags=flags, failures=failures)
    run = partial(run_hydra, [*settings, *request.flags], job, folder=CONF)
    return _swept(run, Path(request.run_dir), request.configs, failures)


def _is_first(launch: Launch | None) -> bool:
    return launch is None or launch.is_first


def _recorded(request: Request) -> str | None:
    """Writes the record of a sweep, and says what it makes twice; why it cannot be written, else None."""
    folder = Path(str(request.run_dir))
    for line in doubles(request.configs):
        print(line, file=sys.stderr)
    if found := data_problems(folder, request.configs.values()):
        return "\n".join(found)

    def settings_of(of_job: Sequence[str]) -> dict[str, object] | None:
        try:
            of = Request(of_job)
            return compose_config(of.overrides, config_name=of.config_name, config_dirs=of.config_dirs).config
        except ConfigError:  # what was asked for then cannot be had now
            return None

    flags = [f"--config-dir={folder}" for folder in request.config_dirs]
    try:
        write_sweep(folder, command=request.words, flags=flags, jobs=request.jobs, settings_of=settings_of)
    except DirectoryRefusedError as error:
        return str(error)
    except OSError as error:
        return f"hydra.sweep.dir={folder}: cannot be written to ({error.strerror})"
    return None


def _swept(
    run: Callable[[], None], folder: Path, configs: Mapping[str, Mapping[str, object]], failures: list[int]
) -> int:
    """Makes a sweep, whatever launcher makes its jobs, and says which of them did not come to their end."""
    code = 0
    try:
        run()
    except SystemExit as ended:  # a job raised, or a launcher lost one
        code = ended.code if isinstance(ended.code, int) else 1
    jobs = [job for job in sweep_jobs(folder) if job.name in configs]  # not those of an earlier sweep into it
    wait_for_others([job.run_dir for job in jobs])
    other = [problem for job in jobs for problem in job_problems(job.run_dir, configs[job.name])]
    if other and not failures:  # a launcher's processes have failures of their own
        print("\n".join(other), file=sys.stderr)
        code = code or 2
    left = [(job, found) for job in jobs if (found := outcome(job.run_dir)).state != "done"]
    for job, found in left:
        print(f"  {described(job, found)}", file=sys.stderr)
    if left:
        action = "retry" if any(found.state == "FAILED" for _, found in left) else "resume"
        print(f"resume     {typed_line([*program(), 'sweep', f'action={action}', f'dir={folder}'])}", file=sys.stderr)
    return code or (failures[0] if failures else int(bool(left)))


def _leave_nothing(run_dir: Path) -> None:
    """Removes what is left of a run that was refused before it began, unless another process is at the directory."""
    with suppress(DirectoryRefusedError, OSError), locked(run_dir):
        if {path.name for path in run_dir.iterdir()} <= {".hydra", "samout_train.log", FAILURE}:
            for name in ("samout_train.log", FAILURE):
                (run_dir / name).unlink(missing_ok=True)


def _job(config: DictConfig, *, flags: list[str], failures: list[int]) -> None:
    """Make a job of a sweep, whose settings Hydra composed."""
    hydra_config = HydraConfig.get()
    run_dir = Path(unresolved(hydra_config, "runtime.output_dir"))
    words = [*flags, *map(as_typed, unresolved(hydra_config, "overrides.task"))]
    _train(resolve(config).lying_in(run_dir), words, failures, in_sweep=True)


def _train(composed: Composed, words: list[str], failures: list[int], *, in_sweep: bool) -> None:
    """Train, and append the exit code to `failures` where that fails in an expected way.

    Args:
        composed: The settings, as resolved.
        words: What was typed, for the command that repeats the run.
        failures: Exit codes.
        in_sweep: Whether it is a job of a sweep.
    """
    # torch is imported here at the latest, and not for --help.
    from samout_train.checkpoint import claimed
    from samout_train.runtime import StopRequestedError, ignore_interrupts
    from samout_train.training import prepare, together

    run_dir = Path(unresolved(HydraConfig.get(), "runtime.output_dir"))
    problems: Callable[[Path, Mapping[str, Any]], Sequence[Problem | str]] = check_content
    if in_sweep:
        problems = job_problems
    has_begun = False
    try:
        with (
            together(composed, run_dir) as run_dir,
            claimed(
                run_dir,
                _settings_files(composed),
                refusals=lambda: problems(run_dir, composed.config),
                keeps_failed=in_sweep,
            ) as write_settings,
        ):
            if in_sweep and finished(run_dir):
                log.info("run         %s is finished: left as it is", run_dir)
                return
            if in_sweep and has_checkpoint(run_dir):
                composed.config["resume"] = "auto"
            run = prepare(composed, run_dir, words)
            has_begun = True
            write_settings()
            forget_failure(run_dir)
            run()
    except StopRequestedError as stop:
        if not in_sweep:  # whose launcher may have another job for this process
            ignore_interrupts()  # the last words are printed, and Hydra takes a moment to leave
        if not has_begun:
            print(f"{stop}: before the first step, so there is nothing to continue", file=sys.stderr)
        sys.exit(stop.exit_code)
    except Exception as error:
        if in_sweep and isinstance(error, TakenError):
            other = problems_where_taken(run_dir, composed.config)
            if not other:
                log.info("run         %s: another process is at it: left to that one", run_dir)
                return
            error = DirectoryRefusedError("\n".join(other))
        exit_code = _exit_code(error, has_begun=has_begun)
        if exit_code is None:
            _record(run_dir, f"{type(error).__name__}: {error}")
            raise
        _tell_failure(error, exit_code, run_dir, has_begun=has_begun)
        failures.append(exit_code)


def _settings_files(composed: Composed) -> dict[str, str]:
    """Return the files of a run's `.hydra/` by name: those that Hydra itself would write, with resolved settings."""
    return {
        "config.yaml": composed.yaml,
        "hydra.yaml": OmegaConf.to_yaml(HydraConfig.instance().cfg),
        "overrides.yaml": OmegaConf.to_yaml(HydraConfig.get().overrides.task),
    }


def _tell_failure(error: Exception, exit_code: int, run_dir: Path, *, has_begun: bool) -> None:
    """Says why a run failed, and leaves a note of it in its directory unless that is another run's."""
    from samout_train.runtime import is_out_of_memory
    from samout_train.training import NonFiniteError

    message = message_of(error)
    if is_out_of_memory(error) and not has_begun:
        reason = str(error).splitlines() or [type(error).__name__]
        message = f"this does not fit into memory, choose smaller sizes: {reason[0]}"
    if has_begun or not _is_first(Launch.of_environment()):  # a line of the log says which process it is of
        log.error("%s", message)
    else:
        print(message, file=sys.stderr)
    if not isinstance(error, DirectoryRefusedError):
        _record(run_dir, message, "settings" if exit_code == 2 or isinstance(error, NonFiniteError) else "error")


def _record(run_dir: Path, error: str, why: Why = "error") -> None:
    """Leaves a note of why a run failed, unless this process does not know where it lies, as before all have joined."""
    launch = Launch.of_environment()
    if _is_first(launch) or run_dir.resolve() != Path.cwd():
        record_failure(run_dir, error, why)


def _exit_code(error: Exception, *, has_begun: bool) -> int | None:
    """Of what can go wrong with a run; None for what should not."""
    from samout_train.checkpoint import CheckpointError
    from samout_train.runtime import LostProcessError, is_out_of_memory
    from samout_train.training import MemoryExhaustedError, NonFiniteError

    if isinstance(error, LostProcessError):
        return 1
    if has_begun:
        expected = (CheckpointError, MemoryExhaustedError, NonFiniteError)
        return 1 if isinstance(error, expected) or is_of_a_place(error) else None
    if isinstance(error, CheckpointError | OSError):
        return 1
    if isinstance(error, ValueError) or is_out_of_memory(error):  # a request whose fault only building it shows
        return 2
    return None
