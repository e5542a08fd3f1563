"""Signals: recorded during a run, and handled at points where it can stop."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

# SIGHUP comes when the terminal closes; SIGUSR1 and SIGUSR2 are sent by batch systems before they kill; SIGBREAK is
# Windows' Ctrl-Break, the only signal that a process in its own group gets there. Not every system has these four.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def own_group() -> dict[str, Any]:
    """Return arguments of `Popen` that keep Ctrl-C in the terminal from reaching the process directly."""
    new_group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", None)
    if new_group is None:
        return {"start_new_session": True}
    return {"creationflags": new_group}


def ask_to_stop(process: "subprocess.Popen[bytes]", number: int | None) -> None:
    """Ask a process in its own group to stop, with the signal that this program received.

    On Windows, SIGTERM and SIGINT cannot be sent to another process: SIGTERM would kill it before it could save. If
    it cannot be asked, since there is no console, it is killed.
    """
    if process.poll() is not None:
        return
    try:
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", _interrupt_or_termination(number)))
    except (OSError, SystemError):  # SystemError: os.kill of CPython where Ctrl-Break fails
        with suppress(OSError):  # it has just ended
            process.kill()


def wait_for_end(process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process has ended. On Windows, `Popen.wait` holds signals back until then."""
    while process.poll() is None:
        time.sleep(0.02)


class StopRequestedError(Exception):
    """A signal asked the run to stop; a checkpoint is saved before this leaves the trainer."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        # Only 130 or 143, so that programs that restart runs need to know no others.
        self.exit_code = 128 + _interrupt_or_termination(signal_number)


def _interrupt_or_termination(number: int | None) -> signal.Signals:
    if number == signal.SIGINT:
        return signal.SIGINT
    return signal.SIGTERM


def treat_hangup_as_termination() -> None:
    """Treat SIGHUP as SIGTERM, even before a run begins, unless the process was started to ignore it."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))


def ignore_interrupts() -> None:
    """Ignore further SIGINTs, in a program that has been stopped and is ending.

    While Python shuts down, an interrupt would print a traceback and could change the exit code.
    """
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class StopSignals:
    """A context that records the first of SIGNALS instead of ending the process; a second SIGINT quits at once.

    A signal that the process was started to ignore stays ignored, such as SIGHUP under `nohup`.

    Args:
        agreed: Maps the signal of this process, 0 for none, to the one that all processes act on, so that they stop
            together.
    """

    def __init__(self, agreed: Callable[[int], int] = int) -> None:
        self.received: int | None = None
        self._agreed = agreed
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            try:
                # None means a handler that was not set from Python, and cannot be restored from Python.
                self._before[number] = signal.signal(number, self._note) or signal.SIG_DFL
            except ValueError:  # not in the main thread, as in some notebooks: signals stay as they are
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self) -> None:
        """Raise StopRequestedError if a signal has arrived; called at points where the run can stop."""
        if number := self._agreed(self.received or 0):
            raise StopRequestedError(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = number
