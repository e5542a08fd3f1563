"""Find conf/, and compose YAML and overrides into a configuration.

`conf/` lies beside the package in a checkout and inside it in a wheel; whichever exists is used by its absolute path.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from samout_train.config.diagnostics import below_list, chosen_twice, in_few_words, is_of_kinds, wrong_kind
from samout_train.config.hydra import Hydra, HydraRun, create_config_search_path, get_omega_conf_dumper
from samout_train.config.moved import current
from samout_train.config.overrides import check_overrides, words_for_hydra
from samout_train.config.problem import ConfigError, Problem, require_no_problems, shown
from samout_train.config.signature import name_of
from samout_train.config.yaml_files import has_strange_keys, other_kind, yaml_problem
from samout_train.runtime import home_expanded

PACKAGE = Path(__file__).resolve().parent.parent
YAML_DUMPER = get_omega_conf_dumper()
INTERPOLATION = re.compile(r"(\\*)\$\{")
# What conf/config.yaml and Hydra have here; a run would be checked in one place and written to another with any other.
HYDRAS_DIRECTORIES = {
    "hydra.run.dir": ("${run_dir}", "set run_dir instead"),
    "hydra.sweep.subdir": ("${job_directory:}", "a job's directory has its settings' name"),
    "hydra.output_subdir": (".hydra", "leave it out"),
    "hydra.job.chdir": (None, "leave it out: paths are relative to where the program is started"),
    "hydra.mode": (None, "leave it out, and give -m on the command line"),
}
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Args:
        config: All keys of the program, resolved.
        choices: The chosen option of each group, such as {"model": "v8"}.
        yaml: The same as text.
        sweep_dir: Where the jobs of a sweep lie.
        swept: What the configuration sweeps over by itself: values by key, such as {"model": "v1,v8"}.
        named_by_time: Those of `run_dir` and `hydra.sweep.dir` that have `${now:...}` in them: each start gets its own.
        misplaced: What YAML sets although the directories of runs are the program's to make.
        launcher: What starts the jobs of a sweep.
        most_at_once: How many of them it starts together; None for all.
        run: What starts the run, of a configuration that was composed here.
    """

    config: dict[str, Any]
    choices: dict[str, str | None]
    yaml: str
    sweep_dir: str
    swept: dict[str, str]
    named_by_time: frozenset[str] = frozenset()
    misplaced: tuple[Problem, ...] = ()
    launcher: str | None = None
    most_at_once: int | None = None
    run: HydraRun | None = field(default=None, compare=False, repr=False)

    def lying_in(self, run_dir: Path) -> "Composed":
        """Return the same configuration with another `run_dir`, in its text too."""
        config = self.config | {"run_dir": str(run_dir)}
        return replace(self, config=config, yaml=_as_yaml(config))


def compose_config(
    overrides: Sequence[str], *, config_name: str = "config", config_dirs: Sequence[str] = (), typed: bool = True
) -> Composed:
    """Compose YAML and overrides. Keys that do not exist pass, so that `problems` can name all of them at once.

    Args:
        overrides: Such as `model=v1` or `optimizer.lr=1e-3`.
        config_name: The root YAML.
        config_dirs: Further folders to look for YAML in, absolute.
        typed: Whether the overrides are as a shell gave them; those of a sweep's job are as Hydra wrote them.

    Raises:
        ConfigError: if YAML or overrides cannot be composed.
    """
    folders = [CONF, *map(Path, config_dirs)]
    require_no_problems(list(check_overrides(overrides, folders=folders, typed=typed).values()))
    searched = create_config_search_path(str(CONF))
    for folder in config_dirs:
        searched.prepend("command-line", f"file://{folder}", anchor="schema")
    with _hydra_left_alone():
        try:
            version.setbase("1.3")
            hydra = Hydra.create_main_hydra2(task_name="samout_train", config_search_path=searched)
            words = words_for_hydra(overrides, folders=folders, typed=typed)
            composed = compose(config_name, words, return_hydra_config=True)
            HydraConfig.instance().set_config(composed)
            resolved = resolve(composed)
            if has_strange_keys(resolved.config, resolved.choices) and (
                found := yaml_problem(resolved.choices, config_name=config_name, folders=folders[::-1])
            ):
                raise ConfigError(found)
            return replace(resolved, run=HydraRun(hydra, composed, config_name))
        except ConfigError:
            raise
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError) as error:
            typed_choices = {word.partition("=")[0].lstrip("+~"): word.partition("=")[2] for word in overrides}
            twice = chosen_twice(error)
            twice = None if any(word.startswith(f"+{twice}=") for word in overrides) else twice
            places = folders[::-1]
            found = yaml_problem(typed_choices, config_name=config_name, folders=places, without_override=twice)
            if not found and is_of_kinds(error):
                other = other_kind(typed_choices, config_name=config_name, folders=places)
                found = wrong_kind(*other) if other else None
            raise ConfigError(found or below_list(error, overrides) or in_few_words(error, folders)) from error


def options_with(group: str, key: str) -> list[str]:
    """Return the options of a group in conf/ whose YAML sets a key, such as `text` and `jsonl` for `path` of `data`."""
    options = []
    for path in sorted((CONF / group).glob("*.yaml")):
        content = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(content, dict) and key in content:
            options.append(path.stem)
    return options


def resolve(composed: DictConfig) -> Composed:
    """Take a configuration out of Hydra's hands, as Hydra composed it; `hydra` itself is left out."""
    choices = dict(HydraConfig.get().runtime.choices)
    config = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])  # type: ignore[misc]
    container = home_expanded(OmegaConf.to_container(config, resolve=True))
    assert isinstance(container, dict)
    sweep_dir = str(home_expanded(HydraConfig.get().sweep.dir, "dir"))
    known = {name: option for name, option in choices.items() if "/" not in name}
    text = _as_yaml(container)
    sweeper = OmegaConf.to_container(HydraConfig.get().sweeper, resolve=True)
    assert isinstance(sweeper, dict)
    swept = {str(key): str(value) for key, value in (sweeper.get("params") or {}).items()}
    hydra = HydraConfig.get()
    directories = {"run_dir": unresolved(composed, "run_dir"), "hydra.sweep.dir": unresolved(hydra, "sweep.dir")}
    return Composed(
        {name_of(key): value for key, value in container.items()},
        known,
        text,
        sweep_dir,
        swept,
        frozenset(key for key, value in directories.items() if "${now:" in str(value)),
        tuple(_misplaced(HydraConfig.get())),
        choices.get("hydra/launcher"),
        sweeper.get("max_batch_size"),
    )


def _as_yaml(config: dict[str, Any]) -> str:
    """Return resolved settings as OmegaConf writes them, and reads them again."""
    plain = escaped(config)
    text: str = yaml.dump(plain, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=YAML_DUMPER)
    return text


def escaped(node: Any) -> Any:
    r"""Return plain settings so that resolving them gives them back: OmegaConf reads `\${x}` as the text `${x}`.

    Args:
        node: Dictionaries, lists and values.
    """
    if isinstance(node, Mapping):
        return {name: escaped(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(escaped, node))
    # A backslash means something only in front of what it can escape, so only there it is doubled.
    return INTERPOLATION.sub(lambda found: 2 * found[1] + r"\${", node) if isinstance(node, str) else node


def unresolved(config: Any, key: str) -> Any:
    """Return a value as it was written, before what it refers to is put in; None where there is none.

    Args:
        config: Of OmegaConf.
        key: With dots.
    """
    node: Any = OmegaConf.to_container(config, resolve=False)
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _misplaced(hydra: Any) -> list[Problem]:
    found = []
    for key, (usual, instead) in HYDRAS_DIRECTORIES.items():
        value = unresolved(hydra, key.removeprefix("hydra."))
        value = getattr(value, "name", value)  # of the mode, an enumeration
        if value != usual and (key, value) not in (("hydra.mode", "RUN"), ("hydra.job.chdir", False)):
            found.append(Problem(key, shown(value), text="has no meaning here", fix=instead, kind="value"))
    for name in ("launcher", "sweeper"):
        node, plugins = unresolved(hydra, name), Plugins.instance().class_name_to_class
        target = node.get("_target_") if isinstance(node, dict) else None
        fix = f"name the class of a {name} of Hydra, in a module of hydra_plugins"
        if target is None:
            found.append(Problem(f"hydra.{name}", text="has no _target_", fix=fix, kind="target"))
        elif target not in plugins:
            text = f"must be a {name} that Hydra finds"
            found.append(Problem(f"hydra.{name}._target_", target, text=text, fix=fix, kind="value"))
    return found


def locate(target: str) -> Any:
    """Return the class or function that a `_target_` names.

    Raises:
        ImportError: if there is no such thing; AttributeError or ValueError for what is no dotted path.
    """
    logger = logging.getLogger("hydra.utils")
    logger.disabled = True  # it would say the same again, at any length
    try:
        return get_object(current(target))
    finally:
        logger.disabled = False


def build(node: dict[str, Any], **late: Any) -> Any:
    """Build the component that a node describes by `_target_`; `late` are the arguments of a `_partial_` one.

    Hydra's `instantiate` would resolve each text again.
    """
    component = _built(node)
    return component(**late) if node.get("_partial_") else component


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return [_built(item) for item in value]
    if not isinstance(value, dict):
        return value
    settings = {key: _built(item) for key, item in value.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in value:
        return settings
    target = locate(value["_target_"])
    return partial(target, **settings) if value.get("_partial_") else target(**settings)


@contextmanager
def _hydra_left_alone() -> Iterator[None]:
    """Restore Hydra's state on leaving: composing in a program that Hydra runs must not end that Hydra."""
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
        HydraConfig.instance().cfg = config
