"""Read files as pieces of text and special tokens, in bounded memory, beginning with any piece.

The end of a piece depends only on its start, and a piece of running text ends at the end of a word. So pieces can be
tokenized one by one. An interrupted tokenizing resumes after the last piece, with the same result.
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
from samout_train.data.text.conversations import FORMS, LISTS, ExtraFields, turns_of
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

CHUNK_BYTES = 1 << 21  # a slow tokenizer takes two seconds: the longest that a signal must wait
SOS = "<|sos|>"
WITHOUT_TEXT = "documents without text"
BESIDE_TEXT = '"{}" beside a "text", which is read'
LineEnds = Literal["keep", "fold"]
KEY = re.compile(r"[A-Za-z_][\w$-]*|0|[1-9]\d*", re.ASCII)  # a part of a key in Hydra's grammar
TEXT_COLUMN = "text"
COLUMNS = (TEXT_COLUMN, *LISTS, "instruction", "input", "output", "history", "system", "tools")
KEYS = ("text", *LISTS, "role", "content", "from", "value", "instruction", "input", "output")
LEAVE_OUT = "leave it out"
SAMPLE_BYTES = 1 << 16
COMMON_SHARE = 0.9  # of the characters that are not ASCII
ROLE_TOKENS = ("<|user|>", "<|agent|>", "<|history|>")


@dataclass(frozen=True)
class Special:
    """A special token among text, such as `<|user|>`."""

    token: str


@dataclass(frozen=True)
class Piece:
    """A part of a file.

    Args:
        parts: Text and special tokens, in order.
        end: The place in the file where the piece ends: bytes of its text, or rows of a table.
        left_out: Number of skipped things, by kind.
        read_bytes: Bytes of the stored file that were read up to the end of the piece; None if `end` is that number.
    """

    parts: list[str | Special]
    end: int
    left_out: dict[str, int] = field(default_factory=dict)
    read_bytes: int | None = None

    @property
    def bytes_done(self) -> int:
        """Return the bytes of the stored file that were read up to the end of the piece."""
        if self.read_bytes is None:
            return self.end
        return self.read_bytes


class Reader(Protocol):
    """Reads one kind of file; its `repr` is part of a tokenized text's key in the cache."""

    @property
    def line_ends(self) -> LineEnds:
        """Return the treatment of line ends."""
        ...

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Yield the pieces of a file.

        Args:
            path: The file.
            start: The first byte: 0, or the end of an earlier piece.
            stop: The place to stop at, found by `parts.place_to_cut`; None to read to the end.

        Raises:
            ValueError: if a part of the file cannot be read; the message names the place.
        """
        ...


@dataclass(frozen=True)
class TextReader:
    """Reads UTF-8 text without leading byte order marks; marks inside the text are ordinary characters.

    Args:
        sos: Whether each file begins with `<|sos|>`.
        line_ends: `fold` turns CRLF and CR into LF.
        way: Version of this reader; it changes whenever the same file would give another text.
        member: The file to read in a zip archive (`encoding.opened`). It is not in the `repr`, so a caller that uses it
            must tell the texts apart.
    """

    sos: bool
    line_ends: LineEnds = "keep"
    way: int = field(default=2, init=False)
    member: str = field(default="", repr=False)

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Yield text that ends where it can be cut, so that no vocabulary gets half a word."""
        if table_kind(path):
            yield from self._table(path, start, stop)
            return
        parts: list[str | Special] = []
        if self.sos and start == 0:
            parts.append(Special(SOS))
        chunk_bytes, fold = CHUNK_BYTES, self.line_ends == "fold"
        rest = b""
        with opened(path, self.member) as file:
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
                    if not whole:  # the part is longer than the chunk
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
        """Yield the rows of a table, each text after `<|sos|>`."""
        for rows in _together(table_rows(path, [TEXT_COLUMN], start, stop)):
            parts: list[str | Special] = []
            left_out: Counter[str] = Counter()
            for row in rows:
                text = row.values.get(TEXT_COLUMN, "")
                if not isinstance(text, str):
                    raise ValueError(f'{printable(path)} row {row.end}: "{TEXT_COLUMN}" is not text: rename the column')
                if self.line_ends == "fold":
                    text = folded(text)
                if text:
                    parts += [Special(SOS), text]
                else:
                    left_out[WITHOUT_TEXT] += 1
            yield Piece(parts, rows[-1].end, dict(left_out), rows[-1].bytes_done)


@dataclass(frozen=True)
class JsonlReader:
    """Reads JSON Lines, a document per line: `{"text": ...}`, or a conversation in one of the forms of `conversations`.

    Args:
        roles: The special token before a role's messages, by role, as pairs such as `("user", "<|user|>")`.
        line_ends: `fold` turns CRLF and CR in the strings into LF.
        way: Version of this reader; it changes whenever the same file would give other documents.
        extra_fields: Whether other fields of conversations are counted or written into the text.
        closes: Whether `<|user|>` follows a last turn of the agent, so that the model learns to end it.
        roles_key: The key that sets `roles`, named in messages.
    """

    roles: tuple[tuple[str, str], ...]
    line_ends: LineEnds = "keep"
    way: int = field(default=3, init=False)
    extra_fields: ExtraFields = "count"
    closes: bool = False
    roles_key: str = field(default="data.roles", repr=False, compare=False)

    @classmethod
    def of(
        cls,
        roles: Mapping[str, str],
        line_ends: LineEnds = "keep",
        *,
        extra_fields: ExtraFields = "count",
        closes: bool = False,
        roles_key: str = "data.roles",
    ) -> "JsonlReader":
        """Return the reader for a dictionary of roles.

        Raises:
            ConfigError: if a role maps to a token that is not a role token.
        """
        for role, token in roles.items():
            if token not in ROLE_TOKENS:
                text = f"must be {' or '.join(ROLE_TOKENS)}"
                raise ConfigError(Problem(f"roles.{role}", token, text=text, kind="value"))
        pairs = tuple(sorted(roles.items()))
        return cls(pairs, line_ends, extra_fields=extra_fields, closes=closes, roles_key=roles_key)

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Yield whole lines, or rows of a table, with `<|sos|>` before each document that is not empty."""
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
                        parts += self._document(text.lstrip("\ufeff"), left_out)  # byte order marks of joined files
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
                json.loads(line, object_pairs_hook=_with_keys_once)
        except KeyTwiceError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON ({error}): write one object per line") from error
        return self._of_object(document, left_out)

    def _of_object(self, document: Any, left_out: Counter[str]) -> list[str | Special]:
        """Return the parts of a document, given as an object from JSON or a table."""
        parts = self._parts(document, left_out)
        has_text = False
        for number, part in enumerate(parts):
            if isinstance(part, str):
                _require_characters(part)
                has_text = has_text or part != ""
                if self.line_ends == "fold":
                    parts[number] = folded(part)
        if not has_text:
            left_out[WITHOUT_TEXT] += 1
            return []
        return [Special(SOS), *parts]

    def _parts(self, document: Any, left_out: Counter[str]) -> list[str | Special]:
        """Return the parts of a document, each after the token of its role."""
        found = type(document).__name__
        if isinstance(document, dict):
            found = ", ".join(map(str, document))
            text = document.get("text")
            if isinstance(text, str) and (text or not any(isinstance(document.get(key), list) for key in LISTS)):
                for key in LISTS:
                    if document.get(key):
                        left_out[BESIDE_TEXT.format(key)] += 1
                return [text]
            turns = turns_of(document, left_out, self.extra_fields)
            if turns is not None:
                parts: list[str | Special] = []
                for turn in turns:
                    parts += [Special(self._token_of(turn.role)), turn.content]
                if self.closes and turns and parts[-2] == Special("<|agent|>"):
                    parts.append(Special("<|user|>"))
                return parts
        raise ValueError(
            f'has neither a string "text" nor a list "conversations"; it has: {found[:200] or "nothing"}; {FORMS}'
        )

    def _token_of(self, role: str) -> str:
        token = dict(self.roles).get(role)
        if token is None:
            known = ", ".join(role for role, _ in self.roles)
            raise ValueError(
                f"role {role!r} has no token ({known} have one): {_setting_of(self.roles_key, role)}, or another token"
            )
        return token


class KeyTwiceError(ValueError):
    """An object has a key twice."""


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    for key in KEYS:
        if len(content) < len(pairs) and sum(name == key for name, _ in pairs) > 1:
            raise KeyTwiceError(f'has "{key}" twice in one object: remove one of them')
    return content


def _setting_of(roles_key: str, role: str) -> str:
    """Return how to set a role's token: on the command line if Hydra accepts its name as a key, else in a YAML."""
    if KEY.fullmatch(role):
        return f"set {shell_word(f'+{roles_key}.{role}=<|user|>')}"
    option = "roles"
    if roles_key != option:  # the group of options belongs to another key
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
    """Yield rows in groups with about a chunk of text, so that signals are handled in between."""
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
    """Return whole lines from `start` on, up to `stop` or a little more than a chunk."""
    lines: list[bytes] = []
    size = 0
    while size <= CHUNK_BYTES and start + size != stop and (line := file.readline()):
        lines.append(line)
        size += len(line)
    return lines


def text_of(name: str, content: bytes, line_ends: LineEnds) -> str:
    """Return the text that `TextReader` reads from a file with this content.

    Args:
        name: Its name in messages: the path of the file, or another word.
        content: The whole content.
        line_ends: `fold` turns CRLF and CR into LF.

    Raises:
        ValueError: if it is not UTF-8 text.
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
    """Return the likely encoding of a text with zero bytes, by the places of the zeros, and what to do."""
    first = -start % 4
    encoding = encoding_of_zeros(chunk[first : first + SAMPLE_BYTES])
    if encoding is None:
        return "so it is not text: leave it out, or use the text that it was made of"
    line, away = to_utf_8(encoding, _file_of(name)), old_file_away(_file_of(name))
    return f"so it is probably {encoding} and not UTF-8: convert it, for example with `{line}`, or {LEAVE_OUT}{away}"


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
            f"has half a surrogate pair {at}, as in CESU-8, which is not UTF-8: save it again as UTF-8, or {LEAVE_OUT}"
        )
    encoding, language = _likely_encoding(chunk)
    convert = f"convert it, for example with `{to_utf_8(encoding, _file_of(name))}` if it is {language}"
    return f"is not UTF-8 {at}: {convert}, or {otherwise}{old_file_away(_file_of(name))}"


def _likely_encoding(content: bytes) -> tuple[str, str]:
    """Return the encoding that a text which is not UTF-8 may have, and the language of such texts.

    A text in GB18030, or in GBK, its older part, has pairs of bytes that are common characters of GB 2312. A text in
    WINDOWS-1252 has single bytes between ASCII.
    """
    first = next(place for place, byte in enumerate(content) if byte >= 0x80)
    decoder = codecs.getincrementaldecoder("gb18030")()
    try:
        text = decoder.decode(content[first : first + SAMPLE_BYTES])
    except UnicodeDecodeError:
        return "WINDOWS-1252", "Western European"
    wide = "".join(character for character in text if not character.isascii())
    if len(wide.encode("gb2312", "ignore")) < 2 * len(wide) * COMMON_SHARE:
        return "WINDOWS-1252", "Western European"
    return "GB18030", "Chinese"


def _file_of(name: Path | str) -> Path | None:
    """Return the file of this name; None for other input, such as standard input."""
    path = home_path(name)
    if path.is_file():
        return path
    return None


def _require_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair ({text[error.start]!r}), which is not a character") from error


def _line_number(path: Path, start: int) -> int:
    """Return the number of the line that begins at a byte, from 1."""
    lines = 1
    with opened(path) as file:
        while start > 0 and (chunk := file.read(min(start, CHUNK_BYTES))):
            lines += chunk.count(b"\n")
            start -= len(chunk)
    return lines
