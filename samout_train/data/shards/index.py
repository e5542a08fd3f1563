"""The format of a folder of shards, which `tokenize` writes and the data source `shards` reads.

`plan.json`        settings, vocabulary and source files; written first
`00000.bin`        ids of one part of the text, little-endian, uint16 if the vocabulary allows, else uint32
`00000.documents`  start of each document in that part, at its `<|sos|>`: little-endian uint32
`00000.json`       sizes and digests of both; written last, so that it marks a complete part
`vocabulary.json`  the vocabulary, to tokenize other text with it
`index.json`       all of this in one file, written when every part is complete
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from samout_train.data.text.documents import LineEnds
from samout_train.data.vocabulary.base import Vocabulary
from samout_train.data.vocabulary.choice import vocabulary_from
from samout_train.runtime import read_json

FORMAT = 1
PLAN, INDEX, VOCABULARY = "plan.json", "index.json", "vocabulary.json"
PLACE = np.dtype("<u4")  # type of a document's position in its shard
MAKE = "make one with `samout-train tokenize path=... out=...`"
OF_CORPUS = Path("outputs", "corpus", "shards")
MAKE_CORPUS = (
    "make it with `make corpus`, then `samout-train tokenize path=outputs/corpus/documentation.jsonl "
    "out=outputs/corpus/shards vocab_size=2048`"
)
AGAIN = "repeat the `samout-train tokenize` that made it, which replaces damaged shards"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The record of one shard.

    Args:
        name: Name of its files, without the suffix.
        num_tokens: Number of ids.
        num_documents: Number of documents that begin in it.
        text_bytes: UTF-8 bytes of its text.
        unknown: Number of ids for characters that a given vocabulary lacks.
        largest_id: The largest id; -1 without ids.
        sha256: Digest of the file of ids.
        documents_sha256: Digest of the file of documents.
        left_out: Number of skipped pieces of text, by kind.
    """

    name: str
    num_tokens: int
    num_documents: int
    text_bytes: int
    unknown: int
    largest_id: int
    sha256: str
    documents_sha256: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def sizes(self, dtype: "np.dtype[Any]") -> dict[str, int]:
        """Return the expected size of its files in bytes, by name."""
        return {
            f"{self.name}.bin": self.num_tokens * dtype.itemsize,
            f"{self.name}.documents": self.num_documents * PLACE.itemsize,
        }


@dataclass(frozen=True)
class ShardIndex:
    """The index of a folder of shards.

    Args:
        folder: The folder.
        dtype: The type of the ids.
        vocabulary_state: The state to build the vocabulary from.
        shards: The shards, in the order of the text.
        files: Name, bytes and time of modification of each source file.
        line_ends: Treatment of line ends in the text.
    """

    folder: Path
    dtype: "np.dtype[Any]"
    vocabulary_state: Mapping[str, Any]
    shards: tuple[Shard, ...]
    files: list[dict[str, object]]
    line_ends: LineEnds = "keep"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary, built once."""
        return vocabulary_from(self.vocabulary_state)

    def total(self, count: Callable[[Shard], int]) -> int:
        """Return the sum of something over the shards."""
        return sum(map(count, self.shards))

    @property
    def left_out(self) -> list[str]:
        """Return the skipped pieces of the files by kind, such as "documents without text: 3"."""
        counts: Counter[str] = Counter()
        for shard in self.shards:
            counts.update(shard.left_out)
        return [f"{what}: {count:,}" for what, count in counts.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `index.json`."""
        totals = {}
        for name in ("num_tokens", "num_documents", "text_bytes", "unknown"):
            totals[name] = sum(getattr(shard, name) for shard in self.shards)
        return {
            "format": FORMAT,
            "dtype": self.dtype.name,
            "totals": totals,
            "shards": [asdict(shard) for shard in self.shards],
            "files": self.files,
            "line_ends": self.line_ends,
            "vocabulary": self.vocabulary_state,
        }


def digest_of(digests: Sequence[str]) -> str:
    """Return one sha256 for several shards, from their digests in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_index(folder: Path) -> ShardIndex:
    """Return the index of a folder, after checking the sizes of the shards' files.

    Raises:
        ValueError: if there is no index, or a shard does not match it.
    """
    path = folder / INDEX
    if folder == OF_CORPUS and not folder.is_dir():
        raise ValueError(f"{folder} is not there: {MAKE_CORPUS}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there: give a folder of shards; {MAKE}")
    if not path.is_file():
        if (folder / PLAN).is_file():
            raise ValueError(f"{folder} has no {INDEX}, so it is not finished: run its `samout-train tokenize` again")
        raise ValueError(f"{folder} has no {INDEX}, so it is not a folder of shards: {MAKE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this program reads {FORMAT}")
        shards = tuple(Shard(**shard) for shard in content["shards"])
        dtype = np.dtype(content["dtype"]).newbyteorder("<")
        index = ShardIndex(
            folder, dtype, content["vocabulary"], shards, content["files"], content.get("line_ends", "keep")
        )
        vocab_size = len(index.vocabulary)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it, and {AGAIN}") from error
    for shard in shards:
        _require_whole(folder, shard, dtype, vocab_size)
    return index


def read_shard(folder: Path, name: str, dtype: "np.dtype[Any]") -> Shard | None:
    """Return the record of a shard; None if it is incomplete or its files have other sizes."""
    try:
        shard = Shard(**(read_json(folder / f"{name}.json") or {}))
        for file, size in shard.sizes(dtype).items():
            if (folder / file).stat().st_size != size:
                return None
    except (OSError, TypeError):
        return None
    if shard.name != name:
        return None
    return shard


def _require_whole(folder: Path, shard: Shard, dtype: "np.dtype[Any]", vocab_size: int) -> None:
    for name, wanted in shard.sizes(dtype).items():
        path = folder / name
        has = "is not there"
        if path.is_file():
            found = path.stat().st_size
            if found == wanted:
                continue
            has = f"has {found:,} bytes"
        raise ValueError(f"{path} {has}, and {INDEX} says {wanted:,} bytes: {AGAIN}")
    if shard.largest_id >= vocab_size:
        raise ValueError(
            f"{folder / shard.name}.bin has the id {shard.largest_id}, and the vocabulary has {vocab_size} ids: {AGAIN}"
        )
