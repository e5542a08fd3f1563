"""The cache of tokenized text: memory-mapped files of ids, keyed by content, reader and vocabulary.

An entry is complete when its `.json` exists, which is written last. Until then, `.part` holds the ids so far and
`.part.json` the progress, so that an interrupted tokenizing can resume.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from samout_train.data.text.documents import Piece, Special
from samout_train.data.text.files import Survey
from samout_train.data.vocabulary.base import PAD_ID, SPECIAL_TOKENS, Vocabulary, dtype_for
from samout_train.data.vocabulary.choice import VocabularyChoice, vocabulary_from
from samout_train.runtime import (
    Bar,
    PlaceError,
    StopSignals,
    cache_path,
    in_words,
    read_json,
    sha256_of,
    take_place,
    write_json,
)

FORMAT = 3
MOST_UNKNOWN = 0.5
SECONDS_BETWEEN_JOURNALS = 2.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedText:
    """A text as ids.

    Args:
        tokens: (N,) memory map, uint16 if the vocabulary allows, else uint32.
        vocabulary: The vocabulary.
        unknown: Number of ids for characters that a given vocabulary lacks.
    """

    tokens: NDArray[np.integer]
    vocabulary: Vocabulary
    unknown: int


@dataclass
class _Journal:
    """The progress of an unfinished tokenizing.

    Args:
        vocabulary: The state to build the vocabulary from.
        file: Index of the current file.
        offset: The end of the last piece in it.
        num_tokens: Ids written so far.
        unknown: Number of ids for characters that the vocabulary lacks.
        read_bytes: Bytes read of the file on disk; None if that is `offset`.
    """

    vocabulary: dict[str, object]
    file: int = 0
    offset: int = 0
    num_tokens: int = 0
    unknown: int = 0
    read_bytes: int | None = None

    @property
    def bytes_done(self) -> int:
        """Return the bytes read of the file on disk."""
        if self.read_bytes is None:
            return self.offset
        return self.read_bytes

    def move_behind(self, piece: Piece) -> int:
        """Move to the end of a piece; return the bytes of the file that were read for it."""
        before = self.bytes_done
        self.offset, self.read_bytes = piece.end, piece.read_bytes
        return self.bytes_done - before


def tokenize(survey: Survey, choice: VocabularyChoice, *, most_unknown: float = MOST_UNKNOWN) -> TokenizedText:
    """Return the ids of the files of a survey, from the cache if they are complete there.

    Args:
        survey: The files.
        choice: The vocabulary.
        most_unknown: The largest share of tokens that a given vocabulary may lack.

    Raises:
        ValueError: if a file cannot be read, or a given vocabulary lacks a larger share.
        PlaceError: if the cache cannot be written.
        StopRequestedError: on a signal; the next call resumes.
    """
    parts = ("tokens", FORMAT, survey.reader, choice.key(), len(survey.files), survey.sha256)
    bin_path = cache_path(*parts, ending=".bin")
    entry = _undamaged(bin_path)
    if entry is None:
        with _told_of_the_cache(bin_path, survey), StopSignals() as signals, _alone(bin_path, signals):
            entry = _undamaged(bin_path)  # another process may have finished the entry meanwhile
            if entry is None:
                _Tokenizing(survey, choice, bin_path, signals).run()
                entry = _complete(bin_path)
    assert entry is not None
    if not entry["num_tokens"]:
        raise ValueError(f"there is no text in {len(survey.files)} file(s) of {survey.root}: set a path with text")
    unknown, num_tokens = entry["unknown"], entry["num_tokens"]
    if unknown > most_unknown * num_tokens:
        raise ValueError(
            f"vocabulary_path: {unknown} of {num_tokens} tokens of the text are not in it: set the vocabulary that "
            "belongs to the text, or null to make one"
        )
    tokens = np.memmap(bin_path, dtype=entry["dtype"], mode="r", shape=(entry["num_tokens"],))
    return TokenizedText(tokens, vocabulary_from(entry["vocabulary"]), entry["unknown"])


class _Tokenizing:
    """The tokenizing of one text, which resumes an earlier one if that is unfinished."""

    def __init__(self, survey: Survey, choice: VocabularyChoice, bin_path: Path, signals: StopSignals) -> None:
        self.survey, self.choice, self.bin_path, self.signals = survey, choice, bin_path, signals
        self.part, self.journal_path = bin_path.with_suffix(".part"), bin_path.with_suffix(".part.json")

    def run(self) -> None:
        """Write the entry."""
        journal = self._begun() or self._new_journal()
        vocabulary = vocabulary_from(journal.vocabulary)
        dtype = dtype_for(len(vocabulary))
        with self.part.open("ab") as output, self._bar(journal, "tokenizing") as bar:
            output.truncate(journal.num_tokens * dtype.itemsize)
            started, before = time.monotonic(), bar.n
            saved_at = started
            for piece in self._pieces(journal):
                ids = self._ids(piece, vocabulary)
                output.write(ids.astype(dtype).tobytes())
                journal.num_tokens += len(ids)
                journal.unknown += int((ids == PAD_ID).sum())
                bar.update(journal.move_behind(piece))
                stopped = self.signals.received is not None
                if stopped or time.monotonic() - saved_at > SECONDS_BETWEEN_JOURNALS:
                    self._save(output, journal)
                    saved_at = time.monotonic()
                if stopped:
                    share = bar.n / self.survey.num_bytes
                    log.warning("tokenizing stopped at %.0f %%: repeat the same command to resume", 100 * share)
                    self.signals.check()
            _flush(output)
        self._require_unchanged()
        take_place(self.part, self.bin_path)
        note = {"dtype": dtype.name, "num_tokens": journal.num_tokens, "unknown": journal.unknown}
        note["sha256"] = sha256_of(self.bin_path)
        write_json(self.bin_path.with_suffix(".json"), note | {"vocabulary": journal.vocabulary})
        with suppress(OSError):  # on Windows the file may be open elsewhere; it is no longer read
            self.journal_path.unlink(missing_ok=True)
        seconds, megabytes = time.monotonic() - started, (bar.n - before) / 1e6
        log.info("tokenized   %.1f MB at %.1f MB/s, kept in %s", megabytes, megabytes / seconds, self.part.parent)

    def _pieces(self, journal: _Journal) -> Iterator[Piece]:
        """Yield the remaining pieces. Set the journal to the start of each file; the caller moves it within a file."""
        first = journal.file
        for index in range(first, len(self.survey.files)):
            journal.file = index
            if index != first:
                journal.offset, journal.read_bytes = 0, None
            yield from self.survey.reader.read(self.survey.files[index], journal.offset)

    def _begun(self) -> _Journal | None:
        try:
            journal = _Journal(**(read_json(self.journal_path) or {}))
            num_bytes = journal.num_tokens * dtype_for(len(vocabulary_from(journal.vocabulary))).itemsize
            if self.part.stat().st_size < num_bytes:
                return None
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return journal

    def _new_journal(self) -> _Journal:
        journal = _Journal(self.choice.learn(self._texts, check_stop=self.signals.check).state_dict())
        with self.part.open("wb") as output:
            self._save(output, journal)
        return journal

    def _texts(self) -> Iterator[str]:
        """Yield all text, to learn a vocabulary from."""
        journal = _Journal({})
        with self._bar(journal, "learning the vocabulary") as bar:
            for piece in self._pieces(journal):
                self.signals.check()
                for part in piece.parts:
                    if isinstance(part, str):
                        yield part
                bar.update(journal.move_behind(piece))

    def _ids(self, piece: Piece, vocabulary: Vocabulary) -> NDArray[np.integer]:
        unknown_id = None if self.choice.given is None else PAD_ID
        encoded: list[NDArray[np.integer]] = [np.zeros(0, dtype=np.int32)]
        for part in piece.parts:
            if isinstance(part, Special):
                encoded.append(np.array([SPECIAL_TOKENS.index(part.token)], dtype=np.int32))
            else:
                encoded.append(vocabulary.encode(part, unknown_id=unknown_id))
        return np.concatenate(encoded)

    def _require_unchanged(self) -> None:
        """Raise ValueError if the files no longer have the content of the entry's key."""
        if self.survey.changed():
            self.journal_path.unlink(missing_ok=True)
            raise ValueError(f"files in {self.survey.root} have changed during tokenizing: start again")

    def _bar(self, journal: _Journal, name: str) -> Bar:
        done = sum(self.survey.sizes[: journal.file]) + journal.bytes_done
        total = self.survey.num_bytes
        return Bar(total=total, initial=done, unit="B", unit_scale=True, desc=name, delay=1, leave=False)

    def _save(self, output: IO[bytes], journal: _Journal) -> None:
        _flush(output)
        write_json(self.journal_path, asdict(journal))


@contextmanager
def _told_of_the_cache(bin_path: Path, survey: Survey) -> Iterator[None]:
    """Turn a system error about the cache into a message with its folder, the bytes needed, and what to set."""
    try:
        yield
    except OSError as error:
        folder = bin_path.parent
        if error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise  # the error is about a file of the text
        needed = survey.num_bytes * np.dtype(np.uint32).itemsize
        fix = "set SAMOUT_TRAIN_CACHE to another folder"
        raise PlaceError(error.errno, in_words(error, place=folder, needed=needed, fix=fix)) from error


@contextmanager
def _alone(bin_path: Path, signals: StopSignals) -> Iterator[None]:
    """Hold the entry's lock, so that one process tokenizes and the others wait for it."""
    lock = FileLock(bin_path.with_suffix(".lock"))
    waits = False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            signals.check()
            if not waits:
                log.info("waiting for another process that tokenizes the same text")
            waits = True
    try:
        yield
    finally:
        lock.release()


def _complete(bin_path: Path) -> dict[str, Any] | None:
    """Return the record of a complete entry; None if there is none, or the file of ids has another size."""
    note = read_json(bin_path.with_suffix(".json"))
    if not note:
        return None
    try:
        if bin_path.stat().st_size != np.dtype(note["dtype"]).itemsize * note["num_tokens"]:
            return None
    except (OSError, TypeError, KeyError):
        return None
    return note


def _undamaged(bin_path: Path) -> dict[str, Any] | None:
    """Return the record of a complete entry; None also if its ids do not match their digest."""
    note = _complete(bin_path)
    if note is None or note.get("sha256") in (None, sha256_of(bin_path)):  # earlier versions recorded no digest
        return note
    log.warning("%s is damaged: its text is tokenized again", bin_path)
    return None


def _flush(output: IO[bytes]) -> None:
    output.flush()
    os.fsync(output.fileno())
