"""Read overrides with several values, as in Hydra's sweeps."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from samout_train.config.hydra import BasicSweeper
from samout_train.config.overrides import quote_text
from samout_train.config.problem import ConfigError


def is_swept(word: str) -> bool:
    """Return whether an override gives several values, one for each job of a sweep."""
    return bool(OverridesParser.create().parse_override(word).is_sweep_override())


def swept_words(words: Sequence[str]) -> list[str]:
    """Return the overrides, as typed, that give several values; unreadable ones are left out."""
    found = []
    for word in words:
        with suppress(HydraException):
            if is_swept(quote_text(word)):
                found.append(word)
    return found


def key_or_group(word: str) -> str:
    """Return the key or group that an override sets, by which Hydra names jobs."""
    return str(OverridesParser.create().parse_override(word).key_or_group)


def combinations(words: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep: all combinations of their values.

    Raises:
        ConfigError: if Hydra cannot read the values as a sweep.
    """
    try:
        batches = BasicSweeper.split_arguments(
            OverridesParser.create().parse_overrides(list(words)), max_batch_size=None
        )
    except (HydraException, ValueError) as error:
        raise ConfigError(f"these values make no sweep: {error}") from error
    jobs: list[list[str]] = []
    for batch in batches:
        jobs += map(list, batch)
    return jobs


def register_text(name: str, text_of: Callable[[Any], str]) -> None:
    """Let `${name:}` in a YAML stand for a text computed from the whole configuration.

    Args:
        name: Without the dollar; an existing resolver is replaced.
        text_of: Called with the root of the configuration.
    """

    def resolver(*, _root_: Any) -> str:
        return text_of(_root_)

    OmegaConf.register_new_resolver(name, resolver, replace=True)
