"""What a person typed behind the verb: flags and overrides, and all that is wrong with them."""

import argparse
from pathlib import Path
from typing import NoReturn

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from samout_train.config import ConfigError, compose_config, override_problems
from samout_train.signatures import nearest

INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")
LINES_OF_A_MISTAKE = 8


def parsed(words: list[str]) -> argparse.Namespace:
    """The flags and overrides in what was typed.

    Args:
        words: The command line behind the verb.

    Raises:
        ConfigError: if there is no such flag.
    """
    parser = get_args_parser()
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]

    def refuse(message: str) -> NoReturn:
        unknown = next((word for word in words if word.startswith("-") and f": {word}" in message), None)
        if unknown is None:
            raise ConfigError(message)
        raise ConfigError(f"{unknown}: no such option; {nearest(unknown, flags)}; settings have the form key=value")

    parser.error = refuse  # type: ignore[method-assign]
    arguments: argparse.Namespace = parser.parse_args(words)
    return arguments


def mistakes(arguments: argparse.Namespace) -> list[str]:
    """Everything that is wrong with a request, one text of a few lines each; what is right is made ready to run.

    Args:
        arguments: As parsed.
    """
    folders = [str(Path(arguments.config_dir).resolve())] if arguments.config_dir else []
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        return [f"--config-dir {arguments.config_dir}: is not there: give a folder of YAML files such as conf/"]
    if arguments.config_path:
        return [f"--config-path {arguments.config_path}: the program has its own: add yours with --config-dir"]
    found = _wrong_settings(arguments, folders)
    found += _wrong_directories(arguments)
    if not found and not any(getattr(arguments, name) for name in INFORMATION):
        found = _directories_that_cannot_be_made(arguments, folders)
    return ["\n".join(mistake.splitlines()[:LINES_OF_A_MISTAKE]) for mistake in dict.fromkeys(found)]


def _wrong_settings(arguments: argparse.Namespace, folders: list[str]) -> list[str]:
    name = arguments.config_name or "config"
    if arguments.shell_completion:
        return []
    if any(getattr(arguments, name) for name in INFORMATION):
        try:
            compose_config([] if arguments.multirun else arguments.overrides, config_name=name, config_dirs=folders)
        except ConfigError as error:
            return [str(error)]
        return []
    from samout_train.problems import checked_config
    from samout_train.run import run_directory_problems

    wrong = override_problems(arguments.overrides, config_dirs=folders, in_sweep=arguments.multirun)
    found = list(wrong.values())
    for overrides in _jobs(arguments, [word for word in arguments.overrides if word not in wrong]):
        composed, mistakes = checked_config(overrides, config_name=name, config_dirs=folders)
        found += mistakes
        if composed is not None and not found and not arguments.multirun:
            found += run_directory_problems(composed.config)
    return found


def _jobs(arguments: argparse.Namespace, words: list[str]) -> list[list[str]]:
    """The overrides of each job: in a sweep all combinations, so that a mistake in the last stops the first."""
    if not arguments.multirun:
        return [arguments.overrides]
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def _wrong_directories(arguments: argparse.Namespace) -> list[str]:
    keys, found = _values(arguments), []
    if arguments.multirun and "run_dir" in keys:
        found.append("run_dir is not for sweeps: each job gets its own directory below hydra.sweep.dir; set that")
    if arguments.multirun and "resume" not in keys and _holds_runs(Path(keys.get("hydra.sweep.dir", ""))):
        found.append(f"hydra.sweep.dir={keys['hydra.sweep.dir']}: holds runs already: give another directory")
    if "hydra.run.dir" in keys:
        found.append("hydra.run.dir: set run_dir=... instead, which is looked at before anything is written")
    return found


def _directories_that_cannot_be_made(arguments: argparse.Namespace, folders: list[str]) -> list[str]:
    """Makes the run's directory, so that what speaks against it is told like any other mistake."""
    if arguments.multirun:
        key, directory = "hydra.sweep.dir", _values(arguments).get("hydra.sweep.dir", "outputs/sweeps")
    else:
        composed = compose_config(
            arguments.overrides, config_name=arguments.config_name or "config", config_dirs=folders
        )
        key, directory = "run_dir", composed.config["run_dir"]
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [f"{key}={directory}: cannot be made ({error.strerror}): give another directory"]
    return []


def _values(arguments: argparse.Namespace) -> dict[str, str]:
    return {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in arguments.overrides}


def _holds_runs(sweep_dir: Path) -> bool:
    """Whether a folder that is not the working directory has runs one level down."""
    found = (path for name in ("metrics.jsonl", "checkpoints") for path in sweep_dir.glob(f"*/{name}"))
    return sweep_dir != Path() and any(found)
