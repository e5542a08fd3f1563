"""Compute the gated delta rule in chunks: one triangular system per chunk, and two products between chunks.

With b the sum of log-decays from the start of a chunk, B the sum over all of it and G_ij = exp(b_i - b_j):

    L = strictly lower part of beta_i (K K^T)_ij G_ij
    [U | W] = (I + L)^-1 [beta V | beta exp(b) K]
    V' = U - W S;   O = (Q exp(b)) S + lower((Q K^T) G) V';   S <- exp(B) S + (K exp(B - b))^T V'

Source: Yang et al., Parallelizing Linear Transformers with the Delta Rule (arXiv 2406.06484), section 3, and Gated
Delta Networks (arXiv 2412.06464), section 3.3. Difference: the triangular system is solved, not inverted.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, K width of a key, V width of a value

import torch
from torch import Tensor

from samout_train.ops.chunking import chunked, span_decays, with_what_came_before

CHUNK = 64


def by_chunks(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor,
    state_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.delta_rule.delta_rule; all of one dtype."""
    time, width = q_BHTK.shape[2:]
    size = min(CHUNK, time)
    q_BHNCK, k_BHNCK, v_BHNCV = chunked(q_BHTK, size), chunked(k_BHTK, size), chunked(v_BHTV, size)
    beta_BHNC1, log_decay_BHNC = chunked(beta_BHT, size)[..., None], chunked(log_decay_BHT, size)
    between_BHNCC, since_BHNC, until_BHNC = span_decays(log_decay_BHNC)
    since_BHNC1 = since_BHNC[..., None]
    keys_BHNCC = k_BHNCK @ k_BHNCK.transpose(-1, -2)
    # The solver reads nothing above the diagonal, and takes the diagonal as 1.
    lower_BHNCC = beta_BHNC1 * keys_BHNCC * between_BHNCC
    known_BHNCP = beta_BHNC1 * torch.cat([v_BHNCV, since_BHNC1 * k_BHNCK], dim=-1)
    solved_BHNCP = torch.linalg.solve_triangular(lower_BHNCC, known_BHNCP, upper=False, unitriangular=True)
    u_BHNCV, w_BHNCK = solved_BHNCP.split([v_BHNCV.shape[-1], width], dim=-1)
    kept_BHNKC = (k_BHNCK * until_BHNC[..., None]).transpose(-1, -2)
    before, written = [], []
    streams = (u_BHNCV, w_BHNCK, kept_BHNKC, since_BHNC1[..., -1:, :])
    for u_BHCV, w_BHCK, kept_BHKC, over_BH11 in zip(*(stream.unbind(2) for stream in streams), strict=True):
        new_BHCV = u_BHCV if state_BHKV is None else u_BHCV - w_BHCK @ state_BHKV
        added_BHKV = kept_BHKC @ new_BHCV
        before.append(state_BHKV)
        written.append(new_BHCV)
        state_BHKV = added_BHKV if state_BHKV is None else over_BH11 * state_BHKV + added_BHKV
    assert state_BHKV is not None
    scores_BHNCC = q_BHNCK @ k_BHNCK.transpose(-1, -2) * between_BHNCC
    o_BHNCV = scores_BHNCC @ torch.stack(written, dim=2)
    o_BHNCV = with_what_came_before(o_BHNCV, q_BHNCK * since_BHNC1, before)
    return o_BHNCV.flatten(2, 3)[:, :, :time], state_BHKV
