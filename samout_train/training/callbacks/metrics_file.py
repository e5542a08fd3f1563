"""Write metrics.jsonl: one JSON object a reported step, flushed as it is written."""

import json
import logging
import os
from pathlib import Path
from typing import IO

from samout_train.runtime import append, finite_or_null, replace_file
from samout_train.training.callbacks.base import Callback, RunContext, StepReport

log = logging.getLogger(__name__)


class MetricsFile(Callback):
    """Writes `metrics.jsonl`; where a run is continued, lines of steps that it rolls back are dropped first.

    What cannot be written, as on a full disk, is a warning, once: training goes on.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._has_warned = False

    def on_start(self, context: RunContext) -> None:
        """Open the file, keeping what was logged up to the last step that counts as reported."""
        path = context.run_dir / "metrics.jsonl"
        kept: list[str] = []
        if path.exists():
            kept = _lines_up_to(path, context.reported_step)
        replace_file(path, lambda file: file.write("".join(kept).encode()))
        self._file = path.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)

    def on_report(self, report: StepReport) -> None:
        """Write a line."""
        assert self._file is not None
        line = json.dumps({"step": report.step, **finite_or_null(report.metrics)}, allow_nan=False) + "\n"
        try:
            append(self._file, line.encode())
        except OSError as error:
            if not self._has_warned:
                log.warning("metrics.jsonl cannot be written (%s): training goes on without it", error.strerror)
            self._has_warned = True

    def on_close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # a line cut short by a death: its step is made again
            continue
    return kept
