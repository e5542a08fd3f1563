"""Maxplus: V8's mixer with a running maximum that forgets.

    m_t = max(m_{t-1} - f_t, d_t),   u_t = ((a_t + b_t) m_t + c_t) m_t

This is a linear recurrence over the max-plus semiring: the real numbers and minus infinity, where the sum of two is
their maximum and their product is their sum. Written in it, m_t = (-f_t) m_{t-1} + d_t: the state of a gated linear
recurrence with the forget gate -f_t and the input d_t. So it has what such a recurrence has: steps compose, a
sequence is a scan, and the state is one number a channel. Unrolled, m_t is the largest of d_s - (f_{s+1} + ... +
f_t): what was large is remembered until something came that is less below it than was forgotten since. 1 / f is a
channel's time scale: the tokens in which a maximum comes down by 1.

V8 is the case f = 0: its maximum never comes down, so it forgets when a thing was seen, and its state grows with the
sequence. With f > 0 the state stays in the range of its inputs, whatever the length.

Source: the recurrence itself, sequential or in chunks, in ops/max_scan; semirings in recurrences: Baccelli et al.,
Synchronization and Linearity (1992), chapter 3. The decay of a channel as a function of the token follows the gates of
linear recurrences (minGRU, arXiv 2410.01201; Mamba, arXiv 2312.00752), its spread at the start their time scales.
"""

# B batch, T time, D width, P packed: the streams side by side

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.models.linear import Linear
from samout_train.models.streams import project_streams
from samout_train.ops.max_scan import max_mix
from samout_train.ranges import NonNegative, validated

CEILING_AT_START = 2.0
Decay = Literal["none", "constant", "learned", "token"]


class MaxPlus(nn.Module):
    """V8's mixer over a maximum that comes down by f at each token.

    Args:
        hidden_size: Width D.
        num_heads: Accepted as V8 accepts it; changes nothing.
        decay: What f is. `none`: 0, which is V8. `constant`: what it is at the start. `learned`: softplus of a number
            for each channel. `token`: softplus of W x_t + b, for each channel and token.
        decay_at_start: f of the first and of the last channel before training; of those between them, evenly spread in
            logarithms. Above 0, or (0, 0) where the decay is constant.
        bounded: Whether what is remembered is bounded by a projection of the token, too: m_t = max(d_t, min(c_t,
            m_{t-1} - f_t)), a token after the other.

    Raises:
        ValueError: if decay_at_start is 0 where it must not be.
    """

    branches: ClassVar[Mapping[str, int]] = {"a+b": 0, "c": 1, "decay": 3}

    @staticmethod
    def problems(settings: Mapping[str, Any], name: str) -> list[str]:
        """What is wrong between settings that are right by themselves; `name` is the key that they stand under."""
        first, last = settings["decay_at_start"]
        if (first and last) or settings["decay"] == "none" or (settings["decay"] == "constant" and first == last):
            return []
        zero = " or [0, 0]" if settings["decay"] == "constant" else ""
        return [f"{name}.decay_at_start=[{first:g}, {last:g}]: with decay={settings['decay']}, give two above 0{zero}"]

    @validated
    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        decay: Decay,
        decay_at_start: tuple[Annotated[float, NonNegative], Annotated[float, NonNegative]],
        bounded: bool = False,
    ) -> None:
        super().__init__()
        if found := self.problems({"decay": decay, "decay_at_start": decay_at_start}, "mixer"):
            raise ValueError(found[0])
        self.projection = Linear(hidden_size, 4 * hidden_size, bias=False)
        first, last = decay_at_start
        both = first and last
        spread_D = (
            torch.logspace(math.log10(first), math.log10(last), hidden_size) if both else torch.zeros(hidden_size)
        )
        before_softplus_D = spread_D.expm1().log()
        self.decay = decay
        if decay == "constant":
            self.register_buffer("decay_D", spread_D)
        elif decay == "learned":
            self.decay_D = nn.Parameter(before_softplus_D)
        elif decay == "token":
            self.decay_projection = Linear(hidden_size, hidden_size)
            with torch.no_grad():
                self.decay_projection.bias.copy_(before_softplus_D)

        self.ceiling = Linear(hidden_size, hidden_size) if bounded else None
        if self.ceiling is not None:
            nn.init.constant_(self.ceiling.bias, CEILING_AT_START)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes (B, T, D); the state (B, D) is the maximum, as far as it has come down."""
        added_BTD = self._added(x_BTD)
        if self.ceiling is not None:
            return _bounded_mix(self._streams(x_BTD), state_BD, added_BTD, self.ceiling(x_BTD))
        return max_mix(self._streams(x_BTD), state_BD, added_BTD, form="v8")

    def project(self, x_BTD: Tensor) -> Tensor:
        """The streams a + b, c and d and the decay f, side by side; f is 0 where nothing is forgotten."""
        added_BTD = self._added(x_BTD)
        decay_BTD = torch.zeros_like(x_BTD) if added_BTD is None else -added_BTD
        return torch.cat([self._streams(x_BTD), decay_BTD], dim=-1)

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """What becomes of the streams and the decay."""
        width = packed_BTP.shape[-1] // 4
        return max_mix(packed_BTP[..., : 3 * width], state_BD, -packed_BTP[..., 3 * width :], form="v8")

    def _streams(self, x_BTD: Tensor) -> Tensor:
        return project_streams(x_BTD, self.projection.weight, 4, lambda a, b, c, d: (a + b, c, d))

    def _added(self, x_BTD: Tensor) -> Tensor | None:
        """-f (B, T, D); None where nothing is forgotten."""
        if self.decay == "none":
            return None
        if self.decay == "token":
            return -F.softplus(self.decay_projection(x_BTD))
        decay_D = self.decay_D if self.decay == "constant" else F.softplus(self.decay_D)
        return -decay_D.to(x_BTD.dtype).expand(x_BTD.shape)

    def forward_flops_per_token(self) -> int:
        """Operations of the products for one of many tokens: three streams, and one for a decay of the token."""
        products = 3 + (self.decay == "token") + (self.ceiling is not None)
        return 2 * products * self.projection.in_features**2

    def state_bytes(self, length: int) -> int:
        """One float32 per channel, whatever the length."""
        return 4 * self.projection.in_features


def _bounded_mix(
    packed_BTP: Tensor, state_BD: Tensor | None, added_BTD: Tensor | None, ceiling_BTD: Tensor
) -> tuple[Tensor, Tensor]:
    e_BTD, c_BTD, d_BTD = packed_BTP.float().chunk(3, dim=-1)
    m_BD = torch.full_like(d_BTD[:, 0], -torch.inf) if state_BD is None else state_BD
    added = torch.zeros_like(d_BTD) if added_BTD is None else added_BTD
    maxima = []
    for d_BD, ceiling_BD, added_BD in zip(d_BTD.unbind(1), ceiling_BTD.unbind(1), added.unbind(1), strict=True):
        m_BD = torch.maximum(d_BD, torch.minimum(ceiling_BD, m_BD + added_BD))
        maxima.append(m_BD)
    m_BTD = torch.stack(maxima, dim=1)
    return ((e_BTD * m_BTD + c_BTD) * m_BTD).to(packed_BTP.dtype), m_BD
