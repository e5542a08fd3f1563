"""Documents of the validation part that are in the training part as well, word for word."""

# N tokens, D documents

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samout_train.data.vocabulary import SOS_ID

NAMED = 3
TOKENS_TOGETHER = 1 << 20
Hashes = NDArray[np.uint64]
log = logging.getLogger(__name__)


def starts_of(tokens: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return where documents begin, at their `<|sos|>`, (D,), without reading a memory map as a whole."""
    blocks = range(0, len(tokens), TOKENS_TOGETHER)
    found = [np.flatnonzero(tokens[block : block + TOKENS_TOGETHER] == SOS_ID) + block for block in blocks]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def warn_of_copies(
    tokens: NDArray[np.integer], starts: NDArray[np.int64], cut: int, *, what: str, names: Sequence[str] = ()
) -> int:
    """Say in the log how many documents of the validation part are in the training part as well.

    Args:
        tokens: (N,) ids of all documents.
        starts: (D,) where each begins.
        cut: The first token of the validation part.
        what: What the documents are, such as `files`.
        names: Of the documents; empty if they have none.

    Returns:
        How many.
    """
    found = copies(tokens, starts, cut)
    num_validated = len(starts) - int(np.searchsorted(starts, cut, side="right")) + 1
    warn(len(found), num_validated, what, [names[index] for index in found[: NAMED + 1]] if names else [])
    return len(found)


def warn(num_copies: int, num_validated: int, what: str, names: Sequence[str] = ()) -> None:
    """Say in the log how many documents to validate on are copies of some to learn from, if any is."""
    if num_copies:
        first = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        log.warning(
            "data        %d of %d %s to validate on are also learned from, word for word%s: remove the copies, or the "
            "validation loss is too low",
            num_copies,
            num_validated,
            what,
            f" ({first})" if names else "",
        )


def copies(tokens: NDArray[np.integer], starts: NDArray[np.int64], cut: int) -> NDArray[np.int64]:
    """Return which documents of the validation part are in the training part as well, under another number.

    A document that the cut goes through belongs to both parts. Two documents count as equal if a hash of 64 bits of
    their ids is.

    Args:
        tokens: (N,) ids of all documents.
        starts: (D,) where each begins.
        cut: The first token of the validation part.
    """
    ends = np.append(starts[1:], len(tokens))
    has_text = ends - starts > 1
    _, group = np.unique(document_hashes(tokens, starts), return_inverse=True)
    in_training, in_validation = (starts < cut) & has_text, (ends > cut) & has_text
    num_learned = np.bincount(group, weights=in_training, minlength=1)
    found: NDArray[np.int64] = np.flatnonzero(in_validation & (num_learned[group] > (in_training & in_validation)))
    return found


def document_hashes(tokens: NDArray[np.integer], starts: NDArray[np.int64]) -> Hashes:
    """Return a hash of the ids of each document, (D,)."""
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for first in range(0, len(tokens), TOKENS_TOGETHER):
        ids = np.asarray(tokens[first : first + TOKENS_TOGETHER]).astype(np.uint64)
        documents = np.arange(
            np.searchsorted(starts, first, side="right") - 1, np.searchsorted(starts, first + len(ids))
        )
        begins = np.maximum(starts[documents] - first, 0)
        in_document = np.arange(first, first + len(ids)) - np.repeat(
            starts[documents], np.diff(np.append(begins, len(ids)))
        )
        mixed = _mixed(ids + (in_document.astype(np.uint64) << np.uint64(32)))
        hashes[documents] += np.add.reduceat(mixed, begins)
    return hashes


def _mixed(values: Hashes) -> Hashes:
    """Return the finalizer of splitmix64 of each value."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
