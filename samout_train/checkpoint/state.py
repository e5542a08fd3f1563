"""The state of model and optimizer in a checkpoint: whole tensors, or the shards of each process in a folder.

Names and shapes are compared with those of model and optimizer before any tensor is loaded.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from samout_train.checkpoint.shards import read_shards, split_shards
from samout_train.data import Vocabulary
from samout_train.models import ParallelModel, like

MOST_LINES = 8
# Entries of an optimizer's state that have the shape of their parameter; other entries may have any shape.
LIKE_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
State = dict[str, Any]


def saved_weights(shared: ParallelModel, optimizer: torch.optim.Optimizer) -> State:
    """Return the state of a model and its optimizer for a checkpoint.

    Returns:
        `model` and `optimizer`. For a sharded model also `vectors`: the names, as in `samout_train.checkpoint.shards`,
        of scalars that are stored as vectors of one element.
    """
    state: State = {"model": shared.model.state_dict(), "optimizer": optimizer.state_dict()}
    if not shared.is_sharded:
        return state
    parameters = dict(shared.model.named_parameters())
    scalars = {id(parameters[name]) for name in shared.scalars}
    ordered: list[Tensor] = []
    for group in optimizer.param_groups:
        ordered += group["params"]
    vectors = [f"model.{name}" for name in sorted(shared.scalars)]
    for index, tensors in state["optimizer"]["state"].items():
        if id(ordered[index]) not in scalars:
            continue
        for name, part in tensors.items():
            if isinstance(part, DTensor):
                vectors.append(f"optimizer.{index}.{name}")
    return state | {"vectors": vectors}


def load_weights(
    shared: ParallelModel,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    stateful: frozenset[str] = frozenset(),
) -> None:
    """Load a state from `saved_weights`, in any number of processes.

    Args:
        shared: The model.
        optimizer: Its optimizer, whose settings in the configuration take precedence over the checkpoint's.
        state: The state from `samout_train.checkpoint.files.read_checkpoint`.
        stateful: Keys of the optimizer's groups that its steps change; for them the checkpoint takes precedence.

    Raises:
        ValueError: if the tensors belong to another model or optimizer; the message names those that differ, and
            nothing is loaded.
    """
    require_same_model(shared.shapes(), state["model"])
    if is_usual(state["optimizer"]):
        require_same_optimizer(optimizer, state["optimizer"], shared.model)
    saved = state["optimizer"]
    if shared.is_sharded:
        saved = {**saved, "state": _moments(optimizer, saved)}
    if shared.is_sharded and (folder := state.get("shards")) is not None:
        own = {"model": shared.model.state_dict(), "optimizer": saved}
        read_shards(Path(folder), split_shards(own)[1])
    else:
        shared.load(state["model"])
    load_optimizer(optimizer, saved, stateful)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any, stateful: frozenset[str]) -> None:
    """Load the state of an optimizer; its settings in the configuration take precedence over saved ones.

    Args:
        optimizer: A newly built optimizer.
        saved: Its saved `state_dict`.
        stateful: Keys of its groups that its steps change; for them the saved values take precedence.

    Raises:
        ValueError: if its `load_state_dict` rejects the state.
    """
    kept = []
    for group in optimizer.param_groups:
        settings = dict(group)
        for key in ("params", "lr", *stateful):
            settings.pop(key, None)
        kept.append(settings)
    try:
        optimizer.load_state_dict(saved)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"load_state_dict of {type(optimizer).__name__} refuses the state in the checkpoint "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): choose the optimizer it was made with"
        ) from error
    # Keep the checkpoint's last learning rate for the report; all other settings come from the configuration.
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)


def is_usual(state: Any) -> bool:
    """Return whether the state of an optimizer has the form of torch's optimizers."""
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return False
    groups = state.get("param_groups")
    return isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups)


def require_same_model(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a checkpoint's names and shapes are not those of a model.

    The message lists missing, unexpected and differing tensors.

    Args:
        wanted: The model's tensors.
        given: The checkpoint's tensors.
    """
    found = []
    # Missing and unexpected tensors come first: they tell more than different widths.
    names = {**wanted, **given}
    for name in sorted(names, key=lambda name: name in wanted and name in given):
        here, there = wanted.get(name), given.get(name)
        if here is None or there is None or here.shape != there.shape:
            found.append(f"{name}: {_shape(there)} in the checkpoint, {_shape(here)} in the model")
    _require_no_differences("the checkpoint is of another model: choose the model that it was made with", found)


def require_same_vocabulary(wanted: Vocabulary | None, given: object) -> None:
    """Raise ValueError if the vocabulary of the data differs from that of a checkpoint.

    Args:
        wanted: The data's vocabulary; None if its ids are not text.
        given: The state of the checkpoint's vocabulary, or None.
    """
    own = None
    if wanted is not None:
        own = wanted.state_dict()
    if given != own:
        raise ValueError("the checkpoint has another vocabulary than this data: continue with the data it was made on")


def require_same_optimizer(optimizer: torch.optim.Optimizer, given: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ValueError if groups and shapes show that a checkpoint belongs to another optimizer.

    torch does not check shapes when it loads. The message names what differs.

    Args:
        optimizer: The optimizer of the model's parameters.
        given: The optimizer's state in the checkpoint.
        model: The model, which names the parameters.
    """
    what = "the checkpoint is of another optimizer: choose the optimizer that it was made with"
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in given["param_groups"]]
    if here != there:
        _require_no_differences(what, [f"parameters by group: {there} in the checkpoint, {here} in the optimizer"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for parameter, key in _keyed(optimizer, given):
        for name, tensor in given["state"].get(key, {}).items():
            if name not in LIKE_THE_PARAMETER or not isinstance(tensor, Tensor):
                continue
            is_scalar = tensor.numel() == parameter.numel() == 1  # a vector of one element in a sharded model
            if tensor.shape != parameter.shape and not is_scalar:
                of = names.get(id(parameter), f"parameter {key}")
                found.append(f"{name} of {of}: {_shape(tensor)} in the checkpoint, {_shape(parameter)} in the model")
    _require_no_differences(what, found)


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return a digest over sorted names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def named_values(part: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the values in nested mappings, lists and tuples, each with a name such as `optimizer.state.0.exp_avg`.

    Args:
        part: A part of a checkpoint.
        name: Name of this part.
    """
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(part, Mapping):
        items = part.items()
    elif isinstance(part, list | tuple):
        items = enumerate(part)
    else:
        yield name, part
    for key, inner in items:
        yield from named_values(inner, f"{name}.{key}")


def _moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[int, State]:
    """Return the optimizer's state; tensors of a parameter's size are sharded like the parameter."""
    moments = {}
    for parameter, key in _keyed(optimizer, saved):
        if key in saved["state"]:
            moments[key] = {name: _as_own(parameter, name, part) for name, part in saved["state"][key].items()}
    return moments


def _keyed(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Iterator[tuple[Tensor, int]]:
    """Yield each parameter of an optimizer with the key of its saved state."""
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        yield from zip(group["params"], saved_group["params"], strict=True)


def _as_own(parameter: Tensor, name: str, saved: Any) -> Any:
    if not isinstance(saved, Tensor):
        return saved
    is_moment = name != "step" and saved.numel() == parameter.numel()  # `step` is a scalar for any parameter
    if saved.is_meta and is_moment:
        return torch.zeros_like(parameter.detach())
    if saved.is_meta:
        return torch.zeros(saved.shape, dtype=saved.dtype)
    if is_moment:
        return like(parameter, saved)
    return saved


def _shape(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return "x".join(map(str, tensor.shape)) or "a number"


def _require_no_differences(what: str, found: list[str]) -> None:
    if len(found) > MOST_LINES:
        more = len(found) - MOST_LINES + 1
        found = [*found[: MOST_LINES - 1], f"and {more} more"]
    if found:
        raise ValueError("\n  ".join([what, *found]))
