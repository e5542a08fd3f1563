"""Vocabularies, which map text to token ids and back. Ids 0 to 4 are always the special tokens; 3 is padding."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SPECIAL_TOKENS = ("<|sos|>", "<|user|>", "<|agent|>", "<|pad|>", "<|history|>")
SURROGATE = re.compile("[\ud800-\udfff]")
SOS_ID = SPECIAL_TOKENS.index("<|sos|>")
PAD_ID = SPECIAL_TOKENS.index("<|pad|>")


class UnknownCharacterError(ValueError):
    """A text has a character that a vocabulary lacks."""

    def __init__(self, character: str, position: int) -> None:
        super().__init__(character, position)
        self.character, self.position = character, position

    def __str__(self) -> str:
        return f"character {self.character!r} at position {self.position} is not in the vocabulary of this data"


def dtype_for(vocab_size: int) -> "np.dtype[np.integer]":
    """Return the type of ids in files, for a vocabulary of this size."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Vocabulary(Protocol):
    """Maps text to ids and ids to text."""

    name: str

    def __len__(self) -> int:
        """Return the number of ids, including the special ones."""
        ...

    def encode(self, text: str, *, unknown_id: int | None = None) -> NDArray[np.integer]:
        """Return the ids of a text, (T,). Names of special tokens in it are ordinary text.

        Args:
            unknown_id: The id of characters that the vocabulary lacks; None raises an error for them.

        Raises:
            ValueError: if the text has a character that the vocabulary lacks.
        """
        ...

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the UTF-8 of ids, which may begin or end within a character; special tokens become their names."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; invalid UTF-8 becomes the replacement character."""
        ...

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the UTF-8 bytes per id, (V,); 0 for special tokens, and for all ids if unknown."""
        ...

    def token_characters(self) -> NDArray[np.int64]:
        """Return how many characters begin in each id, (V,), so that counts add up; 0 as in `token_bytes`."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Return the state for `vocabulary_from`: text, numbers, lists and dictionaries."""
        ...


class Characters:
    """A vocabulary with one id per character (Unicode code point).

    Args:
        tokens: Tokens by id; the first five are the special tokens. Tokens of several characters never match text.
        spellings: Sequences of ids for characters that have no id of their own.

    Raises:
        ValueError: if the tokens do not begin with the special ones, or a spelling has an invalid id.
    """

    name = "characters"

    def __init__(self, tokens: Sequence[str], spellings: Mapping[str, Sequence[int]] | None = None) -> None:
        self.tokens, self.spellings = list(tokens), {text: list(ids) for text, ids in (spellings or {}).items()}
        if tuple(self.tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise ValueError(
                f"a vocabulary begins with {' '.join(SPECIAL_TOKENS)}, this one with {self.tokens[:5]!r:.100}"
            )
        for ids in self.spellings.values():
            if ids and not 0 <= min(ids) <= max(ids) < len(self.tokens):
                raise ValueError(f"a spelling has an id that is not below {len(self.tokens)}")
        for text, ids in self.spellings.items():
            if not ids or min(ids) < len(SPECIAL_TOKENS):
                has = "nothing"
                if ids:
                    has = f"the special token {SPECIAL_TOKENS[min(ids)]}"
                raise ValueError(f"{text!r} is spelled with {has}: use tokens of the text, or leave it out")
        for index, token in enumerate(self.tokens):
            if not token.isascii() and SURROGATE.search(token):
                raise ValueError(
                    f"token {index} ({token!r}) has half a surrogate pair, which is not a character: replace it"
                )
        characters = {token: index for index, token in enumerate(self.tokens) if len(token) == 1}
        points = np.array(list(map(ord, characters)), dtype=np.int64)
        self._id_of = np.full(points.max(initial=0) + 1, -1, dtype=np.int32)
        self._id_of[points] = list(characters.values())

    @classmethod
    def of_text(cls, texts: Iterable[str]) -> "Characters":
        """Return the vocabulary of the special tokens, then the characters of a text in the order of their codes.

        Args:
            texts: The text in pieces.
        """
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts:
            seen[_code_points(text)] = True
        return cls([*SPECIAL_TOKENS, *map(chr, seen.nonzero()[0])])

    def extended(self, tokens: Sequence[str]) -> "Characters":
        """Return a vocabulary with additional tokens after its own; tokens that it already has are skipped."""
        known = {*self.tokens, *self.spellings}
        return Characters([*self.tokens, *(token for token in tokens if token not in known)], self.spellings)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, *, unknown_id: int | None = None) -> NDArray[np.integer]:
        """Return the ids of a text, (T,) int32."""
        points = _code_points(text)
        known = points < len(self._id_of)
        if known.all():
            ids = self._id_of[points]
        else:
            ids = self._id_of[np.where(known, points, 0)]
            ids[~known] = -1
        without_id = (ids < 0).nonzero()[0]
        if not without_id.size:
            return ids
        pieces, done = [], 0
        for position in without_id.tolist():
            spelled = self.spellings.get(text[position])
            if spelled is None and unknown_id is not None:
                spelled = [unknown_id]
            if spelled is None:
                raise UnknownCharacterError(text[position], position)
            pieces += [ids[done:position], np.array(spelled, dtype=ids.dtype)]
            done = position + 1
        return np.concatenate([*pieces, ids[done:]])

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """Return ids as UTF-8; spelled characters stay spelled."""
        return self.decode(ids).encode()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; spelled characters stay spelled."""
        return "".join(self.tokens[index] for index in ids)

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the UTF-8 bytes per id, (V,); all 0 with spellings, since a part of a spelling has no bytes."""
        if self.spellings:
            return np.zeros(len(self.tokens), dtype=np.int64)
        lengths = [len(token.encode("utf-8", "surrogatepass")) for token in self.tokens]
        return np.array([0] * len(SPECIAL_TOKENS) + lengths[len(SPECIAL_TOKENS) :], dtype=np.int64)

    def token_characters(self) -> NDArray[np.int64]:
        """Return the characters per id, (V,); all 0 if there are spellings."""
        if self.spellings:
            return np.zeros(len(self.tokens), dtype=np.int64)
        lengths = [len(token) for token in self.tokens]
        return np.array([0] * len(SPECIAL_TOKENS) + lengths[len(SPECIAL_TOKENS) :], dtype=np.int64)

    def state_dict(self) -> dict[str, object]:
        """Return tokens and spellings."""
        return {"name": self.name, "tokens": self.tokens, "spellings": self.spellings}


class Bytes:
    """A vocabulary with one id per byte of UTF-8: the special tokens, then bytes 0 to 255."""

    name = "bytes"

    def __len__(self) -> int:
        return len(SPECIAL_TOKENS) + 256

    def encode(self, text: str, *, unknown_id: int | None = None) -> NDArray[np.integer]:
        """Return the ids of a text, (T,) int32, where T is its length in UTF-8; nothing is unknown."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32) + len(SPECIAL_TOKENS)

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids."""
        pieces = []
        for index in ids:
            if index < len(SPECIAL_TOKENS):
                pieces.append(SPECIAL_TOKENS[index].encode())
            else:
                pieces.append(bytes([index - len(SPECIAL_TOKENS)]))
        return b"".join(pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; invalid UTF-8 becomes the replacement character."""
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        """Return 1 for each id except the special ones, (V,)."""
        return np.array([0] * len(SPECIAL_TOKENS) + [1] * 256, dtype=np.int64)

    def token_characters(self) -> NDArray[np.int64]:
        """Return 1 for bytes that begin a character, and 0 for bytes that continue one, (V,)."""
        return np.array(
            [0] * len(SPECIAL_TOKENS) + [characters_in(bytes([byte])) for byte in range(256)], dtype=np.int64
        )

    def state_dict(self) -> dict[str, object]:
        """Return the name, which is the whole state."""
        return {"name": self.name}


def characters_in(encoded: bytes) -> int:
    """Return the number of characters that begin in a part of a UTF-8 text."""
    return sum(byte & 0xC0 != 0x80 for byte in encoded)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
