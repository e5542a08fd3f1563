"""up * relu(gate) on the CPU, in float32 and bfloat16, computed with in float32. Needs numba."""

# B batch, T time, F inner width

from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.numba_cache import compiled
from samout_train.ops.numba_call import call, num_threads
from samout_train.ops.numba_values import narrow, widen

ELEMENTS = 2**14  # of a task


def gate(up_BTF: Tensor, gate_BTF: Tensor, y_BTF: Tensor) -> None:
    """Fills y_BTF with up * relu(gate)."""
    call(_gate, num_threads(), up_BTF.view(-1), gate_BTF.view(-1), y_BTF.view(-1))


def gate_gradients(
    up_BTF: Tensor, gate_BTF: Tensor, grad_BTF: Tensor, grad_up_BTF: Tensor, grad_gate_BTF: Tensor
) -> None:
    """Fills the last two."""
    tensors = (up_BTF, gate_BTF, grad_BTF, grad_up_BTF, grad_gate_BTF)
    call(_gate_gradients, num_threads(), *(tensor.view(-1) for tensor in tensors))


@compiled(parallel=True)
def _gate(up: Any, gate: Any, y: Any) -> None:
    for task in numba.prange((len(y) + ELEMENTS - 1) // ELEMENTS):
        low, high = task * ELEMENTS, min(task * ELEMENTS + ELEMENTS, len(y))
        _gate_share(up[low:high], gate[low:high], y[low:high])


@compiled()
def _gate_share(up: Any, gate: Any, y: Any) -> None:
    for j in range(len(y)):
        opened = widen(gate[j])
        # A gate of NaN must not be taken for a closed one.
        y[j] = narrow(widen(up[j]) * (np.float32(0) if opened <= np.float32(0) else opened), y)


@compiled(parallel=True)
def _gate_gradients(up: Any, gate: Any, grad: Any, grad_up: Any, grad_gate: Any) -> None:
    for task in numba.prange((len(up) + ELEMENTS - 1) // ELEMENTS):
        low, high = task * ELEMENTS, min(task * ELEMENTS + ELEMENTS, len(up))
        _gate_gradients_share(up[low:high], gate[low:high], grad[low:high], grad_up[low:high], grad_gate[low:high])


@compiled()
def _gate_gradients_share(up: Any, gate: Any, grad: Any, grad_up: Any, grad_gate: Any) -> None:
    for j in range(len(up)):
        opened, g = widen(gate[j]), widen(grad[j])
        closed = opened <= np.float32(0)
        grad_up[j] = narrow(np.float32(0) if closed else g * opened, grad_up)
        grad_gate[j] = narrow(np.float32(0) if closed else g * widen(up[j]), grad_gate)
