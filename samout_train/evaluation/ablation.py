"""Ablation: measure what each branch of a mixer contributes, as the loss added without it.

A wrapper takes the mixer's place and calls it without the branch. The mixer itself declares its branches
(`models/interface.py`), so that no formula is repeated here and no weight changes.
"""

# B batch, T time, D width, P packed: the streams side by side

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WHOLE = "mixer"  # the whole output
PAST = "past"  # the influence of earlier tokens: each token is mixed as if it began a row
EVERYWHERE = "all_layers"


class Without(nn.Module):
    """A mixer without one of its branches.

    Args:
        mixer: The model's mixer.
        branch: `mixer` (the output is zero), `past` (each token by itself), one of the mixer's `branches`, or one of
            its `parts` (its channels of the output are zero).
    """

    def __init__(self, mixer: nn.Module, branch: str) -> None:
        super().__init__()
        self.mixer, self.branch = mixer, branch

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the mixer's output without the branch, and its next state."""
        if self.branch == WHOLE:
            u_BTD, state = self.mixer(x_BTD, state)
            return torch.zeros_like(u_BTD), state
        if self.branch == PAST:
            u_A1D, state = self.mixer(x_BTD.flatten(0, 1).unsqueeze(1), None)
            return u_A1D.reshape(*x_BTD.shape[:2], -1), state
        if (channels := parts_of(self.mixer).get(self.branch)) is not None:
            u_BTD, state = self.mixer(x_BTD, state)
            u_BTD = u_BTD.clone()
            u_BTD[..., channels] = 0
            return u_BTD, state
        mixer: Any = self.mixer
        streams = list(mixer.project(x_BTD).split(x_BTD.shape[-1], dim=-1))
        index = mixer.branches[self.branch]
        streams[index] = torch.zeros_like(streams[index])
        left: tuple[Tensor, Any] = mixer.mix(torch.cat(streams, dim=-1), state)
        return left


def mixed_by(model: nn.Module) -> dict[str, Any]:
    """Return the modules with an attribute `mixer`, by layer: those in `model.layers`, or the model itself."""
    layers: Any = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        layers = [model]
    found = {}
    for index, layer in enumerate(layers, start=1):
        if isinstance(getattr(layer, "mixer", None), nn.Module):
            found[f"layer_{index}"] = layer
    return found


def said_by(mixer: nn.Module, name: str) -> Any:
    """Return an attribute that describes a mixer's `forward`; None if missing, or if a subclass overrides `forward`."""
    if name in vars(mixer):
        return getattr(mixer, name)
    for kind in type(mixer).__mro__:
        if name in vars(kind):
            return getattr(mixer, name)
        if "forward" in vars(kind):
            break
    return None


def parts_of(mixer: nn.Module) -> Mapping[str, slice]:
    """Return the channels of the output that each named part of a mixer computes; empty for a mixer of one part."""
    return said_by(mixer, "parts") or {}


def branches_of(mixer: nn.Module) -> list[str]:
    """Return the names of a mixer's branches, the whole output last."""
    return [*(said_by(mixer, "branches") or {}), *parts_of(mixer), PAST, WHOLE]


@contextmanager
def without(layers: Mapping[str, Any], branch: str) -> Iterator[None]:
    """Run these layers' mixers without a branch.

    Args:
        layers: Some or all of the layers from `mixed_by`.
        branch: A branch from `branches_of`; a mixer without this branch stays as it is.
    """
    with ExitStack() as stack:
        for layer in layers.values():
            if branch in branches_of(layer.mixer):
                stack.callback(setattr, layer, "mixer", layer.mixer)
                layer.mixer = Without(layer.mixer, branch)
        yield


def added_nats(model: nn.Module, loss_nats: Callable[[], float], *, each_layer: bool) -> dict[str, dict[str, float]]:
    """Return the nats that leaving out each branch adds to a loss.

    Args:
        model: The model, unchanged afterwards.
        loss_nats: Evaluates the model.
        each_layer: Whether to measure each layer separately too, which multiplies the time by about their number.

    Returns:
        Added nats by `all_layers` or layer, then by branch.
    """
    layers = mixed_by(model)
    if not layers:
        return {}
    places = {EVERYWHERE: layers}
    if each_layer and len(layers) > 1:
        for name, layer in layers.items():
            places[name] = {name: layer}
    whole_nats = loss_nats()
    found: dict[str, dict[str, float]] = {}
    for place, there in places.items():
        found[place] = {}
        branches: dict[str, None] = {}  # in their order, each once
        for layer in there.values():
            branches |= dict.fromkeys(branches_of(layer.mixer))
        for branch in branches:
            with without(there, branch):
                found[place][branch] = loss_nats() - whole_nats
    return found
