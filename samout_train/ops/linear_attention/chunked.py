"""Compute decayed linear attention in chunks: matrix products inside chunks, one update of the state between them.

With b the sum of log-decays from the start of a chunk of C tokens, B the sum over all of it:

    A_ij = sum_d q_id k_jd exp(b_id - b_jd)   (j <= i)
    O    = A V + (Q exp(b)) S
    S   <- exp(B) S + (K exp(B - b))^T V

With one decay per head, the exponentials are a factor on Q K^T. With one per channel, tokens are paired by halves of
blocks (halves.py), which takes one product per size of block and no array of C C K elements.

Source: Yang et al., Gated Linear Attention Transformers (arXiv 2312.06635), section 4, the chunk form; the pairing by
halves is the divide and conquer of a prefix sum.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, K width of a key, V width of a value

from torch import Tensor

from samout_train.ops.chunking import chunked, span_decays, with_what_came_before
from samout_train.ops.linear_attention.halves import read_by_halves

CHUNK = 64


def by_chunks(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor, state_BHKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.linear_attention.linear_attention; all of one dtype."""
    time = q_BHTK.shape[2]
    has_channels = log_decay.ndim == 4
    size = min(CHUNK, time)
    if has_channels:
        size = min(CHUNK, 1 << (time - 1).bit_length())
    q_BHNCK, k_BHNCK, v_BHNCV = chunked(q_BHTK, size), chunked(k_BHTK, size), chunked(v_BHTV, size)
    log_decay = chunked(log_decay, size)
    if has_channels:
        o_BHNCV, since, until = read_by_halves(q_BHNCK, k_BHNCK, v_BHNCV, log_decay)
        since, until = since.exp(), until.exp()
        over = since[..., -1, :, None]
    else:
        between_BHNCC, since, until = span_decays(log_decay)
        o_BHNCV = (q_BHNCK @ k_BHNCK.transpose(-1, -2) * between_BHNCC) @ v_BHNCV
        since, until = since[..., None], until[..., None]
        over = since[..., -1:, :]
    added_BHNKV = (k_BHNCK * until).transpose(-1, -2) @ v_BHNCV
    before = [state_BHKV]
    for over_BHK1, added_BHKV in zip(over.unbind(2), added_BHNKV.unbind(2), strict=True):
        state_BHKV = added_BHKV if state_BHKV is None else over_BHK1 * state_BHKV + added_BHKV
        before.append(state_BHKV)
    assert state_BHKV is not None
    o_BHNCV = with_what_came_before(o_BHNCV, q_BHNCK * since, before[:-1])
    return o_BHNCV.flatten(2, 3)[:, :, :time], state_BHKV
