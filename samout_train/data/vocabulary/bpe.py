"""Byte-pair encoding with Hugging Face `tokenizers`, which is imported on use."""

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Range, Size
from samout_train.data.text.cuts import parts_of_text
from samout_train.data.vocabulary.base import SPECIAL_TOKENS, characters_in
from samout_train.runtime import Bar

BytePairSize = Range(len(SPECIAL_TOKENS) + 256, Size.high)  # the library aborts if memory runs out
SECONDS_A_LOOK = 0.2
LONGEST_RUN = 64
# The words of GPT-2, with long runs cut. Pairs are counted within a word, so learning would take hours if a whole text
# were one word.
RUN = f"{{1,{LONGEST_RUN}}}"
WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d"
    rf"| ?\p{{L}}{RUN}| ?\p{{N}}{RUN}| ?[^\s\p{{L}}\p{{N}}]{RUN}|\s{RUN}(?!\S)|\s{RUN}"
)
# The parts of text that vocabularies of earlier versions, which do not cut runs, encode one by one.
UNCUT_PARTS = re.compile(r".{1,65536}\S(?=[ \n])|.+", re.DOTALL)
log = logging.getLogger(__name__)


class BytePairs:
    """A vocabulary of the special tokens, the 256 bytes and frequent pairs; it can encode every text.

    Args:
        tokenizer: The tokenizer as JSON text.

    Raises:
        ValueError: if that is not a tokenizer.
    """

    name = "bpe"

    def __init__(self, tokenizer: str) -> None:
        try:
            self._tokenizer: Any = _library().Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises this class for text that is not a tokenizer
            raise ValueError(f"not a tokenizer of bpe: {' '.join(str(error).split())[:100]}") from error
        self._tokenizer.encode_special_tokens = True  # "<|user|>" in a text is text
        self.json = tokenizer
        self._cuts_runs = (json.loads(tokenizer)["pre_tokenizer"] or {}).get("type") == "Sequence"
        byte_of = _byte_of_character()
        self._bytes = [token.encode() for token in SPECIAL_TOKENS]
        for index in range(len(SPECIAL_TOKENS), self._tokenizer.get_vocab_size()):
            token = self._tokenizer.id_to_token(index)
            self._bytes.append(bytes(byte_of[character] for character in token))

    @classmethod
    def of_text(
        cls, texts: Iterable[str], vocab_size: int, *, check_stop: Callable[[], None] = lambda: None
    ) -> "BytePairs":
        """Learn the pairs of a text.

        Args:
            texts: The text in pieces.
            vocab_size: Number of ids, including the special tokens and the 256 bytes. A short text yields fewer.
            check_stop: Called a few times a second; an exception from it ends the learning.
        """
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        words = library.pre_tokenizers.Split(library.Regex(WORDS), "isolated")
        as_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([words, as_bytes])
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        is_read = threading.Event()

        def parts() -> Iterator[str]:
            for text in texts:
                yield from parts_of_text(text)
            is_read.set()

        thread = _Learning(lambda: tokenizer.train_from_iterator(parts(), trainer))
        while not is_read.is_set() and thread.is_alive():
            thread.look(check_stop)
        log.info("vocabulary  learning %d ids of bpe", vocab_size)
        with Bar(bar_format="learning pairs: {elapsed}", delay=1, leave=False, disable=None) as bar:
            while thread.is_alive():
                thread.look(check_stop)
                bar.update()
        thread.result()
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        return len(self._bytes)

    def encode(self, text: str, *, unknown_id: int | None = None) -> NDArray[np.integer]:
        """Return the ids of a text, (T,) int32; nothing is unknown."""
        parts = list(parts_of_text(text)) if self._cuts_runs else UNCUT_PARTS.findall(text)
        found = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        return np.concatenate([np.zeros(0, dtype=np.int32), *(np.array(part.ids, dtype=np.int32) for part in found)])

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids."""
        return b"".join(self._bytes[index] for index in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; invalid UTF-8 becomes the replacement character."""
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the bytes per id, (V,)."""
        lengths = [len(token) for token in self._bytes[len(SPECIAL_TOKENS) :]]
        return np.array([0] * len(SPECIAL_TOKENS) + lengths, dtype=np.int64)

    def token_characters(self) -> NDArray[np.int64]:
        """Return the characters that begin in each id, (V,)."""
        numbers = [characters_in(token) for token in self._bytes[len(SPECIAL_TOKENS) :]]
        return np.array([0] * len(SPECIAL_TOKENS) + numbers, dtype=np.int64)

    def state_dict(self) -> dict[str, object]:
        """Return the tokenizer as JSON text."""
        return {"name": self.name, "tokenizer": self.json}


class _Learning(threading.Thread):
    """A thread in which the library learns. It cannot be stopped, and the process ends without waiting for it."""

    cannot_end = True  # the program then skips the interpreter's shutdown, which would abort within the library

    def __init__(self, learn: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._learn = learn
        self._raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Learn, and keep an exception."""
        try:
            self._learn()
        except BaseException as error:  # raised again in the waiting thread
            self._raised = error

    def look(self, check_stop: Callable[[], None]) -> None:
        """Wait a moment, then let the caller handle its signals."""
        self.join(SECONDS_A_LOOK)
        check_stop()

    def result(self) -> None:
        """Raise the thread's exception, if there is one."""
        if self._raised is not None:
            raise self._raised


def _library() -> Any:
    import tokenizers
    import tokenizers.decoders
    import tokenizers.models
    import tokenizers.pre_tokenizers
    import tokenizers.trainers

    return tokenizers


def _byte_of_character() -> dict[str, int]:
    """Return the byte of each of GPT-2's printable stand-ins, which byte-level tokenizers use in their vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    byte_of: dict[str, int] = {}
    num_others = 0
    for byte in range(256):
        if byte in printable:
            byte_of[chr(byte)] = byte
        else:
            byte_of[chr(256 + num_others)] = byte
            num_others += 1
    return byte_of
