"""Compute the cost of a model before it trains: parameters by part, peak memory of a training step."""

# B batch, T time

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from samout_train.models.interface import LanguageModel as LanguageModel, sees_future as sees_future  # old imports
from samout_train.models.loss import next_token_nats
from samout_train.runtime import PrecisionName, autocast, current_memory_bytes

# With one mapping per tensor (MALLOC_MMAP_THRESHOLD_=32768), the counted live bytes match the measured peak within
# 3 %. By default, glibc's heap keeps freed blocks between the live ones and needs 1.2 to 1.4 times as much.
HEAP_SLACK = 1.25
TRAINING_TIMES = 3  # matrix products of a training step per product of its forward pass: the backward pass has two


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable elements. A shared matrix counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters_by_part(model: Any) -> dict[str, int]:
    """Return the number of trainable elements of each part, in the order of the model's parameters."""
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[model.part_of(name)] += parameter.numel()
    return dict(parts)


def estimate_memory_bytes(
    model: nn.Module,
    *,
    rows: int,
    seq_len: int,
    accumulate: int,
    precision: PrecisionName,
    device: torch.device,
    most_targets: int | None = None,
) -> int:
    """Return the estimated peak memory, in bytes, of a training step with Adam.

    The step runs once on fake tensors, which have shapes but no data. The forward and backward pass of a micro-step
    create tensors and drop them; the estimate is the largest total of live bytes, plus the weights and two moments per
    weight. On a CPU it adds the heap's slack and the memory that the process already holds (mostly torch itself),
    because the measured quantity is resident memory. Memory inside kernels is not counted.

    Args:
        rows: Rows in a micro-step.
        seq_len: Targets in a row.
        accumulate: Micro-steps in a step. With more than one, gradients stay alive while the next one runs.
        precision: Precision of the forward pass.
        device: The device that the step will run on.
        most_targets: The most counted targets in a step; None if every target counts.
    """
    weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    with FakeTensorMode(), _LiveBytes() as live:
        ids_BT = torch.zeros(rows, seq_len, dtype=torch.int64, device=device)
        held = {name: torch.empty(b.shape, dtype=b.dtype, device=device) for name, b in model.named_buffers()}
        for name, p in model.named_parameters():
            held[name] = torch.empty(p.shape, dtype=p.dtype, device=device, requires_grad=p.requires_grad)
        with _reparametrize_module(model, held):  # around the backward pass too: it may recompute layers
            for _ in range(min(accumulate, 2)):
                with autocast(precision, device):
                    nats = next_token_nats(model, ids_BT, ids_BT, -100, most_targets=most_targets)
                nats.backward()
                del nats
    moments = 2 * weights_bytes
    if device.type == "cpu":
        return current_memory_bytes() + int(HEAP_SLACK * (live.peak - weights_bytes + moments))
    return live.peak + moments


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that operations create, each until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._follow, result)
        return result

    def _follow(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)
        return tensor

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
