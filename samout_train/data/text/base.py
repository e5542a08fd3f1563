"""The base of text sources: find the files, tokenize them into one stream, and split it by position."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from samout_train.config import Positive, Problem
from samout_train.data.source import Rows, Source, problems_below, problems_of
from samout_train.data.text.copies import starts_of, warn_of_copies
from samout_train.data.text.documents import LineEnds
from samout_train.data.text.encoding import printable
from samout_train.data.text.files import Counts, Survey
from samout_train.data.text.rows import TokenRows
from samout_train.data.text.token_cache import TokenizedText, tokenize
from samout_train.data.vocabulary.base import PAD_ID, Bytes, Characters
from samout_train.data.vocabulary.bpe import BytePairSize
from samout_train.data.vocabulary.choice import VocabularyChoice, VocabularyName

TRAIN_SHARE = 0.9


@dataclass(kw_only=True)
class TextSource(ABC):
    """The settings that all text sources share; a subclass finds the files.

    The first 90 % of the tokens are for training, the rest for validation.

    Args:
        vocabulary: `characters`, `bytes` or `bpe`.
        vocab_size: Ids of `bpe`, including the special tokens and the 256 bytes.
        vocabulary_path: A pickled vocabulary of the published kind, or the `vocabulary.json` of an export; None to make
            one from the text.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Seed of the cuts between rows in each epoch.
        line_ends: `fold` turns CRLF and CR into LF.
    """

    # Whether to warn of files that are in both splits, so that the user can remove them.
    looks_for_copies: ClassVar[bool] = True

    vocabulary: VocabularyName
    vocab_size: Annotated[int, BytePairSize]
    vocabulary_path: str | None
    seq_len: Annotated[int, Positive]
    ignore_index: int
    seed: int
    line_ends: LineEnds = "keep"

    @abstractmethod
    def look_at(self) -> Survey:
        """Find the files and compute their digests.

        Raises:
            ValueError: if there is no file, or not the expected files.
        """

    def choice(self) -> VocabularyChoice:
        """Return the choice of the vocabulary.

        Raises:
            ValueError: if the given vocabulary file cannot be used.
        """
        return VocabularyChoice.of(
            vocabulary=self.vocabulary, vocab_size=self.vocab_size, vocabulary_path=self.vocabulary_path
        )

    def source(self) -> Source:
        """Return the source, cut from one stream of tokens.

        Raises:
            ValueError: if a file cannot be read, or the text is too short.
        """
        choice = self.choice()
        looked_at = self.look_at()
        tokenized = tokenize(looked_at, choice)
        tokens = tokenized.tokens
        if problem := _too_short(looked_at, len(tokens), looked_at.num_bytes, self.seq_len):
            raise ValueError(problem)
        num_train = int(TRAIN_SHARE * len(tokens))
        if self.looks_for_copies:
            _warn_of_copies(looked_at, tokenized, num_train)
        return self.source_of(
            tokenized,
            train=TokenRows(tokens[:num_train], seq_len=self.seq_len, seed=self.seed),
            validation=TokenRows(tokens[num_train:], seq_len=self.seq_len, seed=self.seed),
            description={**counts_of(tokenized), "train_tokens": num_train, **looked_at.description()},
        )

    def source_of(
        self,
        tokenized: TokenizedText,
        *,
        train: Rows,
        validation: Rows,
        description: dict[str, object],
        words: int | None = None,
        document_id: int | None = None,
    ) -> Source:
        """Return the source of a text and its rows."""
        return Source(
            vocab_size=len(tokenized.vocabulary),
            pad_id=PAD_ID,
            ignore_index=self.ignore_index,
            train=train,
            validation=validation,
            vocabulary=tokenized.vocabulary,
            floor_nats=None,
            line_ends=self.line_ends,
            description=description,
            words=words,
            document_id=document_id,
        )

    @classmethod
    def problems(cls, settings: Mapping[str, Any], name: str) -> list[Problem]:
        """Return the problems between the settings of a YAML; see `problems_of`."""
        return problems_of(cls, settings, name)

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the settings and the files; the files are read once, before anything is built."""
        found: list[Problem] = []
        choice = None
        try:
            choice = self.choice()
        except ValueError as error:
            found += problems_below(name, error)
        if self.ignore_index != PAD_ID:
            text = f"must be {PAD_ID}, the padding id, or padding is learned"
            found.append(Problem(f"{name}.ignore_index", str(self.ignore_index), text=text, kind="value"))
        try:
            looked_at = self.look_at()
        except ValueError as error:
            return found + problems_below(name, error)
        except OSError as error:
            return [*found, Problem(f"{name}.path", text=str(error))]
        try:
            counts = looked_at.count()
        except (ValueError, OSError) as error:
            return [*found, Problem(f"{name}.path", text=str(error))]
        if counts.num_bytes == 0:
            where = place_of(looked_at.root, looked_at.files)
            text = f"no text in {where}, {looked_at.num_bytes} bytes"
            return [*found, Problem(f"{name}.path", text=text, fix="set a path with text")]
        return found + self.content_problems(name, looked_at, counts, choice)

    def content_problems(
        self, name: str, looked_at: Survey, counts: Counts, choice: VocabularyChoice | None
    ) -> list[Problem]:
        """Return the problem of a text that is too short.

        Args:
            name: The key of this group of settings, such as `data`.
            looked_at: The files.
            counts: Their content, which is not empty.
            choice: The vocabulary; None if it cannot be used.
        """
        if choice is None or choice.given is not None:
            return []
        exact = {Characters.name: counts.characters, Bytes.name: counts.num_bytes}
        num_tokens = exact.get(choice.name, counts.num_bytes) + counts.special_tokens
        problem = _too_short(looked_at, num_tokens, counts.num_bytes, self.seq_len)
        if problem is None:
            return []
        return [Problem(text=problem)]


def _warn_of_copies(looked_at: Survey, tokenized: TokenizedText, num_train: int) -> None:
    starts = starts_of(tokenized.tokens)
    if len(starts) < 2:
        return
    names = []
    for entry in looked_at.record:
        if entry["bytes"]:
            names.append(str(entry["name"]))
    if len(names) != len(starts):
        names = []
    warn_of_copies(tokenized.tokens, starts, num_train, tokenized.vocabulary, what="files", names=names)


def counts_of(tokenized: TokenizedText) -> dict[str, object]:
    """Return the record of a tokenized text: tokens, vocabulary size, and characters that the vocabulary lacks."""
    counts: dict[str, object] = {"tokens": len(tokenized.tokens), "vocabulary": len(tokenized.vocabulary)}
    if tokenized.unknown:
        share = tokenized.unknown / len(tokenized.tokens)
        counts["not in the vocabulary, so padding"] = f"{tokenized.unknown} ({share:.2%})"
    return counts


def _too_short(looked_at: Survey, num_tokens: int, num_bytes: int, seq_len: int) -> str | None:
    """Return the problem if the validation split, the smaller split, is shorter than a row; else None."""
    return too_short(
        place_of(looked_at.root, looked_at.files),
        seq_len=seq_len,
        num_tokens=num_tokens,
        num_part=num_tokens - int(TRAIN_SHARE * num_tokens),
        part="for validation",
        num_bytes=num_bytes,
    )


def too_short(where: str, *, seq_len: int, num_tokens: int, num_part: int, part: str, num_bytes: int) -> str | None:
    """Return the problem if a part of a text is shorter than a row, with sizes that would fit; else None.

    Args:
        where: The file or folder of the text.
        seq_len: Targets in a row; a row has seq_len + 1 tokens.
        num_tokens: Tokens of the whole text.
        num_part: Tokens of the part.
        part: Purpose of the part, such as `for validation`.
        num_bytes: UTF-8 bytes of the whole text.
    """
    wanted = seq_len + 1
    if num_part >= wanted:
        return None
    enough = max(1, -(-wanted * num_bytes // max(1, num_part)))
    fits = "use"
    if num_part > 1:
        fits = f"set data.seq_len to {num_part - 1} or less, or use"
    return (
        f"data.seq_len={seq_len}: a row takes {wanted:,} tokens, and {where} has {num_tokens:,} ({num_bytes:,} bytes), "
        f"{num_part:,} of them {part}: {fits} a text of about {enough:,} bytes or more"
    )


def place_of(root: Path, files: Sequence[Path]) -> str:
    """Return how messages name the files of a text."""
    if len(files) == 1:
        return printable(files[0])
    return f"{len(files)} files in {printable(root)}"
