"""Parse the words behind a verb: flags and overrides, their problems, and the settings that they make."""

import argparse
import os
import re
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from samout_train.config import (
    CONF,
    Composed,
    ConfigError,
    Problem,
    as_problems,
    as_typed,
    check_overrides,
    compose_config,
    get_args_parser,
    is_there,
    key_of,
    nearest,
    quote_text,
    wrong_flag,
)
from samout_train.experiments import (
    common_keys,
    job_name,
    jobs_at_once,
    jobs_of,
    check_sweep,
    without_sweeps,
)
from samout_train.runtime import Bar, PlaceError, home_path, in_words, is_full, shell_word

INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")
PATH_KEYS = ("path", "run", "dir", "runs")  # of the verbs, by which they get what they are about
LINES_OF_A_MISTAKE = 8
MOST_MISTAKES = 30
JOBS_THAT_TAKE_A_WHILE = 20
BYTES_TO_BEGIN = 1 << 16  # settings and the log, before the first checkpoint


class Request:
    """One command line, with its flags and overrides told apart.

    Args:
        words: The command line behind the verb.
        config_name: The root YAML where none is given.
        writes: Whether it is for this process to look at the run's directory and to make it.

    Raises:
        ConfigError: if a flag is wrong, or a word is a path and no setting.
    """

    def __init__(self, words: Sequence[str], config_name: str = "config", *, writes: bool = True) -> None:
        self.words, self.writes = list(words), writes
        self.arguments = _parsed(words)
        if found := [] if self.arguments.shell_completion else _paths_alone(self.arguments.overrides, config_name):
            raise ConfigError(*found)
        self.flags = _with_home([word for word in words if word not in self.arguments.overrides])
        self.overrides: list[str] = last_of_each(self.arguments.overrides)
        self.in_sweep = bool(self.arguments.multirun)
        if self.in_sweep:
            self.overrides = [quote_text(word, in_sweep=True) for word in self.overrides]
        self.config_name: str = self.arguments.config_name or config_name
        if self.arguments.config_dir:
            self.arguments.config_dir = str(home_path(self.arguments.config_dir))
        self.config_dirs = [str(Path(self.arguments.config_dir).resolve())] if self.arguments.config_dir else []
        self.folders = [CONF, *map(Path, self.config_dirs)]
        self.asks_only = any(getattr(self.arguments, name) for name in INFORMATION)
        self.run_dir: str | None = None  # where the run will lie, known once there is no mistake
        self.made_run_dir = False  # whether it was not there before
        self.swept: dict[str, str] = {}  # what the configuration of a sweep sweeps over by itself
        self.jobs: dict[str, list[str]] = {}  # of a sweep, by name, as a person would type them
        self.configs: dict[str, dict[str, Any]] = {}  # of those jobs
        self.gets_new_directory = False  # whether run_dir is made of the time, so that no other start may have it
        self.composed: Composed | None = None  # once it is known to be right
        self.own_words: list[str] = []  # overrides that a verb composes itself
        self.at_once = 1  # jobs of a sweep that share this machine's cores, where its launcher does not share them out

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, of a request that is known to be right."""
        assert self.composed is not None
        return self.composed.config

    def choice(self, group: str) -> str | None:
        """Return the chosen option of a group."""
        assert self.composed is not None
        return self.composed.choices.get(group)

    def is_named_by_time(self, key: str) -> bool:
        """Return whether `${now:...}` is in the value of `run_dir` or `hydra.sweep.dir`."""
        return self.composed is not None and key in self.composed.named_by_time

    def take_out(self, keys: Sequence[str]) -> None:
        """Take the overrides of some keys out of those that make the settings, into `own_words`."""
        starts = tuple(f"{key}{end}" for key in keys for end in "=.")
        self.own_words = [word for word in self.overrides if starts and word.lstrip("+").startswith(starts)]
        self.overrides = [word for word in self.overrides if word not in self.own_words]

    def mistakes(self) -> list[str]:
        """Everything that is wrong with it, one text of a few lines each; none makes the run's directory."""
        if self.arguments.shell_completion:
            return []
        found = self._wrong_settings() if not self.asks_only else self._wrong_composition()
        if not found and not self.asks_only and self.writes:
            found = self._wrong_directory()
        told = ["\n".join(message.splitlines()[:LINES_OF_A_MISTAKE]) for message in dict.fromkeys(map(str, found))]
        return told[:MOST_MISTAKES] + [f"and {len(told) - MOST_MISTAKES} more"] * (len(told) > MOST_MISTAKES)

    def _wrong_composition(self) -> list[Problem]:
        try:
            overrides = [] if self.in_sweep else self.overrides
            composed = compose_config(overrides, config_name=self.config_name, config_dirs=self.config_dirs)
            return self.package_problems(composed.config)
        except ConfigError as error:
            return error.problems

    def package_problems(self, config: dict[str, Any]) -> list[Problem]:
        """Return what is wrong with the part of the settings that --package asks for.

        Args:
            config: All of them but Hydra's own.
        """
        package = self.arguments.package
        if not package or package == "_global_":
            return []
        node: Any = config if self.arguments.cfg == "job" else OmegaConf.create({**config, "hydra": HydraConf})
        if self.arguments.cfg == "hydra":
            node = OmegaConf.create({"hydra": HydraConf})
        before = ""
        for name in package.split("."):
            known = [str(key) for key in node] if isinstance(node, dict | DictConfig) else []
            if name not in known:
                return [Problem(f"--package {package}", text=f"no such key; {nearest(name, known, prefix=before)}")]
            node = node[name] if isinstance(node, dict) else OmegaConf.select(node, name, default=None)
            before += f"{name}."
        return []

    def _wrong_settings(self) -> list[Problem]:
        from samout_train.checkpoint import check_resume, check_run_directory
        from samout_train.training import checked_config

        if self.in_sweep:
            return self._wrong_sweep()
        composed, found = checked_config(self.overrides, config_name=self.config_name, config_dirs=self.config_dirs)
        if composed is not None and not found:
            self.composed = composed
            config, self.run_dir = composed.config, composed.config["run_dir"]
            self.gets_new_directory = "run_dir" in composed.named_by_time
            found = as_problems(check_resume(composed))
            if self.writes and not self.gets_new_directory:
                found += as_problems(check_run_directory(config))
        return found

    def _wrong_sweep(self) -> list[Problem]:
        from samout_train.checkpoint import check_resume
        from samout_train.training import checked_config, without_missing

        wrong = check_overrides(self.overrides, folders=self.folders, in_sweep=True)
        words, found = [word for word in self.overrides if word not in wrong], list(wrong.values())
        if any(key_of(word) == "run_dir" for word in self.overrides):
            text = "run_dir is not for sweeps: each job gets its own directory below hydra.sweep.dir; set that"
            found.append(Problem(text=text))
        if any(key_of(word) == "hydra.sweep.dir" and word not in without_sweeps([word]) for word in words):
            return [*found, Problem("hydra.sweep.dir", text="must be one directory, for all jobs")]
        common = compose_config(
            without_sweeps(words), config_name=self.config_name, config_dirs=self.config_dirs, typed=False
        )
        self.swept = common.swept
        left_out = common_keys(words, self.swept)
        jobs = jobs_of(words, self.swept)
        self.at_once = jobs_at_once(common, len(jobs))
        for job in Bar(jobs, desc="checking jobs", leave=False, disable=len(jobs) < JOBS_THAT_TAKE_A_WHILE):
            composed, mistakes = checked_config(
                job, config_name=self.config_name, config_dirs=self.config_dirs, typed=False
            )
            found += without_missing(mistakes, wrong)
            if composed is not None and not mistakes:
                found += as_problems(check_resume(composed, "hydra.sweep.dir"))
                found += as_problems(check_sweep(composed, job, left_out))
                self.run_dir, name = composed.sweep_dir, job_name(job, left_out)
                earlier = self.configs.get(name, composed.config)
                if {**earlier, "run_dir": ""} != {**composed.config, "run_dir": ""}:  # which has the time in it
                    text = f"would lie in {name}, as another job does"
                    found.append(Problem(" ".join(job), text=text, fix="give each value once"))
                self.gets_new_directory = "hydra.sweep.dir" in composed.named_by_time
                self.jobs[name] = [as_typed(word) for word in job if not key_of(word).startswith("hydra")]
                self.configs[name] = composed.config
        return found

    def _wrong_directory(self) -> list[Problem]:
        """Makes the directory and writes into it, so that what speaks against it is told like any other mistake."""
        from samout_train.checkpoint import new_directory

        if self.run_dir is None:
            return []
        key, directory = "hydra.sweep.dir" if self.in_sweep else "run_dir", Path(self.run_dir)
        try:
            self.made_run_dir = self.gets_new_directory or not directory.exists()
            if self.gets_new_directory:
                self.run_dir = str(directory := new_directory(directory))
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory) as file:
                file.write(bytes(BYTES_TO_BEGIN))
        except OSError as error:
            if is_full(error):
                needed = in_words(error, place=directory, needed=BYTES_TO_BEGIN)
                raise PlaceError(error.errno, f"{key}={needed}") from error
            text = f"cannot be written to ({error.strerror})"
            return [Problem(key, str(directory), text=text, fix="give another directory")]
        return []


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]

    def refuse(message: str) -> NoReturn:
        raise ConfigError(wrong_flag(message, words, flags))

    parser.error = refuse  # type: ignore[method-assign]
    arguments = parser.parse_intermixed_args(list(words))
    asked = [f"--{name.replace('_', '-')}" for name in INFORMATION if getattr(arguments, name)]
    if arguments.multirun and asked and asked[0] not in ("--help", "--hydra-help"):
        raise ConfigError(f"-m: {asked[0]} is for one run: leave -m out")
    if len(asked) > 1:
        raise ConfigError(f"{' '.join(asked)}: choose one of them")
    for name, instead in (
        ("config_path", "the program has its own: add yours with --config-dir"),
        ("experimental_rerun", "would run code out of a file: give the run's directory as resume=..."),
        ("run", "a run is what happens without it: leave it out"),
    ):
        if getattr(arguments, name):
            raise ConfigError(f"--{name.replace('_', '-')}: {instead}")
    if not arguments.cfg and (arguments.resolve or arguments.package):
        raise ConfigError("--resolve and --package are for --cfg job: add that, or leave them out")
    if arguments.config_dir is not None and not (arguments.config_dir and home_path(arguments.config_dir).is_dir()):
        raise ConfigError(
            f"--config-dir {arguments.config_dir}: is not there: give a folder of YAML files such as conf/"
        )
    if arguments.config_name is not None:
        if not re.fullmatch(r"[^./\\~][^\\]*", arguments.config_name):
            raise ConfigError(
                f"--config-name {arguments.config_name}: give the name of a YAML in conf/ or in --config-dir"
            )
        arguments.config_name = arguments.config_name.removesuffix(".yaml")
    if arguments.shell_completion and not _is_completion(arguments.overrides):
        raise ConfigError("--shell-completion: write -sc install=bash, or zsh or fish")
    return arguments


def _paths_alone(words: Sequence[str], config_name: str) -> list[str]:
    """Return problems with words that are paths instead of settings."""
    root = list(map(str, OmegaConf.load(CONF / f"{config_name}.yaml")))  # also keys that are missing
    known = {"hydra", *(path.name for path in CONF.iterdir() if path.is_dir()), *root}
    key = next((name for name in PATH_KEYS if name in root), None)
    found = []
    for before, word in pairwise(["", *words]):
        if "=" in word or word[:1] in ("~", "+", "-") or word in known or not word:
            continue
        is_path = {"/", "."} <= set(word) or (re.search(r"[./]", word) and top_key(word) not in known)
        with_blank = f"{before} {word}"
        if "=" in before and is_there(with_blank.partition("=")[2]):
            found.append(f"{word}: is a part of a path with a blank: write {shell_word(with_blank)}")
        elif is_path or is_there(word):
            found.append(f"{word}: is no setting: {_as_setting(word, key)}")
    return found


def _as_setting(path: str, key: str | None) -> str:
    if key is not None:
        return f"write {shell_word(f'{key}={path}')}"
    if path.endswith((".yaml", ".yml")):
        return "a YAML is chosen by its group and name, such as experiment=NAME, and found with --config-dir FOLDER"
    if path.endswith(".pt") or (home_path(path) / ".hydra").is_dir():
        return f"write {shell_word(f'resume={path}')} to go on from it"
    return f"write data={'jsonl' if path.endswith('.jsonl') else 'text'} {shell_word(f'data.path={path}')}"


def _with_home(flags: Sequence[str]) -> list[str]:
    """Return flags with `~` expanded in the folder of --config-dir, as one word or two."""
    found: list[str] = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        if found[-1:] in (["--config-dir"], ["-cd"]):
            found.append(str(home_path(flag)))
        elif equals and name in ("--config-dir", "-cd"):
            found.append(f"{name}={home_path(value)}")
        else:
            found.append(flag)
    return found


def _is_completion(words: Sequence[str]) -> bool:
    action, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    known = action in ("install", "uninstall") or (action == "query" and "COMP_LINE" in os.environ)
    return known and shell in ("bash", "zsh", "fish")


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """Return overrides without those whose key gets another value later: Hydra would take both in a sweep.

    What takes a key out stays, and so do options that are added to a group.
    """
    last = {_what_is_set(word): index for index, word in enumerate(overrides)}
    return [word for index, word in enumerate(overrides) if word[:1] == "~" or last[_what_is_set(word)] == index]


def _what_is_set(word: str) -> str:
    key = key_of(word)
    return word.partition("=")[0] if (CONF / key).is_dir() or "=" not in word or word[:1] == "~" else key


def top_key(override: str) -> str:
    """Return `model` of `model.hidden_size=3` and of `model/part=x`."""
    return re.split(r"[./]", key_of(override))[0]
