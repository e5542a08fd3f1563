"""Build rows of conversations in which only the agent's messages are learned.

A token is learned if the last role token before it is `<|agent|>`: so the agent's messages are learned, and the token
of the next role, which ends them. Text itself contains no special tokens, so the ids suffice.
"""

# N tokens, R rows, T time

import tempfile
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samout_train.data.text.mapped import blocks_of
from samout_train.data.text.rows import PaddedRows, TokenRows
from samout_train.data.vocabulary.base import PAD_ID, SPECIAL_TOKENS
from samout_train.runtime import cache_path

AGENT_ID = SPECIAL_TOKENS.index("<|agent|>")
Learn = Literal["all", "agent"]
TOKENS_TOGETHER = 1 << 20


def learned_tokens(tokens: NDArray[np.integer], *, speaks: bool = False) -> NDArray[np.uint8]:
    """Return 1 for each token that is learned as a target, else 0: (N,).

    Args:
        tokens: (N,) ids of consecutive documents; a memory map is read in blocks.
        speaks: Whether the last role token before `tokens` is the agent's.
    """
    return np.concatenate([np.zeros(0, dtype=np.uint8), *_learned_parts(tokens, speaks)])


def mapped_learned_tokens(tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return `learned_tokens` as a map of an unnamed file in the cache's folder, which is deleted with the process.

    Args:
        tokens: (N,) ids, at least one; often a map that is larger than main memory.

    Raises:
        OSError: if the file cannot be written.
    """
    with tempfile.TemporaryFile(dir=cache_path("learned", ending="").parent) as file:
        for part in _learned_parts(tokens, speaks=False):
            file.write(part.data)
        file.flush()
        return np.memmap(file, dtype=np.uint8, mode="r")


def _learned_parts(tokens: NDArray[np.integer], speaks: bool) -> Iterator[NDArray[np.uint8]]:
    """Yield the result of `learned_tokens` in blocks."""
    for _, part in blocks_of(tokens, TOKENS_TOGETHER):
        is_role = are_roles(part)
        place = np.where(is_role, np.arange(len(part)), -1)
        last = np.maximum.accumulate(place)
        before = np.concatenate([[-1], last[:-1]])  # the last role token before each token
        yield np.where(before < 0, speaks, part[before] == AGENT_ID).astype(np.uint8)
        if last[-1] >= 0:
            speaks = bool(part[last[-1]] == AGENT_ID)


def are_roles(tokens: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which tokens begin a turn or a document. Padding does not: it stands for unknown characters."""
    roles: NDArray[np.bool_] = (tokens < len(SPECIAL_TOKENS)) & (tokens != PAD_ID)
    return roles


class LearnedRows:
    """Replace targets of rows that are not learned by `ignore_index`.

    Args:
        rows: Rows of the tokens.
        learned: The same rows, cut from the result of `learned_tokens`.
        ignore_index: Targets of this value are not counted.
    """

    def __init__(self, rows: TokenRows | PaddedRows, learned: TokenRows | PaddedRows, *, ignore_index: int) -> None:
        self.rows, self.learned, self.ignore_index = rows, learned, ignore_index
        self.num_rows, self.num_windows, self.seq_len = rows.num_rows, rows.num_windows, rows.seq_len
        self.tokens = rows.tokens

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return inputs and targets of the rows of these indices, side by side: (R, 2 T) int64."""
        return self._joined(self.rows.take(indices, epoch), self.learned.take(indices, epoch))

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1 of the rows that cover all tokens once, (R, 2 T) int64."""
        return self._joined(self.rows.windows(start, stop), self.learned.windows(start, stop))

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]

    def _joined(self, ids: Tensor, learned: Tensor) -> Tensor:
        targets = ids[:, 1:].masked_fill(learned[:, 1:] != 1, self.ignore_index)
        return torch.cat([ids[:, :-1], targets], dim=1)
