"""Mix by attention with rotary positions, norms of queries and keys, and a sliding window.

    o_t = sum over t - W < s <= t of softmax_s(q_t . k_s / sqrt(K)) v_s;   output = W_o o

Positions are relative: each call counts them from the first token that it can see, or from the padding before it in a
batch of several lengths. The state of a window is therefore the last W - 1 keys, before rotation, and their values. Its
size does not depend on the length of the sequence, and angles stay small.

Source: Vaswani et al. (arXiv 1706.03762); rotary positions: Su et al., RoFormer (arXiv 2104.09864); RMSNorm of queries
and keys: Henry et al., Query-Key Normalization for Transformers (arXiv 2010.04245), with RMSNorm as in OLMo 2 (arXiv
2501.00656), but for each head separately; the window: Beltagy et al., Longformer (arXiv 2004.05150), section 3.1.
"""

# B batch, T time, S time of what is seen, W window, D width, H heads, K width of a head, N blocks of a window

from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Positive, validated
from samout_train.models.heads import in_heads
from samout_train.models.layers import Linear, RMSNorm
from samout_train.models.state import padding_of
from samout_train.ops.elementwise import turned, turned_heads


class Seen(NamedTuple):
    """Hold the keys and values that later tokens may attend to.

    Args:
        keys_BHSK: Keys before rotation by their positions.
        values_BHSK: Values.
        missing_B: Number of padding places at the start of each sequence; None for no padding.
    """

    keys_BHSK: Tensor
    values_BHSK: Tensor
    missing_B: Tensor | None = None


torch.serialization.add_safe_globals([Seen])


class RotaryAttention(nn.Module):
    """Attend causally to all tokens so far, or to those of a window.

    Args:
        hidden_size: Width D.
        num_heads: Heads H.
        window: Tokens that a token attends to, itself included; None for all, with a state that grows with the
            sequence.
        qk_norm: Whether to apply an RMSNorm to queries and keys, to each head separately.
    """

    @validated
    def __init__(
        self, *, hidden_size: int, num_heads: int, window: Annotated[int, Positive] | None, qk_norm: bool
    ) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.projection = Linear(hidden_size, 3 * hidden_size, bias=False, parts=[hidden_size] * 3)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if qk_norm:
            self.query_norm = RMSNorm(hidden_size // num_heads, eps=1e-5)
            self.key_norm = RMSNorm(hidden_size // num_heads, eps=1e-5)
        self.out = Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, state: Seen | None) -> tuple[Tensor, Seen]:
        """Mix (B, T, D)."""
        streams = self.projection(x_BTD).chunk(3, dim=-1)
        q_BHTK, k_BHSK, v_BHSK = (in_heads(stream, self.num_heads) for stream in streams)
        missing_B = None
        if state is None and (of_start := self._turned_from_start(q_BHTK, k_BHSK)) is not None:
            q_BHTK, k_BHSK, plain_BHSK = of_start
        else:
            q_BHTK, plain_BHSK = self.query_norm(q_BHTK).to(v_BHSK.dtype), self.key_norm(k_BHSK).to(v_BHSK.dtype)
            if state is not None:
                missing_B = state.missing_B
                plain_BHSK = torch.cat([state.keys_BHSK.to(plain_BHSK.dtype), plain_BHSK], dim=2)
                v_BHSK = torch.cat([state.values_BHSK.to(v_BHSK.dtype), v_BHSK], dim=2)
            position_S = torch.arange(plain_BHSK.shape[2], device=x_BTD.device)
            q_BHTK, k_BHSK = turned(q_BHTK, position_S[-q_BHTK.shape[2] :]), turned(plain_BHSK, position_S)
        time, seen = q_BHTK.shape[2], k_BHSK.shape[2]
        after = self._kept(plain_BHSK, v_BHSK, missing_B)
        if self.window is not None and time == seen and time > 2 * self.window:
            o_BHTK = self._by_blocks(q_BHTK, k_BHSK, v_BHSK, self.window)
        else:
            mask = self._mask(time, seen, x_BTD.device)
            padding_BS = padding_of(missing_B, seen)
            if padding_BS is not None:
                if mask is None:
                    position_S = torch.arange(seen, device=x_BTD.device)
                    mask = position_S[seen - time :, None] >= position_S
                mask = mask & ~padding_BS[:, None, None]
            o_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=mask is None and time > 1
            )
        joined_BTD: Tensor = self.out(o_BHTK.transpose(1, 2).flatten(2))
        return joined_BTD, after

    def _turned_from_start(self, q_BHTK: Tensor, k_BHTK: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the result of `turned_heads` at the start of a sequence, where positions count from 0."""
        if isinstance(self.query_norm, RMSNorm):
            return turned_heads(q_BHTK, k_BHTK, self.query_norm, self.key_norm)
        return turned_heads(q_BHTK, k_BHTK)

    def _kept(self, k_BHSK: Tensor, v_BHSK: Tensor, missing_B: Tensor | None) -> Seen:
        """Return the keys and values that later tokens may attend to."""
        if self.window is None:
            return Seen(k_BHSK, v_BHSK, missing_B)
        first = max(0, k_BHSK.shape[2] - (self.window - 1))
        if missing_B is not None:
            missing_B = (missing_B - first).clamp(min=0)
        return Seen(k_BHSK[:, :, first:], v_BHSK[:, :, first:], missing_B)

    def _mask(self, time: int, seen: int, device: torch.device) -> Tensor | None:
        """Return (T, S), True where one of the last T tokens may attend to one of S; None if torch needs no mask."""
        window = self.window or seen
        if time in (1, seen) and seen <= window:
            return None
        position_S = torch.arange(seen, device=device)
        back_TS = position_S[seen - time :, None] - position_S
        return (back_TS >= 0) & (back_TS < window)

    def _by_blocks(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, size: int) -> Tensor:
        """Return o; each block of W queries attends to its own keys and to those of the block before it."""
        time = q_BHTK.shape[2]
        missing = -time % size
        q_BHNWK = F.pad(q_BHTK, [0, 0, 0, missing]).unflatten(2, (-1, size))
        k_BHNSK, v_BHNSK = _with_block_before(k_BHTK, size), _with_block_before(v_BHTK, size)
        position_W = torch.arange(size, device=q_BHTK.device)
        back_WS = (position_W + size)[:, None] - torch.arange(2 * size, device=q_BHTK.device)
        mask_WS = (back_WS >= 0) & (back_WS < size)
        mask_NWS = mask_WS.repeat(q_BHNWK.shape[2], 1, 1)
        mask_NWS[0, :, :size] = False  # no block precedes the first one
        o_BHNWK = F.scaled_dot_product_attention(q_BHNWK, k_BHNSK, v_BHNSK, attn_mask=mask_NWS)
        return o_BHNWK.flatten(2, 3)[:, :, :time]

    def operator_flops(self, length: int) -> int:
        """Return the operations of the products with keys and values for one token in a row of `length`."""
        return 4 * self.out.in_features * min(length, self.window or length)

    def state_bytes(self, length: int) -> int:
        """Return the bytes in float32 of one sequence's keys and values after `length` tokens."""
        kept = length
        if self.window is not None:
            kept = min(length, self.window - 1)
        return 2 * 4 * self.out.in_features * kept


def _with_block_before(x_BHTK: Tensor, size: int) -> Tensor:
    """Return (B, H, N, 2 W, K): each block of W tokens preceded by the block before it, the first by zeros."""
    x_BHNWK = F.pad(x_BHTK, [0, 0, size, -x_BHTK.shape[2] % size]).unflatten(2, (-1, size))
    return torch.cat([x_BHNWK[:, :, :-1], x_BHNWK[:, :, 1:]], dim=3)
