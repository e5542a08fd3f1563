"""A folder of shards in two parts: what is learned from, and the end of it that is validated on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samout_train.data.shards.index import PLACE, ShardIndex
from samout_train.data.text.copies import Hashes, Words, document_hashes

MOST_VALIDATION = 10  # one token in so many, at the most
LayoutName = Literal["packed", "documents"]


@dataclass(frozen=True)
class ShardSplit:
    """Where a folder is cut: where a document begins, if it can be.

    Args:
        index: The folder.
        validation_tokens: Wanted for validation, at the most, and at most a tenth of all.
        layout: In `documents`, it is one document at least.
    """

    index: ShardIndex
    validation_tokens: int
    layout: LayoutName

    def documents(self, shard: int) -> NDArray[np.uint32]:
        """Where documents begin in a shard."""
        return np.fromfile(self.index.folder / f"{self.index.shards[shard].name}.documents", dtype=PLACE)

    @cached_property
    def cut(self) -> int:
        """The place of the first token that is validated on, counted over all shards.

        Raises:
            ValueError: if it is to be a document and there is only one.
        """
        total = int(self._ends[-1])
        wanted = min(self.validation_tokens, total // MOST_VALIDATION)
        place = self._document_from(total - wanted)
        if place is None and self.layout == "documents":  # the last one is longer than what is wanted
            return self._last_document()
        if place is None or (self.layout == "packed" and 2 * (total - place) < wanted):
            return total - wanted
        return place

    @cached_property
    def train_lengths(self) -> list[int]:
        """Tokens of each shard to learn from."""
        return [int(length) for length in (self.cut - (self._ends - self._lengths)).clip(0, self._lengths)]

    def train_documents(self) -> list[NDArray[np.uint32]]:
        """Where documents to learn from begin in each shard."""
        starts = [self.documents(shard) for shard in range(len(self._lengths))]
        return [each[each < length] for each, length in zip(starts, self.train_lengths, strict=True)]

    def hashes(self) -> tuple[Hashes, Hashes]:
        """Return a hash of each document to learn from and of each to validate on, as far as it lies in one shard."""
        learned, validated, words = [], [], Words.of(self.index.vocabulary)
        for number, (shard, kept) in enumerate(zip(self.index.shards, self.train_lengths, strict=True)):
            starts = self.documents(number).astype(np.int64)
            if len(starts):
                ids = np.memmap(self.index.folder / f"{shard.name}.bin", dtype=self.index.dtype, mode="r")
                found = document_hashes(ids[starts[0] :], starts - starts[0], words)
                learned.append(found[starts < kept])
                validated.append(found[starts >= kept])
        nothing = np.zeros(0, dtype=np.uint64)
        return np.concatenate([nothing, *learned]), np.concatenate([nothing, *validated])

    def validation(self) -> NDArray[np.integer]:
        """The tokens behind the cut."""
        dtype = self.index.dtype
        pieces = [np.zeros(0, dtype=dtype)]
        for shard, kept in zip(self.index.shards, self.train_lengths, strict=True):
            if kept < shard.num_tokens:
                path = self.index.folder / f"{shard.name}.bin"
                pieces.append(np.fromfile(path, dtype=dtype, offset=kept * dtype.itemsize))
        return np.concatenate(pieces)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array([shard.num_tokens for shard in self.index.shards], dtype=np.int64)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self._lengths)

    def _document_from(self, least: int) -> int | None:
        for shard in range(int(np.searchsorted(self._ends, least, side="right")), len(self._lengths)):
            places = self.documents(shard) + (self._ends[shard] - self._lengths[shard])
            if len(inside := places[places >= least]):
                return int(inside[0])
        return None

    def _last_document(self) -> int:
        if self.index.total(lambda shard: shard.num_documents) < 2:
            raise ValueError(
                f"data.layout=documents: {self.index.folder} has 1 document: take packed, or give two or more, so that "
                "one can be validated on"
            )
        last = max(number for number, shard in enumerate(self.index.shards) if shard.num_documents)
        return int(self.documents(last)[-1] + (self._ends[last] - self._lengths[last]))
