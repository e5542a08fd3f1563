"""Run directories: the checks before a run uses one or resumes, its lock, and its settings on disk.

Nothing is written or deleted before the directory is checked under its lock.
"""

import itertools
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from samout_train.checkpoint.file_names import MANIFEST, SHARDS, step_files, step_of
from samout_train.config import Composed, ConfigError, Problem, current_settings, require_no_problems, saved_keys
from samout_train.runtime import (
    Launch,
    distributed,
    home_path,
    leftovers,
    place_problem,
    read_figures,
    replace_file,
)

log = logging.getLogger(__name__)
SETTINGS = ".hydra"
SECONDS_OF_A_LOOK = 0.5  # the longest time that a check for a running process holds the lock
SECONDS_OF_A_TURN = 60.0  # the longest wait for another process that changes the files of a shared folder
RESERVED = "reserved"  # the lock of a program that starts a run, in addition to the lock of the run
# Settings that must not change on resume; others may.
FIXED_KEYS = ("seed", "model", "data", "optimizer", "init_from")
FREE_DATA_KEYS = ("data.budget_steps", "data.log_every_n_steps", "data.eval_every_n_steps")
KINDS = {
    "a run": ("metrics.jsonl", "checkpoints"),
    "a sweep": ("sweep.json",),
    "a comparison": ("comparison.json",),
    "a search": ("search.json", "search.db"),
}
# Values that reproduce earlier versions, for settings that these versions lacked.
EARLIER = {
    "data.learn": "all",
    "data.extra_fields": "count",
    "data.filler": "any",
    "data.modulus": 2,
    "data.things": 5,
    "model.norm": "published",
    "model.convolution_size": 0,
    "model.init": "published",
    "model.output_norm": "none",
    "model.output_gate": "none",
    "model.drop_connect": 0.0,
    "model.stochastic_depth": 0.0,
    "data.reset_at_documents": False,
    "model.mixer.counters": 0.0,
    "model.mixer.entries": 2,
    "model.mixer.temperature": 1.0,
    "model.mixer.temperature_held": 0.5,
    "model.mixer.temperature_zero": 0.9,
    "model.mixer.b_projection": True,
    "trainer.cuda_graph": "auto",
}
# The same for a setting whose value depends on the mixer that lacked it; no mixer accepts the value of another.
EARLIER_OF_MIXERS = {"model.mixer.output_gate": ("silu", "gelu")}  # of Mamba2 and of RGLRU
# Group and key of those settings whose default has changed since: a resumed run keeps the earlier value.
KEPT = (("data", "reset_at_documents"),)
# Paths of the data; they may change if checkpoints record its content.
PLACE_KEYS = ("data.path", "data.paths", "data.pattern", "data.vocabulary_path")
PRINTING_KEYS = ("callbacks.report.verbose",)  # affect only what is printed; older runs lack them


class DirectoryRefusedError(ConfigError):
    """A directory belongs to another run and cannot be used; nothing in it was touched."""


class TakenError(DirectoryRefusedError):
    """Another process holds the directory's lock."""


def check_start(composed: Composed, *, is_first: bool) -> list[Problem]:
    """Return why a run cannot start or resume; writes nothing.

    Args:
        composed: The configuration.
        is_first: Whether this process holds the run directory for all processes of the run, and so checks it.
    """
    found = check_resume(composed)
    if is_first and "run_dir" not in composed.named_by_time:  # that becomes a new directory
        found += check_run_directory(composed.config)
    return found


def check_resume(composed: Composed, directory: str = "run_dir") -> list[Problem]:
    """Return the problems of `resume` and `init_from`; writes nothing.

    Args:
        composed: The configuration.
        directory: The key that sets the directory of the run or, for a job of a sweep, of the sweep.
    """
    resume, init_from = composed.config["resume"], composed.config.get("init_from")
    if init_from is not None and not (init_from and home_path(init_from).exists()) and resume != "auto":
        fix = "give a run directory, a checkpoint, an export or a file of weights"
        return [Problem("init_from", init_from, text="is not there", fix=fix)]
    if init_from is not None and resume not in (None, "auto"):
        return [Problem("init_from", init_from, text=f"resume={resume} has weights, too", fix="set one of the two")]
    if resume == "auto" and directory in composed.named_by_time:
        text = f"continues the run in {directory}, and that is a new directory here"
        fix = f"give {directory}=... of the run too, or leave resume out to begin a new one"
        return [Problem("resume", "auto", text=text, fix=fix)]
    if resume in (None, "auto"):
        return []
    path = Path(str(resume))
    if not resume or not path.exists():
        text, fix = "is not there", "give auto, a run directory or a checkpoint"
    elif path.is_dir() and all(step_of(file.name) is None for file in path.rglob("step_*.pt")):
        text, fix = "holds no checkpoint", "give a run directory that has checkpoints/step_*.pt"
    elif path.is_file() and path.suffix != ".pt":
        text, fix = "is not a checkpoint", "give auto, a run directory or a checkpoint, step_*.pt"
    else:
        return []
    return [Problem("resume", str(resume), text=text, fix=fix)]


def check_run_directory(config: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of using run_dir, without touching anything in it."""
    run_dir = Path(config["run_dir"])
    if problem := place_problem(run_dir):
        return [_of_run_dir(run_dir, problem)]
    if is_taken(run_dir):
        return [_taken(run_dir)]
    return check_content(run_dir, config)


def other_kind(folder: Path, own: str) -> str | None:
    """Return another kind that a folder holds, such as `a sweep`; None if it holds only its own kind or nothing.

    Args:
        folder: Any path.
        own: The allowed kind, one of KINDS.
    """
    for kind in KINDS:
        if kind != own and _holds(folder, kind):
            return kind
    return None


def _holds(folder: Path, kind: str) -> bool:
    return any((folder / mark).exists() for mark in KINDS[kind])


def check_content(run_dir: Path, config: Mapping[str, Any]) -> list[Problem]:
    """Return why the run in a directory cannot resume with a configuration. Repeat the check under the lock."""
    if kind := other_kind(run_dir, "a run"):
        return [_of_run_dir(run_dir, f"holds {kind}", "give another run_dir")]
    if not holds_run(run_dir):
        return []
    if config["resume"] != "auto":
        return [_of_run_dir(run_dir, "holds a run already", "set resume=auto to continue it, or another run_dir")]
    is_compared_by_content = has_data_record(run_dir)
    problems = []
    for difference in other_settings(run_dir, config, FIXED_KEYS, FREE_DATA_KEYS):
        if not (is_compared_by_content and difference.key in PLACE_KEYS):
            fix = "continue it with the same, or give another run_dir"
            if difference.fix:
                fix = f"{difference.fix}: {fix}"
            problems.append(replace(difference, fix=fix))
    return problems


# The names of earlier versions.
resume_problems, run_directory_problems, content_problems = check_resume, check_run_directory, check_content


def has_data_record(run_dir: Path) -> bool:
    """Return whether the checkpoints of a run record its data; if so, its content is compared instead of its path."""
    manifests = step_files(run_dir / "checkpoints", MANIFEST)
    # All manifests count, since an earlier checkpoint is used if the newest is damaged.
    return bool(manifests) and all(read_figures(path).get("data") for path in manifests)


def holds_run(run_dir: Path) -> bool:
    """Return whether a directory holds anything of a run."""
    return _holds(run_dir, "a run")


def is_taken(run_dir: Path) -> bool:
    """Return whether another process holds a directory's lock."""
    return _is_held(_lock(run_dir))


def _is_held(lock: FileLock) -> bool:
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock:
            return False
    except Timeout:
        return True


def other_settings(
    run_dir: Path, config: Mapping[str, Any], keys: Sequence[str], free: tuple[str, ...] = ()
) -> list[Problem]:
    """Return the settings of the run in a directory that differ from a configuration; empty without saved settings.

    Args:
        run_dir: The directory of the run.
        config: The configuration as plain dictionaries, resolved.
        keys: Top-level keys to compare.
        free: Prefixes of keys that may differ.
    """
    saved = run_dir / ".hydra" / "config.yaml"
    if not saved.exists():
        return []
    try:
        before = saved_keys(saved, keys)
    except ValueError as error:
        return [_of_run_dir(run_dir, f"{saved} cannot be read ({error})", "repair it")]
    problems = []
    for key, then, now in _pairs(before, _kept(run_dir, config), keys, free):
        problems.append(Problem(key, str(now), text=f"the run in {run_dir} has {then}"))
    return problems


def as_begun(run_dir: Path, composed: Composed) -> Composed:
    """Return a configuration that continues the run in a directory as an earlier version began it.

    If the run lacks a setting whose default has changed since, the configuration has the earlier default.

    Args:
        run_dir: The directory; without saved settings nothing changes.
        composed: The configuration.
    """
    config = _kept(run_dir, composed.config)
    if config == composed.config:
        return composed
    for group, key in KEPT:
        if (value := (config.get(group) or {}).get(key)) != (composed.config.get(group) or {}).get(key):
            log.info("settings    %s.%s=%s, with which the run in %s began", group, key, str(value).lower(), run_dir)
    return composed.with_config(config)


def _kept(run_dir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(config)
    saved = run_dir / SETTINGS / "config.yaml"
    if not saved.exists():
        return config
    for group, key in KEPT:
        if key not in (config.get(group) or {}):
            continue
        try:
            before = saved_keys(saved, [group])
        except ValueError:  # reported where settings are compared
            continue
        if group in before and key not in before[group]:
            config[group] = {**config[group], key: EARLIER[f"{group}.{key}"]}
    return config


def is_earlier(key: str, value: Any) -> bool:
    """Return whether a setting has the value that reproduces earlier versions, which lacked the setting.

    Args:
        key: The dotted key. A key of one of several mixers counts as the key of a single mixer.
        value: Its value now.
    """
    key = re.sub(r"^model\.mixers\.\w+\.", "model.mixer.", key)
    if key in EARLIER_OF_MIXERS:
        return value in EARLIER_OF_MIXERS[key]
    return key in EARLIER and value == EARLIER[key]


def differences(then: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Describe each difference between two configurations.

    Args:
        then: The earlier configuration as plain dictionaries, resolved.
        now: The current configuration in the same form.
        keys: Top-level keys to compare.
    """
    return [f"{key}={new}: it was {old}" for key, old, new in _pairs(then, now, keys, ())]


def _pairs(
    before: Mapping[str, Any], config: Mapping[str, Any], keys: Sequence[str], free: tuple[str, ...]
) -> list[tuple[str, Any, Any]]:
    then, now = _compared(before, keys), _compared(config, keys)
    pairs = []
    for key in sorted(then.keys() | now.keys()):
        if key not in then and (is_earlier(key, now[key]) or key.startswith("data.roles.")):
            continue  # text of a role without a token was refused, so an added role changes nothing
        if not key.startswith(free) and not _same(key, then.get(key), now.get(key)):
            pairs.append((key, then.get(key, "null"), now.get(key, "null")))
    return pairs


def _compared(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, bool | int | float | str]:
    config = current_settings(config)
    compared = {key: config.get(key) for key in keys}
    if compared.get("resume") == "auto":  # a resumed job; it does not affect what is trained
        del compared["resume"]
    flat = scalars(compared)
    for key in PRINTING_KEYS:
        flat.pop(key, None)
    return flat


def new_directory(path: Path) -> Path:
    """Make a new directory, with `-2`, `-3`, ... appended to its name if that exists, and return it.

    Raises:
        OSError: if it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            made = path
            if number > 1:
                made = path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                made.mkdir()
                return made
    except OSError as error:
        raise type(error)(error.errno, error.strerror, f"run_dir={path}") from error
    raise AssertionError("there is always another number")


def _same(key: str, then: Any, now: Any) -> bool:
    """Return whether two values are equal, or spell the same path."""
    if then == now or key not in ("data.path", "data.vocabulary_path", "init_from"):
        return bool(then == now)
    if not (isinstance(then, str) and isinstance(now, str) and then and now):
        return False
    return home_path(then).resolve() == home_path(now).resolve()


class Claim:
    """A run directory, held for one run from the check of its content to the end of the run.

    Processes that torchrun started for the run first agree on settings, program and run directory. Nothing is written
    before the lock is held and the check has passed. A new run writes its settings at once, so that another process
    that finds the directory locked can compare them. A resumed run replaces the earlier settings only when it begins.

    Args:
        composed: The configuration. Once held, it continues the run as it was begun.
        run_dir: The directory as this process sees it. Once held, as the first process sees it, which alone holds the
            lock.
    """

    def __init__(self, composed: Composed, run_dir: Path) -> None:
        self.composed, self.run_dir = composed, run_dir
        self.has_begun = False
        self._files: dict[str, str] = {}  # contents of the files of .hydra/, by name

    @property
    def config(self) -> dict[str, Any]:
        """Return the settings of the run."""
        return self.composed.config

    @contextmanager
    def held(
        self,
        files: Mapping[str, str],
        *,
        check: Callable[[Path, Mapping[str, Any]], Sequence[Problem | str]] = check_content,
        keeps_failed: bool = False,
    ) -> Iterator[None]:
        """Hold the directory.

        Args:
            files: Contents of further files of `.hydra/`, next to `config.yaml`, by name.
            check: Called under the lock; returns why the directory cannot be used.
            keeps_failed: Whether the settings of a new run stay if it is refused later, as in a sweep.

        Raises:
            DirectoryRefusedError: if another process holds the directory, or the check finds problems.
            ConfigError: if the processes of the run have different settings or programs.
            LostProcessError: if one of the other processes ends.
        """
        with ExitStack() as held:
            from samout_train.runtime import choose_device  # late: it imports torch, which --help does without

            held.enter_context(distributed.joined(choose_device(self.config["device"])))
            self._agree()
            self.composed = as_begun(self.run_dir, self.composed)
            self._files = {"config.yaml": self.composed.yaml, **files}
            is_new = False
            if distributed.is_first():
                held.enter_context(locked(self.run_dir))
                if found := check(self.run_dir, self.config):
                    raise DirectoryRefusedError(*found)
                if is_new := not holds_run(self.run_dir):
                    _write_settings(self.run_dir / SETTINGS, self._files)
            distributed.wait_for_all()
            try:
                yield
            except BaseException:
                if is_new and not self.has_begun and not keeps_failed and not holds_run(self.run_dir):
                    _take_back(self.run_dir, self._files)
                raise

    def begin(self) -> None:
        """Write the settings; call it once nothing can refuse the run any more."""
        if distributed.is_first():
            _write_settings(self.run_dir / SETTINGS, self._files)
        self.has_begun = True

    def _agree(self) -> None:
        """Compare the settings and the program of all processes, and take the directory of the first one."""
        import torch  # here, because --help must not import it

        from samout_train.runtime import commit

        shared = {key: value for key, value in self.config.items() if key not in ("run_dir", "resume")}
        code = {"torch": torch.__version__, "commit of samout_train": commit() or "unknown"}
        require_no_problems(distributed.differences({**scalars(shared), **code}))
        self.run_dir, self.config["resume"] = distributed.from_first((self.run_dir.resolve(), self.config["resume"]))
        launch = Launch.of_environment()
        if launch is not None and launch.is_first:
            launch.note(str(self.run_dir))


def reserve(run_dir: Path, name: str = RESERVED) -> Callable[[], None] | None:
    """Reserve a directory for this process; return None if another process has reserved it.

    If several programs start runs in one folder, even on several machines, each reserves a run's directory before it
    starts the run; the run itself holds another lock. The operating system releases the lock of a dead process.

    Args:
        run_dir: The directory; it is made if missing.
        name: Name of the file that is locked.

    Returns:
        A function that ends the reservation. It ends with this process at the latest.
    """
    lock = _lock(run_dir, name=name)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock.release


def is_reserved(run_dir: Path) -> bool:
    """Return whether a process has reserved a directory."""
    return _is_held(_lock(run_dir, name=RESERVED))


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Let the processes that share a folder change its files one after another.

    Raises:
        TakenError: if another process takes longer than SECONDS_OF_A_TURN.
    """
    lock = _lock(folder, SECONDS_OF_A_TURN, "turn")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise TakenError(_taken(folder)) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock a run directory against other processes, and delete half-written files of killed runs.

    The operating system releases the lock of a killed run. A directory that holds nothing but the lock is removed at
    the end.

    Raises:
        TakenError: if another process holds it.
    """
    lock = _lock(run_dir, timeout=SECONDS_OF_A_LOOK)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # name the setting, not the folder inside
        raise type(error)(error.errno, error.strerror, f"run_dir={run_dir}") from error
    try:
        with lock:
            for folder in (run_dir, run_dir / ".hydra", run_dir / "checkpoints"):
                for leftover in leftovers(folder):
                    with suppress(OSError):  # open elsewhere on Windows
                        leftover.unlink()
            for shards in step_files(run_dir / "checkpoints", SHARDS):
                if not shards.with_suffix(".pt").exists():
                    shutil.rmtree(shards, ignore_errors=True)
            yield
    except Timeout as error:
        raise TakenError(_taken(run_dir)) from error
    finally:
        folder = Path(lock.lock_file).parent
        with suppress(OSError):
            if not lock.is_locked and {path.name for path in folder.iterdir()} <= {"lock"}:
                Path(lock.lock_file).unlink(missing_ok=True)  # on Windows it is deleted with the lock
                folder.rmdir()
        with suppress(OSError):  # a directory that is not empty stays
            run_dir.rmdir()


def _write_settings(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        content = text.encode()
        replace_file(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]


def _take_back(run_dir: Path, files: Mapping[str, str]) -> None:
    """Delete the settings of a run that never began, if the directory holds nothing else."""
    if {path.name for path in run_dir.iterdir()} <= {SETTINGS, "samout_train.log"}:
        for path in (run_dir / "samout_train.log", *(run_dir / SETTINGS / name for name in files)):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _lock(run_dir: Path, timeout: float = 0.0, name: str = "lock") -> FileLock:
    return FileLock(run_dir / SETTINGS / name, timeout=timeout)


def _taken(run_dir: Path) -> Problem:
    fix = "wait until it has ended, or give another run_dir"
    return _of_run_dir(run_dir, "another process is at a run in it", fix)


def _of_run_dir(run_dir: Path, text: str, fix: str = "") -> Problem:
    return Problem("run_dir", str(run_dir), text=text, fix=fix)


def scalars(node: Any, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return values by dotted key, with lists as text and without nulls and `_partial_`."""
    if isinstance(node, Mapping):
        values: dict[str, bool | int | float | str] = {}
        for key, value in node.items():
            values |= scalars(value, f"{prefix}.{key}".removeprefix("."))
        return values
    if node is None or prefix.endswith("._partial_"):
        return {}
    if not isinstance(node, bool | int | float | str):
        node = str(node)
    return {prefix: node}
