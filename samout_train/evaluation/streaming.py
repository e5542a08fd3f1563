"""Reading text in chunks with the state carried on, as decoding would, and what each token costs there.

The same text is read in windows of each length, each from a fresh state: so it is the same tokens whose losses are
compared, and a whole window is never in memory.
"""

# B batch, T time of a chunk, W time of a window, V vocabulary

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.data import Rows, TokenRows
from samout_train.evaluation.extrapolation import Extrapolation
from samout_train.evaluation.state_health import layer_states, shapes_of
from samout_train.models import MOST_LOGITS
from samout_train.runtime import PrecisionName, autocast, float64_place, to_device

Stream = np.ndarray[Any, np.dtype[np.integer[Any]]]
MOST_ROWS = 32  # windows side by side
NOTHING_COUNTED = "no token that is read here counts"
STEPS_AN_OCTAVE = 2  # ranges of positions in each doubling


def stream_of(rows: Rows) -> Stream | None:
    """The tokens of a split that is one long text; None where rows do not follow each other."""
    return rows.tokens if isinstance(rows, TokenRows) else None


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads text and rows with a model, dropout off; the model's mode is put back.

    Args:
        model: Called as `logits, state = model(ids, state)`, where no position sees later ones.
        trained_length: Targets of a training row: what is read at a time.
        chunk_len: Less is read at a time; None for no less.
        ignore_index: Targets of this value are not counted.
        device: Where the model is.
        precision: Of the forward pass.
        check_stop: Called before each chunk; what it raises ends the reading.
    """

    model: Any
    trained_length: int
    ignore_index: int
    device: torch.device
    precision: PrecisionName
    check_stop: Callable[[], None] = lambda: None
    chunk_len: int | None = None

    def text(self, tokens: Stream, lengths: Sequence[int], most_tokens: int) -> Extrapolation:
        """Reads the beginning of a text in windows of each length.

        Args:
            tokens: Of the text, each a target that counts.
            lengths: Targets in a window, each above 0.
            most_tokens: Of the text so many are read for each length, or as many as the longest window needs.
        """
        left_out = {length: why for length in lengths if (why := _no_room(self.model, length, len(tokens)))}
        done = sorted(set(lengths) - left_out.keys())
        found = Extrapolation(trained_length=self.trained_length, num_tokens=0, loss_nats={}, left_out=left_out)
        if not done:
            return found
        num_tokens = min(len(tokens) - 1, max(most_tokens, done[-1])) // done[-1] * done[-1]
        ids = torch.from_numpy(np.asarray(tokens[: num_tokens + 1]).astype(np.int64))
        state_norm: dict[str, list[float]] = {}
        for length in done:
            windows = ids[: num_tokens // length * length + 1].unfold(0, length + 1, length)
            state_norm = {}
            nats_W, count_W = self._by_position(windows[:, :-1], windows[:, 1:], state_norm)
            if not count_W.sum():
                left_out[length] = NOTHING_COUNTED
                continue
            found.loss_nats[length] = float(nats_W.sum() / count_W.sum())
            # What a place costs does not depend on what follows: of the shortest windows that have it there are most.
            _add_positions(found.by_position, nats_W, count_W)
        return replace(found, num_tokens=num_tokens, state_norm=state_norm)

    def rows(self, rows: Rows, most_tokens: int) -> Extrapolation:
        """Reads rows that do not follow each other, of which there are no longer ones: the first so many tokens."""
        inputs_BW, targets_BW = rows.split(rows.windows(0, max(1, most_tokens // rows.seq_len)))
        state_norm: dict[str, list[float]] = {}
        nats_W, count_W = self._by_position(inputs_BW, targets_BW, state_norm)
        by_position: list[tuple[int, int, float]] = []
        _add_positions(by_position, nats_W, count_W)
        num_tokens = int(count_W.sum())
        return Extrapolation(
            trained_length=self.trained_length,
            num_tokens=num_tokens,
            loss_nats={rows.seq_len: float(nats_W.sum()) / num_tokens} if num_tokens else {},
            left_out={} if num_tokens else {rows.seq_len: NOTHING_COUNTED},
            by_position=by_position,
            state_norm=state_norm,
        )

    @property
    def _read_length(self) -> int:
        return min(self.trained_length, self.chunk_len or self.trained_length)

    def _by_position(
        self, inputs_BW: Tensor, targets_BW: Tensor, state_norm: dict[str, list[float]]
    ) -> tuple[Tensor, Tensor]:
        """Sum of the nats at each place and how many targets count there, (W,) float64; and the norms of states."""
        nats_W = torch.zeros(inputs_BW.shape[1], dtype=torch.float64)
        norms: dict[str, list[Tensor]] = {}
        weight_VD = getattr(self.model, "head_weight", None)
        vocab_size = 1 if weight_VD is None else len(weight_VD)
        rows = max(1, min(MOST_ROWS, MOST_LOGITS // (self._read_length * vocab_size)))
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), autocast(self.precision, self.device):
                for group in zip(inputs_BW.split(rows), targets_BW.split(rows), strict=True):
                    nats_BW, norm_of = self._read(*group)
                    nats_W += nats_BW.to(float64_place(self.device)).double().sum(0).cpu()
                    for name, norm in norm_of.items():
                        norms.setdefault(name, []).append(norm)
        finally:
            self.model.train(was_training)
        for name, parts in norms.items():
            state_norm[name] = torch.stack(parts).sum(0).div(len(inputs_BW)).tolist()
        return nats_W, (targets_BW != self.ignore_index).sum(0).double()

    def _read(self, inputs_BW: Tensor, targets_BW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        state: Any = None
        nats: list[Tensor] = []
        norms: dict[str, list[Tensor]] | None = None
        shapes: Mapping[str, torch.Size] = {}
        for start in range(0, inputs_BW.shape[1], self._read_length):
            self.check_stop()
            piece = slice(start, start + self._read_length)
            ids_BT, targets_BT = (
                to_device(part[:, piece].contiguous(), self.device) for part in (inputs_BW, targets_BW)
            )
            logits_BTV, state = self.model(ids_BT, state)
            logits_BVT = logits_BTV.float().transpose(1, 2)
            nats.append(F.cross_entropy(logits_BVT, targets_BT, ignore_index=self.ignore_index, reduction="none"))
            if norms == {}:  # states that grow with the sequence
                continue
            layers = layer_states(self.model, state)
            if norms is None:
                norms, shapes = {name: [] for name in layers}, shapes_of(layers)
            if shapes != shapes_of(layers):
                norms = {}
            for name in norms:
                norms[name].append(layers[name].norm(dim=1).sum())
        return torch.cat(nats, 1), {name: torch.stack(parts) for name, parts in (norms or {}).items()}


def _add_positions(known: list[tuple[int, int, float]], nats_W: Tensor, count_W: Tensor) -> None:
    """Adds ranges of positions behind those that are known."""
    last = known[-1][1] if known else 0
    edges = [last, *(edge for edge in _edges(len(nats_W)) if edge > last)]
    for start, stop in pairwise(edges):
        if count := float(count_W[start:stop].sum()):
            known.append((start + 1, stop, float(nats_W[start:stop].sum()) / count))


def _no_room(model: nn.Module, length: int, num_tokens: int) -> str | None:
    most = getattr(model, "max_seq_len", None)
    if most is not None and length > most:
        return f"the model has room for {most:,} tokens (model.max_seq_len)"
    if length >= num_tokens:
        return f"the text has {num_tokens:,} tokens, one more than this is needed"
    return None


def _edges(length: int) -> list[int]:
    """Where ranges of positions end: 0, 1, 2, 3, 4, 6, 8, 11, 16 and so on, and the length."""
    steps = range(math.ceil(STEPS_AN_OCTAVE * math.log2(length)) + 1)
    return sorted({0, *(min(length, round(2 ** (step / STEPS_AN_OCTAVE))) for step in steps), length})
