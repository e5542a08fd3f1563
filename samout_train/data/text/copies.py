"""Find validation documents that are also in the training split, word for word.

Blanks and line ends are ignored: two documents that differ only in them are copies.
"""

# N tokens, D documents, V vocabulary

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from samout_train.data.text.mapped import blocks_of
from samout_train.data.vocabulary.base import SOS_ID, Vocabulary

NAMED = 3
TOKENS_TOGETHER = 1 << 20
BLANKS = b" \t\r\n\v\f"
BASE, POWERS = 0xD1342543DE82EF95, 1 << 16  # an odd number, and the number of its powers in a table
Hashes = NDArray[np.uint64]
log = logging.getLogger(__name__)


def starts_of(tokens: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the start of each document, at its `<|sos|>`, (D,); reads a memory map in blocks."""
    found = [np.zeros(0, dtype=np.int64)]
    for first, ids in blocks_of(tokens, TOKENS_TOGETHER):
        found.append(np.flatnonzero(ids == SOS_ID) + first)
    return np.concatenate(found)


def documents_within(starts: NDArray[np.int64], first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the documents of a block of tokens, and where each begins in the block: 0 if it began earlier.

    Args:
        starts: (D,) start of each document.
        first: The first token of the block, which is not before the first document.
        count: Tokens of the block.
    """
    documents = np.arange(np.searchsorted(starts, first, side="right") - 1, np.searchsorted(starts, first + count))
    return documents, np.maximum(starts[documents] - first, 0)


def warn_of_copies(
    tokens: NDArray[np.integer],
    starts: NDArray[np.int64],
    cut: int,
    vocabulary: Vocabulary,
    *,
    what: str,
    names: Sequence[str] = (),
) -> int:
    """Log a warning about validation documents that are also in the training split, and return their number.

    Args:
        tokens: (N,) ids of all documents.
        starts: (D,) start of each document.
        cut: The first token of the validation split.
        vocabulary: The vocabulary of the ids.
        what: A word for the documents, such as `files`.
        names: Names of the documents; empty if they have none.
    """
    found = copies(tokens, starts, cut, Words.of(vocabulary))
    num_validated = len(starts) - int(np.searchsorted(starts, cut, side="right")) + 1
    named: list[str] = []
    if names:
        named = [names[index] for index in found[: NAMED + 1]]
    warn(len(found), num_validated, what, named)
    return len(found)


def warn(num_copies: int, num_validated: int, what: str, names: Sequence[str] = ()) -> None:
    """Log a warning if validation documents are copies of training documents, with their number."""
    if not num_copies:
        return
    first = [*names[:NAMED]]
    if len(names) > NAMED:
        first.append("...")
    in_brackets = ""
    if first:
        in_brackets = f" ({', '.join(first)})"
    log.warning(
        "data        %d of %d validation %s are also in the training split, word for word%s: remove the copies, or the "
        "validation loss is too low",
        num_copies,
        num_validated,
        what,
        in_brackets,
    )


def copies(tokens: NDArray[np.integer], starts: NDArray[np.int64], cut: int, words: "Words") -> NDArray[np.int64]:
    """Return the indices of validation documents that equal a different document of the training split.

    A document across the cut belongs to both splits. Documents count as equal if the 64-bit hashes of their texts are.

    Args:
        tokens: (N,) ids of all documents.
        starts: (D,) start of each document.
        cut: The first token of the validation split.
        words: The hashes of the ids.
    """
    ends = np.append(starts[1:], len(tokens))
    hashes = document_hashes(tokens, starts, words)
    has_text = hashes != 0
    _, group = np.unique(hashes, return_inverse=True)
    in_training, in_validation = (starts < cut) & has_text, (ends > cut) & has_text
    num_learned = np.bincount(group, weights=in_training, minlength=1)
    found: NDArray[np.int64] = np.flatnonzero(in_validation & (num_learned[group] > (in_training & in_validation)))
    return found


@dataclass(frozen=True)
class Words:
    """The contribution of each id to a document's hash, the sum over bytes of a number times BASE ** position.

    Args:
        lengths: (V,) bytes of each id, without blanks and line ends.
        sums: (V,) hash of these bytes alone.
    """

    lengths: NDArray[np.int64]
    sums: Hashes

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "Words":
        """Compute the contributions for a vocabulary; `<|sos|>`, which begins each document, contributes nothing."""
        texts = [vocabulary.to_bytes([index]).translate(None, BLANKS) for index in range(len(vocabulary))]
        texts[SOS_ID] = b""
        lengths = np.array(list(map(len, texts)), dtype=np.int64)
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        numbers = _mixed(np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.uint64)) * _powers(places)
        summed = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(numbers, dtype=np.uint64)])
        return cls(lengths, summed[ends] - summed[ends - lengths])


def document_hashes(tokens: NDArray[np.integer], starts: NDArray[np.int64], words: Words) -> Hashes:
    """Return a hash of the text of each document, (D,); 0 for a document without text."""
    hashes = np.zeros(len(starts), dtype=np.uint64)
    read = 0  # bytes in earlier blocks of the document that continues in this block
    for first, ids in blocks_of(tokens, TOKENS_TOGETHER):
        documents, begins = documents_within(starts, first, len(ids))
        ends = np.cumsum(words.lengths[ids])
        places = ends - words.lengths[ids]
        zeros = places[begins]
        if starts[documents[0]] < first:
            zeros[0] -= read
        places -= np.repeat(zeros, np.diff(np.append(begins, len(ids))))
        hashes[documents] += np.add.reduceat(words.sums[ids] * _powers(places), begins)
        read = int(ends[-1] - zeros[-1])
    return hashes


def _powers(exponents: NDArray[np.int64]) -> Hashes:
    """Return BASE to the power of each number, modulo 2**64."""
    low, high = exponents & (POWERS - 1), exponents // POWERS
    steps = np.full(int(high.max(initial=0)) + 1, pow(BASE, POWERS, 1 << 64), dtype=np.uint64)
    steps[0] = 1
    large: Hashes = np.multiply.accumulate(steps)[high]
    return large * _small_powers()[low]


@cache
def _small_powers() -> Hashes:
    powers = np.full(POWERS, BASE, dtype=np.uint64)
    powers[0] = 1
    found: Hashes = np.multiply.accumulate(powers)
    return found


def _mixed(values: Hashes) -> Hashes:
    """Return the finalizer of splitmix64 of each value."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
