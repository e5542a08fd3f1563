"""What speaks against the tensors of a checkpoint for this model and this optimizer, before any of them is loaded."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from samout_train.data import Vocabulary

MOST_LINES = 8
# What optimizers keep in the shape of the parameter; what else they keep may have another.
LIKE_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def refuse_other_model(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Compares names and shapes.

    Args:
        wanted: The model's own tensors.
        given: Those of the checkpoint.

    Raises:
        ValueError: if they are not those of the model, naming missing, unexpected and differing ones.
    """
    found = []
    # What one of them has not at all comes first: it says more than widths do.
    names = list(chain(wanted, (name for name in given if name not in wanted)))
    for name in sorted(names, key=lambda name: name in wanted and name in given):
        here, there = wanted.get(name), given.get(name)
        if here is None or there is None or here.shape != there.shape:
            found.append(f"{name}: {_shape(there)} in the checkpoint, {_shape(here)} in the model")
    _refuse("the checkpoint is of another model: choose the model that it was made with", found)


def refuse_other_vocabulary(wanted: Vocabulary | None, given: object) -> None:
    """Compares vocabularies.

    Args:
        wanted: That of the data; None where ids are no text.
        given: The state of the checkpoint's; None likewise.

    Raises:
        ValueError: if they differ.
    """
    if given != (wanted.state_dict() if wanted else None):
        raise ValueError("the checkpoint has another vocabulary than this data: continue with the data it was made on")


def refuse_other_optimizer(optimizer: torch.optim.Optimizer, given: Mapping[str, Any], model: nn.Module) -> None:
    """Compares groups, and the shapes that torch loads unseen.

    Args:
        optimizer: Over the model's parameters.
        given: The state of the checkpoint.
        model: Names the parameters.

    Raises:
        ValueError: if it is that of another optimizer, naming what differs.
    """
    what = "the checkpoint is of another optimizer: choose the optimizer that it was made with"
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in given["param_groups"]]
    if here != there:
        _refuse(what, [f"parameters by group: {there} in the checkpoint, {here} in the optimizer"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    saved_keys = chain.from_iterable(group["params"] for group in given["param_groups"])
    found = []
    for parameter, key in zip(parameters, saved_keys, strict=True):
        for name, tensor in given["state"].get(key, {}).items():
            if name not in LIKE_THE_PARAMETER or not isinstance(tensor, Tensor):
                continue
            is_scalar = tensor.numel() == parameter.numel() == 1  # which a sharded model has as a vector
            if tensor.shape != parameter.shape and not is_scalar:
                of = names.get(id(parameter), f"parameter {key}")
                found.append(f"{name} of {of}: {_shape(tensor)} in the checkpoint, {_shape(parameter)} in the model")
    _refuse(what, found)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


def _refuse(what: str, found: list[str]) -> None:
    if found:
        shown = found if len(found) <= MOST_LINES else found[: MOST_LINES - 1]
        more = [f"and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
        raise ValueError("\n  ".join([what, *shown, *more]))
