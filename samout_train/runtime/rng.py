"""The random generators of Python, numpy, torch and a GPU: seeding, and states for checkpoints."""

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samout_train.runtime import distributed

log = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator of a run on this device, in types that a checkpoint can hold."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": None,
    }
    if device.type != "cpu":
        states[device.type] = device_random_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Restore the states that `random_states` returned; warn if they come from another kind of device."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    made_on = "cpu"
    if "mps" in states:
        made_on = "mps"
    elif states["cuda"] is not None:
        made_on = "cuda"
    if made_on != device.type:
        log.warning("the checkpoint is of another kind of device than %s: dropout will differ from there on", device)
    elif device.type != "cpu":
        set_device_random_state(states[device.type], device)


def set_own_random_states(states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Restore the random generators of this process.

    Args:
        states: The state of each process that wrote the checkpoint. A process beyond them is seeded from the state of
            the last one.
        device: The device of this process.
    """
    set_random_states(states[min(distributed.rank(), len(states) - 1)], device)
    if distributed.rank() >= len(states):
        seed_everything(int(torch.randint(2**31, ())) + distributed.rank())


def device_random_state(device: torch.device) -> Tensor | None:
    """Return the state of a GPU's own generator; None for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    if device.type == "mps":
        return torch.mps.get_rng_state()
    return None


def set_device_random_state(state: Tensor, device: torch.device) -> None:
    """Restore the state that `device_random_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.mps.set_rng_state(state)
