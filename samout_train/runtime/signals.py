"""Signals: noted while a run is under way, and answered where it can stop."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

# SIGHUP comes when the terminal goes away; SIGUSR1 and SIGUSR2 are what batch systems send before they kill; SIGBREAK
# is Windows' Ctrl-Break, the only signal that a process in a group of its own gets there. None of the four is there on
# every system.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def own_group() -> dict[str, Any]:
    """Return what `Popen` needs so that Ctrl-C in the terminal does not reach the process by itself."""
    new_group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", None)
    if new_group is None:
        return {"start_new_session": True}
    return {"creationflags": new_group}


def ask_to_stop(process: "subprocess.Popen[bytes]", number: int | None) -> None:
    """Ask a process of a group of its own to stop, as the signal that this program got would.

    On Windows, SIGTERM and SIGINT cannot be sent to another process: SIGTERM would kill it before it could save.
    """
    process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", _interrupt_or_termination(number)))


class StopRequestedError(Exception):
    """A signal asked the run to stop; what is needed to continue is saved before this leaves the trainer."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        # 130 or 143; whoever restarts stopped runs need not know the others.
        self.exit_code = 128 + _interrupt_or_termination(signal_number)


def _interrupt_or_termination(number: int | None) -> signal.Signals:
    if number == signal.SIGINT:
        return signal.SIGINT
    return signal.SIGTERM


def treat_hangup_as_termination() -> None:
    """Let SIGHUP do what SIGTERM does, also before a run has begun, unless the process was started to ignore it."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))


def ignore_interrupts() -> None:
    """Ignore further SIGINTs: of a program that was stopped, and has nothing left to do but to end.

    Where Python ends, one would leave a traceback behind and could change the exit code.
    """
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class StopSignals:
    """While entered, the first of SIGNALS is noted instead of killing the process; a second SIGINT quits at once.

    A signal that the process was started to ignore, as SIGHUP by `nohup`, stays ignored.

    Args:
        agreed: From the number of the signal that came to this process, 0 for none, to the one that counts: so that
            several processes stop together.
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
                # None is a handler that another language has set, which Python cannot set again.
                self._before[number] = signal.signal(number, self._note) or signal.SIG_DFL
            except ValueError:  # not in the main thread, as in some notebooks: signals stay as they are
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self) -> None:
        """Raise StopRequestedError once a signal has come; to be called where the run can stop."""
        if number := self._agreed(self.received or 0):
            raise StopRequestedError(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = number
