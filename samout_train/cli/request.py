"""Parse the command line after the verb: flags and overrides, their problems, and the settings that they make."""

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
    as_typed,
    check_overrides,
    compose_config,
    get_args_parser,
    is_there,
    key_of,
    nearest,
    quote_text,
    require_no_problems,
    run_hydra,
    words_for_hydra,
    wrong_flag,
)
from samout_train.experiments import (
    check_sweep,
    common_keys,
    job_name,
    jobs_at_once,
    jobs_of,
    without_sweeps,
)
from samout_train.runtime import Bar, Launch, PlaceError, home_path, in_words, is_full, shell_word

INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")
PATH_KEYS = ("path", "run", "dir", "runs")  # of the verbs: a bare path is meant for one of these
LINES_OF_A_MISTAKE = 8
MOST_MISTAKES = 30
JOBS_THAT_TAKE_A_WHILE = 20
MANY_RUNS = "-m: makes many runs, and torchrun starts the processes of one: leave it out, or start it once for each run"
BYTES_TO_BEGIN = 1 << 16  # settings and the log, before the first checkpoint


class Request:
    """A command line, separated into flags and overrides.

    Args:
        words: The command line after the verb.
        config_name: The root YAML, unless the command line names another one.

    Raises:
        ConfigError: if a flag is wrong, or a word is a path instead of a setting.
    """

    def __init__(self, words: Sequence[str], config_name: str = "config") -> None:
        self.words = list(words)
        self.arguments = _parsed(words)
        if not self.arguments.shell_completion and (found := _bare_paths(self.arguments.overrides, config_name)):
            raise ConfigError(*found)
        self.flags = _with_home([word for word in words if word not in self.arguments.overrides])
        self.overrides: list[str] = last_of_each(self.arguments.overrides)
        self.in_sweep = bool(self.arguments.multirun)
        if self.in_sweep:
            self.overrides = [quote_text(word, in_sweep=True) for word in self.overrides]
        self.config_name: str = self.arguments.config_name or config_name
        self.config_dirs: list[str] = []  # absolute
        self.folder_flags: list[str] = []  # the same as flags, for other processes
        if self.arguments.config_dir:
            self.arguments.config_dir = str(home_path(self.arguments.config_dir))
            folder = str(Path(self.arguments.config_dir).resolve())
            self.config_dirs.append(folder)
            self.folder_flags.append(f"--config-dir={folder}")
        self.folders = [CONF, *map(Path, self.config_dirs)]
        self.asks_only = any(getattr(self.arguments, name) for name in INFORMATION)
        self.run_dir: str | None = None  # set once there are no mistakes
        self.made_run_dir = False  # whether this process made it
        self.swept: dict[str, str] = {}  # values by key, of the configuration's own sweep
        self.jobs: dict[str, list[str]] = {}  # the overrides of each job of a sweep by its name, as typed
        self.configs: dict[str, dict[str, Any]] = {}  # the settings of each job of a sweep by its name
        self.gets_new_directory = False  # whether run_dir contains the time, and so must not be shared
        self.composed: Composed | None = None  # set once there are no mistakes
        self.own_words: list[str] = []  # overrides that a verb composes itself
        self.at_once = 1  # jobs of a sweep that share the cores of this machine

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of a request without mistakes."""
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
        """Move the overrides of some keys from `overrides` to `own_words`."""
        for key in keys:
            for word in list(self.overrides):
                if word.lstrip("+").startswith((f"{key}=", f"{key}.")):
                    self.own_words.append(word)
                    self.overrides.remove(word)

    @classmethod
    def checked(cls, words: Sequence[str], *, writes: bool = True) -> "Request":
        """Return the request for a run or a sweep, without mistakes, and make its directory.

        Args:
            words: The command line after the verb.
            writes: Whether this process checks and makes the directory.

        Raises:
            ConfigError: with all mistakes, each a text of a few lines.
            PlaceError: if there is no room in the directory.
        """
        request = cls(words)
        if request.in_sweep and Launch.of_environment() is not None:
            raise ConfigError(MANY_RUNS)
        if request.arguments.shell_completion:
            return request
        if request.asks_only:
            found = request._check_composition()
        else:
            found = request._check_settings(writes=writes)
            if not found and writes:
                found = request._check_directory()
        messages = []
        for message in dict.fromkeys(map(str, found)):
            messages.append("\n".join(message.splitlines()[:LINES_OF_A_MISTAKE]))
        if len(messages) > MOST_MISTAKES:
            messages[MOST_MISTAKES:] = [f"and {len(messages) - MOST_MISTAKES} more"]
        require_no_problems(messages)
        return request

    def _check_composition(self) -> list[Problem]:
        try:
            composed = compose_config(self._of_one_run(), config_name=self.config_name, config_dirs=self.config_dirs)
        except ConfigError as error:
            return error.problems
        self.composed = composed
        return self.package_problems(composed.config)

    def _of_one_run(self) -> list[str]:
        """Return the overrides to compose an answer from: none in a sweep, where keys have several values."""
        if self.in_sweep:
            return []
        return self.overrides

    def answer(self) -> None:
        """Answer a question without mistakes: `--help` and `--cfg` from the settings, the others by Hydra."""
        asked = self.arguments
        if (asked.help or asked.cfg) and self.composed is not None and self.composed.run is not None:
            self.composed.run.answer(asked)
            return
        settings = self._of_one_run()
        if not asked.shell_completion:
            settings = words_for_hydra(settings, folders=self.folders)
        run_hydra(asked, settings, lambda config: None, folder=CONF, config_name=self.config_name)

    def package_problems(self, config: dict[str, Any]) -> list[Problem]:
        """Return the problem of a --package that does not exist in the settings.

        Args:
            config: All settings except Hydra's own.
        """
        package = self.arguments.package
        if not package or package == "_global_":
            return []
        if self.arguments.cfg == "job":
            node: Any = config
        elif self.arguments.cfg == "hydra":
            node = OmegaConf.create({"hydra": HydraConf})
        else:
            node = OmegaConf.create({**config, "hydra": HydraConf})
        before = ""
        for name in package.split("."):
            known: list[str] = []
            if isinstance(node, dict | DictConfig):
                known += map(str, node)
            if name not in known:
                return [Problem(f"--package {package}", text=f"no such key; {nearest(name, known, prefix=before)}")]
            node = node[name] if isinstance(node, dict) else OmegaConf.select(node, name, default=None)
            before += f"{name}."
        return []

    def _check_settings(self, *, writes: bool) -> list[Problem]:
        from samout_train.checkpoint import check_start
        from samout_train.training import checked_config

        if self.in_sweep:
            return self._check_sweep_jobs()
        composed, found = checked_config(self.overrides, config_name=self.config_name, config_dirs=self.config_dirs)
        if composed is not None and not found:
            self.composed = composed
            self.run_dir = composed.config["run_dir"]
            self.gets_new_directory = "run_dir" in composed.named_by_time
            found = check_start(composed, is_first=writes)
        return found

    def _check_sweep_jobs(self) -> list[Problem]:
        from samout_train.checkpoint import check_resume
        from samout_train.training import checked_config, without_missing

        wrong = check_overrides(self.overrides, folders=self.folders, in_sweep=True)
        found = list(wrong.values())
        words = [word for word in self.overrides if word not in wrong]
        same_for_all = without_sweeps(words)
        for word in self.overrides:
            if key_of(word) == "run_dir":
                text = "run_dir is not for sweeps: each job gets its own directory below hydra.sweep.dir; set that"
                found.append(Problem(text=text))
                break
        for word in words:
            if key_of(word) == "hydra.sweep.dir" and word not in same_for_all:
                return [*found, Problem("hydra.sweep.dir", text="must be one directory, for all jobs")]
        common = compose_config(same_for_all, config_name=self.config_name, config_dirs=self.config_dirs, typed=False)
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
                found += check_resume(composed, "hydra.sweep.dir")
                found += check_sweep(composed, job, left_out)
                found += self._add_job(composed, job, job_name(job, left_out))
        return found

    def _add_job(self, composed: Composed, job: list[str], name: str) -> list[Problem]:
        """Add a job of a sweep; return the problem if another job has the same directory."""
        self.run_dir = composed.sweep_dir
        self.gets_new_directory = "hydra.sweep.dir" in composed.named_by_time
        found = []
        earlier = self.configs.get(name, composed.config)
        if {**earlier, "run_dir": ""} != {**composed.config, "run_dir": ""}:  # run_dir contains the time
            text = f"would lie in {name}, as another job does"
            found.append(Problem(" ".join(job), text=text, fix="give each value once"))
        self.jobs[name] = []
        for word in job:
            if not key_of(word).startswith("hydra"):
                self.jobs[name].append(as_typed(word))
        self.configs[name] = composed.config
        return found

    def _check_directory(self) -> list[Problem]:
        """Make the directory, and write a temporary file to test whether there is room."""
        from samout_train.checkpoint import new_directory

        if self.run_dir is None:
            return []
        directory = Path(self.run_dir)
        key = "hydra.sweep.dir" if self.in_sweep else "run_dir"
        try:
            self.made_run_dir = self.gets_new_directory or not directory.exists()
            if self.gets_new_directory:
                directory = new_directory(directory)
                if self.composed is not None and str(directory) != self.run_dir:
                    self.composed = self.composed.lying_in(directory)
                self.run_dir = str(directory)
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
    flags = []
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                flags.append(flag)

    def report(message: str) -> NoReturn:
        raise ConfigError(wrong_flag(message, words, flags))

    parser.error = report  # type: ignore[method-assign]
    arguments = parser.parse_intermixed_args(list(words))
    _require_combinable(arguments)
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


def _require_combinable(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for flags that exclude each other, and for Hydra flags that this program does not support."""
    asked = []
    for name in INFORMATION:
        if getattr(arguments, name):
            asked.append(f"--{name.replace('_', '-')}")
    if arguments.multirun and asked and asked[0] not in ("--help", "--hydra-help"):
        raise ConfigError(f"-m: {asked[0]} is for one run: leave -m out")
    if len(asked) > 1:
        raise ConfigError(f"{' '.join(asked)}: choose one of them")
    for name, instead in (
        ("config_path", "the program has its own: add yours with --config-dir"),
        ("experimental_rerun", "would run code from a file: give the run's directory as resume=..."),
        ("run", "is the default: leave it out"),
    ):
        if getattr(arguments, name):
            raise ConfigError(f"--{name.replace('_', '-')}: {instead}")
    if not arguments.cfg and (arguments.resolve or arguments.package):
        raise ConfigError("--resolve and --package are for --cfg job: add that, or leave them out")


def _bare_paths(words: Sequence[str], config_name: str) -> list[str]:
    """Return problems with words that are paths instead of settings."""
    root = list(map(str, OmegaConf.load(CONF / f"{config_name}.yaml")))  # with keys whose value is ???
    known = {"hydra", *root}
    for path in CONF.iterdir():
        if path.is_dir():
            known.add(path.name)
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
            found.append(f"{word}: is not a setting: {_as_setting(word, key)}")
    return found


def _as_setting(path: str, key: str | None) -> str:
    if key is not None:
        return f"write {shell_word(f'{key}={path}')}"
    if path.endswith((".yaml", ".yml")):
        return "a YAML is chosen by its group and name, such as experiment=NAME, and found with --config-dir FOLDER"
    if path.endswith(".pt") or (home_path(path) / ".hydra").is_dir():
        return f"write {shell_word(f'resume={path}')} to start from it"
    source = "text"
    if path.endswith(".jsonl"):
        source = "jsonl"
    return f"write data={source} {shell_word(f'data.path={path}')}"


def _with_home(flags: Sequence[str]) -> list[str]:
    """Return flags with `~` expanded in the folder of --config-dir, which may be one word or two."""
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
    if len(words) != 1:
        return False
    action, _, shell = words[0].partition("=")
    known = action in ("install", "uninstall") or (action == "query" and "COMP_LINE" in os.environ)
    return known and shell in ("bash", "zsh", "fish")


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """Return overrides without those that a later one replaces: in a sweep, Hydra would use both.

    Deletions (`~key`) and options added to a group (`+group=`) are kept.
    """
    last = {}
    for index, word in enumerate(overrides):
        last[_what_is_set(word)] = index
    kept = []
    for index, word in enumerate(overrides):
        if word.startswith("~") or last[_what_is_set(word)] == index:
            kept.append(word)
    return kept


def _what_is_set(word: str) -> str:
    """Return the key of an override; `+group` and `~key` count as keys of their own."""
    key = key_of(word)
    if (CONF / key).is_dir() or "=" not in word or word.startswith("~"):
        return word.partition("=")[0]
    return key


def top_key(override: str) -> str:
    """Return `model` of `model.hidden_size=3` and of `model/part=x`."""
    return re.split(r"[./]", key_of(override))[0]
