"""The state of a recurrent model along a row: how large it grows, and which channels of a maximum still move.

States are taken where decoding takes them: from the model, which is fed a row in pieces and carries its state. So this
holds for every model whose state has a fixed size. One whose state grows with the sequence has none of this.
"""

# B batch, T time, D width

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samout_train.data import Rows
from samout_train.evaluation.batches import SpreadBatches
from samout_train.models import map_state

MOST_TOKENS = 1 << 18
ROWS_TO_CHOOSE_FROM = 16  # for each that is taken: the one with the least padding


@dataclass(frozen=True, kw_only=True)
class LayerHealth:
    """One layer's state along a row.

    Args:
        norm: At each position, its norm over the channels, mean of the rows.
        largest: At each position, its largest absolute value in any row.
        moved_share: At each position, the share of channels whose maximum that token raised; None where the state is no
            maximum. The first token sets them all.
        never_moved_share: The share of channels that no later token raised; None where the state is no maximum.
    """

    norm: list[float]
    largest: list[float]
    moved_share: list[float] | None
    never_moved_share: float | None

    @property
    def growth(self) -> float:
        """How many times the norm of the first token the norm at the end is; infinite behind a first norm of zero."""
        first, last = self.norm[0], self.norm[-1]
        return last / first if first else float("inf") if last else 1.0


def positions_of(length: int) -> list[int]:
    """Return after how many tokens a state of a row is looked at: 1, 2, 4 and so on, and the whole row."""
    powers = [1 << power for power in range(length.bit_length()) if 1 << power < length]
    return [*powers, length]


def calm_rows(rows: Rows, num_rows: int, pad_id: int | None) -> Tensor:
    """Return inputs of rows at even distances, of those with the least padding: (R, T) int64.

    Args:
        rows: Of the validation split.
        num_rows: How many; fewer where there are not so many, or where rows are so long that these are MOST_TOKENS.
        pad_id: The id that fills rows; None where there is none.
    """
    num_rows = max(1, min(num_rows, MOST_TOKENS // rows.seq_len))
    candidates = SpreadBatches(rows, 1, ROWS_TO_CHOOSE_FROM * num_rows)
    absent = -1 if pad_id is None else pad_id
    padding_R = torch.tensor([int((rows.split(ids_1T)[0] == absent).sum()) for ids_1T in candidates])
    num_rows = min(num_rows, len(candidates))
    fullest_R = (padding_R <= padding_R.sort().values[num_rows - 1]).nonzero()[:, 0]
    chosen_R = fullest_R[torch.from_numpy(np.linspace(0, len(fullest_R) - 1, num_rows).round().astype(int))]
    return torch.cat([rows.split(candidates[int(row)])[0] for row in chosen_R])


def growing_layers(health: Mapping[str, LayerHealth], max_growth: float) -> dict[str, str]:
    """Return the layers whose state's norm grows more than `max_growth` times along a row, each with a warning."""
    return {
        name: f"{name}: the norm of its state is {layer.growth:.3g} times as large at the end of a row as at its "
        "start: it does not extrapolate, so expect the model to go astray in text longer than a row"
        for name, layer in health.items()
        if layer.growth > max_growth
    }


def layer_states(model: nn.Module, state: Any) -> dict[str, Tensor]:
    """(B, numbers) by layer: all that is no whole number of the layer's state, room behind a cache left out."""
    told = getattr(model, "state_by_layer", None)
    if told is not None:
        parts: Mapping[str, Any] = told(state)
    else:
        parts = {f"layer_{index}": part for index, part in enumerate(_entries(state), start=1)}
    flat = {name: [part.flatten(1) for part in _tensors(part)] for name, part in parts.items()}
    return {name: torch.cat(tensors, dim=1) for name, tensors in flat.items() if tensors}


def _entries(state: Any) -> Iterable[Any]:
    if isinstance(state, Mapping):
        return state.values()
    return state if isinstance(state, list | tuple) else [state]


def _tensors(part: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            found.append(tensor.to(torch.promote_types(tensor.dtype, torch.float32)))
        return tensor

    map_state(keep, part)
    return found


def shapes_of(layers: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """By layer; other ones after further tokens where a state grows with the sequence."""
    return {name: tensor.shape for name, tensor in layers.items()}


def health_of(
    states: Mapping[int, Mapping[str, Tensor]], positions: Sequence[int], maxima: set[str]
) -> dict[str, LayerHealth]:
    """Return the health of each layer; all figures are computed where the states are, and asked for once.

    Args:
        states: By the number of tokens read, the state of each layer: at the positions, and for maxima one before each.
        positions: As `positions_of` returns them.
        maxima: Layers whose state is a maximum.
    """
    found = {}
    for name in states[1]:
        along = [states[position][name] for position in positions]
        figures = [part.norm(dim=1).mean() for part in along] + [part.abs().max() for part in along]
        if name in maxima:
            figures += [_moved(states[position - 1][name], states[position][name]) for position in positions[1:]]
            figures.append(1 - _moved(along[0], along[-1]))
        found[name] = torch.stack(figures)
    count = len(positions)
    health = {}
    for name, values in found.items():
        norm, largest, moves = (part.tolist() for part in values.tensor_split([count, 2 * count]))
        health[name] = LayerHealth(
            norm=norm,
            largest=largest,
            moved_share=[1.0, *moves[:-1]] if moves else None,
            never_moved_share=moves[-1] if moves else None,
        )
    return health


def _moved(before_BD: Tensor, after_BD: Tensor) -> Tensor:
    """The share of channels that changed. A maximum that is no number stays so, which is no move."""
    return ((before_BD != after_BD) & ~before_BD.isnan()).to(after_BD.dtype).mean()
