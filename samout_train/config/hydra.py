"""Run Hydra. Only this module imports from private modules of Hydra and OmegaConf.

Hydra 1.3 gives argparse a lazy help object, whose text is made only when it is shown. Since Python 3.14, argparse
searches each help text for `%` immediately, which that object does not support.
"""

import argparse
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra._internal.hydra as hydra_module
import hydra._internal.utils as hydra_utils
from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper as BasicSweeper
from hydra._internal.hydra import Hydra as Hydra
from hydra._internal.utils import create_config_search_path as create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf._utils import get_omega_conf_dumper as get_omega_conf_dumper

import samout_train


class Parser(argparse.ArgumentParser):
    """The parser that Hydra fills."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument; let a lazy help object answer that it contains no `%`."""
        if settings.get("action") == "version":
            settings |= {"version": version_line(), "help": "Show the version and exit"}
        text = settings.get("help")
        if text is not None and not hasattr(text, "__contains__"):
            type(text).__contains__ = lambda self, part: False
        return super().add_argument(*names, **settings)


@cache
def version_line() -> str:
    """Return the versions of samout_train, torch and Python; torch is not imported for it."""
    try:
        torch = f"torch {importlib.metadata.version('torch')}"
    except importlib.metadata.PackageNotFoundError:
        torch = "no torch"
    return f"samout_train {samout_train.__version__}, {torch}, Python {platform.python_version()}"


def get_args_parser() -> argparse.ArgumentParser:
    """Return Hydra's parser of the command line, made to work with Python 3.14, and with this program's version."""
    # Hydra makes its parser through this name of its module.
    hydra_utils.argparse = SimpleNamespace(**{**vars(argparse), "ArgumentParser": Parser})  # type: ignore[assignment, attr-defined]
    return hydra_utils.get_args_parser()


def run_hydra(
    arguments: argparse.Namespace,
    overrides: Sequence[str],
    task: Callable[[DictConfig], None],
    *,
    folder: Path,
    config_name: str = "config",
) -> None:
    """Let Hydra answer a question or make a sweep, like `hydra.main` but without parsing `sys.argv` again.

    Args:
        arguments: The parsed command line.
        overrides: Used in place of the overrides on the command line.
        task: Called for each job with its configuration.
        folder: The folder of the YAML files.
        config_name: The root YAML, unless the command line names another one.

    Raises:
        SystemExit: after an answer, and if a job raised.
    """
    version.setbase("1.3")
    hydra_utils._run_hydra(
        args=argparse.Namespace(**{**vars(arguments), "overrides": list(overrides)}),
        args_parser=get_args_parser(),
        task_function=task,
        config_path=str(folder),
        config_name=config_name,
    )


@dataclass(frozen=True)
class HydraRun:
    """A composed configuration that can be run as `hydra.main` would run it.

    Args:
        hydra: The instance that composed it.
        config: The whole configuration, with the node `hydra`.
        config_name: The root YAML.
    """

    hydra: Hydra
    config: DictConfig
    config_name: str

    def start(self, task: Callable[[DictConfig], None], *, run_dir: str, words: Sequence[str], logs: bool) -> None:
        """Configure the log, make the run's directory and call the task, once.

        Args:
            task: Called with the configuration, without the node `hydra`.
            run_dir: The run directory, escaped for OmegaConf.
            words: Overrides to record after the composed ones.
            logs: Whether to write the log as configured; only one process of a run does.

        Raises:
            SystemExit: with code 1 after the traceback, if the task raised.
        """
        config, hydra = self.config, self.hydra
        with open_dict(config), read_write(config.hydra):
            config.run_dir = run_dir
            config.hydra.output_subdir = None  # the run writes these files once it has claimed the directory
            config.hydra.mode = RunMode.RUN
            config.hydra.overrides.hydra.append("hydra.output_subdir=null")
            config.hydra.overrides.hydra.append("hydra.mode=RUN")
            config.hydra.overrides.task.extend(words)
            naming = config.hydra.job.config.override_dirname
            config.hydra.job.override_dirname = get_overrides_dirname(
                overrides=OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)),
                exclude_keys=naming.exclude_keys,
                item_sep=naming.item_sep,
                kv_sep=naming.kv_sep,
            )
            if not logs:
                config.hydra.run.dir = "."

        def run() -> None:
            if logs:
                configure_log(config.hydra.hydra_logging, config.hydra.verbose)
                hydra_module.log = logging.getLogger(hydra_module.__name__)
                hydra._print_debug_info(self.config_name, list(config.hydra.overrides.task), RunMode.RUN)
            callbacks = Callbacks(config)
            callbacks.on_run_start(config=config, config_name=self.config_name)
            done = run_job(
                hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=callbacks),
                task_function=task,
                config=config,
                job_dir_key="hydra.run.dir",
                job_subdir_key=None,
                configure_logging=logs,
            )
            callbacks.on_run_end(config=config, config_name=self.config_name, job_return=done)
            done.return_value  # noqa: B018  # raises what the task raised

        GlobalHydra.instance().hydra = hydra
        try:
            hydra_utils.run_and_report(run)
        finally:
            GlobalHydra.instance().clear()

    def answer(self, arguments: argparse.Namespace) -> None:
        """Print what `--help` or `--cfg` asks for.

        Args:
            arguments: The parsed command line.
        """
        hydra = self.hydra
        hydra.compose_config = lambda *_, **__: self.config  # type: ignore[method-assign]  # Hydra would compose it again
        if arguments.help:
            hydra.app_help(self.config_name, get_args_parser(), arguments)
        else:
            shown = partial(hydra.show_cfg, self.config_name, [], arguments.cfg, arguments.package, arguments.resolve)
            hydra_utils.run_and_report(shown)
