"""Read the settings that a run saved next to its checkpoints; names of earlier versions are made current."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from samout_train.config.diagnostics import in_few_words
from samout_train.config.moved import current_settings
from samout_train.config.problem import ConfigError
from samout_train.runtime import home_expanded, require_regular_file


def saved_node(path: Path, name: str = "model") -> dict[str, Any]:
    """Return a node of a saved configuration as plain values; nothing that it names is imported.

    Args:
        path: Its `.hydra/config.yaml`.
        name: Such as `model`, the settings of the model.

    Raises:
        ConfigError: if the file is missing or cannot be read.
    """
    try:
        require_regular_file(path)
        config, node = OmegaConf.load(path), None
        if isinstance(config, DictConfig):
            node = config.get(name)
        if not isinstance(node, DictConfig):
            raise ValueError(f"has no {name}")
        content = OmegaConf.to_container(node, resolve=True)
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        reason = in_few_words(error, [])
        raise ConfigError(
            f"{path}: does not say how the {name} was built ({reason}): restore what the run wrote"
        ) from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in current_settings(content).items()}


def saved_config(path: Path) -> dict[str, Any]:
    """Return a saved configuration as plain values, without `run_dir`, which only Hydra could resolve.

    Args:
        path: Its `.hydra/config.yaml`.

    Raises:
        ConfigError: if the file is missing or cannot be read.
    """
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise ValueError("is not a configuration")
        known = OmegaConf.masked_copy(config, [str(key) for key in config if key != "run_dir"])
        content = OmegaConf.to_container(known, resolve=True)
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({in_few_words(error, [])})") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in current_settings(content).items()}


def saved_keys(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return some top-level keys of a saved configuration as plain values.

    Only these are resolved: others may refer to values that only Hydra knows.

    Args:
        path: Its `.hydra/config.yaml`.
        keys: Missing ones are left out.

    Raises:
        ValueError: if the file cannot be read; the message is the reason in a few words.
    """
    try:
        config = OmegaConf.load(path)
        content = None
        if isinstance(config, DictConfig):
            known = OmegaConf.masked_copy(config, [*keys])
            content = home_expanded(OmegaConf.to_container(known, resolve=True))
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        raise ValueError(str(in_few_words(error, []))) from error
    if not isinstance(content, dict):
        raise ValueError("it is not a dict")
    return content


def list_as_yaml(words: Sequence[str]) -> str:
    """Return a list of texts as YAML, as Hydra writes `overrides.yaml`."""
    return OmegaConf.to_yaml(list(words))


def saved_choice(run_dir: Path, group: str) -> str | None:
    """Return the option of a group that a run chose, such as `v8` of `model`; None if Hydra did not record it.

    Args:
        run_dir: Its directory.
        group: Such as `model`.
    """
    try:
        chosen = OmegaConf.select(OmegaConf.load(run_dir / ".hydra" / "hydra.yaml"), f"hydra.runtime.choices.{group}")
    except (OSError, OmegaConfBaseException, YAMLError):
        return None
    if isinstance(chosen, str):
        return chosen
    return None


def saved_seed(path: Path) -> int:
    """Return the seed of a saved configuration; 0 if it has none."""
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        return 0
    seed = config.get("seed")
    if not isinstance(seed, int):
        return 0
    return seed
