"""`python -m samout_train [train] key=value ...`: trains a model, or with -m several of them one after another."""

import argparse
import sys
from functools import partial
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from samout_train.config import CONF, ConfigError, compose_config, quote_text, register_resolvers, resolve

INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")
LINES_OF_A_MISTAKE = 8


def main(words: list[str]) -> int:
    """Checks the request, then hands it to Hydra.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code: 0 done, 1 something failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    arguments = get_args_parser().parse_args(words)
    asks_only = any(getattr(arguments, name) for name in INFORMATION)
    mistakes = _mistakes(arguments, asks_only=asks_only)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    if mistakes:
        return 2
    register_resolvers()
    typed = set(arguments.overrides)
    if not arguments.multirun:  # in a sweep a comma separates values
        words = [quote_text(word) if word in typed else word for word in words]
    sys.argv[1:] = [*words, *_short_job_names(arguments)]
    flags = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("config-dir", "config-name")]
    flags = [flag for flag in flags if not flag.endswith("=None")]
    failures: list[int] = []
    typed_words = None if arguments.multirun else arguments.overrides
    job = partial(_job, flags=flags, typed=typed_words, failures=failures)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    return failures[0] if failures else 0


def _mistakes(arguments: argparse.Namespace, *, asks_only: bool) -> list[str]:
    folders = [str(Path(arguments.config_dir).resolve())] if arguments.config_dir else []
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        return [f"--config-dir {arguments.config_dir}: is not there: give a folder of YAML files such as conf/"]
    found: dict[str, None] = {}
    try:
        for overrides in _jobs(arguments):
            composed = compose_config(overrides, config_name=arguments.config_name or "config", config_dirs=folders)
            if asks_only:
                continue
            from samout_train.problems import problems
            from samout_train.run import run_directory_problems

            mistakes = problems(composed.config)
            if not mistakes and not arguments.multirun:
                mistakes = run_directory_problems(composed.config)
            found |= dict.fromkeys(mistakes)
    except (ConfigError, HydraException) as error:
        found["\n".join(str(error).splitlines()[:LINES_OF_A_MISTAKE])] = None
    keys = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in arguments.overrides}
    if arguments.multirun and "run_dir" in keys:
        found["run_dir is not for sweeps: each job gets its own directory below hydra.sweep.dir; set that"] = None
    if arguments.multirun and "resume" not in keys and _holds_runs(Path(keys.get("hydra.sweep.dir", ""))):
        found[f"hydra.sweep.dir={keys['hydra.sweep.dir']}: holds runs already: give another directory"] = None
    if "hydra.run.dir" in keys:
        found["hydra.run.dir: set run_dir=... instead, which is looked at before anything is written"] = None
    return list(found)


def _short_job_names(arguments: argparse.Namespace) -> list[str]:
    """Keeps what all jobs of a sweep have in common out of the names of their directories."""
    if not arguments.multirun:
        return []
    parsed = OverridesParser.create().parse_overrides(arguments.overrides)
    common = [override.key_or_group for override in parsed if not override.is_sweep_override()]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(common)}]"] if common else []


def _holds_runs(sweep_dir: Path) -> bool:
    """Whether a folder that is not the working directory has runs one level down."""
    found = (path for name in ("metrics.jsonl", "checkpoints") for path in sweep_dir.glob(f"*/{name}"))
    return sweep_dir != Path() and any(found)


def _jobs(arguments: argparse.Namespace) -> list[list[str]]:
    """The overrides of each job: in a sweep all combinations, so that a mistake in the last stops the first."""
    if not arguments.multirun:
        return [arguments.overrides]
    overrides = OverridesParser.create().parse_overrides(arguments.overrides)
    batches = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def _job(config: DictConfig, *, flags: list[str], typed: list[str] | None, failures: list[int]) -> None:
    """Trains; `typed` are the overrides as the shell gave them, None in a sweep, where each job has its own."""
    # torch is imported here at the latest, and not for --help.
    from samout_train.checkpoint import CheckpointError
    from samout_train.run import prepare
    from samout_train.stopping import StopRequestedError

    hydra_config = HydraConfig.get()
    words = [*flags, *(hydra_config.overrides.task if typed is None else typed)]
    try:
        run = prepare(resolve(config), Path(hydra_config.runtime.output_dir), words)
    except (CheckpointError, ValueError, OSError) as error:  # what is wrong with a request and only building it shows
        print(error, file=sys.stderr)
        failures.append(1 if isinstance(error, CheckpointError) else 2)
        return
    try:
        run()
    except StopRequestedError as stop:
        sys.exit(stop.exit_code)
