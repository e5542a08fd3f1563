"""Check an optimizer before step 1: whether it updates every parameter, and whether a checkpoint can hold its state.

Optimizers of torch and of this package are known to save their state completely. Any other optimizer is tried: two
steps must give the same weights whether or not its state is saved and loaded between them. The weights and the random
states are restored afterwards.
"""

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samout_train.checkpoint import is_usual, load_optimizer, serialised
from samout_train.models import ParallelModel
from samout_train.runtime import is_out_of_memory, read_tensor_file

Build = Callable[[nn.Module], torch.optim.Optimizer]
KNOWN = ("torch.optim", "samout_train.")  # modules of optimizers whose state is known to be complete
MOST_NAMES = 8
SAME = 1e-3  # of a step's largest change: tolerance for rounding
log = logging.getLogger(__name__)


def checked_optimizer(build: Build, shared: ParallelModel) -> tuple[torch.optim.Optimizer, frozenset[str]]:
    """Build an optimizer, and require that it can be resumed.

    Args:
        build: Builds the optimizer of a model.
        shared: The model.

    Returns:
        The optimizer, and the keys of its groups that its steps change and that are therefore part of its state.

    Raises:
        ValueError: if a checkpoint cannot hold its state, or a parameter is in two groups.
    """
    optimizer = build(shared.model)
    _require_groups(optimizer, shared.model)
    if type(optimizer).__module__.startswith(KNOWN):
        return optimizer, frozenset()
    return optimizer, _stateful_keys(build, shared)


def _require_groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    if not _has_groups(optimizer):
        raise ValueError(
            f"optimizer: {type(optimizer).__name__} has no param_groups that are dictionaries with params and lr, by "
            "which the schedule sets its rates: give it these, those of all optimizers that it is made of"
        )
    times: Counter[int] = Counter()
    for group in optimizer.param_groups:
        times.update(map(id, group["params"]))
    twice, left_out = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and times[id(parameter)] > 1:
            twice.append(name)
        if parameter.requires_grad and times[id(parameter)] == 0:
            left_out.append(name)
    if twice:
        raise ValueError(
            f"optimizer: these parameters are in more than one group, and would be updated twice a step: "
            f"{_listed(twice)}. Put each into one group"
        )
    if left_out:
        log.warning(
            "optimizer   these parameters are in none of its groups, and are never learned: %s. Put them into a group, "
            "or freeze them with requires_grad_(False)",
            _listed(left_out),
        )


def _has_groups(optimizer: Any) -> bool:
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list | tuple) or not groups:
        return False
    return all(isinstance(group, dict) and {"params", "lr"} <= group.keys() for group in groups)


def _stateful_keys(build: Build, shared: ParallelModel) -> frozenset[str]:
    """Try an optimizer; return the keys of its groups that a step changes."""
    parameters = [parameter for parameter in shared.model.parameters() if parameter.requires_grad]
    with _put_back(parameters):
        with _reported("a step"):
            first = build(shared.model)
            rates = [group["lr"] for group in first.param_groups]
            before = [_entries(group) for group in first.param_groups]
            _step(first, parameters, rates, 1.0)
        keys = _changed_keys(before, first)
        with _reported("state_dict()"):
            state = first.state_dict()
        if shared.is_sharded:
            _require_sharded_state(first, state)
            return keys
        state = _as_read(first, state)
        start = _copies(parameters)
        with _reported("a step"):
            _step(first, parameters, rates, 0.5)
        expected = _copies(parameters)
        _set(parameters, start)
        with _reported("load_state_dict() with what state_dict() gave"):
            second = build(shared.model)
            load_optimizer(second, state, keys)
        with _reported("the step after load_state_dict()"):
            _step(second, parameters, rates, 0.5)
        for old, wanted, found in zip(start, expected, _copies(parameters), strict=True):
            if not (wanted - found).abs().max() <= SAME * (wanted - old).abs().max() + 1e-12:
                raise ValueError(
                    f"optimizer: {type(first).__name__} cannot be continued: the step after its state was saved and "
                    "loaded is another one than without that. Let state_dict() give all that steps depend on and "
                    "load_state_dict() take it up, and let param_groups be those that step() reads also after that "
                    "(of an optimizer made of others: a property that joins theirs)"
                )
    return keys


def _changed_keys(before: Sequence[dict[str, Any]], optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """Return the keys of an optimizer's groups whose values have changed."""
    changed = set()
    for old, group in zip(before, optimizer.param_groups, strict=True):
        for key, value in _entries(group).items():
            if not _equal(old.get(key), value):
                changed.add(key)
    return frozenset(changed)


def _as_read(optimizer: torch.optim.Optimizer, state: Any) -> Any:
    """Return a state after a round trip through a checkpoint."""
    try:
        return read_tensor_file(io.BytesIO(serialised({"optimizer": state})))["optimizer"]
    except Exception as error:
        _let_pass(error)
        raise ValueError(
            f"optimizer: a checkpoint cannot hold the state_dict() of {type(optimizer).__name__}: {error}. Return only "
            "tensors, numbers, text, lists and dictionaries"
        ) from error


def _require_sharded_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Require a state in which a parameter's number and a name identify each shard."""
    if not _has_numbers_and_names(state):
        raise ValueError(
            f"trainer.parallel=fsdp: the state_dict() of {type(optimizer).__name__} is not that of a torch optimizer, "
            "so its shards cannot be saved: take trainer.parallel=ddp"
        )
    rest: dict[int, dict[str, Any]] = {}
    for index, parts in state["state"].items():
        rest[index] = {name: part for name, part in parts.items() if not isinstance(part, Tensor)}
    _as_read(optimizer, {**state, "state": rest})


def _has_numbers_and_names(state: Any) -> bool:
    if not is_usual(state):
        return False
    for index, parts in state["state"].items():
        if not isinstance(index, int) or not isinstance(parts, Mapping):
            return False
        if not all(isinstance(name, str) for name in parts):
            return False
    return True


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], rates: list[Any], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    for parameter in parameters:
        parameter.grad = factor * parameter.detach() + 0.01
    optimizer.step()


@contextmanager
def _put_back(parameters: Sequence[Tensor]) -> Iterator[None]:
    copies = _copies(parameters)
    devices = {parameter.device for parameter in parameters if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        try:
            yield
        finally:
            _set(parameters, copies)
            for parameter in parameters:
                parameter.grad = None


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn an error of a user's own code into one sentence."""
    try:
        yield
    except Exception as error:
        _let_pass(error)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"optimizer: {what} fails ({reason}). Fix the optimizer, or choose another one") from error


def _let_pass(error: Exception) -> None:
    if is_out_of_memory(error):
        raise error


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _entries(group: dict[str, Any]) -> dict[str, Any]:
    """Return copies of a group's entries, without its parameters and its rate."""
    entries = {}
    for key, value in group.items():
        if key in ("params", "lr"):
            continue
        if isinstance(value, Tensor):
            value = value.clone()
        entries[key] = value
    return entries


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)


def _listed(names: list[str]) -> str:
    listed = ", ".join(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        listed += f" and {len(names) - MOST_NAMES} more"
    return listed
