"""What a process of `tokenize` does with a part of the text. Nothing here needs torch, which takes seconds to load."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from samout_train.data.shards.index import PLACE, Shard, dtype_for
from samout_train.data.shards.parts import Part, Span, place_to_cut
from samout_train.data.text.cuts import LAST_WORD_END
from samout_train.data.text.documents import JsonlReader, Piece, Reader, Special, TextReader
from samout_train.data.text.text_kind import printable
from samout_train.data.vocabulary.base import PAD_ID, SOS_ID, SPECIAL_TOKENS, Characters, Vocabulary
from samout_train.data.vocabulary.choice import vocabulary_from
from samout_train.runtime import replace_file, sha256_of, write_json

JSONL = ".jsonl"
EDGE = 1 << 16  # bytes
Progress = Callable[[int], None]


@dataclass(frozen=True)
class SourceFile:
    """A file of text as it was when the plan was made.

    Args:
        path: Where it is.
        num_bytes: Its size.
        modified_ns: When it was last changed.
        edges: The sha256 of its first and last EDGE bytes: what archives unpack often has the same time.
    """

    path: Path
    num_bytes: int
    modified_ns: int
    edges: str

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Return a file as it is now."""
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(file.read(EDGE))
            file.seek(max(EDGE, status.st_size - EDGE))
            digest.update(file.read(EDGE))
        return cls(path, status.st_size, status.st_mtime_ns, digest.hexdigest())

    @property
    def at_lines(self) -> bool:
        """Whether it is JSON Lines, which is cut between lines."""
        return self.path.suffix.lower() == JSONL


@dataclass(frozen=True, kw_only=True)
class PartWorker:
    """Reads parts of files and writes shards.

    Args:
        out: The folder of the shards.
        files: The source files.
        parts: What each part is made of.
        jsonl: How JSON Lines are read; all else is text, with the same line ends.
        vocabulary_state: What the vocabulary can be built from; None while it is learned.
        given: Whether the vocabulary is not one of this text; what it has not is then padding.
    """

    out: Path
    files: tuple[SourceFile, ...]
    parts: tuple[Part, ...]
    jsonl: JsonlReader
    vocabulary_state: dict[str, Any] | None
    given: bool

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Text to ids, built once in each process."""
        assert self.vocabulary_state is not None
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a process uses one core, as there are others
        return vocabulary_from(self.vocabulary_state)

    def characters(self, number: int, progress: Progress) -> str:
        """The characters that occur in a part."""
        return "".join(Characters.of_text(self._texts(number, progress)).tokens[len(SPECIAL_TOKENS) :])

    def sample(self, task: tuple[int, int], progress: Progress) -> list[str]:
        """The beginning of a part's text.

        Args:
            task: The part, and how many UTF-8 bytes are wanted.
            progress: Told of the bytes that were read.
        """
        number, left = task
        texts = []
        for text in self._texts(number, progress):
            encoded = text.encode()
            if len(encoded) > left:
                text = encoded[:left].decode(errors="ignore")
                word_end = LAST_WORD_END.match(text)
                text = word_end[0] if word_end else text
            texts.append(text)
            left -= len(encoded)
            if left <= 0:
                break
        return texts

    def write(self, number: int, progress: Progress) -> Shard:
        """Makes the shard of a part: its ids, the places of its documents, and the note, in this order."""
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
        """Whether both files of a shard have the digests that are recorded."""
        path = self.out / f"{shard.name}.bin"
        found = [sha256_of(path), sha256_of(path.with_suffix(".documents"))]
        progress(path.stat().st_size)
        return found == [shard.sha256, shard.documents_sha256]

    def _texts(self, number: int, progress: Progress) -> Iterator[str]:
        for piece in self._pieces(number, progress):
            yield from (part for part in piece.parts if isinstance(part, str))

    def _pieces(self, number: int, progress: Progress) -> Iterator[Piece]:
        for span in self.parts[number]:
            file = self.files[span.file]
            self._refuse_changed(file)
            yield from self._of_span(file, span, progress)
            self._refuse_changed(file)

    def _of_span(self, file: SourceFile, span: Span, progress: Progress) -> Iterator[Piece]:
        start, stop = (
            place_to_cut(file.path, place, file.num_bytes, at_lines=file.at_lines, fold=self.jsonl.line_ends == "fold")
            for place in (span.start, span.stop)
        )
        reader: Reader = self.jsonl if file.at_lines else TextReader(sos=True, line_ends=self.jsonl.line_ends)
        for piece in reader.read(file.path, start, stop) if start < stop else ():
            yield piece
            progress(piece.end - start)
            start = piece.end

    def _refuse_changed(self, file: SourceFile) -> None:
        if SourceFile.of(file.path) != file:
            raise ValueError(
                f"{printable(file.path)} was changed since the shards in {self.out} were begun: delete that folder, or "
                "give another one as out, and start again"
            )


class _Writing:
    """What is counted while the ids of a shard are written."""

    def __init__(self, vocabulary: Vocabulary, unknown_id: int | None) -> None:
        self.vocabulary, self.unknown_id = vocabulary, unknown_id
        self.dtype = dtype_for(len(vocabulary))
        self.digest = hashlib.sha256()
        self.starts: list[NDArray[np.int64]] = []
        self.num_tokens = self.text_bytes = self.unknown = 0
        self.largest_id = -1
        self.left_out: Counter[str] = Counter()

    def encoded(self, piece: Piece) -> bytes:
        """The ids of a piece as they lie in the file."""
        self.left_out.update(piece.left_out)
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *map(self._ids, piece.parts)])
        if len(ids):
            self.largest_id = max(self.largest_id, int(ids.max()))
            if ids.min() < 0 or self.largest_id >= len(self.vocabulary):
                raise ValueError(f"the vocabulary gives ids that it has not: 0 to {len(self.vocabulary) - 1} are its")
        self.starts.append(np.flatnonzero(ids == SOS_ID) + self.num_tokens)
        self.num_tokens += len(ids)
        self.unknown += int((ids == PAD_ID).sum())
        encoded = ids.astype(self.dtype).tobytes()
        self.digest.update(encoded)
        return encoded

    def documents(self) -> bytes:
        """Where documents begin, as they lie in the file."""
        if self.num_tokens >= np.iinfo(PLACE).max:
            raise ValueError(f"a part of the text has {self.num_tokens:,} tokens, too many for a shard: cut its lines")
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.starts]).astype(PLACE).tobytes()

    def shard(self, name: str, documents: bytes) -> Shard:
        """What is known in the end."""
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
