"""Rows of shards: the validation split of a folder, the places of its rows, and the mixture of several folders."""

# R rows, T time, W = T + 1 ids in a row, G documents in a group

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samout_train.data.shards.index import PLACE, ShardIndex
from samout_train.data.shards.reader import Places, ShardReader
from samout_train.data.shuffle import drawn, shuffled
from samout_train.data.source import next_token
from samout_train.data.text.copies import Hashes, Words, document_hashes
from samout_train.data.text.learned import AGENT_ID, are_roles, learned_tokens

BLOCK = 10_000  # rows within which each source has its exact share
PLACED_TOGETHER = 1 << 13
GROUP = 64
COUNTED_TOGETHER = GROUP << 14
MOST_VALIDATION = 10  # validation gets at most one token in ten
LOOKED_BACK = 256  # tokens, doubled whenever they contain no role token
MAKES_A_ROW = 3  # the fewest ids of a document with a row: <|sos|>, an input and a target
Int64s = NDArray[np.int64]
LayoutName = Literal["packed", "documents"]


@dataclass(frozen=True)
class ShardSplit:
    """The cut of a folder into training and validation, at the start of a document if possible.

    Args:
        index: The folder.
        validation_tokens: The most validation tokens; at most a tenth of all tokens are used.
        layout: With `documents`, validation has at least one document.
    """

    index: ShardIndex
    validation_tokens: int
    layout: LayoutName

    def documents(self, shard: int) -> NDArray[np.uint32]:
        """Return the start of each document in a shard, in tokens."""
        return np.fromfile(self.index.folder / f"{self.index.shards[shard].name}.documents", dtype=PLACE)

    @cached_property
    def cut(self) -> int:
        """Return the place of the first validation token, counted over all shards.

        Raises:
            ValueError: if the layout is `documents` and there are fewer than two.
        """
        total = int(self._ends[-1])
        wanted = min(self.validation_tokens, total // MOST_VALIDATION)
        place = self._document_from(total - wanted)
        if place is None and self.layout == "documents":  # the last document exceeds the wanted size
            return self._last_document()
        if place is None or (self.layout == "packed" and 2 * (total - place) < wanted):
            return total - wanted
        return place

    @cached_property
    def train_lengths(self) -> list[int]:
        """Return the number of training tokens of each shard."""
        lengths: list[int] = (self.cut - (self._ends - self._lengths)).clip(0, self._lengths).tolist()
        return lengths

    def train_documents(self) -> list[NDArray[np.uint32]]:
        """Return the start of each training document, by shard."""
        documents = []
        for shard, length in enumerate(self.train_lengths):
            starts = self.documents(shard)
            documents.append(starts[starts < length])
        return documents

    def place_of_cut(self) -> tuple[int, int]:
        """Return the shard of the first validation token, and the token's place in it."""
        shard = min(int(np.searchsorted(self._ends, self.cut, side="right")), len(self._lengths) - 1)
        return shard, int(self.cut - (self._ends[shard] - self._lengths[shard]))

    def hashes(self) -> tuple[Hashes, Hashes]:
        """Return hashes of training and validation documents; of a document in two shards, only the first part's."""
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
        """Return the tokens after the cut."""
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
                f"data.layout=documents: {self.index.folder} has 1 document: set packed, or use two or more, so that "
                "one is left for validation"
            )
        last = max(number for number, shard in enumerate(self.index.shards) if shard.num_documents)
        return int(self.documents(last)[-1] + (self._ends[last] - self._lengths[last]))


class Layout(Protocol):
    """The places of the rows of one source."""

    num_rows: int
    num_windows: int

    def rows(self, indices: Int64s, epochs: Int64s) -> Places:
        """Return training rows, each with its own epoch."""
        ...

    def windows(self, indices: Int64s) -> Places:
        """Return evaluation rows, which cover everything once."""
        ...


class PackedLayout:
    """Consecutive windows of each shard. In each epoch, the first window of a shard starts at another token.

    Args:
        lengths: Tokens of each shard; a shard too short for a row has no rows.
        seq_len: Targets in a row T.
        key: Key of the starts, together with the epoch.
    """

    def __init__(self, lengths: Sequence[int], *, seq_len: int, key: tuple[int, ...]) -> None:
        self.seq_len, self.key = seq_len, key
        self._lengths = np.array(lengths, dtype=np.int64)
        rows_each = np.maximum((self._lengths - seq_len) // seq_len, self._lengths > seq_len)
        self._free = (self._lengths - rows_each * seq_len).clip(1, seq_len)
        self._row_ends = np.cumsum(rows_each)
        self._window_ends = np.cumsum(np.maximum(-(-(self._lengths - 1) // seq_len), 0))
        self.num_rows, self.num_windows = int(self._row_ends[-1]), int(self._window_ends[-1])

    def rows(self, indices: Int64s, epochs: Int64s) -> Places:
        """Return windows that do not overlap."""
        shards, in_shard = _found(self._row_ends, indices)
        starts = drawn(self._free[shards], *self.key, epochs, shards) + in_shard * self.seq_len
        return Places(shards, starts, np.full_like(starts, self.seq_len + 1))

    def windows(self, indices: Int64s) -> Places:
        """Return windows from the first token of each shard; the last of a shard may be shorter."""
        shards, in_shard = _found(self._window_ends, indices)
        starts = in_shard * self.seq_len
        return Places(shards, starts, np.minimum(self.seq_len + 1, self._lengths[shards] - starts))


class DocumentLayout:
    """Rows that begin after the `<|sos|>` of a document or continue one.

    A document takes four bytes of memory, and every 64th takes eight more. If a document continues in the next shard,
    the continuation counts as another document.

    Args:
        lengths: Tokens of each shard.
        documents: The start of each document, at its `<|sos|>`, by shard.
        seq_len: Targets in a row T.
    """

    def __init__(self, lengths: Sequence[int], documents: Sequence[NDArray[np.uint32]], *, seq_len: int) -> None:
        self.seq_len = seq_len
        # A document ends one id before the next begins. A sentinel follows the last document of a shard.
        begins: list[NDArray[np.uint32]] = []
        self.num_short = 0
        for length, starts in zip(lengths, documents, strict=True):
            pieces = [starts + 1, np.array([length + 1])]
            if not len(starts) or starts[0]:
                pieces.insert(0, np.array([0]))
            begins.append(np.concatenate(pieces).astype(np.uint32))
            self.num_short += int((np.diff(starts, append=np.uint32(length)) < MAKES_A_ROW).sum())
        self._shard_ends = np.cumsum(list(map(len, begins)))
        self._begins = np.concatenate([*begins, np.zeros(GROUP + 1, dtype=np.uint32)])
        num_groups = -(-int(self._shard_ends[-1]) // GROUP)
        rows_of_group = np.zeros(num_groups, dtype=np.int64)
        self.num_targets = 0
        for first in range(0, num_groups * GROUP, COUNTED_TOGETHER):
            targets = self._targets(np.arange(first, min(first + COUNTED_TOGETHER, num_groups * GROUP)))
            self.num_targets += int(targets.sum())
            rows_of_group[first // GROUP :][: len(targets) // GROUP] = self._rows(targets).reshape(-1, GROUP).sum(1)
        self._group_ends = np.cumsum(rows_of_group)
        self.num_rows = self.num_windows = int(self._group_ends[-1])

    def rows(self, indices: Int64s, epochs: Int64s) -> Places:
        """Return rows, the same in each epoch."""
        return self.windows(indices)

    def windows(self, indices: Int64s) -> Places:
        """Return rows in the order of the documents."""
        groups, in_group = _found(self._group_ends, indices)
        ends_RG = np.cumsum(self._rows(self._targets(groups[:, None] * GROUP + np.arange(GROUP))), axis=1)
        place = (ends_RG <= in_group[:, None]).sum(1)
        before = np.where(place > 0, ends_RG[np.arange(len(place)), place - 1], 0)
        documents = groups * GROUP + place
        starts = self._begins[documents].astype(np.int64) + (in_group - before) * self.seq_len
        counts = np.minimum(self.seq_len + 1, self._begins[documents + 1] - 1 - starts)
        return Places(_found(self._shard_ends, documents)[0], starts, counts)

    def _targets(self, documents: Int64s) -> Int64s:
        begins = self._begins[documents].astype(np.int64)
        return np.maximum(self._begins[documents + 1] - begins - 2, 0)

    def _rows(self, targets: Int64s) -> Int64s:
        return -(-targets // self.seq_len)


class ShardRows:
    """Rows of several sources, in an order of their own.

    Each source provides a fixed number of every 10,000 rows, spread evenly. So the position in the endless stream
    determines a row's source, and how many rows of that source came before it. Each source has its own epochs, shuffled
    with its own key.

    Args:
        layouts: The layout of each source; shards are numbered source by source.
        reader: A reader of all shards.
        first_shards: Index of each source's first shard.
        quotas: Rows of each source in 10,000.
        seq_len: Targets in a row T.
        seed: Seed of the order of each source's rows.
        largest_id: The largest id of all sources, as recorded by `tokenize`.
    """

    split = staticmethod(next_token)
    has_own_order = True

    def __init__(
        self,
        layouts: Sequence[Layout],
        reader: ShardReader,
        *,
        first_shards: Sequence[int],
        quotas: Sequence[int],
        seq_len: int,
        seed: int,
        largest_id: int,
    ) -> None:
        self.layouts, self.reader, self.first_shards = list(layouts), reader, list(first_shards)
        self.seq_len, self.seed, self.largest_id = seq_len, seed, largest_id
        self.num_rows = sum(layout.num_rows for layout in layouts)
        self._window_ends = np.cumsum([layout.num_windows for layout in layouts])
        self.num_windows = int(self._window_ends[-1])
        self._quotas = np.array(quotas, dtype=np.int64)
        shares = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in quotas])
        spread = np.argsort(shares, kind="stable")
        self._source = np.repeat(np.arange(len(quotas)), quotas)[spread]
        self._earlier = np.concatenate([np.arange(quota) for quota in quotas])[spread]
        self._placed: tuple[int, Places] | None = None

    def take(self, indices: Int64s, epoch: int) -> Tensor:
        """Return rows of the endless stream, at epoch * num_rows + index, (R, T + 1) int64."""
        return torch.from_numpy(self.reader.read(self.places(indices, epoch), self.seq_len + 1))

    def places(self, indices: Int64s, epoch: int) -> Places:
        """Return the places of these rows."""
        stream = epoch * self.num_rows + indices
        chunks, within = np.divmod(stream, PLACED_TOGETHER)
        places = Places.empty(len(stream))
        for chunk in np.unique(chunks).tolist():
            rows = np.flatnonzero(chunks == chunk)
            places.put(rows, self._places(chunk)[within[rows]])
        return places

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1 of the rows that cover each source once, source by source, (R, T + 1) int64."""
        return torch.from_numpy(self.reader.read(self.window_places(start, stop), self.seq_len + 1))

    def window_places(self, start: int, stop: int) -> Places:
        """Return the places of these windows."""
        sources, in_source = _found(self._window_ends, np.arange(start, min(stop, self.num_windows)))
        places = Places.empty(len(sources))
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            places.put(rows, self._of_all(source, self.layouts[source].windows(in_source[rows])))
        return places

    def sources_of(self, stream: Int64s) -> tuple[Int64s, Int64s]:
        """Return the source of each row of the endless stream, and how many rows of that source came before it."""
        blocks, within = np.divmod(stream, BLOCK)
        sources = self._source[within]
        return sources, blocks * self._quotas[sources] + self._earlier[within]

    def _places(self, chunk: int) -> Places:
        """Return the places of a chunk of the stream; computing fewer places would take as long."""
        if self._placed is None or self._placed[0] != chunk:
            stream = np.arange(chunk * PLACED_TOGETHER, (chunk + 1) * PLACED_TOGETHER)
            sources, earlier = self.sources_of(stream)
            places = Places.empty(len(stream))
            for source, layout in enumerate(self.layouts):
                rows = np.flatnonzero(sources == source)
                epochs, ordinals = np.divmod(earlier[rows], layout.num_rows)
                indices = shuffled(ordinals, layout.num_rows, self.seed, epochs, source + 1)
                places.put(rows, self._of_all(source, layout.rows(indices, epochs)))
            self._placed = chunk, places
        return self._placed[1]

    def _of_all(self, source: int, places: Places) -> Places:
        return Places(places.shards + self.first_shards[source], places.starts, places.counts)


class AgentRows:
    """Rows of shards in which only the agent's messages are learned, each with the token that ends it.

    Args:
        rows: Rows of conversations.
        ignore_index: Targets of this value are not counted.
    """

    has_own_order = True

    def __init__(self, rows: ShardRows, *, ignore_index: int) -> None:
        self.rows, self.ignore_index = rows, ignore_index
        self.num_rows, self.num_windows, self.seq_len = rows.num_rows, rows.num_windows, rows.seq_len
        self.largest_id = rows.largest_id

    def take(self, indices: Int64s, epoch: int) -> Tensor:
        """Return inputs and targets of the rows of these indices, side by side: (R, 2 T) int64."""
        return self._read(self.rows.places(indices, epoch))

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1 of the rows that cover each source once, (R, 2 T) int64."""
        return self._read(self.rows.window_places(start, stop))

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]

    def speaks_before(self, shard: int, place: int) -> bool:
        """Return whether the last role token before a place in a shard is the agent's.

        Args:
            shard: The number of the shard among all shards.
            place: The place in tokens.
        """
        reader, width = self.rows.reader, LOOKED_BACK
        while place > 0:
            start = max(place - width, 0)
            places = Places(np.array([shard]), np.array([start]), np.array([place - start]))
            ids = reader.read(places, place - start)[0]
            roles = np.flatnonzero(are_roles(ids))
            if len(roles):
                return bool(ids[roles[-1]] == AGENT_ID)
            place, width = start, 2 * width
        return False  # a conversation is never cut between two shards

    def _read(self, places: Places) -> Tensor:
        ids_RW = self.rows.reader.read(places, self.seq_len + 1)
        rows = []
        for row, (shard, start) in enumerate(zip(places.shards.tolist(), places.starts.tolist(), strict=True)):
            learned_W = learned_tokens(ids_RW[row], speaks=self.speaks_before(shard, start))
            targets_T = np.where(learned_W[1:], ids_RW[row, 1:], self.ignore_index)
            rows.append(np.concatenate([ids_RW[row, :-1], targets_T]))
        return torch.from_numpy(np.stack(rows))


def _found(ends: Int64s, indices: Int64s) -> tuple[Int64s, Int64s]:
    """Return the item that contains each index, and the place in that item; consecutive items end at `ends`."""
    things = np.searchsorted(ends, indices, side="right")
    return things, indices - np.where(things > 0, ends[things - 1], 0)
