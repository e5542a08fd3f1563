"""Scan elementwise in plain torch: one token after another, and in blocks of about sqrt(T) tokens.

All blocks step through their tokens in parallel, starting from the semiring's zero; then one pass over the blocks
carries h. This takes 2 sqrt(T) steps instead of T, and never divides one product of decays by another.
"""

# B batch, T time, N blocks, C tokens of a block, D width

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Semiring = Literal["plus_times", "max_plus", "max_min"]
ZERO = {"plus_times": 0.0, "max_plus": -math.inf, "max_min": -math.inf}


def serial(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: Semiring = "plus_times") -> Tensor:
    """Return h of all tokens; every other form is compared with this one."""
    h_BD, found = state_BD, []
    for a_BD, x_BD in zip(a_BTD.unbind(1), x_BTD.unbind(1), strict=True):
        h_BD = _sum(_product(a_BD, h_BD, semiring), x_BD, semiring)
        found.append(h_BD)
    return torch.stack(found, dim=1)


def by_blocks(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: Semiring = "plus_times") -> Tensor:
    """Return h of all tokens."""
    batch, time, width = x_BTD.shape
    size = math.isqrt(time - 1) + 1
    missing = -time % size
    shape = (batch, (time + missing) // size, size, width)
    a_BNCD = F.pad(a_BTD, [0, 0, 0, missing]).reshape(shape)
    x_BNCD = F.pad(x_BTD, [0, 0, 0, missing]).reshape(shape)
    kept_BND, h_BND = a_BNCD[:, :, 0], x_BNCD[:, :, 0]
    all_kept, all_h = [kept_BND], [h_BND]
    for token in range(1, size):
        a_BND = a_BNCD[:, :, token]
        kept_BND = _product(a_BND, kept_BND, semiring)
        h_BND = _sum(_product(a_BND, h_BND, semiring), x_BNCD[:, :, token], semiring)
        all_kept.append(kept_BND)
        all_h.append(h_BND)
    before, h_BD = [], state_BD
    for kept_BD, added_BD in zip(kept_BND.unbind(1), h_BND.unbind(1), strict=True):
        before.append(h_BD)
        h_BD = _sum(_product(kept_BD, h_BD, semiring), added_BD, semiring)
    of_before = _product(torch.stack(all_kept, dim=2), torch.stack(before, dim=1)[:, :, None], semiring)
    return _sum(of_before, torch.stack(all_h, dim=2), semiring).flatten(1, 2)[:, :time]


def _sum(kept: Tensor, added: Tensor, semiring: Semiring) -> Tensor:
    if semiring == "plus_times":
        return kept + added
    return torch.where((added >= kept) | added.isnan(), added, kept)


def _product(a: Tensor, h: Tensor, semiring: Semiring) -> Tensor:
    if semiring == "plus_times":
        return a * h
    if semiring == "max_plus":
        return a + h
    return torch.where((a <= h) | a.isnan(), a, h)
