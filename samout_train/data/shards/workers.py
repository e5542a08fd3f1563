"""Run tasks in processes that end with their parent, however it ends.

A process of `concurrent.futures` waits forever if its parent is killed. Here each process has its own pipe. The pipe
breaks when the parent dies, and the process ends.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from samout_train.runtime import SIGNALS, StopSignals

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[T, Callable[[int], None]], R]
SECONDS_A_LOOK = 0.2
MOST_ON_WINDOWS = 60  # WaitForMultipleObjects takes at most 64 handles, and Python uses one


class WorkerDiedError(Exception):
    """A process ended before its task did."""


def results(
    work: "Work[T, R]", tasks: Sequence[T], *, jobs: int, progress: Callable[[int], None], signals: StopSignals
) -> "Iterator[tuple[T, R]]":
    """Yield each task with its result, in the order of completion. No process outlives the call.

    Args:
        work: Runs one task, given the task and a function to report progress. It is pickled to each process.
        tasks: The tasks.
        jobs: The most processes at a time.
        progress: Called with the amounts that `work` reports.
        signals: Checked while waiting.

    Raises:
        ValueError: raised by `work`.
        OSError: raised by `work`.
        WorkerDiedError: if a process died.
        StopRequestedError: on a signal.
    """
    context = get_context("spawn")
    left = list(reversed(tasks))
    running: dict[Connection, tuple[BaseProcess, T | None]] = {}
    try:
        for _ in range(min(jobs, len(left), MOST_ON_WINDOWS if os.name == "nt" else jobs)):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
            with _safe_path():
                process.start()
            theirs.close()
            running[ours] = process, None
            _hand_out(running, ours, left)
        while running:
            signals.check()
            found: list[Any] = connection.wait(list(running), timeout=SECONDS_A_LOOK)
            for ready in found:
                process, task = running[ready]
                kind, content = _received(ready, process, signals)
                if kind == "progress":
                    progress(content)
                elif kind == "error":
                    raise content
                else:
                    assert task is not None
                    _hand_out(running, ready, left)
                    yield task, content
    finally:
        for process, _ in running.values():
            process.kill()
        for process, _ in running.values():
            process.join()


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keep the working directory out of `sys.path` of new interpreters: a file there may hide a library's module."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _hand_out(running: dict[Connection, tuple[BaseProcess, Any]], to: Connection, left: list[Any]) -> None:
    """Send a process its next task, or let it end if none is left."""
    process, _ = running[to]
    if left:
        running[to] = process, left.pop()
        with suppress(OSError):  # if it has died, the next read of its pipe reports that
            to.send(running[to][1])
    else:
        to.close()
        process.join()
        del running[to]


def _received(pipe: Connection, process: BaseProcess, signals: StopSignals) -> tuple[str, Any]:
    try:
        kind, content = pipe.recv()
    except (EOFError, OSError):
        process.join()
        signals.check()
        raise WorkerDiedError(
            f"a process ended with code {process.exitcode} before its part was done (killed, or out of memory?): "
            "repeat the same command to resume; jobs=1 needs the least memory"
        ) from None
    return kind, content


def _serve(pipe: Connection, work: "Work[Any, Any]") -> None:
    """Do tasks until the pipe is closed at the other end."""
    for number in SIGNALS:  # a terminal sends signals to all its processes; the parent handles them
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = pipe.recv()
            try:
                answer = ("done", work(task, lambda amount: pipe.send(("progress", amount))))
            except (BrokenPipeError, ConnectionResetError):
                return
            except (ValueError, OSError) as error:
                answer = ("error", error)
            pipe.send(answer)
