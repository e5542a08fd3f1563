"""Write metrics.jsonl: one JSON object for each report, flushed at once."""

import json
import logging
import os
from pathlib import Path
from typing import IO

from samout_train.runtime import append, finite_or_null, replace_file
from samout_train.training.callbacks.base import Callback, RunContext, StepReport

log = logging.getLogger(__name__)


class MetricsFile(Callback):
    """Writes `metrics.jsonl`. A resumed run first drops lines of steps after its checkpoint.

    If the file cannot be written, as on a full disk, one warning is logged and training continues.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._has_warned = False

    def on_start(self, context: RunContext) -> None:
        """Open the file, keeping the lines up to the last reported step."""
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
                log.warning("metrics.jsonl cannot be written (%s): training continues without it", error.strerror)
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
        except (ValueError, KeyError, TypeError):  # a line cut short when the process died: its step is repeated
            continue
    return kept
