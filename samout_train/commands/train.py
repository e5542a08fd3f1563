"""`python -m samout_train [train] key=value ...`: trains a model, or with -m several of them one after another."""

import argparse
import sys
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from samout_train.command_line import mistakes, parsed
from samout_train.config import CONF, ConfigError, quote_text, register_resolvers, resolve


def main(words: list[str]) -> int:
    """Checks the request, then hands it to Hydra.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code: 0 done, 1 something failed, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    try:
        arguments = parsed(words)
        wrong = mistakes(arguments)
    except ConfigError as error:
        wrong = [str(error)]
    for mistake in wrong:
        print(mistake, file=sys.stderr)
    if wrong:
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


def _short_job_names(arguments: argparse.Namespace) -> list[str]:
    """Keeps what all jobs of a sweep have in common out of the names of their directories."""
    if not arguments.multirun:
        return []
    overrides = OverridesParser.create().parse_overrides(arguments.overrides)
    common = [override.key_or_group for override in overrides if not override.is_sweep_override()]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(common)}]"] if common else []


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
    except ValueError as error:  # what is wrong with a request and only building it shows
        print(error, file=sys.stderr)
        failures.append(2)
        return
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        failures.append(1)
        return
    except StopRequestedError as stop:
        sys.exit(stop.exit_code)
    try:
        run()
    except StopRequestedError as stop:
        sys.exit(stop.exit_code)
