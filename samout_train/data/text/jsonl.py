"""Read JSON Lines: texts or conversations, one document a line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Problem, validated
from samout_train.data.source import Rows, Source, source_function
from samout_train.data.text.base import TRAIN_SHARE, TextSource, counts_of, place_of, too_short
from samout_train.data.text.conversations import ExtraFields
from samout_train.data.text.copies import TOKENS_TOGETHER, documents_within, starts_of, warn_of_copies
from samout_train.data.text.documents import JsonlReader, LineEnds
from samout_train.data.text.files import Counts, Survey, find, survey
from samout_train.data.text.learned import Learn, LearnedRows, mapped_learned_tokens
from samout_train.data.text.mapped import blocks_of
from samout_train.data.text.rows import PaddedRows, TokenRows, targets_and_rows
from samout_train.data.text.token_cache import TokenizedText, tokenize
from samout_train.data.vocabulary.base import PAD_ID, SOS_ID
from samout_train.data.vocabulary.choice import VocabularyChoice


@validated
@dataclass(kw_only=True)
class Jsonl(TextSource):
    """Read JSON Lines. The documents in the last tenth of the tokens are for validation.

    Args:
        path: A file, or a folder with files that match `pattern`, in the order of their names.
        pattern: The files of a folder, such as `**/*.jsonl`.
        layout: `padded`: a document begins a row and continues in further rows; the last row is padded. `packed`:
            documents follow each other, each after `<|sos|>`, in rows without padding.
        roles: The special token before a role's messages, by role.
        learn: `agent`: counted targets are the agent's messages and the token that ends each (the token of the next
            role, or `<|user|>` after the last turn).
        extra_fields: `write`: reasoning, tools and tool calls become text. `count`: they are skipped and counted.
        reset_at_documents: Whether each document of a packed row starts without a state. Padded rows do not need it.
    """

    path: str
    pattern: str
    layout: Literal["padded", "packed"]
    roles: dict[str, str]
    learn: Learn = "all"
    extra_fields: ExtraFields = "count"
    reset_at_documents: bool = False  # the default of earlier runs; the YAML has true

    def look_at(self) -> Survey:
        """Find the files and compute their digests."""
        return look_at(
            self.path,
            self.pattern,
            self.roles,
            self.line_ends,
            extra_fields=self.extra_fields,
            learn=self.learn,
        )

    def source(self) -> Source:
        """Return the source, split between two documents.

        Raises:
            ValueError: if a line cannot be read, or the text is too short.
        """
        choice = self.choice()
        looked_at = self.look_at()
        tokenized = tokenize(looked_at, choice)
        documents, num_learned = _documents(tokenized.tokens, self.path)
        learned, validated = documents[:num_learned], documents[num_learned:]
        cut = int(validated[0, 0])
        if self.layout == "packed":
            self._require_whole_row(looked_at, len(tokenized.tokens), cut)
        marks, document_id = None, None
        if self.reset_at_documents and self.layout == "packed":
            document_id = SOS_ID
        if self.learn == "agent":
            marks = self._marks(tokenized.tokens)
        warn_of_copies(tokenized.tokens, documents[:, 0], cut, tokenized.vocabulary, what="documents")
        return self.source_of(
            tokenized,
            train=rows_of(tokenized.tokens, learned, self, marks),
            validation=rows_of(tokenized.tokens, validated, self, marks),
            description={
                "documents": len(documents),
                **counts_of(tokenized),
                "layout": self.layout,
                **self._waste(tokenized, learned, cut),
                **self._learned(marks),
                **looked_at.description(),
                **self._left_out(looked_at, documents, marks),
            },
            document_id=document_id,
        )

    def content_problems(
        self, name: str, looked_at: Survey, counts: Counts, choice: VocabularyChoice | None
    ) -> list[Problem]:
        """Return the problem if there are fewer than two documents. Their lengths are checked after tokenizing."""
        if counts.documents >= 2:
            return []
        where = place_of(looked_at.root, looked_at.files)
        text = f"{where} has {counts.documents} document"
        return [Problem(f"{name}.path", text=text, fix="use two or more, so that one is left for validation")]

    def _marks(self, tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
        marks = mapped_learned_tokens(tokens)
        if not any(part.any() for _, part in blocks_of(marks, TOKENS_TOGETHER)):
            raise ValueError(
                f"data.learn=agent: no role in data.path={self.path} is the agent's, so there is nothing to learn: "
                "set data.learn=all, or data.roles to the roles that are there"
            )
        return marks

    def _learned(self, marks: NDArray[np.uint8] | None) -> dict[str, str]:
        if marks is None:
            return {}
        count = sum(int(part.sum()) for _, part in blocks_of(marks, TOKENS_TOGETHER))
        return {"learned": f"{count} tokens, the agent's messages ({count / len(marks):.2%})"}

    def _require_whole_row(self, looked_at: Survey, num_tokens: int, cut: int) -> None:
        """Raise ValueError if a split is shorter than a packed row; padded rows accept any length."""
        for part, num_part in (("for training", cut), ("for validation", num_tokens - cut)):
            problem = too_short(
                place_of(looked_at.root, looked_at.files),
                seq_len=self.seq_len,
                num_tokens=num_tokens,
                num_part=num_part,
                part=part,
                num_bytes=looked_at.num_bytes,
            )
            if problem:
                raise ValueError(f"{problem}, or set data.layout to padded")

    def _waste(self, tokenized: TokenizedText, learned: NDArray[np.int64], cut: int) -> dict[str, str]:
        """Return the share of uncounted targets, padding and unknown characters, in each layout."""
        unknown = 0
        if tokenized.unknown:
            for _, ids in blocks_of(tokenized.tokens[:cut], TOKENS_TOGETHER):
                unknown += int((ids == PAD_ID).sum())
        targets, rows = targets_and_rows(learned, self.seq_len)
        padded, num_places = "all", int(rows.sum()) * self.seq_len
        if num_places:
            padded = f"{1 - (int(targets.sum()) - unknown) / num_places:.2%}"
        return {"waste padded": padded, "waste packed": f"{unknown / cut:.2%}"}

    def _left_out(
        self, looked_at: Survey, documents: NDArray[np.int64], marks: NDArray[np.uint8] | None
    ) -> dict[str, str]:
        """Return the skipped files and documents, by reason."""
        parts = []
        if looked_at.left_out:
            parts.append(looked_at.left_out)
        for what, count in looked_at.count().left_out.items():
            parts.append(f"{what}: {count}")
        if self.layout == "padded":
            num_targets, _ = targets_and_rows(documents, self.seq_len)
            if num_short := int((num_targets == 0).sum()):
                parts.append(f"documents of one token, which have no target and make no row: {num_short}")
        if marks is not None and (num_silent := _num_silent(marks, documents[:, 0])):
            parts.append(f"documents in which no agent speaks: {num_silent}")
        if not parts:
            return {}
        return {"left out": "; ".join(parts)}


jsonl = source_function(Jsonl)


def look_at(
    path: str,
    pattern: str,
    roles: Mapping[str, str],
    line_ends: LineEnds,
    *,
    extra_fields: ExtraFields = "count",
    learn: Learn = "all",
) -> Survey:
    """Find the files of documents and compute their digests."""
    found = find(path, pattern)
    reader = JsonlReader.of(roles, line_ends, extra_fields=extra_fields, closes=learn == "agent")
    return survey(found.root, found.files, reader, found.left_out_in_words())


def rows_of(
    tokens: NDArray[np.integer], documents: NDArray[np.int64], settings: Jsonl, marks: NDArray[np.uint8] | None
) -> Rows:
    """Return the rows of some documents.

    Args:
        tokens: (N,) ids of all documents.
        documents: (documents, 2): where each begins and ends.
        settings: Layout, length and seed.
        marks: (N,) from `mapped_learned_tokens`; None if all targets are learned.
    """

    def rows(stream: NDArray[np.integer]) -> TokenRows | PaddedRows:
        if settings.layout == "padded":
            return PaddedRows(stream, documents, seq_len=settings.seq_len)
        return TokenRows(stream[documents[0, 0] : documents[-1, 1]], seq_len=settings.seq_len, seed=settings.seed)

    if marks is None:
        return rows(tokens)
    return LearnedRows(rows(tokens), rows(marks), ignore_index=settings.ignore_index)


def _num_silent(marks: NDArray[np.uint8], starts: NDArray[np.int64]) -> int:
    """Return the number of documents without a learned token."""
    speaks = np.zeros(len(starts), dtype=np.bool_)
    for first, part in blocks_of(marks, TOKENS_TOGETHER):
        documents, begins = documents_within(starts, first, len(part))
        speaks[documents] |= np.logical_or.reduceat(part, begins)
    return int((~speaks).sum())


def _documents(tokens: NDArray[np.integer], path: str) -> tuple[NDArray[np.int64], int]:
    """Return the start (at `<|sos|>`) and end of each document, (documents, 2), and how many are for training."""
    starts = starts_of(tokens)
    if len(starts) < 2:
        raise ValueError(
            f"data.path={path}: has {len(starts)} document: use two or more, so that one is left for validation"
        )
    documents = np.stack([starts, np.append(starts[1:], len(tokens))], axis=1)
    first_validation = int(np.searchsorted(starts, TRAIN_SHARE * len(tokens)).clip(1, len(starts) - 1))
    return documents, first_validation
