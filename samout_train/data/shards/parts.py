"""Cut files into parts of about the same size that can be tokenized independently.

The plan depends only on the order and the sizes of the files, and cuts at fixed offsets. The reader of a part moves
both ends forward to the next place that splits neither a line of JSON nor a word of text.
"""

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from samout_train.data.text.compressed import readable_compression, without_ending
from samout_train.data.text.tables import table_kind
from samout_train.runtime import HEAD_BYTES

JSONL = ".jsonl"
EDGE = 1 << 16  # bytes
LOOKED_AT_TOGETHER = 1 << 16
LONGEST_CHARACTER = 4
WORD_END = re.compile(rb"[^\x00-\x20\x7f](?=[ \n])")
FOLDED_WORD_END = re.compile(rb"[^\x00-\x20\x7f](?=[ \r\n])")


@dataclass(frozen=True)
class SourceFile:
    """A file of text as it was when the plan was made.

    Args:
        num_bytes: Its size.
        modified_ns: Its time of modification.
        edges: The sha256 of its first and last EDGE bytes, since files from an archive often have equal times.
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
        """Return whether it is a JSON Lines file; such a file is cut between lines."""
        return without_ending(self.path).suffix.lower() == JSONL

    @cached_property
    def table(self) -> str | None:
        """Return which kind of table it is: it is cut between groups of rows (Parquet) or record batches (Arrow)."""
        return table_kind(self.path)

    @cached_property
    def is_compressed(self) -> bool:
        """Return whether it is compressed text; such a file is not cut, because each part would read all of it."""
        with self.path.open("rb") as file:
            return readable_compression(file.read(HEAD_BYTES)) is not None


@dataclass(frozen=True)
class Span:
    """A piece of a file.

    Args:
        file: Index of the file.
        start: Planned first byte.
        stop: Planned end, exclusive.
    """

    file: int
    start: int
    stop: int


Part = list[Span]


def parts_of(sizes: Sequence[int], part_bytes: int, whole: Collection[int] = ()) -> list[Part]:
    """Cut files larger than a part, and combine consecutive smaller files.

    Args:
        sizes: Bytes of the files, in their order.
        part_bytes: The most bytes of a part, before its ends are moved to places where a file can be cut.
        whole: Indices of files that must not be cut; if larger than a part, such a file is a part of its own.
    """
    parts: list[Part] = []
    open_part: Part = []
    room = part_bytes
    for file, size in enumerate(sizes):
        if size > room:
            if open_part:
                parts.append(open_part)
            open_part, room = [], part_bytes
        if size > part_bytes:
            num_pieces = 1
            if file not in whole:
                num_pieces = -(-size // part_bytes)
            places = [size * piece // num_pieces for piece in range(num_pieces + 1)]
            for start, stop in pairwise(places):
                parts.append([Span(file, start, stop)])
        elif size:
            open_part.append(Span(file, 0, size))
            room -= size
    if open_part:
        parts.append(open_part)
    return parts


def place_to_cut(path: Path, place: int, size: int, *, at_lines: bool, fold: bool = False) -> int:
    """Return the first place at or after a planned one where a file can be cut.

    Args:
        place: The planned place, in bytes. A file can always be cut at 0 and at `size`.
        size: Size of the file in bytes.
        at_lines: Whether to cut at the start of a line; otherwise the cut is after a word, before a blank or newline.
        fold: Whether CR counts as a newline.
    """
    if place in (0, size):
        return place
    word_end = FOLDED_WORD_END if fold else WORD_END
    if at_lines:
        start, overlap = place - 1, 0
    else:
        start, overlap = max(0, place - LONGEST_CHARACTER), LONGEST_CHARACTER
    with path.open("rb") as file:
        while True:
            file.seek(start)
            chunk = file.read(LOOKED_AT_TOGETHER)
            found = chunk.find(b"\n") + 1 if at_lines else _word_end(chunk, place - start, word_end)
            if found > 0:
                return start + found
            if start + len(chunk) >= size or not chunk:
                return size
            start += len(chunk) - overlap


def _word_end(chunk: bytes, least: int, word_end: re.Pattern[bytes]) -> int:
    """Return the end of the first non-space character that precedes a space, from `least` on; 0 if there is none."""
    for match in word_end.finditer(chunk, max(0, least - 1)):
        end = match.end()
        character = chunk[max(0, end - LONGEST_CHARACTER) : end].decode("utf-8", errors="ignore")[-1:]
        if character and not character.isspace():
            return end
    return 0
