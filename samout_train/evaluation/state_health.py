"""State health: the growth of a recurrent model's state along a row, and the channels of a maximum that still change.

The model reads a row in pieces and carries its state, as in decoding, so this works for every layer whose state has a
fixed size. A layer whose state grows with the sequence is left out. A layer with a sliding window is measured once the
window is full.
"""

# B batch, T time, D width

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samout_train.data import Rows
from samout_train.evaluation.batches import SpreadBatches
from samout_train.models import map_state

MOST_TOKENS = 1 << 18
ROWS_TO_CHOOSE_FROM = 16  # candidates per chosen row; those with the least padding are chosen


@dataclass(frozen=True, kw_only=True)
class LayerHealth:
    """One layer's state along a row.

    Args:
        positions: Numbers of tokens after which it is measured; a sliding window is measured once it is full.
        norm: Norm over the channels at each position, mean of the rows.
        largest: Largest absolute value in any row at each position.
        moved_share: Share of channels whose maximum the token at each position raised; the first token sets them all.
            None if the state is not a maximum.
        never_moved_share: Share of channels that no later token raised; None if the state is not a maximum.
    """

    positions: list[int]
    norm: list[float]
    largest: list[float]
    moved_share: list[float] | None
    never_moved_share: float | None

    @property
    def growth(self) -> float:
        """Return the norm at the last position divided by that at the first: infinite from 0, 1 if both are 0."""
        first, last = self.norm[0], self.norm[-1]
        if first:
            return last / first
        if last:
            return float("inf")
        return 1.0


def positions_of(length: int) -> list[int]:
    """Return the numbers of tokens after which a row's state is measured: 1, 2, 4, ... and the whole row."""
    positions, power = [], 1
    while power < length:
        positions.append(power)
        power *= 2
    return [*positions, length]


def calm_rows(rows: Rows, num_rows: int, pad_id: int | None, document_id: int | None = None) -> Tensor:
    """Return the inputs of rows with little padding, spread over the split, (R, T) int64.

    Args:
        rows: Rows of the validation split.
        num_rows: Number of rows; fewer in a short split, or if they would have more than MOST_TOKENS tokens.
        pad_id: The id that fills rows; None for no padding.
        document_id: The id that begins a document; the rest of a row becomes padding where the next document begins.
            None if a row is read as one sequence.
    """
    num_rows = max(1, min(num_rows, MOST_TOKENS // rows.seq_len))
    candidates = SpreadBatches(rows, 1, ROWS_TO_CHOOSE_FROM * num_rows)
    if pad_id is None:
        pad_id = -1  # not a valid id
    inputs = []
    for ids_1T in candidates:
        inputs_1T = rows.split(ids_1T)[0].clone()
        if document_id is not None:
            begun_1T = (inputs_1T == document_id)[:, 1:].cumsum(1) > 0
            inputs_1T[:, 1:].masked_fill_(begun_1T, pad_id)
        inputs.append(inputs_1T)
    padding_R = torch.tensor([int((inputs_1T == pad_id).sum()) for inputs_1T in inputs])
    num_rows = min(num_rows, len(candidates))
    fullest_R = (padding_R <= padding_R.sort().values[num_rows - 1]).nonzero()[:, 0]
    chosen_R = fullest_R[torch.from_numpy(np.linspace(0, len(fullest_R) - 1, num_rows).round().astype(int))]
    return torch.cat([inputs[int(row)] for row in chosen_R])


def growing_layers(health: Mapping[str, LayerHealth], max_growth: float) -> dict[str, str]:
    """Return a warning for each layer whose state's norm grows by more than a factor of `max_growth` along a row."""
    warnings = {}
    for name, layer in health.items():
        if layer.growth > max_growth:
            warnings[name] = (
                f"{name}: the norm of its state is {layer.growth:.3g} times as large at the end of a row as at its "
                "start: the state keeps growing, so expect a worse loss beyond the training length"
            )
    return warnings


def layer_states(model: nn.Module, state: Any) -> dict[str, Tensor]:
    """Return the floating-point numbers of each layer's state, (B, numbers), without a cache's spare room."""
    states = {}
    for name, part in _parts_by_layer(model, state):
        tensors = [tensor.flatten(1) for tensor in _tensors(part)]
        if tensors:
            states[name] = torch.cat(tensors, dim=1)
    return states


def _parts_by_layer(model: nn.Module, state: Any) -> Iterator[tuple[str, Any]]:
    state_by_layer = getattr(model, "state_by_layer", None)
    if state_by_layer is not None:
        yield from state_by_layer(state).items()
        return
    if isinstance(state, Mapping):
        state = state.values()
    elif not isinstance(state, list | tuple):
        state = [state]
    for index, part in enumerate(state, start=1):
        yield f"layer_{index}", part


def _tensors(part: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            found.append(tensor.to(torch.promote_types(tensor.dtype, torch.float32)))
        return tensor

    map_state(keep, part)
    return found


def shapes_of(layers: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes by layer; they change with further tokens if a state grows with the sequence."""
    return {name: tensor.shape for name, tensor in layers.items()}


def keep_states(states: dict[str, dict[int, Tensor]], end: int, layers: Mapping[str, Tensor]) -> None:
    """Add the state of each layer after `end` tokens; earlier ones of another shape are dropped.

    Args:
        states: States by layer, then by the number of tokens read.
        end: The number of tokens read.
        layers: The states, from `layer_states`.
    """
    for name, state_BD in layers.items():
        earlier = states.setdefault(name, {})
        if any(before_BD.shape != state_BD.shape for before_BD in earlier.values()):
            earlier.clear()
        earlier[end] = state_BD


def health_of(
    states: Mapping[str, Mapping[int, Tensor]], positions: Sequence[int], maxima: set[str]
) -> dict[str, LayerHealth]:
    """Return the health of each layer with two positions or more. Figures are computed on the device and read once.

    Args:
        states: States by layer, then by the number of tokens read: at each position since the shape last changed and,
            for maxima, also one token before it.
        positions: The positions, from `positions_of`.
        maxima: Layers whose state is a maximum.
    """
    found = {}
    for name, by_end in states.items():
        norms, largest, moves = [], [], []
        measured = [position for position in positions if position in by_end]
        if len(measured) < 2:
            continue
        for position in measured:
            norms.append(by_end[position].norm(dim=1).mean())
            largest.append(by_end[position].abs().max())
        if name in maxima:
            for position in measured[1:]:
                moves.append(_moved(by_end[position - 1], by_end[position]))
            moves.append(1 - _moved(by_end[measured[0]], by_end[measured[-1]]))
        found[name] = measured, torch.stack([*norms, *largest, *moves])
    health = {}
    for name, (measured, figures) in found.items():
        count, values = len(measured), figures.tolist()
        moved_share = never_moved_share = None
        if name in maxima:
            moved_share, never_moved_share = [1.0, *values[2 * count : -1]], values[-1]
        health[name] = LayerHealth(
            positions=measured,
            norm=values[:count],
            largest=values[count : 2 * count],
            moved_share=moved_share,
            never_moved_share=never_moved_share,
        )
    return health


def _moved(before_BD: Tensor, after_BD: Tensor) -> Tensor:
    """Return the share of channels that changed; a maximum that stays NaN has not."""
    return ((before_BD != after_BD) & ~before_BD.isnan()).to(after_BD.dtype).mean()
