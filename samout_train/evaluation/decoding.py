"""One token after another from a carried state: on CUDA, a model whose state has a fixed size is one graph launch.

Launched one by one, the kernels of a token take longer to launch than to run. A CUDA graph (torch.cuda.graphs)
launches them together; for that, ids, state and logits stay in the same memory, and the graph itself writes the next
state there.
"""

# B batch, T time, V vocabulary

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

log = logging.getLogger(__name__)

PREFILL_TOKENS = 512
WARM_UP_CALLS = 3  # kernels are compiled and workspaces allocated in them, neither of which a capture may do


def prefill(model: nn.Module, prompt_ids: list[int]) -> tuple[Tensor, Any]:
    """Reads a prompt in pieces, so that memory does not grow with it.

    Args:
        model: Called as `logits, state = model(ids, state)`.
        prompt_ids: At least one.

    Returns:
        (logits_BV, state): What follows the last token, and the state behind it, of a batch of one.
    """
    device = next(model.parameters()).device
    state: Any = None
    for start in range(0, len(prompt_ids), PREFILL_TOKENS):
        with torch.inference_mode():
            ids_BT = torch.tensor([prompt_ids[start : start + PREFILL_TOKENS]], device=device)
            logits_BTV, state = model(ids_BT, state)
    return logits_BTV[:, -1], state


class Decoder:
    """Goes on from a state, a token of each sequence at a time.

    Args:
        model: Called as `logits, state = model(ids, state)`, in evaluation.
        state: What the model returned for the tokens before; it is left as it is.
    """

    def __init__(self, model: nn.Module, state: Any) -> None:
        self._model, self._state = model, state
        self._replay: Callable[[], None] | None = None
        self._is_static: bool | None = None

    def __call__(self, ids_B1: Tensor) -> Tensor:
        """Takes one token of each sequence.

        Args:
            ids_B1: int64, on the model's device.

        Returns:
            (B, V): logits for the next one, which the next call may overwrite.
        """
        with torch.inference_mode():
            if self._is_static is None:
                self._is_static = can_capture(ids_B1.device) and has_fixed_size(self._model, ids_B1, self._state)
                if self._is_static:
                    self._make_static(ids_B1)
            if self._replay is None:
                logits_BTV, self._state = self._model(ids_B1, self._state)
                return logits_BTV[:, -1]
            self._ids_B1.copy_(ids_B1)
            self._replay()
            return self._logits_BV

    def _make_static(self, ids_B1: Tensor) -> None:
        self._ids_B1 = ids_B1.clone()
        given, self._state = self._state, tree_map_only(Tensor, torch.clone, self._state)
        try:
            self._replay = captured(self._step, lambda: self._model(self._ids_B1, self._state))
        except RuntimeError as error:
            log.warning("decoding    without a CUDA graph: %s", error)
            self._state = given

    def _step(self) -> None:
        logits_BTV, state = self._model(self._ids_B1, self._state)
        self._logits_BV = logits_BTV[:, -1]
        # Copied first: a part of the next state may be another part of the old one.
        for old, new in zip(tree_leaves(self._state), [leaf.clone() for leaf in tree_leaves(state)], strict=True):
            old.copy_(new)


def can_capture(device: torch.device) -> bool:
    """Whether there are graphs on this device."""
    return device.type == "cuda"


def has_fixed_size(model: nn.Module, ids_B1: Tensor, state: Any) -> bool:
    """Whether a state is tensors only, which keep their shapes when a token comes."""
    before = tree_leaves(state)
    if not all(isinstance(leaf, Tensor) for leaf in before):  # a cache counts what is written into it
        return False
    return [leaf.shape for leaf in before] == [leaf.shape for leaf in tree_leaves(model(ids_B1, state)[1])]


def captured(step: Callable[[], None], rehearse: Callable[[], object]) -> Callable[[], None]:
    """A step as one CUDA graph; making it does not take the step.

    Args:
        step: Reads and writes the same memory each time.
        rehearse: The same work, but for what it writes over.

    Raises:
        RuntimeError: if it does what a graph cannot, such as waiting for the device.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP_CALLS):
            rehearse()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
