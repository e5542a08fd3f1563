"""Tasks shared out among processes that end with the one that started them, whatever ends it.

A process of `concurrent.futures` waits for ever where its parent is killed. Here each has a pipe of its own, which
breaks then.
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


class WorkerDiedError(Exception):
    """A process ended before its task did."""


def results(
    work: "Work[T, R]", tasks: Sequence[T], *, jobs: int, progress: Callable[[int], None], signals: StopSignals
) -> "Iterator[tuple[T, R]]":
    """Yield what became of tasks, in the order in which they are done.

    Args:
        work: Does one; gets it, and what to call with the amount of work that is done. It is sent to each process.
        tasks: All of them.
        jobs: Processes at a time.
        progress: Called with what `work` told.
        signals: Looked at while waiting.

    Raises:
        ValueError: what `work` raised.
        OSError: what `work` raised.
        WorkerDiedError: if a process ended by itself.
        StopRequestedError: on a signal. Whatever ends it, no process is left.
    """
    context = get_context("spawn")
    left = list(reversed(tasks))
    running: dict[Connection, tuple[BaseProcess, T | None]] = {}
    try:
        for _ in range(min(jobs, len(left))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
            with _safe_path():
                process.start()
            theirs.close()
            running[ours] = process, None
            _hand_out(running, ours, left)
        while running:
            signals.check()
            for ready in connection.wait(list(running), timeout=SECONDS_A_LOOK):
                assert isinstance(ready, Connection)
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
    """Start interpreters without the working directory first, where a file may hide a module of the library."""
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
    """Give a process its next task; where there is none, let it end."""
    process, _ = running[to]
    if left:
        running[to] = process, left.pop()
        with suppress(OSError):  # it has ended, which the next look finds
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
            f"a process ended with code {process.exitcode} before its part was done (killed, or out of memory?): the "
            "same command goes on from there; jobs=1 needs the least memory"
        ) from None
    return kind, content


def _serve(pipe: Connection, work: "Work[Any, Any]") -> None:
    """Do tasks until the pipe is closed at the other end."""
    for number in SIGNALS:  # those of a terminal go to all its processes; the parent answers them
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
