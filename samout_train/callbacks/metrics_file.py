"""metrics.jsonl: one JSON object a reported step, flushed as it is written."""

import json
from pathlib import Path
from typing import TextIO

from samout_train.atomic import replace_file
from samout_train.callbacks.base import Callback, RunContext, StepReport
from samout_train.figures import finite_or_null


class MetricsFile(Callback):
    """Writes `metrics.jsonl`; where a run is continued, lines of steps that it rolls back are dropped first."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def on_start(self, context: RunContext) -> None:
        """Opens the file, keeping what was logged up to the step that the run continues from."""
        path = context.run_dir / "metrics.jsonl"
        kept = _lines_up_to(path, context.first_step) if path.exists() else []
        replace_file(path, lambda file: file.write("".join(kept).encode()))
        self._file = path.open("a", encoding="utf-8")

    def on_report(self, report: StepReport) -> None:
        """Writes a line."""
        assert self._file is not None
        self._file.write(json.dumps({"step": report.step, **finite_or_null(report.metrics)}, allow_nan=False) + "\n")
        self._file.flush()

    def on_close(self) -> None:
        """Closes the file."""
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
