"""All that is imported from the private modules of Hydra and OmegaConf, and Hydra's parser of the command line.

Hydra 1.3 gives argparse a help text that is made only when it is shown. From Python 3.14 on, argparse looks for a `%`
in each help text at once, which that object does not support.
"""

import argparse
import importlib.metadata
import platform
from functools import cache
from types import SimpleNamespace
from typing import Any

import hydra._internal.utils as hydra_utils
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper as BasicSweeper
from hydra._internal.hydra import Hydra as Hydra
from hydra._internal.utils import create_config_search_path as create_config_search_path
from omegaconf._utils import get_omega_conf_dumper as get_omega_conf_dumper

import samout_train


class Parser(argparse.ArgumentParser):
    """The parser that Hydra fills."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument; argparse finds no `%` in a help text that is made later."""
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
    """Return Hydra's parser of the command line, as Python 3.14 takes it, with this program's version in it."""
    # Hydra makes parsers later, too, each through this name of its module.
    hydra_utils.argparse = SimpleNamespace(**{**vars(argparse), "ArgumentParser": Parser})  # type: ignore[assignment, attr-defined]
    return hydra_utils.get_args_parser()
