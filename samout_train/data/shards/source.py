"""The data source `shards`: text of any size as ids made by `tokenize`, from one folder or mixed from several."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Positive, Problem, validated
from samout_train.data.shards.index import VOCABULARY, Shard, ShardIndex, digest_of, read_index
from samout_train.data.shards.reader import ShardReader
from samout_train.data.shards.rows import (
    BLOCK,
    AgentRows,
    DocumentLayout,
    Layout,
    LayoutName,
    PackedLayout,
    ShardRows,
    ShardSplit,
)
from samout_train.data.source import Rows, Source, problems_of, source_function
from samout_train.data.text.base import too_short
from samout_train.data.text.copies import Hashes, warn
from samout_train.data.text.encoding import printable
from samout_train.data.text.learned import Learn, LearnedRows, learned_tokens
from samout_train.data.text.rows import PaddedRows, TokenRows
from samout_train.data.vocabulary.base import PAD_ID, SOS_ID
from samout_train.runtime import home_path

log = logging.getLogger(__name__)
MOST_LOOKED_AT = 200_000_000  # tokens; larger data is not searched for copies


@validated
@dataclass(kw_only=True)
class Shards:
    """Folders of shards. The end of each folder is its validation split, which is kept in memory.

    Args:
        paths: One or more folders made by `tokenize` with one vocabulary.
        weights: Relative share of each folder's rows; None for shares by their number of rows.
        layout: `packed`: rows without padding, across documents. `documents`: a row begins with a document or continues
            one, and is filled with padding.
        validation_tokens: The most validation tokens of each folder, at most a tenth of it; whole documents if
            possible.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Seed of the order of rows, and of the cuts of packed rows in each epoch.
        reset_at_documents: Whether each document of a packed row starts without a state.
        learn: `agent`: counted targets are the agent's messages and the token that ends each, as in `data=jsonl`.
    """

    paths: str | list[str]
    weights: list[float] | None
    layout: LayoutName
    validation_tokens: Annotated[int, Positive]
    seq_len: Annotated[int, Positive]
    ignore_index: int
    seed: int
    reset_at_documents: bool = False  # the default of earlier runs; the YAML has true
    learn: Learn = "all"

    def source(self) -> Source:
        """Return the source.

        Raises:
            ValueError: if a folder does not hold shards, or is damaged or too small.
        """
        indices = list(map(read_index, _folders(self.paths)))
        wrong = _check_vocabularies(indices) + _check_weights(self.weights, len(indices))
        if wrong or not indices:
            raise ValueError("; ".join(wrong) or "data.paths is empty: set folders of shards")
        mixture = _Mixture(indices, self)
        mixture.warn_of_copies()
        document_id = None
        if self.reset_at_documents and self.layout == "packed":
            document_id = SOS_ID
        return Source(
            vocab_size=len(indices[0].vocabulary),
            pad_id=PAD_ID,
            ignore_index=self.ignore_index,
            train=mixture.train,
            validation=mixture.validation,
            vocabulary=indices[0].vocabulary,
            floor_nats=None,
            line_ends=indices[0].line_ends,
            description=mixture.description(),
            document_id=document_id,
        )

    @classmethod
    def problems(cls, settings: Mapping[str, Any], name: str) -> list[Problem]:
        """Return the problems between the settings of a YAML; see `problems_of`."""
        return problems_of(cls, settings, name)

    def setting_problems(self, name: str) -> list[Problem]:
        """Return what prevents training on these shards."""
        found = []
        if self.ignore_index != PAD_ID:
            text = f"must be {PAD_ID}, the padding id, or padding is learned"
            found.append(Problem(f"{name}.ignore_index", str(self.ignore_index), text=text, kind="value"))
        folders = _folders(self.paths)
        indices: list[ShardIndex] = []
        for folder in folders:
            try:
                indices.append(read_index(folder))
            except (ValueError, OSError) as error:
                found.append(Problem(f"{name}.paths", text=str(error)))
        if not folders:
            found.append(Problem(f"{name}.paths", text="is empty", fix="set folders of shards"))
        for problem in _check_vocabularies(indices):
            found.append(Problem(f"{name}.paths", text=problem))
        for problem in _check_weights(self.weights, len(folders)):
            found.append(Problem(f"{name}.weights", str(self.weights), text=problem))
        if not found:
            try:
                _Mixture(indices, self)
            except ValueError as error:
                found.append(Problem(text=str(error)))
        return found


shards = source_function(Shards)


class _Mixture:
    """The two splits of all folders together."""

    def __init__(self, indices: Sequence[ShardIndex], settings: Shards) -> None:
        self.indices, self.layout = indices, settings.layout
        seq_len, seed = settings.seq_len, settings.seed
        self.splits: list[ShardSplit] = []
        layouts: list[Layout] = []
        for number, index in enumerate(indices):
            split = ShardSplit(index, settings.validation_tokens, settings.layout)
            self.splits.append(split)
            layouts.append(_layout(split, seq_len, (seed, number)))
        self.layouts = layouts
        self.quotas = _quotas(settings.weights or [each.num_rows for each in layouts], indices)
        self.shards: list[Shard] = []
        files: list[Path] = []
        first_shards: list[int] = []
        for index in indices:
            first_shards.append(len(files))
            for shard in index.shards:
                self.shards.append(shard)
                files.append(index.folder / f"{shard.name}.bin")
        self.num_tokens = sum(shard.num_tokens for shard in self.shards)
        rows = ShardRows(
            layouts,
            ShardReader(files, indices[0].dtype),
            first_shards=first_shards,
            quotas=self.quotas,
            seq_len=seq_len,
            seed=seed,
            largest_id=max(shard.largest_id for shard in self.shards),
        )
        self.train: ShardRows | AgentRows = rows
        tokens = np.concatenate([split.validation() for split in self.splits])
        if settings.layout == "packed":
            self._require_whole_row(len(tokens), settings.validation_tokens, seq_len)
        starts = np.flatnonzero(tokens == SOS_ID)

        def validation_of(stream: NDArray[np.integer]) -> TokenRows | PaddedRows:
            if settings.layout == "documents":
                documents = np.stack([starts, np.append(starts[1:], len(tokens))], axis=1)
                return PaddedRows(stream, documents, seq_len=seq_len)
            return TokenRows(stream, seq_len=seq_len, seed=seed)

        self.validation: Rows = validation_of(tokens)
        if settings.learn == "agent":
            self.train = AgentRows(rows, ignore_index=settings.ignore_index)
            marks = self._marks(self.train, first_shards)
            learned = validation_of(marks)
            self.validation = LearnedRows(validation_of(tokens), learned, ignore_index=settings.ignore_index)
        self.num_validation_tokens = len(tokens)

    def _marks(self, rows: AgentRows, first_shards: Sequence[int]) -> NDArray[np.uint8]:
        """Return 1 for each validation token that is learned as a target, else 0."""
        marks = []
        for split, first in zip(self.splits, first_shards, strict=True):
            shard, place = split.place_of_cut()
            marks.append(learned_tokens(split.validation(), speaks=rows.speaks_before(first + shard, place)))
        return np.concatenate(marks)

    def warn_of_copies(self) -> None:
        """Warn of validation documents that are also in the training split, unless the data is too large to search."""
        if self.num_tokens > MOST_LOOKED_AT:
            log.info(
                "data        %s tokens are not searched for copies of validation documents", f"{self.num_tokens:,}"
            )
            return
        of_learned: list[Hashes] = []
        of_validated: list[Hashes] = []
        for split in self.splits:
            learned, validated = split.hashes()
            of_learned.append(learned)
            of_validated.append(validated)
        learned, validated = np.concatenate(of_learned), np.concatenate(of_validated)
        warn(int((np.isin(validated, learned) & (validated != 0)).sum()), len(validated), "documents")

    def _require_whole_row(self, num_part: int, validation_tokens: int, seq_len: int) -> None:
        if num_part <= seq_len and validation_tokens <= seq_len:
            raise ValueError(
                f"data.validation_tokens={validation_tokens}: a row takes {seq_len + 1} tokens: set it to "
                f"{seq_len + 1} or more, or data.seq_len to {max(1, num_part - 1)} or less"
            )
        problem = too_short(
            ", ".join(printable(index.folder) for index in self.indices),
            seq_len=seq_len,
            num_tokens=self.num_tokens,
            num_part=num_part,
            part="for validation",
            num_bytes=sum(shard.text_bytes for shard in self.shards),
        )
        if problem:
            raise ValueError(problem)

    def description(self) -> dict[str, object]:
        """Return the record of the data."""
        facts: dict[str, object] = {
            "tokens": self.num_tokens,
            "vocabulary": len(self.indices[0].vocabulary),
            "documents": sum(shard.num_documents for shard in self.shards),
            "validation_tokens": self.num_validation_tokens,
            "layout": self.layout,
        }
        sources: list[dict[str, object]] = []
        left_out: list[str] = []
        num_targets = num_short = 0
        for index, layout, quota in zip(self.indices, self.layouts, self.quotas, strict=True):
            rows = {"rows": layout.num_rows, "share": quota / BLOCK}
            sources.append({"folder": str(index.folder), "shards": len(index.shards), **rows})
            for what in index.left_out:
                left_out.append(f"{index.folder}: {what}")
            if isinstance(layout, DocumentLayout):
                num_targets += layout.num_targets
                num_short += layout.num_short
        if self.layout == "documents":
            facts["waste"] = f"{1 - num_targets / (self.train.num_rows * self.train.seq_len):.2%}"
        if num_short:
            left_out.append(f"documents of one token, which have no target and make no row: {num_short}")
        if left_out:
            facts["left out"] = "; ".join(left_out)
        facts["sha256"] = digest_of([shard.sha256 for shard in self.shards])
        facts["sources"] = sources
        return facts


def _layout(split: ShardSplit, seq_len: int, key: tuple[int, int]) -> Layout:
    lengths, folder = split.train_lengths, split.index.folder
    if split.layout == "documents":
        documents = DocumentLayout(lengths, split.train_documents(), seq_len=seq_len)
        if not documents.num_rows:
            raise ValueError(f"data.paths: in {folder} every training document has fewer than two tokens")
        return documents
    longest = max(lengths)
    if longest <= seq_len:
        raise ValueError(
            f"data.seq_len={seq_len}: a row takes {seq_len + 1:,} tokens of one shard, and the longest of "
            f"{printable(folder)} has {longest:,} for training: set data.seq_len to {max(1, longest - 1)} or less, or "
            "use more text"
        )
    return PackedLayout(lengths, seq_len=seq_len, key=key)


def _quotas(weights: Sequence[float], indices: Sequence[ShardIndex]) -> list[int]:
    """Return integers that add up to a block, in proportion to the weights, by the largest-remainder method."""
    exact = np.array(weights, dtype=np.float64) / math.fsum(weights) * BLOCK
    quotas = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: BLOCK - quotas.sum()]] += 1
    if not quotas.all():
        folder = indices[int(quotas.argmin())].folder
        raise ValueError(
            f"data.weights: the share of {folder} is less than one row in {BLOCK:,}: increase it, or leave it out"
        )
    whole: list[int] = quotas.tolist()
    return whole


def _folders(paths: str | list[str]) -> list[Path]:
    if isinstance(paths, str):
        paths = [paths]
    return [home_path(path) for path in paths]


def _check_vocabularies(indices: Sequence[ShardIndex]) -> list[str]:
    found = []
    for index in indices:
        first = indices[0]
        if index.vocabulary_state != first.vocabulary_state:
            found.append(
                f"{index.folder} has another vocabulary ({index.vocabulary.name}, {len(index.vocabulary)} ids) than "
                f"{first.folder} ({first.vocabulary.name}, {len(first.vocabulary)} ids): tokenize one with "
                f"vocabulary_path={first.folder / VOCABULARY}"
            )
    return found


def _check_weights(weights: Sequence[float] | None, num_folders: int) -> list[str]:
    if weights is None:
        return []
    if len(weights) != num_folders:
        return [f"there are {len(weights)} weights for {num_folders} folders: set one for each, or null"]
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        return ["each weight must be above 0: remove the folder to leave it out"]
    return []
