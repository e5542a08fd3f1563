"""Model and optimizer as a checkpoint holds them: whole tensors, or the shards of each process in a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from samout_train.checkpoint.mismatch import refuse_other_model, refuse_other_optimizer
from samout_train.checkpoint.shards import read_shards
from samout_train.models import SharedModel, like

State = dict[str, Any]


def saved_weights(shared: SharedModel, optimizer: torch.optim.Optimizer) -> State:
    """What a checkpoint holds of a model and its optimizer.

    Args:
        shared: The model.
        optimizer: Over its parameters.

    Returns:
        `model` and `optimizer`; where the model is sharded also `vectors`, those of its tensors, named as in
        `samout_train.checkpoint.files`, that are vectors of one element in place of scalars.
    """
    state: State = {"model": shared.model.state_dict(), "optimizer": optimizer.state_dict()}
    if not shared.is_sharded:
        return state
    parameters = dict(shared.model.named_parameters())
    scalars = {id(parameters[name]) for name in shared.scalars}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    vectors = [f"model.{name}" for name in sorted(shared.scalars)]
    for index, tensors in state["optimizer"]["state"].items():
        if id(ordered[index]) in scalars:
            vectors += [f"optimizer.{index}.{name}" for name, part in tensors.items() if isinstance(part, DTensor)]
    return state | {"vectors": vectors}


def load_weights(
    shared: SharedModel,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    stateful: frozenset[str] = frozenset(),
) -> None:
    """Takes up what `saved_weights` gave, in any number of processes.

    Args:
        shared: The model.
        optimizer: Over its parameters; what the configuration says of it beats the checkpoint.
        state: As `samout_train.checkpoint.files.read_checkpoint` gives it.
        stateful: Keys of the optimizer's groups that its steps change: the checkpoint's values count.

    Raises:
        ValueError: if the tensors are of another model or optimizer, with the names and shapes that differ; nothing is
            loaded then.
    """
    refuse_other_model(shared.shapes(), state["model"])
    if is_usual(state["optimizer"]):
        refuse_other_optimizer(optimizer, state["optimizer"], shared.model)
    saved = state["optimizer"]
    moments = _moments(optimizer, saved) if shared.is_sharded else {}
    if shared.is_sharded and (folder := state.get("shards")) is not None:
        tensors = {f"model.{name}": tensor for name, tensor in shared.model.state_dict().items()}
        tensors |= {
            f"optimizer.{index}.{name}": part
            for index, parts in moments.items()
            for name, part in parts.items()
            if isinstance(part, Tensor)
        }
        read_shards(Path(folder), tensors)
    else:
        shared.load(state["model"])
    load_optimizer(optimizer, {**saved, "state": moments} if shared.is_sharded else saved, stateful)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any, stateful: frozenset[str]) -> None:
    """Load the state of an optimizer; what the configuration says of it beats what was saved.

    Args:
        optimizer: As it was built.
        saved: What its `state_dict` gave.
        stateful: Keys of its groups that its steps change: what was saved counts.

    Raises:
        ValueError: if it refuses the state.
    """
    others = {"params", "lr"} | stateful
    kept = [{k: v for k, v in group.items() if k not in others} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"load_state_dict of {type(optimizer).__name__} refuses the state in the checkpoint "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): choose the optimizer it was made with"
        ) from error
    # The rate of the checkpoint's last step is for the report; all else is as the configuration says.
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)


def is_usual(state: Any) -> bool:
    """Return whether the state of an optimizer has the form that torch's optimizers give it."""
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return False
    groups = state.get("param_groups")
    return isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups)


def _moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[int, State]:
    """The optimizer's state, each tensor sharded as its parameter is where it has as many elements."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    return {
        key: {name: _as_own(parameter, name, part) for name, part in saved["state"][key].items()}
        for key, parameter in zip(keys, parameters, strict=True)
        if key in saved["state"]
    }


def _as_own(parameter: Tensor, name: str, saved: Any) -> Any:
    if not isinstance(saved, Tensor):
        return saved
    is_moment = name != "step" and saved.numel() == parameter.numel()  # what counts steps is a scalar beside any other
    if saved.is_meta:
        return torch.zeros_like(parameter.detach()) if is_moment else torch.zeros(saved.shape, dtype=saved.dtype)
    return like(parameter, saved) if is_moment else saved
