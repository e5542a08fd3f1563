"""TensorBoard's event file, written record by record in the calling thread.

torch's SummaryWriter writes from a thread. On a full disk, its error is raised inside the training loop, and half a
record remains, which hides all later records.
"""

import io
import os
import socket
import time
from pathlib import Path
from typing import IO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from samout_train.runtime.files import append


class EventFile:
    """Appends to its own event file.

    Args:
        folder: The run directory.
        purge_step: TensorBoard hides the points of earlier event files of the folder from this step on; None hides
            nothing.
    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.0"
        while (folder / name).exists():
            name += "0"
        self._file: IO[bytes] = (folder / name).open("wb", buffering=0)
        self._write(Event(file_version="brain.Event:2"), purge_step)
        if purge_step is not None:
            self._write(Event(session_log=SessionLog(status=SessionLog.START)), purge_step)

    def add(self, summary: Summary, step: int | None = None) -> None:
        """Append a summary.

        Raises:
            OSError: if it cannot be written; the file is then unchanged.
        """
        self._write(Event(summary=summary), step)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event, step: int | None) -> None:
        event.wall_time = time.time()
        if step is not None:
            event.step = step
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append(self._file, record.getvalue())
