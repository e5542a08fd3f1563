"""Mix by a maximum that counts: row-normalised max-plus blocks.

    A_t[i, j] = L_t[i, j] - max over j of L_t[i, j],     L_t = W x_t + b, an n x n matrix for each block
    m_t[i]    = max over j of (A_t[i, j] + m_{t-1}[j]),  m_0 learned
    u_t       = (e_t v_t + c_t) v_t,                     v_t = m_t - the mean of its block

An elementwise maximum cannot count: m_t = max(m_{t-1} + a_t, d_t) is monotone in m_{t-1}. Two states never change
their order, but parity has to swap them. In a block, two entries can change places.

When it copies exactly: the largest entry of each row of A is 0. Say it stands in column k, and let r be the range of
m_{t-1} in this block, its largest minus its smallest entry. If every other entry of the row lies below -r, then
A[i, j] + m_{t-1}[j] < m_{t-1}[k] for all j != k, so m_t[i] = 0 + m_{t-1}[k], which is exact in any floating-point type.
A token whose rows all do this permutes the block (or copies entries) bit for bit, however many such tokens follow.

Why it cannot grow: A <= 0, and each row has a 0, so min m_{t-1} <= m_t[i] <= max m_{t-1}. The state stays in the range
of m_0, whatever the length.

Training: the gradient of a maximum among few entries reaches too few of them. At a temperature tau above 0, both maxima
are tau logsumexp(. / tau); a hard normalising maximum would let the state drift. tau is held until the task is learned,
then falls linearly to 0; evaluation is always at 0.

The recurrence is in ops/block_scan. Source: max-plus matrices: Baccelli et al., Synchronization and Linearity (1992);
the temperature makes the log semiring of max-plus.
"""

# B batch, T time, D width of the input, C channels = N G, N entries a block, G blocks, P packed: the streams side by
# side

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from samout_train.config import NonNegative, Range, Share, validated
from samout_train.models.layers import Linear
from samout_train.ops.block_scan import block_mix, require_entries

Entries = Range(2, 64)


class CountingMaximum(nn.Module):
    """Mix by row-normalised max-plus blocks.

    Args:
        hidden_size: Width D of the input, and of the output if `channels` is None.
        num_heads: Has no effect, as in V8.
        entries: Entries n of a block: 2 for parity, 3 for the permutations of three, 5 for those of five.
        temperature: Temperature at the start of training; 0 for the hard maximum throughout.
        temperature_held: Share of the run during which the temperature is constant.
        temperature_zero: Share of the run from which it is 0.
        channels: Width C of the output; a multiple of `entries`.

    Raises:
        ValueError: if entries do not divide the channels, temperature_zero is below temperature_held, or kernels=fused
            and no fused kernel supports such blocks.
    """

    branches: ClassVar[Mapping[str, int]] = {"e": 0, "c": 1}
    temperature: Tensor

    @validated
    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        entries: Annotated[int, Entries] = 2,
        temperature: Annotated[float, NonNegative] = 1.0,
        temperature_held: Annotated[float, Share] = 0.5,
        temperature_zero: Annotated[float, Share] = 0.9,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        require_entries(entries)
        self.channels = channels or hidden_size
        if self.channels % entries:
            fitting = self.channels // entries * entries or entries
            raise ValueError(
                f"entries ({entries}) of counting blocks must divide model.hidden_size ({self.channels}): set "
                f"model.hidden_size={fitting}, or other entries"
            )
        if temperature_zero < temperature_held:
            raise ValueError(
                f"temperature_zero ({temperature_zero}) of counting blocks must be at least temperature_held "
                f"({temperature_held}): raise the first"
            )
        self.entries = entries
        self.schedule = temperature, temperature_held, temperature_zero
        # A tensor, since a compiled graph must hold no changing number. Not saved: it follows from the run's share.
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32), persistent=False)
        streams = 2 + entries
        self.projection = Linear(hidden_size, streams * self.channels, parts=[self.channels] * streams)
        self.start_C = nn.Parameter(torch.randn(self.channels))
        nn.init.zeros_(self.projection.bias)
        with torch.no_grad():
            self.projection.weight[2 * self.channels :].normal_(0, hidden_size**-0.5)

    def anneal(self, share: float) -> float:
        """Set the temperature for a share of the run, from 0 to 1, and return it."""
        first, held, zero = self.schedule
        if share <= held:
            left = 1.0
        elif share >= zero:
            left = 0.0
        else:
            left = (zero - share) / (zero - held)
        self.temperature.fill_(first * left)
        return first * left

    def forward(self, x_BTD: Tensor, state_BC: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix (B, T, D) into (B, T, C); the state (B, C) is m."""
        return self.mix(self.project(x_BTD), state_BC)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return the streams e, c and L, side by side: (B, T, (2 + n) C)."""
        packed_BTP: Tensor = self.projection(x_BTD)
        return packed_BTP

    def mix(self, packed_BTP: Tensor, state_BC: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the output for the streams, and the next state."""
        if state_BC is None:
            start_C = self.start_C.to(torch.promote_types(self.start_C.dtype, torch.float32))
            state_BC = start_C.expand(len(packed_BTP), -1)
        temperature = None
        if self.training:
            temperature = self.temperature
        y_BTC, state_BNG = block_mix(packed_BTP, state_BC.unflatten(1, (self.entries, -1)), temperature)
        return y_BTC, state_BNG.flatten(1)

    def forward_flops_per_token(self) -> int:
        """Return the operations of the product for one token."""
        return 2 * self.projection.in_features * self.projection.out_features

    def state_bytes(self, length: int) -> int:
        """Return the bytes of a state: one float32 per channel, whatever the length."""
        return 4 * self.channels
