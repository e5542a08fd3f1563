"""Many files to shards of ids, by several processes; what is interrupted goes on where it was.

The plan comes first: which files there are, how they are cut into parts, and the vocabulary. Each part then becomes a
shard, one by one whole or not at all, and the index is written when all are there.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from samout_train.data.shards.index import INDEX, PLAN, Shard, ShardIndex, dtype_for, read_index, read_shard
from samout_train.data.shards.part_worker import PartWorker, SourceFile
from samout_train.data.shards.parts import parts_of
from samout_train.data.shards.plan import LOCK, ShardPlan
from samout_train.data.shards.workers import results
from samout_train.data.text.documents import JsonlReader
from samout_train.data.vocabulary.base import Bytes, Characters, Vocabulary
from samout_train.data.vocabulary.choice import vocabulary_from
from samout_train.runtime import Bar, StopSignals, is_full, leftovers, replace_file

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Tokenized:
    """What was made.

    Args:
        index: All shards.
        num_made: How many of them were made now.
        num_damaged: How many of a finished folder disagreed with their digests; None where it was not finished.
        read_bytes: Of the files, those that were tokenized now.
        seconds: That it took, without learning the vocabulary.
    """

    index: ShardIndex
    num_made: int
    num_damaged: int | None
    read_bytes: int
    seconds: float


def tokenize_files(plan: ShardPlan, *, jobs: int) -> Tokenized:
    """Makes the shards that are missing; where none is, verifies all, and makes damaged ones anew.

    Args:
        plan: What is to be made.
        jobs: Processes.

    Raises:
        ValueError: if a file cannot be read or was changed, or `out` holds something else.
        OSError: if `out` cannot be written.
        WorkerDiedError: if a process ended by itself.
        StopRequestedError: on a signal.
    """
    plan.refuse_strangers()
    with _alone(plan), StopSignals() as signals:
        files = tuple(map(SourceFile.of, plan.paths))
        worker = PartWorker(
            out=plan.out,
            files=files,
            parts=tuple(parts_of([file.num_bytes for file in files], plan.part_bytes)),
            jsonl=JsonlReader.of(plan.roles, plan.line_ends),
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

    def __init__(self, plan: ShardPlan, worker: PartWorker, jobs: int, signals: StopSignals) -> None:
        self.plan, self.worker, self.jobs, self.signals = plan, worker, jobs, signals
        self.numbers = range(len(worker.parts))

    def learned(self) -> Vocabulary:
        """The vocabulary of the text."""
        choice = self.plan.choice
        if choice.name == Characters.name and choice.given is None:
            found = list(self._results("learning the vocabulary", self.worker.characters, self.numbers))
            return choice.learn(lambda: (characters for _, characters in found))
        if choice.given is not None or choice.name == Bytes.name:
            return choice.learn(lambda: ())
        all_bytes = self._text_bytes(self.numbers)
        enough = self.plan.vocabulary_bytes
        budget = all_bytes if all_bytes <= enough else max(1, enough // len(self.numbers))
        tasks = [(number, budget) for number in self.numbers]
        # Their order is that of the parts, not that in which they were read, or pairs could differ from run to run.
        samples = dict(self._results("learning the vocabulary", self.worker.sample, tasks))
        texts = (text for task in tasks for text in samples[task])
        return choice.learn(lambda: texts, check_stop=self.signals.check)

    def run(self) -> Tokenized:
        """Makes what is missing or damaged, and the index."""
        out, state = self.plan.out, self.worker.vocabulary_state
        assert state is not None
        dtype = dtype_for(len(vocabulary_from(state)))
        there = ((number, read_shard(out, f"{number:05d}", dtype)) for number in self.numbers)
        found = {number: shard for number, shard in there if shard is not None}
        num_damaged = None
        if len(found) == len(self.numbers) and (out / INDEX).is_file():
            looks = self._results("verifying", self.worker.is_whole, list(found.values()))
            damaged = {shard.name for shard, is_whole in looks if not is_whole}
            found = {number: shard for number, shard in found.items() if shard.name not in damaged}
            num_damaged = len(damaged)
        missing = [number for number in self.numbers if number not in found]
        started = time.monotonic()
        done = self._text_bytes(found)
        found |= self._results("tokenizing", self.worker.write, missing, done=done)
        seconds = time.monotonic() - started
        shards = tuple(found[number] for number in self.numbers)
        self._refuse_useless(shards)
        if missing or not (out / INDEX).is_file():
            index = ShardIndex(out, dtype, state, shards, self.plan.listing(self.worker.files), self.plan.line_ends)
            content = json.dumps(index.to_json()).encode()
            replace_file(out / INDEX, lambda file: file.write(content))
        return Tokenized(read_index(out), len(missing), num_damaged, self._text_bytes(missing), seconds)

    def _results(
        self,
        name: str,
        work: Callable[[T, Callable[[int], None]], R],
        tasks: Sequence[T],
        *,
        done: int = 0,
    ) -> Iterator[tuple[T, R]]:
        """What `work` makes of tasks, with a bar of bytes."""
        total = self._text_bytes(self.numbers)
        with Bar(total=total, initial=done, unit="B", unit_scale=True, desc=name, delay=1, leave=False) as bar:
            yield from results(work, tasks, jobs=self.jobs, progress=bar.update, signals=self.signals)

    def _text_bytes(self, numbers: Any) -> int:
        return sum(span.stop - span.start for number in numbers for span in self.worker.parts[number])

    def _refuse_useless(self, shards: Sequence[Shard]) -> None:
        num_tokens, unknown = sum(shard.num_tokens for shard in shards), sum(shard.unknown for shard in shards)
        if not sum(shard.text_bytes for shard in shards):
            raise ValueError(f"path: there is no text in {len(self.worker.files)} file(s) of {self.plan.root}")
        if 2 * unknown > num_tokens:
            raise ValueError(
                f"vocabulary_path: {unknown:,} of {num_tokens:,} tokens of the text are not in it: give the "
                "vocabulary that belongs to the text, or null to make one; and another folder as out"
            )


@contextmanager
def _alone(plan: ShardPlan) -> Iterator[None]:
    """Holds the folder, which is there then; leaves none behind in which nothing was begun."""
    was_there = plan.out.exists()
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        raise ValueError(f"out={plan.out}: cannot be made ({error.strerror}): give another folder") from error
    lock = FileLock(plan.out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"out={plan.out}: another process tokenizes into it: wait for that, or stop it") from None
    try:
        _clear(plan.out)
        yield
    finally:
        _clear(plan.out)  # of processes that were ended
        lock.release()
        if not was_there and not (plan.out / PLAN).exists():
            with suppress(OSError):
                (plan.out / LOCK).unlink(missing_ok=True)
                plan.out.rmdir()


def _clear(folder: Path) -> None:
    """Delete what is half written; what is open elsewhere cannot be deleted on Windows, and does no harm."""
    for path in leftovers(folder):
        with suppress(OSError):
            path.unlink(missing_ok=True)
