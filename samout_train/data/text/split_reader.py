"""Read one split of a corpus: a part of a file, a member of an archive, or stories divided by a mark."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from samout_train.data.text.cuts import folded
from samout_train.data.text.documents import CHUNK_BYTES, SOS, TEXT_COLUMN, LineEnds, Piece, Special, TextReader
from samout_train.data.text.encoding import opened
from samout_train.data.text.tables import table_kind, table_rows

END_OF_TEXT = "<|endoftext|>"
LONGEST_CHARACTER = 4


@dataclass(frozen=True)
class SplitReader:
    """Read one split; its `repr` differs between the splits of one file.

    Args:
        member: The end of the name of a file in a zip archive; `*` for its only file.
        first: The first byte of the text. If it is within a character, the split begins at the next character.
        behind: The byte after the last one, moved in the same way; None to read to the end.
        stories: Whether `<|sos|>` replaces each `<|endoftext|>` and begins the text; in a table, it begins each row.
            If false, rows of a table follow each other without it.
        line_ends: `fold` turns CRLF and CR into LF.
        way: Version of this reader.
    """

    member: str = ""
    first: int = 0
    behind: int | None = None
    stories: bool = False
    line_ends: LineEnds = "keep"
    way: int = field(default=1, init=False)

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Yield pieces of text; their places are bytes of the file, or rows of a table."""
        if table_kind(path):
            yield from self._table(path, start, stop)
            return
        if stop is None and self.behind is not None:
            stop = character_start(path, self.member, self.behind)
        if start == 0 and self.first > 0:
            start = character_start(path, self.member, self.first)
        reader = TextReader(sos=self.stories, line_ends=self.line_ends, member=self.member)
        for piece in reader.read(path, start, stop):
            if self.stories:
                yield Piece(_divided(piece.parts), piece.end, piece.left_out, piece.read_bytes)
            else:
                yield piece

    def _table(self, path: Path, start: int, stop: int | None) -> Iterator[Piece]:
        parts: list[str | Special] = []
        row, size = None, 0
        for row in table_rows(path, [TEXT_COLUMN], start, stop):
            text = str(row.values.get(TEXT_COLUMN, ""))
            if self.line_ends == "fold":
                text = folded(text)
            if self.stories:
                parts.append(Special(SOS))
            parts.append(text)
            size += len(text)
            if size > CHUNK_BYTES:
                yield Piece(self._joined(parts), row.end, read_bytes=row.bytes_done)
                parts, size = [], 0
        if row is not None and parts:
            yield Piece(self._joined(parts), row.end, read_bytes=row.bytes_done)

    def _joined(self, parts: list[str | Special]) -> list[str | Special]:
        """Join the rows of one text, and return it; leave stories separate."""
        if self.stories:
            return parts
        return ["".join(map(str, parts))]


def _divided(parts: list[str | Special]) -> list[str | Special]:
    """Return parts in which each mark between stories is a token. A mark has no blank, so no piece cuts it."""
    found: list[str | Special] = []
    for part in parts:
        if isinstance(part, Special):
            found.append(part)
            continue
        for number, story in enumerate(part.split(END_OF_TEXT)):
            if number:
                found.append(Special(SOS))
            if story:
                found.append(story)
    return found


@lru_cache(maxsize=64)
def character_start(path: Path, member: str, place: int) -> int:
    """Return the first byte, from a place on, where a character of UTF-8 begins or the text ends."""
    with opened(path, member) as file:
        file.skip_to(place)
        following = file.read(LONGEST_CHARACTER)
    for number, byte in enumerate(following):
        if byte & 0xC0 != 0x80:
            return place + number
    return place + len(following)
