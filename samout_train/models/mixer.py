"""What a token mixer is: the contract that every layer of a SamOut skeleton relies on."""

# B batch, T time, D width, P packed: the streams side by side

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor


class Mixer(Protocol):
    """Mixes tokens along time, causally, and carries a state of fixed size.

    Calling it on a whole sequence, or on its chunks one after another with the state handed on, gives the same output.
    A mixer whose state is a running maximum may say so with an attribute `state_is_maximum` that is true: then it is
    reported which of its channels move.
    """

    def __call__(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes one chunk.

        Args:
            x_BTD: Layer input, T at least 1.
            state_BD: What the call before returned; None at the start of a sequence.

        Returns:
            (u_BTD, state_BD): The mixed sequence and the state after its last token.
        """
        ...

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state in float32 after `length` tokens."""
        ...


class BranchedMixer(Mixer, Protocol):
    """A mixer whose `forward` is `mix(project(x), state)`, so that a stream between the two can be left out.

    Attributes:
        branches: The streams that are worth leaving out: by name, which of those side by side it is, from 0.
    """

    branches: ClassVar[Mapping[str, int]]

    def project(self, x_BTD: Tensor) -> Tensor:
        """The streams, D wide each, side by side: (B, T, P)."""
        ...

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mixed sequence and the next state, of the streams."""
        ...
