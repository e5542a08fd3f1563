"""torch.compile: what it needs of the machine, and how long it took."""

import importlib.util
import logging
import os
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from samout_train.runtime.places import in_words

SET_CACHE = "set TORCHINDUCTOR_CACHE_DIR to another folder"
log = logging.getLogger(__name__)


def compiled(model: nn.Module) -> Callable[..., Any]:
    """A model as torch compiles it at the first call, for one shape of input; the model itself stays as it is.

    Args:
        model: Its weights are shared, its dropout is drawn in another order.
    """
    # What was compiled for the models before counts towards torch's limit, beyond which it compiles no more.
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False)


def compile_problem(device: torch.device) -> str | None:
    """What is missing to compile for a device; None where nothing is."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if device.type == "mps":
        return "trainer.compile=true: is for cpu and cuda, and this run is on mps: leave it out"
    if missing := _cache_problem():  # first, since torch's own search writes into that folder
        pass
    elif device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            missing = "triton for CUDA, which is not installed: pip install triton"
    elif not has_cpp_compiler():
        missing = "a C++ compiler for the CPU, and torch finds none: install g++, or name one in CXX"
    elif not header.exists():
        missing = f"{header}, which is not there: install Python's headers"
    return f"trainer.compile=true: needs {missing}, or leave it out" if missing else None


def _cache_problem() -> str | None:
    """Return why what is compiled cannot be kept; None where it can."""
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir())
    try:
        _try_to_write(folder)
        # Imported after that: an import that fails half-way can never be made again in the process.
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        folder = Path(cache_dir())
        _try_to_write(folder)
    except OSError as error:
        return f"a folder for what is compiled, and {in_words(error, place=folder, fix=SET_CACHE)}"
    return None


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1))


def has_cpp_compiler() -> bool:
    """Whether torch's own search, which heeds CXX, finds one."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@contextmanager
def told_compilation() -> Iterator[None]:
    """Says that the first step, made inside, compiles the model, and how long it took."""
    _say("compile     the first step compiles the model, which can take a minute")
    started = time.monotonic()
    yield
    _say(f"compile     the first step took {time.monotonic() - started:.1f} s, compilation included")


def _say(line: str) -> None:
    with tqdm.external_write_mode():
        log.info("%s", line)
