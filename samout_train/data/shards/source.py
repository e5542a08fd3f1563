"""Shards of ids that `tokenize` made: text of any size, from one folder or mixed from several."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from samout_train.config import Positive, checked_by, validated
from samout_train.data.shards.index import VOCABULARY, ShardIndex, digest_of, read_index
from samout_train.data.shards.reader import ShardReader
from samout_train.data.shards.rows import BLOCK, DocumentLayout, Layout, LayoutName, PackedLayout, ShardRows, ShardSplit
from samout_train.data.source import Rows, Source
from samout_train.data.text.copies import warn
from samout_train.data.text.encoding import printable
from samout_train.data.text.rows import PaddedRows, TokenRows
from samout_train.data.text.text import too_short
from samout_train.data.vocabulary.base import PAD_ID, SOS_ID
from samout_train.runtime import home_path

log = logging.getLogger(__name__)
MOST_LOOKED_AT = 200_000_000  # tokens in which copies are looked for


def shards_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """Return what prevents training on these shards."""
    found = []
    if settings["ignore_index"] != PAD_ID:
        ignored = settings["ignore_index"]
        found.append(f"{name}.ignore_index={ignored}: must be {PAD_ID}, the padding id, or padding is learned")
    folders = _folders(settings["paths"])
    indices: list[ShardIndex] = []
    for folder in folders:
        try:
            indices.append(read_index(folder))
        except (ValueError, OSError) as error:
            found.append(f"{name}.paths: {error}")
    if not folders:
        found.append(f"{name}.paths: is empty: give folders of shards")
    found += [f"{name}.paths: {problem}" for problem in _other_vocabularies(indices)]
    weights = settings["weights"]
    if weights is not None:
        found += [f"{name}.weights={weights}: {problem}" for problem in _wrong_weights(weights, len(folders))]
    if not found:
        try:
            _Mixture(indices, **{key: settings[key] for key in ("weights", "layout", "validation_tokens", "seq_len")})
        except ValueError as error:
            found.append(str(error))
    return found


@checked_by(shards_problems)
@validated
def shards(
    *,
    paths: str | list[str],
    weights: list[float] | None,
    layout: LayoutName,
    validation_tokens: Annotated[int, Positive],
    seq_len: Annotated[int, Positive],
    ignore_index: int,
    seed: int,
) -> Source:
    """Return a source from folders of shards; the end of each is for validation, which is held in memory.

    Args:
        paths: A folder, or several, that `tokenize` made with one vocabulary.
        weights: The share of rows of each folder; None takes rows as there are.
        layout: `packed`: rows without padding, from one document into the next. `documents`: a row holds one document,
            or goes on with one, and is filled with padding.
        validation_tokens: Of each folder's end, at the most, and at most a tenth of it; whole documents where there
            are any.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides the order of rows, and where packed ones are cut in each epoch.

    Raises:
        ValueError: if a folder is none of shards or damaged, or there is too little in it.
    """
    indices = [read_index(folder) for folder in _folders(paths)]
    wrong = _other_vocabularies(indices) + (_wrong_weights(weights, len(indices)) if weights is not None else [])
    if wrong or not indices:
        raise ValueError("; ".join(wrong) or "data.paths is empty: give folders of shards")
    mixture = _Mixture(
        indices, weights=weights, layout=layout, validation_tokens=validation_tokens, seq_len=seq_len, seed=seed
    )
    mixture.warn_of_copies()
    return Source(
        vocab_size=len(indices[0].vocabulary),
        pad_id=PAD_ID,
        ignore_index=ignore_index,
        train=mixture.train,
        validation=mixture.validation,
        vocabulary=indices[0].vocabulary,
        floor_nats=None,
        line_ends=indices[0].line_ends,
        description=mixture.description(),
    )


class _Mixture:
    """The two splits of all folders together."""

    def __init__(
        self,
        indices: Sequence[ShardIndex],
        *,
        weights: Sequence[float] | None,
        layout: LayoutName,
        validation_tokens: int,
        seq_len: int,
        seed: int = 0,
    ) -> None:
        self.indices, self.layout = indices, layout
        self.splits = splits = [ShardSplit(index, validation_tokens, layout) for index in indices]
        layouts = [_layout(split, seq_len, (seed, number)) for number, split in enumerate(splits)]
        self.quotas = _quotas(weights or [each.num_rows for each in layouts], indices)
        reader = ShardReader(
            [index.folder / f"{shard.name}.bin" for index in indices for shard in index.shards], indices[0].dtype
        )
        num_shards = [0, *(len(index.shards) for index in indices)]
        self.train = ShardRows(
            layouts,
            reader,
            first_shards=np.cumsum(num_shards)[:-1].tolist(),
            quotas=self.quotas,
            seq_len=seq_len,
            seed=seed,
            largest_id=max(shard.largest_id for index in indices for shard in index.shards),
        )
        tokens = np.concatenate([split.validation() for split in splits])
        if layout == "packed":
            self._refuse_short(len(tokens), validation_tokens, seq_len)
        self.validation: Rows = TokenRows(tokens, seq_len=seq_len, seed=seed)
        if layout == "documents":
            starts = np.flatnonzero(tokens == SOS_ID)
            self.validation = PaddedRows(
                tokens, np.stack([starts, np.append(starts[1:], len(tokens))], axis=1), seq_len=seq_len
            )
        self.num_validation_tokens = len(tokens)

    def warn_of_copies(self) -> None:
        """Say how many documents to validate on are also learned from, where all are read in seconds."""
        num_tokens = sum(index.total(lambda shard: shard.num_tokens) for index in self.indices)
        if num_tokens > MOST_LOOKED_AT:
            log.info("data        copies of validation documents are not looked for in %s tokens", f"{num_tokens:,}")
            return
        hashes = [split.hashes() for split in self.splits]
        learned, validated = (np.concatenate([each[part] for each in hashes]) for part in (0, 1))
        warn(int((np.isin(validated, learned) & (validated != 0)).sum()), len(validated), "documents")

    def _refuse_short(self, num_part: int, validation_tokens: int, seq_len: int) -> None:
        if num_part <= seq_len and validation_tokens <= seq_len:
            raise ValueError(
                f"data.validation_tokens={validation_tokens}: a row takes {seq_len + 1} tokens: set it to "
                f"{seq_len + 1} or more, or data.seq_len to {max(1, num_part - 1)} or less"
            )
        problem = too_short(
            ", ".join(printable(index.folder) for index in self.indices),
            seq_len=seq_len,
            num_tokens=sum(index.total(lambda shard: shard.num_tokens) for index in self.indices),
            num_part=num_part,
            part="to validate on",
            num_bytes=sum(index.total(lambda shard: shard.text_bytes) for index in self.indices),
        )
        if problem:
            raise ValueError(problem)

    def description(self) -> dict[str, object]:
        """Return what was read, for the record."""
        layouts, num_tokens = (
            self.train.layouts,
            sum(index.total(lambda shard: shard.num_tokens) for index in self.indices),
        )
        facts: dict[str, object] = {
            "tokens": num_tokens,
            "vocabulary": len(self.indices[0].vocabulary),
            "documents": sum(index.total(lambda shard: shard.num_documents) for index in self.indices),
            "validation_tokens": self.num_validation_tokens,
            "layout": self.layout,
        }
        targets = [each.num_targets for each in layouts if isinstance(each, DocumentLayout)]
        if targets:
            facts["waste"] = f"{1 - sum(targets) / (self.train.num_rows * self.train.seq_len):.2%}"
        sources = [
            {"folder": str(index.folder), "shards": len(index.shards), "rows": each.num_rows, "share": quota / BLOCK}
            for index, each, quota in zip(self.indices, layouts, self.quotas, strict=True)
        ]
        left_out = [f"{index.folder}: {what}" for index in self.indices for what in index.left_out]
        if num_short := sum(each.num_short for each in layouts if isinstance(each, DocumentLayout)):
            left_out.append(f"documents of one token, which have no target and make no row: {num_short}")
        facts |= {"left out": "; ".join(left_out)} if left_out else {}
        digests = [shard.sha256 for index in self.indices for shard in index.shards]
        return facts | {"sha256": digest_of(digests), "sources": sources}


def _layout(split: ShardSplit, seq_len: int, key: tuple[int, int]) -> Layout:
    lengths, folder = split.train_lengths, split.index.folder
    if split.layout == "documents":
        documents = DocumentLayout(lengths, split.train_documents(), seq_len=seq_len)
        if not documents.num_rows:
            raise ValueError(f"data.paths: in {folder} every document to learn from has fewer than two tokens")
        return documents
    longest = max(lengths)
    if longest <= seq_len:
        raise ValueError(
            f"data.seq_len={seq_len}: a row takes {seq_len + 1:,} tokens of one shard, and the longest of "
            f"{printable(folder)} has {longest:,} to learn from: set data.seq_len to {max(1, longest - 1)} or less, or "
            "give more text"
        )
    return PackedLayout(lengths, seq_len=seq_len, key=key)


def _quotas(weights: Sequence[float], indices: Sequence[ShardIndex]) -> list[int]:
    """Whole numbers that add up to a block, by the largest remainder."""
    exact = np.array(weights, dtype=np.float64) / math.fsum(weights) * BLOCK
    quotas = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: BLOCK - quotas.sum()]] += 1
    if not quotas.all():
        folder = indices[int(quotas.argmin())].folder
        raise ValueError(
            f"data.weights: the share of {folder} is less than one row in {BLOCK:,}: give it more, or leave it out"
        )
    return [int(quota) for quota in quotas]


def _folders(paths: str | list[str]) -> list[Path]:
    return [home_path(path) for path in ([paths] if isinstance(paths, str) else paths)]


def _other_vocabularies(indices: Sequence[ShardIndex]) -> list[str]:
    return [
        f"{index.folder} has another vocabulary ({index.vocabulary.name}, {len(index.vocabulary)} ids) than "
        f"{indices[0].folder} ({indices[0].vocabulary.name}, {len(indices[0].vocabulary)} ids): tokenize one with "
        f"vocabulary_path={indices[0].folder / VOCABULARY}"
        for index in indices[1:]
        if index.vocabulary_state != indices[0].vocabulary_state
    ]


def _wrong_weights(weights: Sequence[float], num_folders: int) -> list[str]:
    if len(weights) != num_folders:
        return [f"there are {len(weights)} weights for {num_folders} folders: give one for each, or null"]
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        return ["each weight must be above 0: leave out a folder that is not wanted"]
    return []
