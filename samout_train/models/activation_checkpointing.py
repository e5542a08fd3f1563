"""Activations of a layer computed again in the backward pass, so that only its input is kept until then.

Source: Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).
"""

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module) -> None:
    """Makes each of a model's layers compute its activations again, wherever it trains with gradients.

    Names of weights stay, and so does every bit: the second time, dropout draws what it drew the first time.

    Args:
        model: Its layers are the ModuleList `layers`.

    Raises:
        ValueError: if it has none.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(no_layers(type(model).__name__))
    for layer in layers:
        # A method of this one layer, so that a copy of the model has its own.
        layer.forward = MethodType(_forward, layer)


def no_layers(name: str) -> str:
    """What to say where the model of this name has nothing to compute again."""
    return (
        f"trainer.activation_checkpointing=true: works layer by layer, and {name} has no ModuleList named layers: "
        "leave it out, or take model=v1, v8, maxplus, mingru or transformer"
    )


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(layer).forward
    if layer.training and torch.is_grad_enabled():
        return checkpoint(forward, layer, *args, use_reentrant=False, **kwargs)
    return forward(layer, *args, **kwargs)
