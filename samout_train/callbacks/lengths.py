"""What a model does past the length that it was trained at, measured at the end of a run on text."""

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tensorboard.compat.proto.summary_pb2 import Summary

from samout_train.callbacks.base import Callback, RunContext
from samout_train.callbacks.event_file import EventFile
from samout_train.charts import draw_extrapolation, missing_charts
from samout_train.extrapolation import Extrapolation
from samout_train.metrics import sees_future
from samout_train.ranges import Positive, validated
from samout_train.streaming import Reader, stream_of

PICTURE = "lengths.png"
log = logging.getLogger(__name__)


class Lengths(Callback):
    """Adds losses by length to the last report, all of it to `summary.json` as `lengths`, and draws `lengths.png`.

    Only where the validation split is one long text, and the model can go on from a state.

    Args:
        times: Lengths to read at, as multiples of the training length; none to leave it out.
        most_tokens: Of the validation text so many are read at each length, or as many as the longest needs.
    """

    @validated
    def __init__(self, *, times: list[Annotated[int, Positive]], most_tokens: Annotated[int, Positive]) -> None:
        self.times, self.most_tokens = times, most_tokens
        self._found: Extrapolation | None = None

    def on_start(self, context: RunContext) -> None:
        """Keeps what is evaluated."""
        self._context = context

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """Reads, at the end."""
        context, rows = self._context, self._context.source.validation
        tokens = stream_of(rows)
        if not is_last or not self.times or tokens is None or sees_future(context.model):
            return {}
        reader = Reader(
            model=context.model,
            trained_length=rows.seq_len,
            ignore_index=context.source.ignore_index,
            device=context.device,
            precision=context.precision,
            check_stop=check_stop,
        )
        self._found = reader.text(tokens, [rows.seq_len * times for times in self.times], self.most_tokens)
        return {f"val_length/loss_nats/{length}_tokens": nats for length, nats in self._found.loss_nats.items()}

    def figures(self) -> dict[str, Any]:
        """What was found, for `summary.json`."""
        return {"lengths": self._found.figures()} if self._found is not None else {}

    def on_end(self, summary: dict[str, Any]) -> None:
        """The verdict, the picture, and the losses by position as a chart of TensorBoard's."""
        if self._found is None or not self._found.loss_nats:
            return
        losses = ", ".join(f"{nats:.3f} at {length:,}" for length, nats in self._found.loss_nats.items())
        log.info("loss of the validation text in windows of so many tokens: %s", losses)
        for line in self._found.verdict():
            log.info("  %s", line)
        run_dir = self._context.run_dir
        try:
            show_extrapolation(self._found, self._context.model_name, run_dir)
        except OSError as error:
            log.warning("losses by position cannot be written (%s)", error.strerror)
            return
        log.info("  %s", missing_charts() or f"drawn in {run_dir / PICTURE}")


def show_extrapolation(found: Extrapolation, name: str, folder: Path) -> None:
    """Draws `lengths.png`, and writes an event file with the losses by position, as a chart over the position.

    Args:
        found: What to show.
        name: Of the model.
        folder: Where both go.

    Raises:
        OSError: if they cannot be written.
    """
    picture = draw_extrapolation({name: found}, folder / PICTURE)
    events = EventFile(folder, purge_step=None)
    try:
        for _, last, nats in found.by_position:
            events.add(Summary(value=[Summary.Value(tag="val_by_position/loss_nats", simple_value=nats)]), last)
        if picture is not None:
            width, height = struct.unpack(">II", picture[16:24])  # where a PNG file has them
            image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=picture)
            events.add(Summary(value=[Summary.Value(tag="lengths", image=image)]), max(found.loss_nats))
    finally:
        events.close()
