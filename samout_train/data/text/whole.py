"""Read data to evaluate a run on, from the first token to the last, with the run's vocabulary."""

# T time in a row

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samout_train.data.shards.index import digest_of, read_index
from samout_train.data.source import Rows, Source
from samout_train.data.text import jsonl, text
from samout_train.data.text.copies import TOKENS_TOGETHER, starts_of
from samout_train.data.text.files import Survey
from samout_train.data.text.hundred_megabytes import Enwik8, Text8
from samout_train.data.text.learned import LearnedRows, mapped_learned_tokens
from samout_train.data.text.mapped import blocks_of
from samout_train.data.text.rows import PaddedRows, TokenRows
from samout_train.data.text.split_files import TinyStories, WikiText103
from samout_train.data.text.standard import StandardCorpus
from samout_train.data.text.token_cache import tokenize
from samout_train.data.vocabulary.base import PAD_ID, SOS_ID, SPECIAL_TOKENS, Vocabulary
from samout_train.data.vocabulary.choice import VocabularyChoice
from samout_train.runtime import home_path

TEXT = "samout_train.data.text.text.text"
JSONL = "samout_train.data.text.jsonl.jsonl"
SHARDS = "samout_train.data.shards.source.shards"
STANDARD: dict[str, type[StandardCorpus]] = {
    "samout_train.data.text.hundred_megabytes.enwik8": Enwik8,
    "samout_train.data.text.hundred_megabytes.text8": Text8,
    "samout_train.data.text.split_files.wikitext103": WikiText103,
    "samout_train.data.text.split_files.tinystories": TinyStories,
}
LONGEST_STEM = 40


@dataclass(frozen=True, kw_only=True)
class WholeData:
    """Hold data to evaluate on.

    Args:
        tokens: All tokens, (N,).
        seq_len: Targets T in a training row.
        packed: Whether rows follow each other; otherwise each document begins a row.
        unknown: Number of tokens for characters that the vocabulary lacks; these tokens are not counted.
        path: Absolute path of the file or folder.
        sha256: Digest of the content.
        digests: sha256 of each file.
        way: Description of how the data was read, as far as results depend on it.
        agent_alone: Whether only the agent's messages in conversations are counted.
        ignore_index: Targets of this value are not counted.
        words: The divisor of a perplexity per word; None if this text has no such figure.
        published: For a corpus with standard splits, whether it is the published one, in words.
        document_id: The id that begins a document within a row; None if a row is read as one sequence.
    """

    tokens: NDArray[np.integer]
    seq_len: int
    packed: bool
    unknown: int
    path: str
    sha256: str
    digests: frozenset[str]
    way: str
    agent_alone: bool = False
    ignore_index: int = PAD_ID
    words: int | None = None
    published: str | None = None
    document_id: int | None = None

    @cached_property
    def rows(self) -> Rows:
        """Return all data in consecutive rows of the training length; a shorter text is one shorter or padded row."""
        rows = self._rows_of(self.tokens)
        if not self.agent_alone:
            return rows
        return LearnedRows(rows, self._rows_of(mapped_learned_tokens(self.tokens)), ignore_index=self.ignore_index)

    def _rows_of(self, stream: NDArray[np.integer]) -> TokenRows | PaddedRows:
        if self.packed:
            return TokenRows(stream, seq_len=min(self.seq_len, len(self.tokens) - 1), seed=0)
        starts = starts_of(self.tokens)
        documents = np.stack([starts, np.append(starts[1:], len(self.tokens))], axis=1)
        return PaddedRows(stream, documents, seq_len=self.seq_len)

    @property
    def unknown_share(self) -> float:
        """Return the share of tokens that the vocabulary lacks."""
        return self.unknown / len(self.tokens)

    @property
    def name(self) -> str:
        """Return a readable folder name, unique for the file, its content and the way of reading."""
        stem = re.sub(r"[^\w.-]+", "_", Path(self.path).stem).strip("._")[:LONGEST_STEM] or "data"
        key = f"{self.path}\n{self.sha256}\n{self.way}".encode(errors="surrogateescape")
        return f"{stem}-{hashlib.sha256(key).hexdigest()[:8]}"

    def source(self, vocabulary: Vocabulary, *, ignore_index: int, line_ends: Any) -> Source:
        """Return a source with all of the data as each of its splits."""
        return Source(
            vocab_size=len(vocabulary),
            pad_id=PAD_ID,
            ignore_index=ignore_index,
            train=self.rows,
            validation=self.rows,
            vocabulary=vocabulary,
            floor_nats=None,
            line_ends=line_ends,
            description={},
            words=self.words,
            document_id=self.document_id,
        )


def reads_whole(node: Mapping[str, Any]) -> bool:
    """Return whether data of this kind comes from the user's files."""
    return node["_target_"] in (TEXT, JSONL, SHARDS, *STANDARD)


def whole_data(node: Mapping[str, Any], vocabulary: Vocabulary, *, seq_len: int) -> WholeData:
    """Read data from end to end.

    Args:
        node: The content of a data YAML.
        vocabulary: The run's vocabulary.
        seq_len: Targets in a training row.

    Raises:
        ValueError: if the data does not exist, cannot be read, is too short, or has no character of the vocabulary.
        OSError: if a file cannot be read, or the token cache cannot be written.
    """
    if node["_target_"] == SHARDS:
        data = _shards(node, vocabulary, seq_len)
    elif node["_target_"] in STANDARD:
        data = _split(node, vocabulary, seq_len)
    else:
        data = _files(node, vocabulary, seq_len)
    if len(data.tokens) < 2:
        raise ValueError(f"{data.path}: has {len(data.tokens)} token, and a loss needs 2: use a longer text")
    if not any(np.any(ids >= len(SPECIAL_TOKENS)) for _, ids in blocks_of(data.tokens[1:], TOKENS_TOGETHER)):
        raise ValueError(
            f"{data.path}: none of its {len(data.tokens):,} tokens can be counted, since the run's vocabulary has none "
            "of its characters: use text in the script of the training text"
        )
    return data


def digests_of(node: Mapping[str, Any]) -> frozenset[str]:
    """Return the sha256 of each file that a data YAML trains on; empty without them, and for shards.

    For a corpus with standard splits, each digest is followed by its reader, since splits may share a file.
    """
    try:
        if node["_target_"] in STANDARD:
            return _digests(_corpus(node).look_at())
        if node["_target_"] not in (TEXT, JSONL):
            return frozenset()
        return frozenset(_look(node).digests)
    except (OSError, ValueError, LookupError, TypeError):
        return frozenset()


def _look(node: Mapping[str, Any]) -> Survey:
    line_ends = node.get("line_ends", "keep")
    if node["_target_"] == TEXT:
        return text.look_at(node["path"], node["pattern"], line_ends)
    return jsonl.look_at(
        node["path"],
        node["pattern"],
        node["roles"],
        line_ends,
        extra_fields=node.get("extra_fields", "count"),
        learn=node.get("learn", "all"),
    )


def _corpus(node: Mapping[str, Any]) -> StandardCorpus:
    """Return the corpus with standard splits that a data YAML describes."""
    kind = STANDARD[node["_target_"]]
    names = {one.name for one in fields(kind)}
    return kind(**{"seed": 0, **{key: value for key, value in node.items() if key in names}})


def _digests(looked_at: Survey) -> frozenset[str]:
    return frozenset(f"{digest} {looked_at.reader}" for digest in looked_at.digests)


def _split(node: Mapping[str, Any], vocabulary: Vocabulary, seq_len: int) -> WholeData:
    corpus = _corpus(node)
    try:
        looked_at = corpus.judged()
    except ValueError as error:
        raise ValueError(f"data.{error}") from error
    tokenized = tokenize(looked_at, VocabularyChoice.of_run(vocabulary), most_unknown=1.0)
    return WholeData(
        tokens=tokenized.tokens,
        seq_len=seq_len,
        packed=True,
        unknown=tokenized.unknown,
        path=f"{home_path(corpus.path).resolve()}, {corpus.split}",
        sha256=looked_at.sha256,
        digests=_digests(looked_at),
        way=str(looked_at.reader),
        words=corpus.words(looked_at),
        published=corpus.compared([corpus.split]),
    )


def _files(node: Mapping[str, Any], vocabulary: Vocabulary, seq_len: int) -> WholeData:
    try:
        looked_at = _look(node)
    except ValueError as error:
        raise ValueError(f"data.{error}") from error
    if not looked_at.count().num_bytes:
        raise ValueError(f"data.path={node['path']}: has no text: set a file with text")
    document_id = _document_id(node)
    tokenized = tokenize(looked_at, VocabularyChoice.of_run(vocabulary), most_unknown=1.0)
    return WholeData(
        tokens=tokenized.tokens,
        seq_len=seq_len,
        packed=_layout(node) == "packed",
        unknown=tokenized.unknown,
        path=str(home_path(node["path"]).resolve()),
        sha256=looked_at.sha256,
        digests=frozenset(looked_at.digests),
        way=f"{looked_at.reader} {_way(node, document_id)}",
        document_id=document_id,
        agent_alone=_is_agent_alone(node),
        ignore_index=node.get("ignore_index", PAD_ID),
    )


def _shards(node: Mapping[str, Any], vocabulary: Vocabulary, seq_len: int) -> WholeData:
    paths = node["paths"]
    if isinstance(paths, str):
        paths = [paths]
    folders = [home_path(path) for path in paths]
    tokens, digests, unknown = [], [], 0
    for folder in folders:
        index = read_index(folder)
        if index.vocabulary.state_dict() != vocabulary.state_dict():
            raise ValueError(
                f"data.paths: {folder} has another vocabulary than the run: tokenize the text with the run's, or read "
                "it by data=text"
            )
        unknown += index.total(lambda shard: shard.unknown)
        for shard in index.shards:
            digests.append(shard.sha256)
            tokens.append(np.memmap(folder / f"{shard.name}.bin", dtype=index.dtype, mode="r"))
    document_id = _document_id(node)
    if not tokens:
        raise ValueError("data.paths: is empty: set folders of shards")
    return WholeData(
        tokens=tokens[0] if len(tokens) == 1 else np.concatenate(tokens),
        seq_len=seq_len,
        packed=node["layout"] == "packed",
        unknown=unknown,
        path=", ".join(str(folder.resolve()) for folder in folders),
        sha256=digest_of(digests),
        digests=frozenset(digests),
        way=_way(node, document_id),
        document_id=document_id,
        agent_alone=_is_agent_alone(node),
        ignore_index=node.get("ignore_index", PAD_ID),
    )


def _document_id(node: Mapping[str, Any]) -> int | None:
    if node.get("reset_at_documents") and node.get("layout") == "packed":
        return SOS_ID
    return None


def _is_agent_alone(node: Mapping[str, Any]) -> bool:
    return node.get("learn") == "agent"


def _layout(node: Mapping[str, Any]) -> str:
    return str(node.get("layout", "packed"))


def _way(node: Mapping[str, Any], document_id: int | None) -> str:
    way = _layout(node)
    if document_id is not None:
        way += " reset_at_documents"
    if _is_agent_alone(node):
        way += " learn=agent"
    return way
