"""What the rest of the program takes from Hydra by other ways than its public ones: its parsers and its sweeps.

The parser of the command line is made as Python 3.14 takes it, and with this program's version in it.

Hydra 1.3 gives argparse a help text that is made only when it is shown. From Python 3.14 on, argparse looks for a `%`
in each help text at once, which that object does not support.
"""

import argparse
import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import hydra._internal.utils as hydra_utils
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

import samout_train
from samout_train.config.compose import ConfigError


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


# Hydra makes a parser in several places, each through this name of its module.
hydra_utils.argparse = SimpleNamespace(**{**vars(argparse), "ArgumentParser": Parser})  # type: ignore[assignment, attr-defined]
get_args_parser = hydra_utils.get_args_parser


def is_swept(word: str) -> bool:
    """Return whether an override gives several values, of which a sweep takes one after another."""
    return bool(OverridesParser.create().parse_override(word).is_sweep_override())


def key_or_group(word: str) -> str:
    """Return the key or the group that an override sets, as Hydra names jobs by it."""
    return str(OverridesParser.create().parse_override(word).key_or_group)


def combinations(words: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep: all combinations of the values of these.

    Raises:
        ConfigError: if that makes no sweep.
    """
    try:
        batches = BasicSweeper.split_arguments(
            OverridesParser.create().parse_overrides(list(words)), max_batch_size=None
        )
    except (HydraException, ValueError) as error:
        raise ConfigError(f"these values make no sweep: {error}") from error
    return [list(job) for batch in batches for job in batch]


def register_text(name: str, text_of: Callable[[Any], str]) -> None:
    """Let `${name:}` in a YAML stand for a text that is made of the whole configuration.

    Args:
        name: Without the dollar; one that is known already gets the new meaning.
        text_of: Gets the root of the configuration.
    """

    def resolver(*, _root_: Any) -> str:
        return text_of(_root_)

    OmegaConf.register_new_resolver(name, resolver, replace=True)
