"""What a token mixer is: the contract that every layer of a SamOut skeleton relies on."""

# B batch, T time, D width

from typing import Protocol

from torch import Tensor


class Mixer(Protocol):
    """Mixes tokens along time, causally, and carries a state of fixed size.

    Calling it on a whole sequence, or on its chunks one after another with the state handed on, gives the same output.
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
