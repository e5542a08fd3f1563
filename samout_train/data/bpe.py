"""Byte-pair encoding with Hugging Face `tokenizers`, which is imported when it is used."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samout_train.data.vocabulary import SPECIAL_TOKENS

SMALLEST_SIZE = len(SPECIAL_TOKENS) + 256
ENCODED_TOGETHER = 1 << 16
# The pre-tokenizer always cuts in front of a space that follows something else, so parts cut there are encoded as they
# are in the whole.
PARTS = re.compile(rf".{{1,{ENCODED_TOGETHER}}}\S(?=[ \n])|.+", re.DOTALL)


class BytePairs:
    """The special tokens, the 256 bytes, then pairs that were found often: every text can be encoded.

    Args:
        tokenizer: The tokenizer as JSON text.

    Raises:
        ValueError: if it is none.
    """

    name = "bpe"

    def __init__(self, tokenizer: str) -> None:
        try:
            self._tokenizer: Any = _library().Tokenizer.from_str(tokenizer)
        except Exception as error:  # what the library raises for any text that is no tokenizer
            raise ValueError(f"no tokenizer of bpe: {' '.join(str(error).split())[:100]}") from error
        self._tokenizer.encode_special_tokens = True  # "<|user|>" in a text is text
        self.json = tokenizer
        byte_of = _byte_of_character()
        tokens = [self._tokenizer.id_to_token(index) for index in range(self._tokenizer.get_vocab_size())]
        learned = [bytes(byte_of[character] for character in token) for token in tokens[len(SPECIAL_TOKENS) :]]
        self._bytes = [*(token.encode() for token in SPECIAL_TOKENS), *learned]

    @classmethod
    def of_text(cls, texts: Iterable[str], vocab_size: int) -> "BytePairs":
        """Learns the pairs of a text.

        Args:
            texts: The text in pieces.
            vocab_size: Ids, the special tokens and the 256 bytes included; a short text gives fewer.
        """
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        # In a thread, so that this one can answer signals: the library holds the thread that it is called from.
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(tokenizer.train_from_iterator, texts, trainer).result()
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        return len(self._bytes)

    def encode(self, text: str, *, unknown_id: int | None = None) -> NDArray[np.integer]:
        """Ids of a text, (T,) int32; there is nothing unknown."""
        parts = [match[0] for match in PARTS.finditer(text)]
        found = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        return np.concatenate([np.zeros(0, dtype=np.int32), *(np.array(part.ids, dtype=np.int32) for part in found)])

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for."""
        return b"".join(self._bytes[index] for index in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become the replacement character."""
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        """Bytes of each id, (V,)."""
        lengths = [len(token) for token in self._bytes[len(SPECIAL_TOKENS) :]]
        return np.array([0] * len(SPECIAL_TOKENS) + lengths, dtype=np.int64)

    def state_dict(self) -> dict[str, object]:
        """The tokenizer as JSON text."""
        return {"name": self.name, "tokenizer": self.json}


def _library() -> Any:
    import tokenizers
    import tokenizers.decoders
    import tokenizers.models
    import tokenizers.pre_tokenizers
    import tokenizers.trainers

    return tokenizers


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, which byte-level tokenizers write into their vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
