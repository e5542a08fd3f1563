"""Processes of one run: what is a lost process, and what is an error of this one."""

import os
import time
from pathlib import Path
from typing import Literal

import pytest
import torch

from samout_train.runtime import LostProcessError, distributed
from tests.support.program import context
from tests.support.together import environments

SECONDS = 40


def _run(environment: dict[str, str], other: Literal["ends", "stays"], result: Path) -> None:
    os.environ.update(environment)
    is_first = environment["RANK"] == "0"
    try:
        with distributed.joined(torch.device("cpu")):
            distributed.wait_for_all()
            if not is_first and other == "ends":
                os._exit(0)
            if not is_first:
                while not result.exists():
                    time.sleep(0.01)
                os._exit(0)
            if other == "stays":
                raise RuntimeError("Connection closed by peer, or so a user's own code words its error")
            distributed.total(1)
    except (LostProcessError, RuntimeError) as error:
        temporary = result.with_suffix(".tmp")
        temporary.write_text(f"{type(error).__name__}: {error}", "utf-8")
        temporary.replace(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("ends", "LostProcessError: process 0 of 2 on "),
        ("stays", "RuntimeError: Connection closed by peer, or so"),
    ],
)
def test_a_process_is_lost_where_its_connection_is_closed_whatever_an_error_says(
    other: Literal["ends", "stays"], expected: str, tmp_path: Path
) -> None:
    result = tmp_path / "result"
    processes = [context.Process(target=_run, args=(each, other, result)) for each in environments(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    alive = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
    assert alive == [False, False]
    assert result.read_text("utf-8").startswith(expected)
