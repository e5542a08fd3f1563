"""Files to pieces of text and special tokens, in bounded memory, from any piece on.

Where a piece ends depends only on where it starts, and a piece of running text ends where a word does: pieces can be
tokenized one by one, and an interrupted tokenizing goes on behind the last one as if nothing had happened.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from samout_train.config import ConfigError, Problem
from samout_train.data.text.cuts import folded, whole_parts
from samout_train.data.text.encoding import (
    BYTE_ORDER_MARK,
    TextFile,
    encoding_of_zeros,
    opened,
    other_kind,
    printable,
    to_utf_8,
)
from samout_train.data.text.tables import TableRow, table_kind, table_rows
from samout_train.runtime import HEAD_BYTES, home_path, old_file_away, shell_word

CHUNK_BYTES = 1 << 21  # which a slow tokenizer takes two seconds for, so that signals are answered
SOS = "<|sos|>"
WITHOUT_TEXT = "documents without text"
BESIDE_TEXT = '"{}" beside a "text", which is read'
LineEnds = Literal["keep", "fold"]
KEY = re.compile(r"[A-Za-z_][\w$-]*|0|[1-9]\d*", re.ASCII)  # what Hydra takes as a part of a key
TEXT_COLUMN = "text"
COLUMNS = (TEXT_COLUMN, "messages", "conversations")
KEYS = ("text", "conversations", "role", "content")
LEAVE_OUT = "leave it out"
SAMPLE_BYTES = 1 << 16
ROLE_TOKENS = ("<|user|>", "<|agent|>", "<|history|>")


@dataclass(frozen=True)
class Special:
    """A special token among text.

    Args:
        token: Such as `<|user|>`.
    """

    token: str


@dataclass(frozen=True)
class Piece:
    """A part of a file.

    Args:
        parts: Text and special tokens, in order.
        end: The place in the file at its end: bytes of its text, or rows of a table.
        left_out: How much that is there is not in it, by what it is.
        read_bytes: Bytes of the file, as it lies, that were read up to its end; None where `end` is that number.
    """

    parts: list[str | Special]
    end: int
    left_out: dict[str, int] = field(default_factory=dict)
    read_bytes: int | None = None

    @property
    def bytes_done(self) -> int:
        """Return the bytes of the file, as it lies, that were read up to its end."""
        if self.read_bytes is None:
            return self.end
        return self.read_bytes


class Reader(Protocol):
    """Reads one kind of file; its `repr` is part of what a tokenized text is known by."""

    @property
    def line_ends(self) -> LineEnds:
        """Return the way in which line ends are read."""
        ...

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Return the pieces of a file from a byte on: 0, or where an earlier piece ended.

        Args:
            path: The file.
            start: The first byte.
            stop: Where to end: a place as `parts.place_to_cut` finds them; None reads to the end.

        Raises:
            ValueError: at what cannot be read, with its place.
        """
        ...


@dataclass(frozen=True)
class TextReader:
    """UTF-8 text, without the byte order marks that it begins with; those inside are characters like any other.

    Args:
        sos: Whether each file begins with `<|sos|>`.
        line_ends: `fold` makes CRLF and CR into LF.
        way: The number of this way of reading, which is another one where the same file gives another text.
    """

    sos: bool
    line_ends: LineEnds = "keep"
    way: int = field(default=2, init=False)

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Yield text that ends where it can be cut, so that no vocabulary sees half a word."""
        if table_kind(path):
            yield from self._table(path, start, stop)
            return
        parts: list[str | Special] = []
        if self.sos and start == 0:
            parts.append(Special(SOS))
        chunk_bytes, fold = CHUNK_BYTES, self.line_ends == "fold"
        rest = b""
        with opened(path) as file:
            if start > 0:
                file.skip_to(start)
            else:
                while (rest := file.read(len(BYTE_ORDER_MARK))) == BYTE_ORDER_MARK:
                    start += len(rest)
            while True:
                wanted = chunk_bytes
                if stop is not None:
                    wanted = min(chunk_bytes, max(0, stop - start))
                rest += file.read(max(0, wanted - len(rest)))
                chunk = rest[:wanted]
                if not chunk:
                    return
                is_last = len(chunk) < wanted or start + len(chunk) == stop
                text, used = _decoded(path, chunk, start, is_last)
                if not is_last:
                    whole = whole_parts(text, fold=fold)
                    if not whole:  # what has no end of a word is longer than the chunk
                        chunk_bytes *= 2
                        continue
                    used -= len(text[whole:].encode())
                    text = text[:whole]
                start += used
                if fold:
                    text = folded(text)
                yield Piece([*parts, text], start, read_bytes=file.compressed_bytes())
                parts, chunk_bytes, rest = [], CHUNK_BYTES, rest[used:]

    def _table(self, path: Path, start: int, stop: int | None) -> Iterator[Piece]:
        """Yield the rows of a table, each text behind `<|sos|>`."""
        for rows in _together(table_rows(path, [TEXT_COLUMN], start, stop)):
            parts: list[str | Special] = []
            left_out: Counter[str] = Counter()
            for row in rows:
                text = row.values.get(TEXT_COLUMN, "")
                if not isinstance(text, str):
                    raise ValueError(f'{printable(path)} row {row.end}: "{TEXT_COLUMN}" is no text: rename the column')
                if self.line_ends == "fold":
                    text = folded(text)
                if text:
                    parts += [Special(SOS), text]
                else:
                    left_out[WITHOUT_TEXT] += 1
            yield Piece(parts, rows[-1].end, dict(left_out), rows[-1].bytes_done)


@dataclass(frozen=True)
class JsonlReader:
    """JSON Lines, a document a line: `{"text": ...}` or `{"conversations": [{"role": ..., "content": ...}, ...]}`.

    Args:
        roles: The special token that stands before what a role says, such as `{"user": "<|user|>"}`, as pairs.
        line_ends: `fold` makes CRLF and CR in what the strings of JSON hold into LF.
        way: The number of this way of reading, which is another one where the same file gives other documents.
        roles_key: The key that sets `roles`, for messages.
    """

    roles: tuple[tuple[str, str], ...]
    line_ends: LineEnds = "keep"
    way: int = field(default=2, init=False)
    roles_key: str = field(default="data.roles", repr=False, compare=False)

    @classmethod
    def of(
        cls, roles: Mapping[str, str], line_ends: LineEnds = "keep", *, roles_key: str = "data.roles"
    ) -> "JsonlReader":
        """Return the reader that a dictionary of roles describes.

        Raises:
            ConfigError: if a role's token is none for roles.
        """
        for role, token in roles.items():
            if token not in ROLE_TOKENS:
                text = f"must be {' or '.join(ROLE_TOKENS)}"
                raise ConfigError(Problem(f"roles.{role}", token, text=text, kind="value"))
        return cls(tuple(sorted(roles.items())), line_ends, roles_key=roles_key)

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Yield whole lines, or rows of a table; each document that is not empty stands behind `<|sos|>`."""
        if table_kind(path):
            yield from self._table(path, start, stop)
            return
        with opened(path) as file:
            file.skip_to(start)
            while lines := _lines(file, start, stop):
                parts: list[str | Special] = []
                left_out: Counter[str] = Counter()
                for line in lines:
                    text, _ = _decoded(path, line, start, is_last=True)
                    try:
                        parts += self._document(text.lstrip("\ufeff"), left_out)  # marks, of files that were joined
                    except ValueError as error:
                        raise ValueError(f"{printable(path)} line {_line_number(path, start)}: {error}") from error
                    start += len(line)
                yield Piece(parts, start, dict(left_out), file.compressed_bytes())

    def _table(self, path: Path, start: int, stop: int | None) -> Iterator[Piece]:
        for rows in _together(table_rows(path, COLUMNS, start, stop)):
            parts: list[str | Special] = []
            left_out: Counter[str] = Counter()
            for row in rows:
                try:
                    parts += self._of_object(row.values, left_out)
                except ValueError as error:
                    raise ValueError(f"{printable(path)} row {row.end}: {error}") from error
            yield Piece(parts, rows[-1].end, dict(left_out), rows[-1].bytes_done)

    def _document(self, line: str, left_out: Counter[str]) -> list[str | Special]:
        if not line.strip():
            return []
        try:
            document = json.loads(line)
            if any(line.count(f'"{key}"') > 1 for key in KEYS):
                json.loads(line, object_pairs_hook=_refuse_twice)
        except KeyTwiceError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON ({error}): give one object a line") from error
        return self._of_object(document, left_out)

    def _of_object(self, document: Any, left_out: Counter[str]) -> list[str | Special]:
        """Return the parts of a document, of which a table or JSON has made an object."""
        text = turns = None
        if isinstance(document, dict):
            text, turns = document.get("text"), document.get("conversations")
        parts: list[str | Special] = []
        if isinstance(text, str) and (text or not isinstance(turns, list)):
            parts.append(text)
            for key in ("conversations", "messages"):
                if document.get(key):
                    left_out[BESIDE_TEXT.format(key)] += 1
        elif isinstance(turns, list):
            for turn in turns:
                parts += self._turn(turn)
        else:
            found = type(document).__name__
            if isinstance(document, dict):
                found = ", ".join(map(str, document))
            raise ValueError(
                f'has neither "text" with a text nor "conversations" with a list; it has: {found[:200] or "nothing"}'
            )
        has_text = False
        for number, part in enumerate(parts):
            if isinstance(part, str):
                _refuse_surrogates(part)
                has_text = has_text or part != ""
                if self.line_ends == "fold":
                    parts[number] = folded(part)
        if not has_text:
            left_out[WITHOUT_TEXT] += 1
            return []
        return [Special(SOS), *parts]

    def _turn(self, turn: Any) -> list[str | Special]:
        if not (isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)):
            raise ValueError('a turn of "conversations" must be {"role": a text, "content": a text}')
        token = dict(self.roles).get(turn["role"])
        if token is None:
            known = ", ".join(role for role, _ in self.roles)
            raise ValueError(
                f"role {turn['role']!r} has no token ({known} have one): "
                f"{_setting_of(self.roles_key, turn['role'])}, or another token"
            )
        return [Special(token), turn["content"]]


class KeyTwiceError(ValueError):
    """A key stands twice in one object."""


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    for key in KEYS:
        if len(content) < len(pairs) and sum(name == key for name, _ in pairs) > 1:
            raise KeyTwiceError(f'has "{key}" twice in one object: leave one of them out')
    return content


def _setting_of(roles_key: str, role: str) -> str:
    """Say how a role gets a token: on the command line where Hydra takes its name for a key, else by a YAML."""
    if KEY.fullmatch(role):
        return f"set {shell_word(f'+{roles_key}.{role}=<|user|>')}"
    option = "roles"
    if roles_key != option:  # the group of options is put below another key
        option = f"roles@{roles_key}"
    name = ""
    for character in role:
        if character.isprintable() and character not in '"\\':
            name += character
        else:
            name += f"\\U{ord(character):08x}"
    return (
        f'a command line cannot name it, so write DIR/roles/more.yaml with the line `"{name}": <|user|>` and add '
        f"--config-dir=DIR +{option}=more"
    )


def _together(rows: Iterator[TableRow]) -> Iterator[list[TableRow]]:
    """Yield rows, as many at a time as have a chunk of text, so that signals are answered."""
    taken: list[TableRow] = []
    size = 0
    for row in rows:
        taken.append(row)
        size += len(str(row.values))
        if size > CHUNK_BYTES:
            yield taken
            taken, size = [], 0
    if taken:
        yield taken


def _lines(file: TextFile, start: int, stop: int | None) -> list[bytes]:
    """Yield lines from a place where one begins, up to `stop` or a little more than a chunk."""
    lines: list[bytes] = []
    size = 0
    while size <= CHUNK_BYTES and start + size != stop and (line := file.readline()):
        lines.append(line)
        size += len(line)
    return lines


def text_of(name: str, content: bytes, line_ends: LineEnds) -> str:
    """Return what `TextReader` reads in a file of this content.

    Args:
        name: What messages call it: the path of a file, or a word for what is none.
        content: All of it.
        line_ends: `fold` makes CRLF and CR into LF.

    Raises:
        ValueError: if it is no UTF-8 text.
    """
    if problem := other_kind(content[:HEAD_BYTES], _file_of(name)):
        raise ValueError(f"{name} {problem}")
    text, _ = _decoded(name, content, 0, is_last=True)
    text = text.lstrip("\ufeff")
    if line_ends == "fold":
        return folded(text)
    return text


def _decoded(name: Path | str, chunk: bytes, start: int, is_last: bool) -> tuple[str, int]:
    if (zero := chunk.find(0)) >= 0:
        raise ValueError(f"{printable(name)} has a zero byte at byte {start + zero}, {_zeros(name, chunk, start)}")
    try:
        return codecs.utf_8_decode(chunk, "strict", is_last)
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(name)} {_no_utf_8(name, error, start)}") from error


def _zeros(name: Path | str, chunk: bytes, start: int) -> str:
    """Return what text with zero bytes may be, by where they lie, and what to do."""
    first = -start % 4
    encoding = encoding_of_zeros(chunk[first : first + SAMPLE_BYTES])
    if encoding is None:
        return "so it is no text: leave it out, or give the text that it was made of"
    line, away = to_utf_8(encoding, _file_of(name)), old_file_away(_file_of(name))
    return (
        f"so it is no UTF-8 text but {encoding}, it seems: convert it, for example with `{line}`, or {LEAVE_OUT}{away}"
    )


def _no_utf_8(name: Path | str, error: UnicodeDecodeError, start: int) -> str:
    chunk, at = error.object, f"at byte {start + error.start} (0x{error.object[error.start]:02x})"
    again = "copy or download it again, or leave it out"
    otherwise = LEAVE_OUT
    if error.reason == "unexpected end of data":
        if not chunk[: error.start].isascii():
            return f"ends within a character {at}, so it is cut short: {again}"
        at += ", or ends within a character"
        otherwise = again
    if chunk[error.start] == 0xED and chunk[error.start + 1 : error.start + 2] >= b"\xa0":
        return (
            f"has half a surrogate pair {at}, as CESU-8 has, which is no UTF-8: save it again as UTF-8, or {LEAVE_OUT}"
        )
    convert = f"convert it, for example with `{to_utf_8('WINDOWS-1252', _file_of(name))}` where it is Western European"
    return f"is no UTF-8 {at}: {convert}, or {otherwise}{old_file_away(_file_of(name))}"


def _file_of(name: Path | str) -> Path | None:
    """Return the file that a name is of; None for what is no file, as standard input."""
    path = home_path(name)
    if path.is_file():
        return path
    return None


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair ({text[error.start]!r}), which is no character") from error


def _line_number(path: Path, start: int) -> int:
    """Return the line that begins at a byte."""
    lines = 1
    with opened(path) as file:
        while start > 0 and (chunk := file.read(min(start, CHUNK_BYTES))):
            lines += chunk.count(b"\n")
            start -= len(chunk)
    return lines
