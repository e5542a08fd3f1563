"""Provide the base of corpora with standard splits, read from local files of the published corpus.

Files are compared with the published ones, and the result is reported and recorded. Other files are read as well, but
their figures are not comparable.
"""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Literal

from samout_train.config import Problem
from samout_train.data.source import Source, problems_below
from samout_train.data.text.base import TextSource, counts_of, place_of, too_short
from samout_train.data.text.encoding import opened
from samout_train.data.text.files import Counts, Survey
from samout_train.data.text.rows import TokenRows
from samout_train.data.text.token_cache import tokenize
from samout_train.data.vocabulary.choice import VocabularyChoice
from samout_train.runtime import cache_path, read_json, write_json

Judged = Literal["validation", "test"]
Figure = Literal["bits_per_byte", "word_perplexity"]
FORMAT = 1
READ_TOGETHER = 1 << 20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """Hold the published size of a split, as far as it is known.

    Args:
        words: Words, plus one for the end of each line.
        lines: Line ends.
        documents: Documents.
    """

    words: int | None = None
    lines: int | None = None
    documents: int | None = None

    def difference(self, counts: Counts) -> str | None:
        """Return the first known difference of a split from the published one; None if there is none."""
        for what, wanted, found in (
            ("words", self.words, counts.words + counts.lines),
            ("lines", self.lines, counts.lines),
            ("documents", self.documents, counts.documents),
        ):
            if wanted is not None and found != wanted:
                return f"it has {found:,} {what}, the published one has {wanted:,}"
        return None


@dataclass(kw_only=True)
class StandardCorpus(TextSource):
    """Read a corpus with standard splits.

    Args:
        path: The file or folder, as it is distributed.
        split: The split to measure on; use `test` only at the end.
    """

    looks_for_copies: ClassVar[bool] = False  # a published corpus is used unchanged
    title: ClassVar[str]
    figure: ClassVar[Figure] = "bits_per_byte"

    path: str
    split: Judged

    @abstractmethod
    def surveys(self) -> Mapping[str, Survey]:
        """Return the available splits among `train`, `validation` and `test`, with their digests.

        Raises:
            ValueError: if the files are missing.
        """

    @abstractmethod
    def difference(self, split: str, looked_at: Survey) -> str | None:
        """Return the first known difference of a split from the published one; None if there is none."""

    def words(self, looked_at: Survey) -> int | None:
        """Return the number of words by which the published figure divides; None if the figure is not per word."""
        return None

    def look_at(self) -> Survey:
        """Find the training split and compute its digest."""
        return self.surveys()["train"]

    def judged(self) -> Survey:
        """Find the split to measure on and compute its digest.

        Raises:
            ValueError: if the corpus lacks the split.
        """
        surveys = self.surveys()
        if self.split not in surveys:
            raise ValueError(f"split={self.split}: {self.title} has none: set it to {' or '.join([*surveys][1:])}")
        return surveys[self.split]

    def source(self) -> Source:
        """Return the source, with the training split and the split to measure on.

        Raises:
            ValueError: if a file cannot be read, or a split is too short.
        """
        learned, judged = self.look_at(), self.judged()
        tokenized = tokenize(learned, self.choice())
        also = tokenize(judged, VocabularyChoice.of_run(tokenized.vocabulary))
        for part, survey, tokens in (("to learn from", learned, tokenized.tokens), (self.split, judged, also.tokens)):
            place = place_of(survey.root, survey.files)
            num_tokens, num_bytes = len(tokens), survey.num_bytes
            if problem := too_short(
                place, seq_len=self.seq_len, num_tokens=num_tokens, num_part=num_tokens, part=part, num_bytes=num_bytes
            ):
                raise ValueError(problem)
        description: dict[str, object] = {**counts_of(tokenized), f"{self.split} tokens": len(also.tokens)}
        if also.unknown:
            description[f"{self.split} characters that the training text lacks"] = also.unknown
        description["published"] = self.compared(["train", self.split])
        digests = [survey.sha256 for survey in self.surveys().values()]
        description |= {"sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest(), "files": self._files()}
        return self.source_of(
            tokenized,
            train=TokenRows(tokenized.tokens, seq_len=self.seq_len, seed=self.seed),
            validation=TokenRows(also.tokens, seq_len=self.seq_len, seed=self.seed),
            description=description,
            words=None if also.unknown else self.words(judged),
        )

    def compared(self, splits: Sequence[str]) -> str:
        """Return that splits are the published ones, or how the first other one differs, with a warning."""
        surveys = self.surveys()
        for split in splits:
            looked_at = surveys[split]
            if difference := self.difference(split, looked_at):
                log.warning(
                    "data        the %s split is not that of %s (%s): figures are not comparable with published ones",
                    split,
                    self.title,
                    difference,
                )
                return f"no: {split}: {difference}"
        return "as far as it can be checked"

    def setting_problems(self, name: str) -> list[Problem]:
        """Return what prevents training on the files."""
        try:
            self.judged()
        except ValueError as error:
            return problems_below(name, error)
        return super().setting_problems(name)

    def content_problems(
        self, name: str, looked_at: Survey, counts: Counts, choice: VocabularyChoice | None
    ) -> list[Problem]:
        """Return no problems: lengths of splits are checked after tokenizing."""
        return []

    def _files(self) -> list[dict[str, object]]:
        """Return name, bytes and sha256 of each file, without repetitions."""
        entries: list[dict[str, object]] = []
        for survey in self.surveys().values():
            entries += [entry for entry in survey.record if entry not in entries]
        return entries


def text_digest(looked_at: Survey, member: str) -> tuple[int, str]:
    """Return size and MD5 of the decompressed text of one file. Publishers state the MD5.

    Args:
        looked_at: The file.
        member: The end of the name of a file in a zip archive; `*` for its only file.
    """
    path = cache_path("md5", FORMAT, member, looked_at.sha256, ending=".md5.json")
    note = read_json(path) or {}
    if note.keys() != {"bytes", "md5"}:
        digest, size = hashlib.md5(usedforsecurity=False), 0
        with opened(looked_at.files[0], member) as file:
            while chunk := file.read(READ_TOGETHER):
                digest.update(chunk)
                size += len(chunk)
        note = {"bytes": size, "md5": digest.hexdigest()}
        with suppress(OSError):  # the cache only saves time
            write_json(path, note)
    return int(note["bytes"]), str(note["md5"])
