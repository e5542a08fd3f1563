"""Where conf/ is, and how overrides become a configuration that is known to be right.

`conf/` lies beside the package in a checkout and inside it in a wheel; whichever exists is used by its absolute path.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from samout_train.hydra_messages import in_few_words, missing_option, options_of

PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
LONGEST_JOB_DIRECTORY = 120
MAY_BE_NULL = ("experiment",)
# Keys whose values are text: commas, equals signs, brackets and digits in them mean nothing to Hydra.
TEXT_KEYS = (
    *("run_dir", "resume", "data.path", "data.pattern", "data.vocabulary_path"),
    "callbacks.sample.prompt",
)


class ConfigError(ValueError):
    """The request is wrong; the message lists every mistake."""


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Args:
        config: All keys of the program, resolved.
        choices: The chosen option of each group, such as {"model": "v8"}.
        yaml: The same as text.
    """

    config: dict[str, Any]
    choices: dict[str, str | None]
    yaml: str


def compose_config(
    overrides: Sequence[str], *, config_name: str = "config", config_dirs: Sequence[str] = ()
) -> Composed:
    """Composes YAML and overrides. Keys that do not exist pass, so that `problems` can name all of them at once.

    Args:
        overrides: Such as `model=v1` or `optimizer.lr=1e-3`.
        config_name: The root YAML.
        config_dirs: Further folders to look for YAML in, absolute.

    Raises:
        ConfigError: if YAML or overrides cannot be composed.
    """
    folders = [CONF, *map(Path, config_dirs)]
    if wrong := override_problems(overrides, config_dirs=config_dirs):
        raise ConfigError("\n".join(wrong.values()))
    register_resolvers()
    searched = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in config_dirs)}]"] if config_dirs else []
    with _hydra_left_alone():
        try:
            with initialize_config_dir(str(CONF), version_base="1.3", job_name="samout_train"):
                words = [_let_pass(quote_text(override), folders) for override in overrides] + searched
                composed = compose(config_name, words, return_hydra_config=True)
                HydraConfig.instance().set_config(composed)
                return resolve(composed)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
            raise ConfigError(in_few_words(error, folders)) from error


def override_problems(
    overrides: Sequence[str], *, config_dirs: Sequence[str] = (), in_sweep: bool = False
) -> dict[str, str]:
    """What is wrong with overrides one by one: how they are written, and options that a group has not.

    Args:
        overrides: As typed.
        config_dirs: Further folders to look for YAML in.
        in_sweep: Whether several values for a key are meant.

    Returns:
        By override, those that are wrong only.
    """
    folders = [CONF, *map(Path, config_dirs)]
    parser, found = OverridesParser.create(), {}
    for word in overrides:
        key = word.partition("=")[0]
        try:
            override = parser.parse_override(word if in_sweep else quote_text(word))
        except HydraException:
            hint = f"put a value with special characters in quotes of its own: {key}='\"...\"'"
            found[word] = (
                f"{word}: cannot be read: {hint}" if "=" in word else f"{word}: has no value: write {word}=..."
            )
            continue
        if override.is_sweep_override() and not in_sweep:
            found[word] = f"{word}: several values need -m, which makes a sweep; a list is written {key}=[...]"
        elif problem := _wrong_option(override, folders):
            found[word] = problem
    return found


def _wrong_option(override: Override, folders: Sequence[Path]) -> str | None:
    group, options = override.key_or_group, options_of(override.key_or_group, folders)
    if not options or override.is_delete():
        return None
    if not override.is_sweep_override():
        chosen = override.value()
    elif override.is_choice_sweep():
        chosen = list(override.sweep_iterator())
    else:
        return None  # a glob over what there is
    chosen = chosen if isinstance(chosen, list) else [chosen]
    if any(not isinstance(option, str) for option in chosen) and not (group in MAY_BE_NULL and chosen == [None]):
        return f"{override.input_line}: choose an option of {group}: {', '.join(options)}"
    absent = [option for option in chosen if option is not None and option not in options]
    return missing_option(group, absent[0], options) if absent else None


def options_with(group: str, key: str) -> list[str]:
    """The options of a group in conf/ whose YAML sets a key, such as `text` and `jsonl` for `path` of `data`."""
    contents = {
        path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF / group).glob("*.yaml"))
    }
    return [option for option, content in contents.items() if isinstance(content, dict) and key in content]


def resolve(composed: DictConfig) -> Composed:
    """Takes a configuration out of Hydra's hands; `hydra` itself is left out of it.

    Args:
        composed: As Hydra composed it.
    """
    choices = dict(HydraConfig.get().runtime.choices)
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    OmegaConf.resolve(config)
    container = OmegaConf.to_container(config)
    assert isinstance(container, dict)
    known = {name: option for name, option in choices.items() if "/" not in name}
    return Composed({str(key): value for key, value in container.items()}, known, OmegaConf.to_yaml(config))


def quote_text(override: str) -> str:
    """Quotes the value of a key that takes text, so that Hydra reads it as the shell gave it."""
    key, equals, value = override.partition("=")
    is_text = key.lstrip("+") in TEXT_KEYS and equals and value not in ("", "null", "???")
    if not is_text or value[0] in "'\"" or "${" in value:
        return override
    return f"{key}='{value.replace(chr(39), chr(92) + chr(39))}'"


def locate(target: str) -> Any:
    """The class or function that a `_target_` names.

    Raises:
        ImportError: if there is no such thing; AttributeError or ValueError for what is no dotted path.
    """
    return get_object(target)


def build(node: dict[str, Any], **late: Any) -> Any:
    """Builds the component that a node describes by `_target_`; `late` are the arguments of a `_partial_` one."""
    component = instantiate(node, _convert_="all")
    return component(**late) if node.get("_partial_") else component


def register_resolvers() -> None:
    """Makes `${job_directory:...}` known, which names a job's directory in a sweep."""
    OmegaConf.register_new_resolver("job_directory", _job_directory, replace=True)


def _job_directory(number: Any, overrides: Any) -> str:
    """`1_model=v8,optimizer.lr=0.001`: readable, unique in its sweep, and one folder whatever the values are."""
    readable = re.sub(r"[^\w=.,+-]+", "-", str(overrides))
    return f"{number}_{readable}"[:LONGEST_JOB_DIRECTORY].rstrip(".,-_")


def _let_pass(override: str, folders: Sequence[Path]) -> str:
    key, equals, _ = override.partition("=")
    is_group = any((folder / key).is_dir() for folder in folders)
    if not equals or not key or key[0] in "+~" or "@" in key or key.startswith("hydra") or is_group:
        return override
    return "++" + override


@contextmanager
def _hydra_left_alone() -> Iterator[None]:
    """Composing inside a program that Hydra runs must not end that program's Hydra."""
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
        HydraConfig.instance().cfg = config
