"""Whether a machine has room for a model, seen before it is built."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from samout_train.config import build
from samout_train.runtime import too_large

FEW_IDS = 8  # how many there are is not known yet
OF_EACH_WEIGHT = 2 * torch.float32.itemsize  # the weight itself and its gradient
SQUARES = 32  # of its widest size, which the weights of a layer are fewer than
SIZES = ("hidden_size", "num_layers", "ffn_size", "ffn_share", "embedding_size", "convolution_size")


def model_too_large(node: Mapping[str, Any], device: torch.device) -> str | None:
    """Return that weights and gradients of a model do not fit into memory, without building it; None where they may.

    Args:
        node: Its settings, each right by itself. One with a target that is not this program's own is not judged.
        device: Where it is trained; it is built in the memory of the machine.
    """
    if not all(target.startswith("samout_train.") for target in _targets(node)):
        return None
    sizes = {key: node[key] for key in SIZES if node.get(key)}
    layers = sizes["num_layers"]
    widest = max(
        sizes.get("ffn_share", 1) * sizes["hidden_size"], *(sizes[key] for key in sizes if key != "num_layers")
    )
    if _lacks(int(layers * SQUARES * widest**2), device) is None:
        return None
    try:
        one, two = (_elements({**node, "num_layers": number}) for number in (1, 2))
    except ValueError:  # of settings that do not go together, which is told where it is built
        return None
    lacks = _lacks(one + (layers - 1) * (two - one), device)
    if lacks is None:
        return None
    return f"{', '.join(f'model.{key}={size}' for key, size in sizes.items())}: the model {lacks}: choose smaller ones"


def _lacks(elements: int, device: torch.device) -> str | None:
    needed = elements * OF_EACH_WEIGHT
    return too_large(needed, torch.device("cpu")) or too_large(needed, device)


def _elements(node: Mapping[str, Any]) -> int:
    """Elements of all weights, from their shapes alone."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model: nn.Module = build(dict(node), vocab_size=FEW_IDS, pad_id=None)
    return sum(parameter.numel() for parameter in model.parameters())


def _targets(node: Mapping[str, Any]) -> Iterator[str]:
    for key, value in node.items():
        if key == "_target_":
            yield str(value)
        elif isinstance(value, Mapping):
            yield from _targets(value)
