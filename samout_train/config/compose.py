"""Find conf/, and compose YAML and overrides into a configuration.

`conf/` is next to the package in a checkout and inside it in a wheel. The one that exists is used, by absolute path.
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
from omegaconf import DictConfig, OmegaConf, open_dict
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
# Required values, from conf/config.yaml and Hydra. With others, a run would be written to an unchecked directory.
HYDRAS_DIRECTORIES = {
    "hydra.run.dir": ("${run_dir}", "set run_dir instead"),
    "hydra.sweep.subdir": ("${job_directory:}", "a job's directory has its settings' name"),
    "hydra.output_subdir": (".hydra", "leave it out"),
    "hydra.job.chdir": (None, "leave it out: paths are relative to where the program is started"),
    "hydra.mode": (None, "leave it out, and give -m on the command line"),
}
CONF = next((path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir()), PACKAGE / "conf")


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Args:
        config: All keys of the program, resolved.
        choices: The chosen option of each group, such as {"model": "v8"}.
        yaml: The same as text.
        sweep_dir: The directory of a sweep, which contains the directories of its jobs.
        swept: The configuration's own sweep: values by key, such as {"model": "v1,v8"}.
        named_by_time: Which of `run_dir` and `hydra.sweep.dir` contain `${now:...}`: each start gets a new directory.
        misplaced: Problems with keys that would move the directories of runs.
        launcher: Starts the jobs of a sweep.
        most_at_once: Jobs that the launcher runs at a time; None for all.
        run: Starts the run; None if Hydra itself composed the configuration.
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
        """Return the same configuration with another `run_dir`, in its text too.

        Settings that refer to `run_dir` follow it, except in a sweep's job, whose settings were checked before.
        """
        if self.run is None:
            return self.with_config(self.config | {"run_dir": str(run_dir)})
        config = self.run.config
        with _hydra_state_restored():
            with open_dict(config):
                config.run_dir = escaped(str(run_dir))
            HydraConfig.instance().set_config(config)
            return replace(resolve(config), run=self.run)

    def with_config(self, config: dict[str, Any]) -> "Composed":
        """Return the same configuration with other settings, in its text too."""
        return replace(self, config=config, yaml=_as_yaml(config))


def compose_config(
    overrides: Sequence[str], *, config_name: str = "config", config_dirs: Sequence[str] = (), typed: bool = True
) -> Composed:
    """Compose YAML and overrides. Unknown keys are kept, so that `check_settings` can report all of them at once.

    Args:
        overrides: Such as `model=v1` or `optimizer.lr=1e-3`.
        config_name: The root YAML.
        config_dirs: Further folders of YAML files, absolute.
        typed: Whether the overrides are as typed; those of a sweep's job were rewritten by Hydra.

    Raises:
        ConfigError: if YAML or overrides cannot be composed.
    """
    folders = [CONF, *map(Path, config_dirs)]
    require_no_problems(list(check_overrides(overrides, folders=folders, typed=typed).values()))
    return compose_checked(overrides, config_name=config_name, config_dirs=config_dirs, typed=typed)


def compose_checked(overrides: Sequence[str], *, config_name: str, config_dirs: Sequence[str], typed: bool) -> Composed:
    """Compose YAML and overrides in which `check_overrides` found nothing wrong; see `compose_config`."""
    folders = [CONF, *map(Path, config_dirs)]
    searched = create_config_search_path(str(CONF))
    for folder in config_dirs:
        searched.prepend("command-line", f"file://{folder}", anchor="schema")
    with _hydra_state_restored():
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
            typed_choices = {}
            twice = chosen_twice(error)
            for word in overrides:
                key, _, value = word.partition("=")
                typed_choices[key.lstrip("+~")] = value
                if key == f"+{twice}":
                    twice = None
            places = folders[::-1]
            found = yaml_problem(typed_choices, config_name=config_name, folders=places, without_override=twice)
            if not found and is_of_kinds(error):
                other = other_kind(typed_choices, config_name=config_name, folders=places)
                if other:
                    found = wrong_kind(*other)
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
    """Return Hydra's composed configuration as plain, resolved values, without the node `hydra`.

    Mixers named in a pattern are added from their YAML.
    """
    hydra = HydraConfig.get()
    _add_mixers(composed)
    config = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])  # type: ignore[misc]
    container = home_expanded(OmegaConf.to_container(config, resolve=True))
    assert isinstance(container, dict)
    settings = {}
    for key, value in container.items():
        settings[name_of(key)] = value
    choices = {}
    for name, option in hydra.runtime.choices.items():
        if "/" not in name and "@" not in name:  # neither Hydra's own nor part of another group's option
            choices[name] = option
    sweeper = OmegaConf.to_container(hydra.sweeper, resolve=True)
    assert isinstance(sweeper, dict)
    swept = {}
    for key, values in (sweeper.get("params") or {}).items():
        swept[str(key)] = str(values)
    named_by_time = set()
    if "${now:" in str(unresolved(composed, "run_dir")):
        named_by_time.add("run_dir")
    if "${now:" in str(unresolved(hydra, "sweep.dir")):
        named_by_time.add("hydra.sweep.dir")
    return Composed(
        config=settings,
        choices=choices,
        yaml=_as_yaml(container),
        sweep_dir=str(home_expanded(hydra.sweep.dir, "dir")),
        swept=swept,
        named_by_time=frozenset(named_by_time),
        misplaced=tuple(_misplaced(hydra)),
        launcher=hydra.runtime.choices.get("hydra/launcher"),
        most_at_once=sweeper.get("max_batch_size"),
    )


def _add_mixers(composed: DictConfig) -> None:
    """Add mixers that a model's pattern names but its YAML lacks, from the files of mixer/, a user's included.

    Typed settings of such a mixer are kept.
    """
    model = unresolved(composed, "model")
    if not isinstance(model, dict):
        return
    pattern, mixers = model.get("pattern"), model.get("mixers")
    if not (isinstance(pattern, list) and isinstance(mixers, dict) and GlobalHydra.instance().is_initialized()):
        return
    options = GlobalHydra.instance().config_loader().get_group_options("mixer")
    for name in dict.fromkeys(pattern):
        typed = mixers.get(name, {})
        if name not in options or not isinstance(typed, dict) or "_target_" in typed:
            continue
        file = OmegaConf.to_container(compose(overrides=[f"+mixer@mixer={name}"]).mixer)
        with open_dict(composed):
            composed.model.mixers[name] = OmegaConf.merge(file, typed)


def _as_yaml(config: dict[str, Any]) -> str:
    """Return resolved settings as YAML that OmegaConf reads back unchanged."""
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
    if isinstance(node, str):
        # OmegaConf reads a backslash as an escape only before ${, so only there it is doubled.
        return INTERPOLATION.sub(lambda found: 2 * found[1] + r"\${", node)
    return node


def unresolved(config: Any, key: str) -> Any:
    """Return a value before interpolation; None if the key is missing.

    Args:
        config: An OmegaConf configuration.
        key: The dotted key.
    """
    node: Any = OmegaConf.to_container(config, resolve=False)
    for name in key.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(name)
    return node


def _misplaced(hydra: Any) -> list[Problem]:
    found = []
    for key, (usual, instead) in HYDRAS_DIRECTORIES.items():
        value = unresolved(hydra, key.removeprefix("hydra."))
        value = getattr(value, "name", value)  # hydra.mode is an enumeration
        if value != usual and (key, value) not in (("hydra.mode", "RUN"), ("hydra.job.chdir", False)):
            found.append(Problem(key, shown(value), text="has no meaning here", fix=instead, kind="value"))
    for name in ("launcher", "sweeper"):
        node, plugins = unresolved(hydra, name), Plugins.instance().class_name_to_class
        target = None
        if isinstance(node, dict):
            target = node.get("_target_")
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
        ImportError: if it does not exist.
        AttributeError, ValueError: if `target` is not a dotted path.
    """
    logger = logging.getLogger("hydra.utils")
    logger.disabled = True  # it would log the same error again with a traceback
    try:
        return get_object(current(target))
    finally:
        logger.disabled = False


def build(node: dict[str, Any], **late: Any) -> Any:
    """Build the component that the `_target_` of a node names; `late` holds further arguments of a `_partial_` node.

    Hydra's `instantiate` would resolve interpolations a second time.
    """
    component = _built(node)
    if node.get("_partial_"):
        return component(**late)
    return component


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return [_built(item) for item in value]
    if not isinstance(value, dict):
        return value
    settings = {}
    for key, item in value.items():
        if key not in ("_target_", "_partial_"):
            settings[key] = _built(item)
    if "_target_" not in value:
        return settings
    target = locate(value["_target_"])
    if value.get("_partial_"):
        return partial(target, **settings)
    return target(**settings)


@contextmanager
def _hydra_state_restored() -> Iterator[None]:
    """Restore Hydra's state at the end: composing must not reset it for a program that Hydra itself runs."""
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
        HydraConfig.instance().cfg = config
