"""What a model does past the length that it was trained at, measured at the end of a run on text."""

import logging
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from tensorboard.compat.proto.summary_pb2 import Summary

from samout_train.config import Positive, validated
from samout_train.evaluation import Extrapolation, Reader, draw_extrapolation, missing_charts, stream_of
from samout_train.models import sees_future
from samout_train.runtime import shown_path, write_figures
from samout_train.training.callbacks.base import Callback, RunContext
from samout_train.training.callbacks.tensorboard import EventFile

PICTURE = "lengths.png"
log = logging.getLogger(__name__)


class Lengths(Callback):
    """Adds losses by length to the last report, all of it to `summary.json` as `lengths`, and draws it.

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
        self._found = None  # of a checkpoint: the weights are other ones now
        if not is_last or not self.times or tokens is None or sees_future(context.model):
            return {}
        reader = Reader(
            model=context.model,
            trained_length=rows.seq_len,
            chunk_len=context.chunk_len,
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

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs: the reading of a run that was stopped behind it."""
        return {"found": None if self._found is None else vars(self._found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what was read."""
        self._found = None if state["found"] is None else Extrapolation(**state["found"])

    def on_end(self, summary: dict[str, Any]) -> None:
        """The verdict, the picture, and the losses by position as a chart of TensorBoard's."""
        if self._found is None or not self._found.loss_nats:
            return
        losses = ", ".join(f"{nats:.3f} at {length:,}" for length, nats in self._found.loss_nats.items())
        log.info("loss of the validation text in windows of so many tokens: %s", losses)
        for line in self._found.verdict():
            log.info("  %s", line)
        folder = self._context.run_dir / "evaluate" / self._context.data_name
        try:
            write_extrapolation(self._found, self._context.model_name, folder, step=summary["steps"])
        except OSError as error:
            log.warning("losses by length cannot be written (%s)", error.strerror)
            return
        log.info("  %s", missing_charts() or f"drawn in {shown_path(folder / PICTURE)}")


def write_extrapolation(
    found: Extrapolation, name: str, folder: Path, *, step: int, about: Mapping[str, Any] | None = None
) -> None:
    """Writes `evaluation.json`, `lengths.png`, and an event file in which the losses by position are a chart.

    Args:
        found: What to show.
        name: Of the model.
        folder: Where they go, in the place of those that are there.
        step: Steps that the model has made.
        about: What else `evaluation.json` says of the data.

    Raises:
        OSError: if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_figures(folder / "evaluation.json", {"step": step, **(about or {}), **found.figures()})
    picture = draw_extrapolation({name: found}, folder / PICTURE) if found.loss_nats else None
    for old in folder.glob("events.out.tfevents.*"):
        with suppress(OSError):  # open in TensorBoard, on Windows, or deleted by another evaluation
            old.unlink()
    events = EventFile(folder, purge_step=None)
    try:
        for _, last, nats in found.by_position:
            events.add(Summary(value=[Summary.Value(tag="val_by_position/loss_nats", simple_value=nats)]), last)
        if picture is not None:
            width, height = struct.unpack(">II", picture[16:24])  # where a PNG file has them
            image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=picture)
            events.add(Summary(value=[Summary.Value(tag="lengths", image=image)]), max(found.loss_nats, default=0))
    finally:
        events.close()
