"""Evaluate a model past its training length: the loss by position, and in windows of several lengths.

Text is read in chunks with the state carried over, as in decoding, so no whole window is ever in memory. The same text
is cut into windows of each length, and each window begins without a state. All losses therefore cover the same tokens.
"""

# B batch, T time of a chunk, W time of a window, V vocabulary

import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.data import Rows, TokenRows, parts_of
from samout_train.evaluation.charts import draw_extrapolation
from samout_train.evaluation.state_health import layer_states, shapes_of
from samout_train.models import MOST_LOGITS
from samout_train.runtime import float64_place, to_device, write_figures

if TYPE_CHECKING:
    from samout_train.evaluation.evaluator import Evaluator

Stream = np.ndarray[Any, np.dtype[np.integer[Any]]]
MOST_ROWS = 32  # windows side by side
NOTHING_COUNTED = "it has no counted token"
STEPS_AN_OCTAVE = 2  # ranges of positions in each doubling
FAR_TIMES = 16  # multiple of the training length whose loss decides whether a model extrapolates
MOST_GROWTH = 1.10  # largest ratio of that loss to the loss at the training length
PICTURE = "lengths.png"


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The losses and states of a model past its training length.

    Args:
        trained_length: Tokens in a training row.
        num_tokens: Tokens read for each length.
        loss_nats: Mean nats per token in windows of a length, by length.
        left_out: Reason for a missing loss, by length.
        by_position: First and last position of a range, from 1, and its mean nats in the shortest windows that have it.
        state_norm: Norm of the state after each chunk of the longest windows, averaged over the windows, by layer.
            Layers whose state grows with the sequence, such as a cache, are left out.
    """

    trained_length: int
    num_tokens: int
    loss_nats: dict[int, float]
    left_out: dict[int, str] = field(default_factory=dict)
    by_position: list[tuple[int, int, float]] = field(default_factory=list)
    state_norm: dict[str, list[float]] = field(default_factory=dict)

    @property
    def far_growth(self) -> float | None:
        """Return the loss at 16 times the training length over that at the training length; None if one is missing."""
        near = self.loss_nats.get(self.trained_length)
        far = self.loss_nats.get(FAR_TIMES * self.trained_length)
        if not near or far is None:
            return None
        return far / near

    @property
    def extrapolates(self) -> bool | None:
        """Return whether `far_growth` is at most 1.10; None if it is unknown."""
        if self.far_growth is None:
            return None
        return self.far_growth <= MOST_GROWTH

    @property
    def state_growth(self) -> dict[str, float]:
        """Return the norm of the state at the end of the longest windows over that after a training row, by layer."""
        growth = {}
        for name, norms in self.state_norm.items():
            if norms[0]:
                growth[name] = norms[-1] / norms[0]
            else:
                growth[name] = math.inf if norms[-1] else 1.0
        return growth

    def figures(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        loss_nats, perplexities = {}, {}
        for length, nats in self.loss_nats.items():
            loss_nats[str(length)] = nats
            perplexities[str(length)] = perplexity(nats)
        return {
            "trained_length": self.trained_length,
            "num_tokens": self.num_tokens,
            "loss_nats": loss_nats,
            "perplexity": perplexities,
            "left_out": {str(length): reason for length, reason in self.left_out.items()},
            "far_growth": self.far_growth,
            "extrapolates": self.extrapolates,
            "by_position": [*map(list, self.by_position)],
            "state_growth": self.state_growth,
        }

    def verdict(self) -> list[str]:
        """Return the verdict on extrapolation, as lines."""
        near, far, growth = self.trained_length, FAR_TIMES * self.trained_length, self.far_growth
        if growth is None:
            missing = far
            if near not in self.loss_nats:
                missing = near
            reason = self.left_out.get(missing, f"there is no loss at {missing:,} tokens")
            return [f"extrapolation is unknown: {reason}"]
        if not math.isfinite(growth):
            return [f"does not extrapolate: the loss at {far:,} tokens, or at {near:,}, is not finite"]
        if self.extrapolates:
            side = "above" if growth >= 1 else "below"
            return [f"extrapolates: the loss at {far:,} tokens is {abs(growth - 1):.1%} {side} that at {near:,}"]
        lines = [
            f"does not extrapolate: the loss at {far:,} tokens, {FAR_TIMES} times the training length, is "
            f"{growth - 1:.0%} above that at {near:,}"
        ]
        grown, by_layer = {}, []
        for name, times in self.state_growth.items():
            by_layer.append(f"{name} {times:.2f}")
            if not times <= 1:
                grown[name] = times
        if grown:
            most = max(grown, key=lambda name: grown[name])
            lines.append(
                f"{most}'s state grows the most past a training row; norm at the end of the longest windows over that "
                f"after a training row, by layer: {', '.join(by_layer)}"
            )
        elif by_layer:
            lines.append("no layer's state grows past a training row")
        return lines


@dataclass(frozen=True)
class Reader:
    """Reads text and rows in pieces of at most a training row, for `Evaluator.by_length` and `Evaluator.by_position`.

    Args:
        evaluator: The evaluator of a causal model.
        trained_length: Targets of a training row, the most per call; fewer if the evaluator's chunk_len is smaller.
    """

    evaluator: "Evaluator"
    trained_length: int

    def text(self, tokens: Stream, lengths: Sequence[int], most_tokens: int) -> Extrapolation:
        """Evaluate the start of a text in windows of each length."""
        left_out = {}
        for length in lengths:
            if reason := _no_room(self.evaluator.model, length, len(tokens)):
                left_out[length] = reason
        done = sorted(set(lengths) - left_out.keys())
        found = Extrapolation(trained_length=self.trained_length, num_tokens=0, loss_nats={}, left_out=left_out)
        if not done:
            return found
        num_tokens = min(len(tokens) - 1, max(most_tokens, done[-1])) // done[-1] * done[-1]
        ids = torch.from_numpy(np.asarray(tokens[: num_tokens + 1]).astype(np.int64))
        state_norm: dict[str, list[float]] = {}
        for length in done:
            windows = ids[: num_tokens // length * length + 1].unfold(0, length + 1, length)
            nats_W, count_W, state_norm = self._by_position(windows[:, :-1], windows[:, 1:])
            if not count_W.sum():
                left_out[length] = NOTHING_COUNTED
                continue
            found.loss_nats[length] = float(nats_W.sum() / count_W.sum())
            # The loss at a position does not depend on later tokens; the shortest windows that have it are the most.
            _add_positions(found.by_position, nats_W, count_W)
        return replace(found, num_tokens=num_tokens, state_norm=state_norm)

    def rows(self, rows: Rows, most_tokens: int) -> Extrapolation:
        """Evaluate the first rows of a split whose rows do not form one text."""
        inputs_BW, targets_BW = rows.split(rows.windows(0, max(1, most_tokens // rows.seq_len)))
        nats_W, count_W, state_norm = self._by_position(inputs_BW, targets_BW)
        by_position: list[tuple[int, int, float]] = []
        _add_positions(by_position, nats_W, count_W)
        num_tokens = int(count_W.sum())
        loss_nats: dict[int, float] = {}
        left_out: dict[int, str] = {}
        if num_tokens:
            loss_nats[rows.seq_len] = float(nats_W.sum()) / num_tokens
        else:
            left_out[rows.seq_len] = NOTHING_COUNTED
        return Extrapolation(
            trained_length=self.trained_length,
            num_tokens=num_tokens,
            loss_nats=loss_nats,
            left_out=left_out,
            by_position=by_position,
            state_norm=state_norm,
        )

    @property
    def _read_length(self) -> int:
        return min(self.trained_length, self.evaluator.chunk_len or self.trained_length)

    def _by_position(self, inputs_BW: Tensor, targets_BW: Tensor) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
        """Return nats and counted targets by position, (W,) float64 each, and the norms of the states by layer.

        If windows are split at documents, positions count from the start of the document, or of the window if that is
        later. There are no norms then, because most states end with their documents.
        """
        nats_W, count_W = torch.zeros(2, inputs_BW.shape[1], dtype=torch.float64).unbind()
        source = self.evaluator.source
        parts = parts_of(inputs_BW, targets_BW, document_id=source.document_id, ignore_index=source.ignore_index)
        norms: dict[str, list[Tensor]] = {}
        vocab_size = 1
        weight_VD = getattr(self.evaluator.model, "head_weight", None)
        if weight_VD is not None:
            vocab_size = len(weight_VD)
        rows = max(1, min(MOST_ROWS, MOST_LOGITS // (self._read_length * vocab_size)))
        place = float64_place(self.evaluator.device)
        with self.evaluator.reading():
            for part in parts:
                length = part.inputs_NL.shape[1]
                for group in zip(part.inputs_NL.split(rows), part.targets_NL.split(rows), strict=True):
                    nats_BW, norm_of = self._read(*group)
                    nats_W[:length] += nats_BW.to(place).double().sum(0).cpu()
                    for name, norm in norm_of.items():
                        norms.setdefault(name, []).append(norm)
                count_W[:length] += (part.targets_NL != source.ignore_index).sum(0)
        if len(parts) > 1 or len(parts[0].inputs_NL) > len(inputs_BW):
            norms = {}
        state_norm = {}
        for name, of_groups in norms.items():
            state_norm[name] = torch.stack(of_groups).sum(0).div(len(inputs_BW)).tolist()
        return nats_W, count_W, state_norm

    def _read(self, inputs_BW: Tensor, targets_BW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model, device, ignore_index = self.evaluator.model, self.evaluator.device, self.evaluator.source.ignore_index
        state: Any = None
        nats: list[Tensor] = []
        norms: dict[str, list[Tensor]] = {}
        shapes: dict[str, torch.Size] | None = None
        grown: set[str] = set()  # layers whose state grows, such as a cache, have no comparable norms
        for start in range(0, inputs_BW.shape[1], self._read_length):
            self.evaluator.check_stop()
            piece = slice(start, start + self._read_length)
            ids_BT = to_device(inputs_BW[:, piece].contiguous(), device)
            targets_BT = to_device(targets_BW[:, piece].contiguous(), device)
            logits_BTV, state = model(ids_BT, state)
            logits_BVT = logits_BTV.float().transpose(1, 2)
            nats.append(F.cross_entropy(logits_BVT, targets_BT, ignore_index=ignore_index, reduction="none"))
            layers = layer_states(model, state)
            if shapes is None:
                shapes = shapes_of(layers)
            grown |= {name for name, shape in shapes_of(layers).items() if shape != shapes.get(name)}
            for name in layers.keys() - grown:
                norms.setdefault(name, []).append(layers[name].norm(dim=1).sum())
        in_order = [name for name in layers if name not in grown]
        return torch.cat(nats, 1), {name: torch.stack(norms[name]) for name in in_order}


def stream_of(rows: Rows) -> Stream | None:
    """Return the tokens of a split that is one long text; None if its rows do not form one text."""
    if isinstance(rows, TokenRows):
        return rows.tokens
    return None


def perplexity(nats: float) -> float:
    """Return exp(loss), or infinity on overflow."""
    if nats < math.log(np.finfo(np.float64).max):
        return math.exp(nats)
    return math.inf


def extrapolation_table(found: Extrapolation) -> list[str]:
    """Return the losses by length as lines of a table, with the verdict if there are several lengths."""
    near = found.loss_nats.get(found.trained_length)
    lines = [f"{found.num_tokens:,} tokens, read {found.trained_length} at a time, the length of a training row"]
    lines.append(f"{'tokens in a window':>20} {'times':>7} {'nats a token':>13} {'perplexity':>11} {'over a row':>11}")
    for length, nats in sorted(found.loss_nats.items()):
        over = ""
        if near is not None:
            over = f"{nats / near:.3f}"
        times = f"{length / found.trained_length:g}"
        lines.append(f"{length:>20,} {times:>7} {nats:>13.4f} {perplexity(nats):>11.4g} {over:>11}")
    for length, reason in sorted(found.left_out.items()):
        lines.append(f"{length:>20,} {'':>7} left out: {reason}")
    lines.append("loss by position: " + ", ".join(f"{last:,} {nats:.3f}" for _, last, nats in found.by_position))
    if len(found.loss_nats) + len(found.left_out) > 1:
        lines += found.verdict()
    return lines


def write_extrapolation(
    found: Extrapolation, name: str, folder: Path, *, step: int, about: Mapping[str, Any] | None = None
) -> None:
    """Write `evaluation.json`, `lengths.png`, and an event file with a chart of the losses by position.

    Args:
        found: The results.
        name: Name of the model.
        folder: The folder of the files, which replace earlier ones.
        step: Steps that the model has trained.
        about: Further entries of `evaluation.json` about the data.

    Raises:
        OSError: if a file cannot be written.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    from samout_train.runtime import EventFile

    folder.mkdir(parents=True, exist_ok=True)
    write_figures(folder / "evaluation.json", {"step": step, **(about or {}), **found.figures()})
    picture = None
    if found.loss_nats:
        picture = draw_extrapolation({name: found}, folder / PICTURE)
    for old in folder.glob("events.out.tfevents.*"):
        with suppress(OSError):  # open in TensorBoard on Windows, or deleted by another evaluation
            old.unlink()
    events = EventFile(folder, purge_step=None)
    try:
        for _, last, nats in found.by_position:
            events.add(Summary(value=[Summary.Value(tag="val_by_position/loss_nats", simple_value=nats)]), last)
        if picture is not None:
            width, height = struct.unpack(">II", picture[16:24])  # fixed places in a PNG file
            image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=picture)
            events.add(Summary(value=[Summary.Value(tag="lengths", image=image)]), max(found.loss_nats, default=0))
    finally:
        events.close()


def _add_positions(known: list[tuple[int, int, float]], nats_W: Tensor, count_W: Tensor) -> None:
    """Append ranges of positions after the known ones."""
    start = 0
    if known:
        start = known[-1][1]
    for stop in _edges(len(nats_W)):
        if stop <= start:
            continue
        if count := float(count_W[start:stop].sum()):
            known.append((start + 1, stop, float(nats_W[start:stop].sum()) / count))
        start = stop


def _no_room(model: nn.Module, length: int, num_tokens: int) -> str | None:
    most = getattr(model, "max_seq_len", None)
    if most is not None and length > most:
        return f"the model has room for {most:,} tokens (model.max_seq_len)"
    if length >= num_tokens:
        return f"the text has {num_tokens:,} tokens and needs {length + 1:,}"
    return None


def _edges(length: int) -> list[int]:
    """Return the ends of ranges of positions: 0, 1, 2, 3, 4, 6, 8, 11, 16, ... and the length."""
    edges = {0, length}
    for step in range(math.ceil(STEPS_AN_OCTAVE * math.log2(length)) + 1):
        edges.add(min(length, round(2 ** (step / STEPS_AN_OCTAVE))))
    return sorted(edges)
