"""Measure what the branches of a mixer contribute: the loss that leaving one out adds.

A branch is left out by putting something in the mixer's place that calls it. What can be left out, the mixer says
itself (`models/interface.py`): no formula is repeated here, and no weight is changed.
"""

# B batch, T time, D width, P packed: the streams side by side

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WHOLE = "mixer"  # its whole output
PAST = "past"  # what it knows of earlier tokens: each one is mixed as if a row began with it
EVERYWHERE = "all_layers"


class Without(nn.Module):
    """A mixer without one of its branches.

    Args:
        mixer: What stands in the model.
        branch: `mixer` (the output is zero), `past` (each token by itself), or one that the mixer names.
    """

    def __init__(self, mixer: nn.Module, branch: str) -> None:
        super().__init__()
        self.mixer, self.branch = mixer, branch

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return what the mixer returns, without the branch."""
        if self.branch == WHOLE:
            u_BTD, state = self.mixer(x_BTD, state)
            return torch.zeros_like(u_BTD), state
        if self.branch == PAST:
            u_A1D, state = self.mixer(x_BTD.flatten(0, 1).unsqueeze(1), None)
            return u_A1D.reshape(*x_BTD.shape[:2], -1), state
        mixer: Any = self.mixer
        streams = list(mixer.project(x_BTD).split(x_BTD.shape[-1], dim=-1))
        index = mixer.branches[self.branch]
        streams[index] = torch.zeros_like(streams[index])
        left: tuple[Tensor, Any] = mixer.mix(torch.cat(streams, dim=-1), state)
        return left


def mixed_by(model: nn.Module) -> dict[str, Any]:
    """Return the modules with a mixer as their attribute `mixer`, by layer: those of `layers`, or the model itself."""
    layers: Any = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        layers = [model]
    found = {}
    for index, layer in enumerate(layers, start=1):
        if isinstance(getattr(layer, "mixer", None), nn.Module):
            found[f"layer_{index}"] = layer
    return found


def said_by(mixer: nn.Module, name: str) -> Any:
    """Return what a mixer says about its `forward`; None for nothing, or where a subclass has another `forward`."""
    if name in vars(mixer):
        return getattr(mixer, name)
    for kind in type(mixer).__mro__:
        if name in vars(kind):
            return getattr(mixer, name)
        if "forward" in vars(kind):
            break
    return None


def branches_of(mixer: nn.Module) -> list[str]:
    """Return the names of what can be left out of a mixer, the whole of it last."""
    return [*(said_by(mixer, "branches") or {}), PAST, WHOLE]


@contextmanager
def without(layers: Mapping[str, Any], branch: str) -> Iterator[None]:
    """Let the mixers of these layers go without the branch.

    Args:
        layers: As `mixed_by` returns them, or some of them.
        branch: One of `branches_of` their mixers; a mixer that has none of this name stays as it is.
    """
    with ExitStack() as stack:
        for layer in layers.values():
            if branch in branches_of(layer.mixer):
                stack.callback(setattr, layer, "mixer", layer.mixer)
                layer.mixer = Without(layer.mixer, branch)
        yield


def added_nats(model: nn.Module, loss_nats: Callable[[], float], *, each_layer: bool) -> dict[str, dict[str, float]]:
    """Return what leaving out each branch adds to a loss.

    Args:
        model: Its mixers are found by `mixed_by`, and are in their places again afterwards.
        loss_nats: Evaluates the model.
        each_layer: Whether also in each layer by itself, which takes as many times longer as there are layers.

    Returns:
        By `all_layers` or layer, then by branch.
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
