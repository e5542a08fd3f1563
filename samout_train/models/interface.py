"""The interfaces of token mixers and language models, and the names of a model's parts in reports.

Both interfaces are protocols: a custom mixer has the methods of `Mixer`, a custom model those of `LanguageModel`, and
neither needs a base class.
"""

# B batch, T time, D width, V vocabulary, P packed: the streams side by side

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

PARTS = {
    ".mixer.": "mixer",
    ".output_gate.": "mixer",
    ".attention.": "mixer",
    ".convolution.": "convolution",
    ".feed_forward.": "feed-forward",
    ".embedding.": "embedding",
    ".positions.": "embedding",
    ".head.": "head",
}


class Mixer(Protocol):
    """Mixes tokens along time, causally, and carries a state of fixed size.

    A call on a whole sequence and calls on its chunks, each with the state of the call before, give the same output.
    A state is a tensor (B, ...), or a NamedTuple, tuple, list or dictionary of tensors. A mixer whose state is a
    running maximum may set the attribute `state_is_maximum` to True: reports then show which channels still change.
    """

    def __call__(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix one chunk.

        Args:
            x_BTD: Layer input, T at least 1.
            state_BD: State returned by the previous call; None at the start of a sequence.

        Returns:
            (u_BTD, state_BD): The mixed sequence and the state after its last token.
        """
        ...

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32 after `length` tokens."""
        ...


class AnnealedMixer(Mixer, Protocol):
    """A mixer with a temperature, which the trainer sets before each step."""

    def anneal(self, share: float) -> float:
        """Set the temperature for a share of the run, from 0 to 1, and return it."""
        ...


class BranchedMixer(Mixer, Protocol):
    """A mixer whose `forward` is `mix(project(x), state)`, so that an ablation can set a stream to zero in between.

    Attributes:
        branches: The streams worth an ablation: a map from name to index in the packed streams, from 0.
    """

    branches: ClassVar[Mapping[str, int]]

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return the streams side by side, (B, T, P); each is D wide."""
        ...

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mixed sequence and the next state, computed from the streams."""
        ...


class LanguageModel(Protocol):
    """Declares what reports need from a model in addition to the forward pass.

    Two attributes are optional. `sees_future` is True if a position sees later tokens. `head_weight` is the matrix
    (V, D) that maps hidden states (B, T, D) to logits; a model that has it returns the hidden states when called with
    `return_hidden=True`. The loss then never holds all logits of a large batch.
    """

    def part_of(self, name: str) -> str:
        """Return the part (embedding, mixer, convolution, feed-forward, norm, head) that a parameter belongs to."""
        ...

    def forward_flops_per_token(self, length: int) -> int:
        """Return the floating-point operations of the matrix products for one token in a sequence of this length."""
        ...

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state after `length` tokens, without a cache's spare room."""
        ...


def sees_future(model: nn.Module) -> bool:
    """Return whether positions of a model see later tokens. Such a model is for labelling and cannot generate.

    A model without an attribute of this name counts as causal; `verify` tests whether it is.
    """
    return bool(getattr(model, "sees_future", False))


@contextmanager
def evaluating(model: nn.Module, *, inference: bool = True) -> Iterator[None]:
    """Put a model into evaluation mode, in which dropout is off, and restore its mode afterwards.

    Args:
        inference: Whether to enter torch's inference mode too. Leave it off in a generator: the mode belongs to the
            thread, so code that consumes the values would run in inference mode too.
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
    """Return the part that a parameter belongs to, by the module that holds it; without a listed module, `norm`."""
    for module, word in PARTS.items():
        if module in f".{name}":
            return word
    return "norm"


def matrix_flops(model: nn.Module) -> int:
    """Return the floating-point operations of the matrix products for one token: two per element of a matrix.

    Embeddings do not count, since a lookup is not a product. A mixer's operations along time come on top.
    """
    elements = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and part_of(name) != "embedding":
            elements += parameter.numel()
    return 2 * elements
