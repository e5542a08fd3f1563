"""What the program answers, in process, to what it has to refuse."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def told(main: Callable[[list[str]], int], words: Sequence[str], folder: Path) -> tuple[int, str]:
    """The exit code and all that is printed of a verb in a folder."""
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(list(words))
    return code, output.getvalue()


def refused(act: Callable[[], Any]) -> str:
    """What is raised in place of an answer, as a person reads it."""
    from samout_train.checkpoint import CheckpointError

    try:
        act()
    except (ValueError, CheckpointError) as error:
        return str(error)
    raise AssertionError("nothing was refused")
