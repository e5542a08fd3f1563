"""Text to token ids and back. Ids 0 to 4 are the special tokens everywhere, so padding is 3 everywhere."""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

SPECIAL_TOKENS = ("<|sos|>", "<|user|>", "<|agent|>", "<|pad|>", "<|history|>")
SOS_ID = SPECIAL_TOKENS.index("<|sos|>")
PAD_ID = SPECIAL_TOKENS.index("<|pad|>")
VocabularyName = Literal["characters", "bytes"]


class Vocabulary(Protocol):
    """Turns text into ids and ids into text."""

    name: str

    def __len__(self) -> int:
        """Number of ids, the special ones included."""
        ...

    def encode(self, text: str) -> NDArray[np.integer]:
        """Ids of a text, (T,).

        Raises:
            ValueError: if the text has something that the vocabulary has not.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens as their names."""
        ...

    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes that each id stands for, (V,); 0 for special tokens."""
        ...

    def state_dict(self) -> dict[str, object]:
        """What `vocabulary_from` needs to build it again: plain text and lists."""
        ...


class Characters:
    """One id a character (Unicode code point): the special tokens, then the characters in code order.

    Args:
        characters: The characters, in any order, each once or more.
    """

    name = "characters"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        points = np.array([ord(character) for character in self.characters], dtype=np.int64)
        self._id_of = np.full((points.max() if points.size else 0) + 1, -1, dtype=np.int32)
        self._id_of[points] = np.arange(len(points)) + len(SPECIAL_TOKENS)

    def __len__(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.characters)

    def encode(self, text: str) -> NDArray[np.integer]:
        """Ids of a text, (T,) int32."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        known = points < len(self._id_of)
        ids = self._id_of[np.where(known, points, 0)]
        missing = ~known | (ids < 0)
        if missing.any():
            position = int(missing.argmax())
            raise ValueError(
                f"character {text[position]!r} at position {position} is not in the vocabulary of this data"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        table = [*SPECIAL_TOKENS, *self.characters]
        return "".join(table[index] for index in ids)

    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each id, (V,)."""
        lengths = [len(character.encode("utf-8", "surrogatepass")) for character in self.characters]
        return np.array([0] * len(SPECIAL_TOKENS) + lengths, dtype=np.int64)

    def state_dict(self) -> dict[str, object]:
        """Name and characters."""
        return {"name": self.name, "characters": "".join(self.characters)}


class Bytes:
    """One id a byte of the UTF-8 text: the special tokens, then bytes 0 to 255."""

    name = "bytes"

    def __len__(self) -> int:
        return len(SPECIAL_TOKENS) + 256

    def encode(self, text: str) -> NDArray[np.integer]:
        """Ids of a text, (T,) int32, T its length in UTF-8."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32) + len(SPECIAL_TOKENS)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become the replacement character."""
        pieces = [
            SPECIAL_TOKENS[index].encode() if index < len(SPECIAL_TOKENS) else bytes([index - len(SPECIAL_TOKENS)])
            for index in ids
        ]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        """One byte for each id but the special ones, (V,)."""
        return np.array([0] * len(SPECIAL_TOKENS) + [1] * 256, dtype=np.int64)

    def state_dict(self) -> dict[str, object]:
        """Name only: there is nothing to learn from a text."""
        return {"name": self.name}


def vocabulary_from(state: dict[str, object]) -> Vocabulary:
    """Builds the vocabulary that a `state_dict` describes.

    Raises:
        ValueError: if no vocabulary has that name.
    """
    if state.get("name") == Characters.name:
        return Characters(str(state["characters"]))
    if state.get("name") == Bytes.name:
        return Bytes()
    raise ValueError(f"vocabulary name ({state.get('name')!r}) must be characters or bytes")
