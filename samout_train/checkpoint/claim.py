"""Taking a run directory for one set of settings: checked under its lock, and not written to before."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from samout_train.checkpoint.run_directory import DirectoryRefusedError, holds_run, locked
from samout_train.runtime import distributed, replace_file

SETTINGS = ".hydra"


@contextmanager
def claimed(
    run_dir: Path, files: Mapping[str, str], *, refusals: Callable[[], list[str]], keeps_failed: bool = False
) -> Iterator[Callable[[], None]]:
    """Hold a run directory for one run, from the check of what lies in it to the end of the run.

    Nothing is written before the lock is held and the check has passed. The settings of a new run are written at once,
    so that whoever finds the directory taken can compare them. Those of a continued run replace the earlier ones only
    when the caller says that the run can go on.

    Args:
        run_dir: The directory; the first process alone holds it.
        files: What `.hydra/` will hold, by name.
        refusals: Called under the lock; returns why the directory cannot be taken.
        keeps_failed: Whether the settings of a new run stay where it is refused later, as in a sweep.

    Yields:
        A function that writes the settings; call it when nothing can refuse the run any more.

    Raises:
        DirectoryRefusedError: if another process holds the directory, or there are refusals.
    """
    is_written = False

    def write() -> None:
        nonlocal is_written
        if distributed.is_first() and not is_written:
            _write(run_dir / SETTINGS, files)
        is_written = True

    with ExitStack() as held:
        is_new = False
        if distributed.is_first():
            held.enter_context(locked(run_dir))
            if found := refusals():
                raise DirectoryRefusedError("\n".join(found))
            if is_new := not holds_run(run_dir):
                _write(run_dir / SETTINGS, files)
        distributed.wait_for_all()
        try:
            yield write
        except BaseException:
            if is_new and not is_written and not keeps_failed and not holds_run(run_dir):
                _take_back(run_dir, files)
            raise


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        content = text.encode()
        replace_file(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]


def _take_back(run_dir: Path, files: Mapping[str, str]) -> None:
    """Remove the settings of a run that never began, from a directory that holds nothing else."""
    if {path.name for path in run_dir.iterdir()} <= {SETTINGS, "samout_train.log"}:
        for path in (run_dir / "samout_train.log", *(run_dir / SETTINGS / name for name in files)):
            with suppress(OSError):
                path.unlink(missing_ok=True)
