"""How the processes that torchrun started become one run: the same settings, the same program, one run directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from samout_train.checkpoint import scalars
from samout_train.config import Composed, ConfigError
from samout_train.runtime import Launch, choose_device, commit, distributed


@contextmanager
def together(composed: Composed, run_dir: Path) -> Iterator[Path]:
    """Joins the processes that torchrun started for a run; where there is one, nothing happens.

    Args:
        composed: The configuration; where a run is continued, `resume` becomes what the first process says.
        run_dir: Where it lies, as this process has it.

    Yields:
        Where it lies, as the first process has it.

    Raises:
        ConfigError: if the processes have different settings or programs.
        LostProcessError: if one of the others ends.
    """
    config = composed.config
    with distributed.joined(choose_device(config["device"])):
        shared = {key: value for key, value in config.items() if key not in ("run_dir", "resume")}
        code = {"torch": torch.__version__, "commit of samout_train": commit() or "unknown"}
        if found := distributed.differences({**scalars(shared), **code}):
            raise ConfigError("\n".join(found))
        run_dir, config["resume"] = distributed.from_first((run_dir.resolve(), config["resume"]))
        launch = Launch.of_environment()
        if launch is not None and launch.is_first:
            launch.note(str(run_dir))
        yield run_dir
