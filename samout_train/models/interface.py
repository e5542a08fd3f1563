"""The interfaces of token mixers and language models, and the names of a model's parts in reports.

A mixer of one's own needs `Mixer`, a model of one's own `LanguageModel`: nothing is derived from them.
"""

# B batch, T time, D width, V vocabulary, P packed: the streams side by side

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

PARTS = {
    ".mixer.": "mixer",
    ".attention.": "mixer",
    ".convolution.": "convolution",
    ".feed_forward.": "feed-forward",
    ".embedding.": "embedding",
    ".positions.": "embedding",
    ".head.": "head",
}


class Mixer(Protocol):
    """Mixes tokens along time, causally, and carries a state of fixed size.

    Calling it on a whole sequence, or on its chunks one after another with the state handed on, gives the same output.
    A state may be a tensor, (B, ...), or a NamedTuple, tuple, list or dictionary of such. A mixer
    whose state is a running maximum may say so with an attribute `state_is_maximum` that is true: then it is reported
    which of its channels move.
    """

    def __call__(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix one chunk.

        Args:
            x_BTD: Layer input, T at least 1.
            state_BD: What the call before returned; None at the start of a sequence.

        Returns:
            (u_BTD, state_BD): The mixed sequence and the state after its last token.
        """
        ...

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32 after `length` tokens."""
        ...


class BranchedMixer(Mixer, Protocol):
    """A mixer whose `forward` is `mix(project(x), state)`, so that a stream between the two can be left out.

    Attributes:
        branches: The streams that are worth leaving out: by name, which of those side by side it is, from 0.
    """

    branches: ClassVar[Mapping[str, int]]

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return the streams, D wide each, side by side: (B, T, P)."""
        ...

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mixed sequence and the next state, of the streams."""
        ...


class LanguageModel(Protocol):
    """Declares what reports ask of a model, beside being called.

    One in which a position sees later tokens says so with an attribute `sees_future` that is true; see `sees_future`.
    One whose logits are a matrix (V, D) times what its body makes has that matrix as `head_weight`, and returns that,
    (B, T, D), where it is called with `return_hidden=True`: its loss then needs no logits where they are very many.
    """

    def part_of(self, name: str) -> str:
        """Return the part (embedding, mixer, feed-forward, head) that a parameter belongs to."""
        ...

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token in a sequence of this length."""
        ...

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state after so many tokens: without a cache's room to go on."""
        ...


def sees_future(model: nn.Module) -> bool:
    """Return whether positions of a model see later tokens: it is for labelling then, and has no state to go on from.

    A model without the attribute of this name is held to be causal, which `verify` proves.
    """
    return bool(getattr(model, "sees_future", False))


@contextmanager
def evaluating(model: nn.Module, *, inference: bool = True) -> Iterator[None]:
    """Hold a model in evaluation mode, in which dropout is off, and put its own mode back.

    Args:
        model: The model.
        inference: Whether in torch's inference mode, too, which is the thread's: a generator leaves it off, or what
            asks it for values would be in it between them.
    """
    was_training = model.training
    model.eval()
    try:
        if inference:
            with torch.inference_mode():
                yield
        else:
            yield
    finally:
        model.train(was_training)


def part_of(name: str) -> str:
    """Return the part of the parameter of this name: that of the module which it lies in; elsewhere it is a norm's."""
    for module, word in PARTS.items():
        if module in f".{name}":
            return word
    return "norm"


def matrix_flops(model: nn.Module) -> int:
    """Return the floating-point operations of the matrix products for one token: two for each element of a matrix.

    An embedding is looked up, which is no product; what a mixer does along time comes on top.
    """
    elements = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and part_of(name) != "embedding":
            elements += parameter.numel()
    return 2 * elements
