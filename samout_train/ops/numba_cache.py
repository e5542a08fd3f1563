"""Compiling kernels with numba, whose cache on disk may be read-only, full, damaged, or have no place at all."""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

from samout_train.runtime import own_folder

log = logging.getLogger(__name__)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function as `numba.njit` does, and keeps the result on disk where it can.

    `cache=True` of numba instead raises where it finds no folder that can be written to, or no room in it.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(**options)(function)
        if (kept := _cache_of(function)) is not None:
            kernel._cache = kept
        return kernel

    return decorate


class _Cache(FunctionCache):
    """numba's cache of one function; a kernel that it cannot read or write is compiled in each process."""

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return what is kept; None where it is not there or cannot be read."""
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # a damaged file can raise anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep it where there is room."""
        try:
            super().save_overload(signature, compiled)
        except OSError as error:
            _report(f"{self.cache_path} cannot be written to ({error.strerror})")


def _cache_of(function: Callable[..., Any]) -> _Cache | None:
    """The cache beside the file of a function, else where numba has it for a user, else in a folder of our own."""
    try:
        return _Cache(function)
    except RuntimeError:  # numba finds no folder
        pass
    try:
        numba.config.CACHE_DIR = str(_own_folder())
        return _Cache(function)
    except (RuntimeError, OSError):
        _report(f"{Path(__file__).parent} and the user's cache folder cannot be written to")
        return None


@cache
def _own_folder() -> Path:
    if chosen := os.environ.get("SAMOUT_TRAIN_CACHE"):
        return Path(chosen).expanduser() / "kernels"
    folder = own_folder(tempfile.gettempdir()) / "kernels"
    log.info("kernels     compiled ones are kept in %s, as numba finds no other place: set NUMBA_CACHE_DIR", folder)
    return folder


@cache
def _report(reason: str) -> None:
    log.warning("kernels     compiled in each process, as %s: set NUMBA_CACHE_DIR to a folder that can be", reason)
