"""Tokenize many files into shards of ids in several processes, resuming after an interruption.

The plan comes first: the files, their parts, and the vocabulary. Each part then becomes a shard, written atomically,
and the index follows when every shard is complete. Nothing here imports torch: that would take seconds per process.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from samout_train.data.shards.index import INDEX, PLACE, PLAN, Shard, ShardIndex, read_index, read_shard
from samout_train.data.shards.parts import Part, SourceFile, Span, parts_of, place_to_cut
from samout_train.data.shards.plan import LOCK, ShardPlan
from samout_train.data.shards.workers import results
from samout_train.data.text.cuts import LAST_WORD_END
from samout_train.data.text.documents import JsonlReader, Piece, Reader, Special, TextReader
from samout_train.data.text.encoding import printable
from samout_train.data.text.tables import row_to_cut
from samout_train.data.vocabulary.base import PAD_ID, SOS_ID, SPECIAL_TOKENS, Bytes, Characters, Vocabulary, dtype_for
from samout_train.data.vocabulary.choice import vocabulary_from
from samout_train.runtime import Bar, StopSignals, is_full, leftovers, replace_file, sha256_of, write_json

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Tokenized:
    """The result of `tokenize_files`.

    Args:
        index: All shards.
        num_made: Number of shards made by this call.
        num_damaged: Number of damaged shards in a finished folder; None if the folder was unfinished.
        read_bytes: Bytes of the files tokenized by this call.
        seconds: Duration, without learning the vocabulary.
        uncut: Names of compressed files that are larger than a part; each becomes one shard.
    """

    index: ShardIndex
    num_made: int
    num_damaged: int | None
    read_bytes: int
    seconds: float
    uncut: tuple[str, ...]


def tokenize_files(plan: ShardPlan, *, jobs: int) -> Tokenized:
    """Make the missing shards; in a finished folder, verify all and replace damaged ones.

    Args:
        jobs: Number of processes.

    Raises:
        ValueError: if a file cannot be read or has changed, or `out` holds something else.
        OSError: if `out` cannot be written.
        WorkerDiedError: if a process died.
        StopRequestedError: on a signal.
    """
    plan.require_own_folder()
    with _alone(plan), StopSignals() as signals:
        files = tuple(map(SourceFile.of, plan.paths))
        whole = {number for number, file in enumerate(files) if file.is_compressed}
        worker = PartWorker(
            out=plan.out,
            files=files,
            parts=tuple(parts_of([file.num_bytes for file in files], plan.part_bytes, whole)),
            jsonl=JsonlReader.of(plan.roles, plan.line_ends, closes=plan.close_turns, roles_key="roles"),
            vocabulary_state=None,
            given=plan.choice.given is not None,
        )
        state = plan.read(files)
        if state is None:
            state = _Making(plan, worker, jobs, signals).learned().state_dict()
            plan.write(files, state)
        return _Making(plan, replace(worker, vocabulary_state=state), jobs, signals).run()


class _Making:
    """One call of `tokenize_files`."""

    def __init__(self, plan: ShardPlan, worker: "PartWorker", jobs: int, signals: StopSignals) -> None:
        self.plan, self.worker, self.jobs, self.signals = plan, worker, jobs, signals
        self.numbers = range(len(worker.parts))

    def learned(self) -> Vocabulary:
        """Return the vocabulary learned from the text, or the given one."""
        choice = self.plan.choice
        if choice.name == Characters.name and choice.given is None:
            found = list(self._results("learning the vocabulary", self.worker.characters, self.numbers))
            return choice.learn(lambda: (characters for _, characters in found))
        if choice.given is not None or choice.name == Bytes.name:
            return choice.learn(lambda: ())
        budget = self._text_bytes(self.numbers)
        enough = self.plan.vocabulary_bytes
        # The stored size of compressed files and tables does not tell how much text they have.
        if budget > enough or any(file.is_compressed or file.table for file in self.worker.files):
            budget = max(1, enough // len(self.numbers))
        tasks = [(number, budget) for number in self.numbers]
        # In the order of the parts, not of completion: otherwise learned pairs could differ from run to run.
        samples = dict(self._results("learning the vocabulary", self.worker.sample, tasks))
        texts: list[str] = []
        for task in tasks:
            texts += samples[task]
        return choice.learn(lambda: texts, check_stop=self.signals.check)

    def run(self) -> Tokenized:
        """Make missing and damaged shards, and the index."""
        out, state = self.plan.out, self.worker.vocabulary_state
        assert state is not None
        dtype = dtype_for(len(vocabulary_from(state)))
        found: dict[int, Shard] = {}
        for number in self.numbers:
            shard = read_shard(out, f"{number:05d}", dtype)
            if shard is not None:
                found[number] = shard
        num_damaged = None
        if len(found) == len(self.numbers) and (out / INDEX).is_file():
            num_damaged = 0
            for shard, is_whole in self._results("verifying", self.worker.is_whole, list(found.values())):
                if not is_whole:
                    del found[int(shard.name)]
                    num_damaged += 1
        missing = [number for number in self.numbers if number not in found]
        started = time.monotonic()
        done = self._text_bytes(found)
        found |= self._results("tokenizing", self.worker.write, missing, done=done)
        seconds = time.monotonic() - started
        shards = tuple(found[number] for number in self.numbers)
        self._require_useful(shards)
        if missing or not (out / INDEX).is_file():
            index = ShardIndex(out, dtype, state, shards, self.plan.listing(self.worker.files), self.plan.line_ends)
            content = json.dumps(index.to_json()).encode()
            replace_file(out / INDEX, lambda file: file.write(content))
        return Tokenized(
            index=read_index(out),
            num_made=len(missing),
            num_damaged=num_damaged,
            read_bytes=self._text_bytes(missing),
            seconds=seconds,
            uncut=self._uncut(),
        )

    def _uncut(self) -> tuple[str, ...]:
        large = [file for file in self.worker.files if file.num_bytes > self.plan.part_bytes and file.is_compressed]
        return tuple(printable(file.path.name) for file in large)

    def _results(
        self,
        name: str,
        work: Callable[[T, Callable[[int], None]], R],
        tasks: Sequence[T],
        *,
        done: int = 0,
    ) -> Iterator[tuple[T, R]]:
        """Yield each task with the result of `work`, and show a progress bar of bytes."""
        total = self._text_bytes(self.numbers)
        with Bar(total=total, initial=done, unit="B", unit_scale=True, desc=name, delay=1, leave=False) as bar:
            yield from results(work, tasks, jobs=self.jobs, progress=bar.update, signals=self.signals)

    def _text_bytes(self, numbers: Any) -> int:
        return sum(span.stop - span.start for number in numbers for span in self.worker.parts[number])

    def _require_useful(self, shards: Sequence[Shard]) -> None:
        num_tokens, unknown = sum(shard.num_tokens for shard in shards), sum(shard.unknown for shard in shards)
        if not sum(shard.text_bytes for shard in shards):
            raise ValueError(f"path: there is no text in {len(self.worker.files)} file(s) of {self.plan.root}")
        if 2 * unknown > num_tokens:
            raise ValueError(
                f"vocabulary_path: {unknown:,} of {num_tokens:,} tokens of the text are not in it: set the "
                "vocabulary that belongs to the text, or null to make one; and another folder as out"
            )


@dataclass(frozen=True, kw_only=True)
class PartWorker:
    """Reads parts of files and writes shards.

    Args:
        out: The folder of the shards.
        files: The source files.
        parts: The spans of each part.
        jsonl: The reader of JSON Lines; other files are text, with the same treatment of line ends.
        vocabulary_state: The state to build the vocabulary from; None while it is learned.
        given: Whether the vocabulary comes from elsewhere; unknown characters then become padding.
    """

    out: Path
    files: tuple[SourceFile, ...]
    parts: tuple[Part, ...]
    jsonl: JsonlReader
    vocabulary_state: dict[str, Any] | None
    given: bool

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary, built once in each process."""
        assert self.vocabulary_state is not None
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core per process
        return vocabulary_from(self.vocabulary_state)

    def characters(self, number: int, progress: Progress) -> str:
        """Return the characters that occur in a part."""
        return "".join(Characters.of_text(self._texts(number, progress)).tokens[len(SPECIAL_TOKENS) :])

    def sample(self, task: tuple[int, int], progress: Progress) -> list[str]:
        """Return the beginning of a part's text.

        Args:
            task: The part, and the most UTF-8 bytes of its sample.
            progress: Called with the number of bytes read.
        """
        number, left = task
        texts = []
        for text in self._texts(number, progress):
            encoded = text.encode()
            if len(encoded) > left:
                text = encoded[:left].decode(errors="ignore")
                if word_end := LAST_WORD_END.match(text):
                    text = word_end[0]
            texts.append(text)
            left -= len(encoded)
            if left <= 0:
                break
        return texts

    def write(self, number: int, progress: Progress) -> Shard:
        """Write the shard of a part: first its ids, then the starts of its documents, last the record."""
        writing = _Writing(self.vocabulary, PAD_ID if self.given else None)
        name = f"{number:05d}"

        def write_ids(file: IO[bytes]) -> None:
            for piece in self._pieces(number, progress):
                file.write(writing.encoded(piece))

        replace_file(self.out / f"{name}.bin", write_ids)
        documents = writing.documents()
        replace_file(self.out / f"{name}.documents", lambda file: file.write(documents))
        shard = writing.shard(name, documents)
        write_json(self.out / f"{name}.json", asdict(shard))
        return shard

    def is_whole(self, shard: Shard, progress: Progress) -> bool:
        """Return whether both files of a shard match their digests."""
        path = self.out / f"{shard.name}.bin"
        found = [sha256_of(path), sha256_of(path.with_suffix(".documents"))]
        progress(path.stat().st_size)
        return found == [shard.sha256, shard.documents_sha256]

    def _texts(self, number: int, progress: Progress) -> Iterator[str]:
        for piece in self._pieces(number, progress):
            for part in piece.parts:
                if isinstance(part, str):
                    yield part

    def _pieces(self, number: int, progress: Progress) -> Iterator[Piece]:
        for span in self.parts[number]:
            file = self.files[span.file]
            self._require_unchanged(file)
            yield from self._of_span(file, span, progress)
            self._require_unchanged(file)

    def _of_span(self, file: SourceFile, span: Span, progress: Progress) -> Iterator[Piece]:
        start, stop = self._ends(file, span)
        if stop is not None and start >= stop:
            return
        reader: Reader = self.jsonl
        if not file.at_lines and not file.table:
            reader = TextReader(sos=True, line_ends=self.jsonl.line_ends)
        done = span.start
        for piece in reader.read(file.path, start, stop):
            yield piece
            progress(piece.bytes_done - done)
            done = piece.bytes_done

    def _ends(self, file: SourceFile, span: Span) -> tuple[int, int | None]:
        """Return the places where a span begins and ends; the end is None if the whole file is read."""
        if file.is_compressed:
            return 0, None
        if file.table:
            return row_to_cut(file.path, span.start, file.num_bytes), row_to_cut(file.path, span.stop, file.num_bytes)
        fold = self.jsonl.line_ends == "fold"
        start = place_to_cut(file.path, span.start, file.num_bytes, at_lines=file.at_lines, fold=fold)
        stop = place_to_cut(file.path, span.stop, file.num_bytes, at_lines=file.at_lines, fold=fold)
        return start, stop

    def _require_unchanged(self, file: SourceFile) -> None:
        if SourceFile.of(file.path) != file:
            raise ValueError(
                f"{printable(file.path)} has changed since the shards in {self.out} were begun: delete that folder, or "
                "set another one as out, and start again"
            )


class _Writing:
    """Counts and digest of a shard, updated while its ids are written."""

    def __init__(self, vocabulary: Vocabulary, unknown_id: int | None) -> None:
        self.vocabulary, self.unknown_id = vocabulary, unknown_id
        self.dtype = dtype_for(len(vocabulary))
        self.digest = hashlib.sha256()
        self.starts: list[NDArray[np.int64]] = []
        self.num_tokens = self.text_bytes = self.unknown = 0
        self.largest_id = -1
        self.left_out: Counter[str] = Counter()

    def encoded(self, piece: Piece) -> bytes:
        """Return the ids of a piece as bytes for the file, and count them."""
        self.left_out.update(piece.left_out)
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *map(self._ids, piece.parts)])
        if len(ids):
            self.largest_id = max(self.largest_id, int(ids.max()))
            if ids.min() < 0 or self.largest_id >= len(self.vocabulary):
                raise ValueError(f"the vocabulary returned ids out of its range 0 to {len(self.vocabulary) - 1}")
        self.starts.append(np.flatnonzero(ids == SOS_ID) + self.num_tokens)
        self.num_tokens += len(ids)
        self.unknown += int((ids == PAD_ID).sum())
        encoded = ids.astype(self.dtype).tobytes()
        self.digest.update(encoded)
        return encoded

    def documents(self) -> bytes:
        """Return the starts of documents as bytes for the file."""
        if self.num_tokens >= np.iinfo(PLACE).max:
            raise ValueError(f"part of the text has {self.num_tokens:,} tokens, too many for a shard: split its lines")
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.starts]).astype(PLACE).tobytes()

    def shard(self, name: str, documents: bytes) -> Shard:
        """Return the record of the finished shard."""
        return Shard(
            name=name,
            num_tokens=self.num_tokens,
            num_documents=len(documents) // PLACE.itemsize,
            text_bytes=self.text_bytes,
            unknown=self.unknown,
            largest_id=self.largest_id,
            sha256=self.digest.hexdigest(),
            documents_sha256=hashlib.sha256(documents).hexdigest(),
            left_out=dict(self.left_out),
        )

    def _ids(self, part: str | Special) -> NDArray[np.integer]:
        if isinstance(part, Special):
            return np.array([SPECIAL_TOKENS.index(part.token)], dtype=np.int32)
        self.text_bytes += len(part.encode())
        return self.vocabulary.encode(part, unknown_id=self.unknown_id)


@contextmanager
def _alone(plan: ShardPlan) -> Iterator[None]:
    """Create the folder and hold its lock; delete a new folder again if no plan was written."""
    was_there = plan.out.exists()
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        raise ValueError(f"out={plan.out}: cannot be made ({error.strerror}): set another folder") from error
    lock = FileLock(plan.out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"out={plan.out}: another process tokenizes into it: wait for it, or stop it") from None
    try:
        _clear(plan.out)
        yield
    finally:
        _clear(plan.out)  # files of killed processes
        lock.release()
        if not was_there and not (plan.out / PLAN).exists():
            with suppress(OSError):
                (plan.out / LOCK).unlink(missing_ok=True)
                plan.out.rmdir()


def _clear(folder: Path) -> None:
    """Delete half-written files. On Windows, files that are open elsewhere remain, which does no harm."""
    for path in leftovers(folder):
        with suppress(OSError):
            path.unlink(missing_ok=True)
