"""Multi-head attention with a key-value cache, through torch's scaled_dot_product_attention; rotary positions.

Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762), section 3.2; rotary positions: Su et al., RoFormer
(arXiv 2104.09864), section 3.2.2. What differs here: positions turn the pair (k, k + K / 2) of a head instead of
(2k, 2k + 1), which is the same but for the order of its channels.
"""

# B batch, T time, S time of keys, D width, H heads, K width per head, P pairs of a head: K / 2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.models.key_value_cache import KeyValueCache, extended
from samout_train.models.linear import Linear

ROTARY_BASE = 10_000.0
Rotation = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over H heads.

    Args:
        hidden_size: Width D.
        num_heads: Heads H; must divide D.
        dropout: Dropout of the attention weights.
        causal: Whether a position sees itself and earlier ones only.
    """

    def __init__(self, *, hidden_size: int, num_heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.query = Linear(hidden_size, hidden_size)
        self.key = Linear(hidden_size, hidden_size, bias=False)
        self.value = Linear(hidden_size, hidden_size)
        self.out = Linear(hidden_size, hidden_size)
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal

    def forward(
        self,
        x_BTD: Tensor,
        cache: KeyValueCache | None,
        padding_mask_BS: Tensor | None,
        *,
        rotation: Rotation | None,
        capacity: int,
        return_attention: bool,
    ) -> tuple[Tensor, KeyValueCache, Tensor | None]:
        """Mixes (B, T, D).

        Args:
            x_BTD: Layer input.
            cache: Keys and values of what came before.
            padding_mask_BS: True where a token, before or in the input, is padding: it is not attended to.
            rotation: What queries and keys are turned by, of `rotation_of`; None to leave them.
            capacity: Tokens that a cache has room for, once it goes on.
            return_attention: Whether to give the weights (B, H, T, S), from an unfused path.
        """
        batch, time, width = x_BTD.shape
        heads = (batch, time, self.num_heads, width // self.num_heads)
        q_BHTK, k_BHTK, v_BHTK = (
            project(x_BTD).view(heads).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        past = cache["length"] if cache else 0
        if rotation is not None:
            q_BHTK, k_BHTK = _rotated(q_BHTK, rotation), _rotated(k_BHTK, rotation)
        cache = extended(cache, k_BHTK, v_BHTK, capacity)
        k_BHSK, v_BHSK = (cache[part][:, :, : past + time] for part in ("keys_BHSK", "values_BHSK"))
        seen_BHTS = _seen(time, past, padding_mask_BS, self.causal, x_BTD.device)
        dropout = self.dropout if self.training else 0.0
        weights_BHTS = None
        if return_attention:
            scores_BHTS = q_BHTK @ k_BHSK.transpose(2, 3) * heads[-1] ** -0.5
            if self.causal and seen_BHTS is None:
                seen_BHTS = causal_mask(time, past, x_BTD.device)
            if seen_BHTS is not None:
                scores_BHTS = scores_BHTS.masked_fill(~seen_BHTS, float("-inf"))
            weights_BHTS = scores_BHTS.softmax(-1)
            y_BHTK = F.dropout(weights_BHTS, dropout) @ v_BHSK
        else:
            from_start = self.causal and seen_BHTS is None and time > 1
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BHSK, v_BHSK, attn_mask=seen_BHTS, dropout_p=dropout, is_causal=from_start
            )
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width)), cache, weights_BHTS


def rotation_of(past: int, x_BTD: Tensor, head_width: int) -> Rotation:
    """Cosine and sine, (T, P), of the angles of rotary positions: the position times base ** (-p / P).

    Args:
        past: The position of the first token.
        x_BTD: Says how many tokens follow, where they are and in which precision: at least float32.
        head_width: K.
    """
    half, dtype = head_width // 2, torch.promote_types(x_BTD.dtype, torch.float32)
    rate_P = ROTARY_BASE ** (-torch.arange(half, device=x_BTD.device, dtype=dtype) / half)
    position_T = torch.arange(past, past + x_BTD.shape[1], device=x_BTD.device, dtype=dtype)
    angle_TP = position_T[:, None] * rate_P
    return angle_TP.cos(), angle_TP.sin()


def _rotated(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Turns the pair (k, k + K / 2) of each head."""
    cos_TP, sin_TP = rotation
    first_BHTP, second_BHTP = x_BHTK.to(cos_TP.dtype).chunk(2, dim=-1)
    turned = (first_BHTP * cos_TP - second_BHTP * sin_TP, first_BHTP * sin_TP + second_BHTP * cos_TP)
    return torch.cat(turned, dim=-1).to(x_BHTK.dtype)


def causal_mask(time: int, past: int, device: torch.device) -> Tensor:
    """(T, S), True where a position may look: at itself and what came before."""
    return torch.ones(time, past + time, dtype=torch.bool, device=device).tril(past)


def _seen(time: int, past: int, padding_mask_BS: Tensor | None, causal: bool, device: torch.device) -> Tensor | None:
    """(B, 1, T, S) or (T, S), True where a position may look; None where torch needs no mask for that."""
    if padding_mask_BS is None:
        return causal_mask(time, past, device) if causal and past and time > 1 else None
    itself_TS = torch.eye(past + time, dtype=torch.bool, device=device)[past:]
    seen_BTS = ~padding_mask_BS[:, None, :] | itself_TS  # a token that sees nothing would be NaN
    return (seen_BTS & causal_mask(time, past, device) if causal else seen_BTS)[:, None]
