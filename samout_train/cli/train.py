"""`python -m samout_train [train] key=value ...`: train a model, or with -m several, one after another."""

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
from samout_train.cli.verb import Verb
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
    check_job,
    check_job_data,
    check_taken_job,
    described,
    doubles,
    finished,
    forget_failure,
    has_checkpoint,
    outcome,
    record_failure,
    register_job_directory,
    sweep_jobs,
    wait_for_others,
    words_of_sweep,
    write_sweep,
)
from samout_train.runtime import (
    Launch,
    PlaceError,
    in_words,
    is_of_a_place,
    message_of,
    program,
    quoted,
    share_of_cores,
    typed_line,
)

log = logging.getLogger(__name__)


class RunVerb(Verb):
    """The verb that makes runs and sweeps. It reports all mistakes at once, before the first run starts."""

    def __call__(self, words: Sequence[str]) -> int:
        """Parse and check a command line, and execute it; see `Verb`."""
        launch = Launch.of_environment()
        if launch is not None:
            words = launch.words(list(words))
        try:
            request = Request.checked(words, writes=_is_first(launch))
        except PlaceError as error:
            print(error, file=sys.stderr)
            return 1
        except ConfigError as error:
            mistakes = str(error)
        except OSError as error:
            mistakes = in_words(error)
        else:
            return self.function(request)
        if _is_first(launch):
            print(mistakes, file=sys.stderr)
        return 2


@RunVerb
def train(request: Request, **train: Any) -> int:
    """Trains causal language models with and without attention, and compares them fairly.

    With -m, it makes a sweep: several runs, one after another unless another launcher is chosen.

    Returns:
        The exit code: 0 done, 1 something failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    register_job_directory()
    is_sweep = request.in_sweep and not request.asks_only
    os.environ.update(share_of_cores(request.at_once))  # inherited by jobs that run in processes of their own
    flags = []
    if request.arguments.config_dir:
        flags.append(f"--config-dir={request.arguments.config_dir}")
    if request.arguments.config_name:
        flags.append(f"--config-name={request.arguments.config_name}")
    if is_sweep:
        return _sweep(request, flags)
    if request.asks_only:
        request.answer()
        return 0
    assert request.composed is not None
    return _run(request, request.composed, flags)


def _run(request: Request, composed: Composed, flags: list[str]) -> int:
    """Make one run with the checked settings."""
    launch = Launch.of_environment()
    if launch is not None and not launch.is_first:
        logging.basicConfig(level=logging.ERROR, format=f"process {launch.rank}: %(message)s")
    assert request.run_dir is not None and composed.run is not None
    words = [*flags, *request.overrides]
    failures: list[int] = []
    try:
        composed.run.start(
            lambda config: _train(composed, words, failures, in_sweep=False),
            run_dir=escaped(request.run_dir),
            words=[f"++run_dir={quoted(request.run_dir)}"],
            logs=_is_first(launch),
        )
    finally:  # a signal may have come before anything was written
        if request.made_run_dir:
            with suppress(OSError):
                Path(request.run_dir).rmdir()
    if failures and request.made_run_dir:
        _leave_nothing(Path(request.run_dir))
    if failures:
        return failures[0]
    return 0


def _sweep(request: Request, flags: list[str]) -> int:
    """Make a sweep, whose jobs Hydra's launcher and sweeper start."""
    assert request.run_dir is not None
    if (refusal := _recorded(request)) is not None:
        print(refusal, file=sys.stderr)
        return 2
    settings = words_for_hydra(request.overrides, folders=request.folders, typed=False)
    settings = words_of_sweep(settings, request.overrides, request.swept)
    # Otherwise Hydra would write its files before this process has claimed the directory.
    settings += ["hydra.output_subdir=null", f"hydra.sweep.dir={quoted(request.run_dir)}"]
    failures: list[int] = []
    job = partial(_job, flags=flags, failures=failures)
    run = partial(run_hydra, request.arguments, settings, job, folder=CONF)
    return _swept(run, Path(request.run_dir), request.configs, failures)


def _is_first(launch: Launch | None) -> bool:
    return launch is None or launch.is_first


def _recorded(request: Request) -> str | None:
    """Write the record of a sweep, and report its duplicates; return why the sweep cannot start, or None."""
    folder = Path(str(request.run_dir))
    for line in doubles(request.configs):
        print(line, file=sys.stderr)
    if found := check_job_data(folder, request.configs.values()):
        return "\n".join(map(str, found))

    def settings_of(of_job: Sequence[str]) -> dict[str, object] | None:
        try:
            of = Request(of_job)
            return compose_config(of.overrides, config_name=of.config_name, config_dirs=of.config_dirs).config
        except ConfigError:  # an option of an earlier sweep may no longer exist
            return None

    try:
        write_sweep(
            folder, command=request.words, flags=request.folder_flags, jobs=request.jobs, settings_of=settings_of
        )
    except DirectoryRefusedError as error:
        return str(error)
    except OSError as error:
        return f"hydra.sweep.dir={folder}: cannot be written to ({error.strerror})"
    return None


def _swept(
    run: Callable[[], None], folder: Path, configs: Mapping[str, Mapping[str, object]], failures: list[int]
) -> int:
    """Run a sweep with any launcher, and list its jobs with their results."""
    code = 0
    try:
        run()
    except SystemExit as ended:  # a job raised, or a launcher lost one
        code = 1
        if isinstance(ended.code, int):
            code = ended.code
    jobs = [job for job in sweep_jobs(folder) if job.name in configs]  # not of an earlier sweep in this directory
    wait_for_others([job.run_dir for job in jobs])
    other = []
    for job in jobs:
        other += check_job(job.run_dir, configs[job.name])
    if other and not failures:  # other processes of the launcher do not add to `failures`
        print("\n".join(map(str, other)), file=sys.stderr)
        code = code or 2
    unfinished = []
    width = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        found, stream = outcome(job.run_dir), sys.stdout
        if found.state != "done":
            unfinished.append(found.state)
            stream = sys.stderr
        print(f"  {described(job, found, width)}", file=stream, flush=True)
    if unfinished:
        action = "resume"
        if "FAILED" in unfinished:
            action = "retry"
        print(f"resume     {typed_line([*program(), 'sweep', f'action={action}', f'dir={folder}'])}", file=sys.stderr)
    if code == 0 and failures:
        return failures[0]
    return code or int(bool(unfinished))


def _leave_nothing(run_dir: Path) -> None:
    """Remove what is left of a run that was refused before it began, unless another process uses the directory."""
    with suppress(DirectoryRefusedError, OSError), locked(run_dir):
        if {path.name for path in run_dir.iterdir()} <= {".hydra", "samout_train.log", FAILURE}:
            for name in ("samout_train.log", FAILURE):
                (run_dir / name).unlink(missing_ok=True)


def _job(config: DictConfig, *, flags: list[str], failures: list[int]) -> None:
    """Run a job of a sweep, whose settings Hydra composed."""
    hydra_config = HydraConfig.get()
    run_dir = Path(unresolved(hydra_config, "runtime.output_dir"))
    words = [*flags, *map(as_typed, unresolved(hydra_config, "overrides.task"))]
    _train(resolve(config).lying_in(run_dir), words, failures, in_sweep=True)


def _train(composed: Composed, words: list[str], failures: list[int], *, in_sweep: bool) -> None:
    """Train; append the exit code of an expected failure to `failures`.

    Args:
        composed: The settings, resolved.
        words: The words as typed, for the command that repeats the run.
        failures: Gets the exit code.
        in_sweep: Whether this is a job of a sweep.
    """
    # Imported here, because --help must not import torch.
    from samout_train.checkpoint import Claim
    from samout_train.runtime import StopRequestedError, ignore_interrupts
    from samout_train.training import prepare

    claim = Claim(composed, Path(unresolved(HydraConfig.get(), "runtime.output_dir")))
    check: Callable[[Path, Mapping[str, Any]], Sequence[Problem | str]] = check_content
    if in_sweep:
        check = check_job
    try:
        with claim.held(_hydras_files(), check=check, keeps_failed=in_sweep):
            if in_sweep and finished(claim.run_dir):
                log.info("run         %s is finished: skipped", claim.run_dir)
                return
            if in_sweep and has_checkpoint(claim.run_dir):
                claim.config["resume"] = "auto"
            run = prepare(claim, words)
            forget_failure(claim.run_dir)
            run()
    except StopRequestedError as stop:
        if not in_sweep:  # the launcher of a sweep may have another job for this process
            ignore_interrupts()  # Hydra takes a moment to exit
        if not claim.has_begun:
            print(f"{stop}: before the first step, so there is nothing to resume", file=sys.stderr)
        sys.exit(stop.exit_code)
    except Exception as error:
        if in_sweep and isinstance(error, TakenError):
            other = check_taken_job(claim.run_dir, claim.config)
            if not other:
                log.info("run         %s: another process is training it: skipped", claim.run_dir)
                return
            error = DirectoryRefusedError(*other)
        exit_code = _exit_code(error, has_begun=claim.has_begun)
        if exit_code is None:
            _record(claim.run_dir, f"{type(error).__name__}: {error}")
            raise
        _report_failure(error, exit_code, claim.run_dir, has_begun=claim.has_begun, in_sweep=in_sweep)
        failures.append(exit_code)


def _hydras_files() -> dict[str, str]:
    """Return the files that Hydra writes beside the settings of a run, by name."""
    return {
        "hydra.yaml": OmegaConf.to_yaml(HydraConfig.instance().cfg),
        "overrides.yaml": OmegaConf.to_yaml(HydraConfig.get().overrides.task),
    }


def _report_failure(error: Exception, exit_code: int, run_dir: Path, *, has_begun: bool, in_sweep: bool) -> None:
    """Report why a run failed, and record it in the run directory unless another run owns it.

    A run that can be resumed has not failed because someone asked for it with settings that it cannot have.
    """
    from samout_train.runtime import is_out_of_memory
    from samout_train.training import NonFiniteError

    message = message_of(error)
    if is_out_of_memory(error) and not has_begun:
        reason = str(error).splitlines() or [type(error).__name__]
        message = f"this does not fit into memory, choose smaller sizes: {reason[0]}"
    if has_begun or not _is_first(Launch.of_environment()):  # a log line names its process
        log.error("%s", message)
    else:
        print(message, file=sys.stderr)
    if isinstance(error, DirectoryRefusedError):
        return
    if not has_begun and not _is_first(Launch.of_environment()):  # the first process may have removed the directory
        return
    if exit_code == 2 and not in_sweep and has_checkpoint(run_dir):
        return
    why: Why = "error"
    if exit_code == 2 or isinstance(error, NonFiniteError):
        why = "settings"
    _record(run_dir, message, why)


def _record(run_dir: Path, error: str, why: Why = "error") -> None:
    """Record why a run failed, unless this process has not yet received the run directory from the first process."""
    launch = Launch.of_environment()
    if _is_first(launch) or run_dir.resolve() != Path.cwd():
        record_failure(run_dir, error, why)


def _exit_code(error: Exception, *, has_begun: bool) -> int | None:
    """Return the exit code of an expected failure; None for an unexpected one."""
    from samout_train.checkpoint import CheckpointError
    from samout_train.runtime import LostProcessError, is_out_of_memory
    from samout_train.training import MemoryExhaustedError, NonFiniteError

    if isinstance(error, LostProcessError):
        return 1
    if has_begun:
        if isinstance(error, CheckpointError | MemoryExhaustedError | NonFiniteError) or is_of_a_place(error):
            return 1
        return None
    if isinstance(error, CheckpointError | OSError):
        return 1
    if isinstance(error, ValueError) or is_out_of_memory(error):  # a mistake that shows only when building
        return 2
    return None
