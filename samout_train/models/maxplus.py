"""Maxplus: V8's mixer with a running maximum that forgets.

    m_t = max(m_{t-1} - f_t, d_t),   u_t = ((a_t + b_t) m_t + c_t) m_t

This is a linear recurrence over the max-plus semiring: the real numbers and minus infinity, with the maximum as its sum
and the sum as its product. In these terms m_t = (-f_t) m_{t-1} + d_t, a gated linear recurrence with forget gate -f_t
and input d_t. It shares their properties: steps compose, a sequence is a scan, and the state is one number per channel.
Unrolled, m_t is the largest of d_s - (f_{s+1} + ... + f_t): a large value stays until a later one exceeds what is left
of it. 1 / f is a channel's time scale: the number of tokens in which the maximum decays by 1.

V8 is the case f = 0. Its maximum never decays, so it does not record when a value was seen, and its state grows with
the sequence. With f > 0 the state stays in the range of its inputs at any length.

Source: the recurrence itself, sequential or in chunks, is in ops/max_scan; semirings in recurrences: Baccelli et al.,
Synchronization and Linearity (1992), chapter 3. A decay that depends on the token follows the gates of linear
recurrences (minGRU, arXiv 2410.01201; Mamba, arXiv 2312.00752).
"""

# B batch, T time, D width, P packed: the streams side by side

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import NonNegative, Positive, Probability, Share, validated
from samout_train.models.counting import CountingMaximum, Entries
from samout_train.models.layers import Linear
from samout_train.models.samout import project_streams
from samout_train.ops.elementwise import minus_softplus
from samout_train.ops.linear import Stack
from samout_train.ops.max_scan import max_mix

Decay = Literal["none", "learned", "token"]


class PartlyCounted(NamedTuple):
    """The state of a mixer with counting blocks.

    Args:
        maximum_BD: The decayed maximum of the other channels.
        counting_BC: The state of the blocks.
    """

    maximum_BD: Tensor
    counting_BC: Tensor


torch.serialization.add_safe_globals([PartlyCounted])


class MaxPlus(nn.Module):
    """V8's mixer over a maximum that decays by f at each token.

    Args:
        hidden_size: Width D.
        num_heads: Accepted as in V8; has no effect.
        decay: The form of f. `none`: 0, which is V8. `learned`: softplus of one parameter per channel. `token`:
            softplus(W x_t + b), per channel and token.
        decay_at_start: Initial f of a `learned` decay, and initial softplus(b) of a `token` decay.
        b_projection: Whether a and b have a matrix each, as in V8. They occur only as a sum; False leaves out b.
        counters: Share of the channels that are counting blocks (`CountingMaximum`), rounded to whole blocks.
        entries: As in `CountingMaximum`, like the temperatures.
    """

    branches: Mapping[str, int] = {"a+b": 0, "c": 1, "decay": 3}

    @validated
    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        decay: Decay,
        decay_at_start: Annotated[float, Positive],
        b_projection: bool = True,
        counters: Annotated[float, Probability] = 0.0,
        entries: Annotated[int, Entries] = 2,
        temperature: Annotated[float, NonNegative] = 1.0,
        temperature_held: Annotated[float, Share] = 0.5,
        temperature_zero: Annotated[float, Share] = 0.9,
    ) -> None:
        super().__init__()
        counting_width = round(counters * hidden_size / entries) * entries
        if counters and not counting_width:
            raise ValueError(
                f"counters ({counters}) of {hidden_size} channels are less than half a block of {entries}: set at "
                f"least {entries / hidden_size:.3g}, which is one block, or 0"
            )
        if counting_width >= hidden_size:
            raise ValueError(
                f"counters ({counters}) leave no channel of {hidden_size} for the maximum: lower it, or "
                "choose model=counting"
            )
        width = hidden_size - counting_width
        self.num_projections = 3
        if b_projection:
            self.num_projections = 4
        parts = [width] * self.num_projections
        self.projection = Linear(hidden_size, sum(parts), bias=False, parts=parts)
        self.decay = decay
        before_softplus = decay_at_start + math.log(-math.expm1(-decay_at_start))
        if decay == "learned":
            self.decay_D = nn.Parameter(torch.full((width,), before_softplus))
        elif decay == "token":
            self.decay_projection = Linear(hidden_size, width)
            nn.init.constant_(self.decay_projection.bias, before_softplus)
        self.counting: CountingMaximum | None = None
        if counting_width:
            self.branches = {}  # the streams of the two parts have different widths
            self.parts = {"maximum": slice(0, width), "blocks": slice(width, hidden_size)}
            self.counting = CountingMaximum(
                hidden_size=hidden_size,
                num_heads=num_heads,
                entries=entries,
                temperature=temperature,
                temperature_held=temperature_held,
                temperature_zero=temperature_zero,
                channels=counting_width,
            )

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the state (B, D) is the decayed maximum, or a PartlyCounted."""
        if self.counting is None:
            return max_mix(self._streams(x_BTD), state, self._added(x_BTD), form="v8")
        maximum, counting = state or (None, None)
        of_maximum, maximum = max_mix(self._streams(x_BTD), maximum, self._added(x_BTD), form="v8")
        of_counting, counting = self.counting(x_BTD, counting)
        return torch.cat([of_maximum, of_counting], dim=-1), PartlyCounted(maximum, counting)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return the streams a + b, c and d and the decay f side by side; f is 0 for `decay=none`."""
        added_BTD, decay_BTD = self._added(x_BTD), torch.zeros_like(x_BTD)
        if added_BTD is not None:
            decay_BTD = -added_BTD
        return torch.cat([self._streams(x_BTD), decay_BTD], dim=-1)

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mixed sequence and the next state, computed from the streams and the decay."""
        width = packed_BTP.shape[-1] // 4
        return max_mix(packed_BTP[..., : 3 * width], state_BD, -packed_BTP[..., 3 * width :], form="v8")

    def _streams(self, x_BTD: Tensor) -> Tensor:
        return project_streams(x_BTD, self.projection.weight_of_pass(), self.num_projections, _added_up)

    def weight_stack(self) -> Stack:
        """Return the streams as blocks of one product."""
        blocks = [[(0, 0)], [(0, 1)], [(0, 2)]]
        if self.num_projections == 4:
            blocks = [[(0, 0), (0, 1)], [(0, 2)], [(0, 3)]]
        return Stack([self.projection.weight], blocks, parts=self.num_projections)

    def _added(self, x_BTD: Tensor) -> Tensor | None:
        """Return -f (B, T, D); None for `decay=none`."""
        if self.decay == "none":
            return None
        if self.decay == "token":
            return minus_softplus(self.decay_projection(x_BTD))
        return -F.softplus(self.decay_D).to(x_BTD.dtype).expand(*x_BTD.shape[:-1], -1)

    def forward_flops_per_token(self) -> int:
        """Return the operations of the matrix products for one of many tokens: three streams and a token's decay."""
        products = 3
        if self.decay == "token":
            products += 1
        inputs, streams = self.projection.in_features, self.projection.out_features // self.num_projections
        flops = 2 * products * inputs * streams
        if self.counting is not None:
            flops += self.counting.forward_flops_per_token()
        return flops

    def state_bytes(self, length: int) -> int:
        """Return the bytes of a state: one float32 per channel at any length."""
        return 4 * self.projection.in_features


def _added_up(*projections_D: Tensor) -> tuple[Tensor, ...]:
    """Return the streams a + b, c and d from projections in this order; a, c and d if b has no matrix."""
    *first, c, d = projections_D
    return sum(first[1:], first[0]), c, d
