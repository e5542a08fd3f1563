"""JSON Lines: texts or conversations, one document a line."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Positive, checked_by, validated
from samout_train.data.source import Rows, Source
from samout_train.data.text.copies import warn_of_copies
from samout_train.data.text.documents import JsonlReader, LineEnds
from samout_train.data.text.files import Survey, find, survey
from samout_train.data.text.rows import PaddedRows, TokenRows, targets_and_rows
from samout_train.data.text.text import TRAIN_SHARE, counts_of, file_problems, place_of, too_short
from samout_train.data.text.token_cache import TokenizedText, tokenize
from samout_train.data.vocabulary.base import PAD_ID, SOS_ID
from samout_train.data.vocabulary.bpe import BytePairSize
from samout_train.data.vocabulary.choice import VocabularyChoice, VocabularyName


def jsonl_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """Return what prevents training on these documents."""

    def look() -> Survey:
        return look_at(settings["path"], settings["pattern"], settings["roles"], settings.get("line_ends", "keep"))

    return file_problems(settings, name, look, documents=True)


@checked_by(jsonl_problems)
@validated
def jsonl(
    *,
    path: str,
    pattern: str,
    layout: Literal["padded", "packed"],
    roles: dict[str, str],
    vocabulary: VocabularyName,
    vocab_size: Annotated[int, BytePairSize],
    vocabulary_path: str | None,
    seq_len: Annotated[int, Positive],
    ignore_index: int,
    seed: int,
    line_ends: LineEnds = "keep",
) -> Source:
    """Return a source from JSON Lines; the documents of the last tenth of the tokens are for validation.

    Args:
        path: A file, or a folder: all files in it that match `pattern`, in the order of their names.
        pattern: Which files of a folder, such as `**/*.jsonl`.
        layout: `padded`: a document begins a row, goes on in further rows where it is longer, and the last one is
            filled with padding. `packed`: documents one after another, each behind `<|sos|>`, in rows without padding.
        roles: The special token that stands before what a role says.
        vocabulary: `characters`, `bytes` or `bpe`.
        vocab_size: Ids of `bpe`, the special tokens and the 256 bytes included.
        vocabulary_path: A pickled character vocabulary of the published kind; None to make one from the documents.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides where packed rows are cut in each epoch.
        line_ends: `fold` makes CRLF and CR in what the strings of JSON hold into LF.

    Raises:
        ValueError: if a line cannot be read, or there is too little in the files.
    """
    choice = VocabularyChoice.of(vocabulary=vocabulary, vocab_size=vocab_size, vocabulary_path=vocabulary_path)
    looked_at = look_at(path, pattern, roles, line_ends)
    tokenized = tokenize(looked_at, choice)
    documents = _documents(tokenized.tokens, path)
    cut = int(documents[1][0, 0])
    if layout == "packed":
        _refuse_short(looked_at, len(tokenized.tokens), cut, seq_len)
    starts = np.concatenate(documents)[:, 0]
    warn_of_copies(tokenized.tokens, starts, cut, tokenized.vocabulary, what="documents")
    train, validation = _rows(tokenized.tokens, documents, layout, seq_len=seq_len, seed=seed)
    return Source(
        vocab_size=len(tokenized.vocabulary),
        pad_id=PAD_ID,
        ignore_index=ignore_index,
        train=train,
        validation=validation,
        vocabulary=tokenized.vocabulary,
        floor_nats=None,
        line_ends=line_ends,
        description=_description(looked_at, tokenized, documents, layout, seq_len),
    )


def look_at(path: str, pattern: str, roles: Mapping[str, str], line_ends: LineEnds) -> Survey:
    """Find the files of documents, and take their digests."""
    found = find(path, pattern)
    return survey(found.root, found.files, JsonlReader.of(roles, line_ends), found.left_out_in_words())


def _description(
    looked_at: Survey, tokenized: TokenizedText, documents: Sequence[NDArray[np.int64]], layout: str, seq_len: int
) -> dict[str, object]:
    """Return what was read, for the record."""
    cut = int(documents[1][0, 0])
    return {
        "documents": sum(map(len, documents)),
        **counts_of(tokenized),
        "layout": layout,
        **_waste(tokenized.tokens[:cut], documents[0], seq_len, has_unknown=tokenized.unknown > 0),
        **looked_at.description(),
        **_left_out(looked_at, np.concatenate(documents), layout, seq_len),
    }


def _left_out(looked_at: Survey, documents: NDArray[np.int64], layout: str, seq_len: int) -> dict[str, str]:
    """Return what is not learned from: files, and documents by what they lack."""
    counts = dict(looked_at.count().left_out)
    if layout == "padded" and (num_short := int((targets_and_rows(documents, seq_len)[0] == 0).sum())):
        counts["documents of one token, which have no target and make no row"] = num_short
    parts = [looked_at.left_out] if looked_at.left_out else []
    parts += [f"{what}: {count}" for what, count in counts.items()]
    return {"left out": "; ".join(parts)} if parts else {}


def _refuse_short(looked_at: Survey, num_tokens: int, cut: int, seq_len: int) -> None:
    """Refuse documents that are too short for a row; in padded rows, any length will do."""
    for part, num_part in (("to learn from", cut), ("to validate on", num_tokens - cut)):
        problem = too_short(
            place_of(looked_at.root, looked_at.files),
            seq_len=seq_len,
            num_tokens=num_tokens,
            num_part=num_part,
            part=part,
            num_bytes=looked_at.num_bytes,
        )
        if problem:
            raise ValueError(f"{problem}, or set data.layout to padded")


def _documents(tokens: NDArray[np.integer], path: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each document of the two parts begins, at its `<|sos|>`, and ends: (documents, 2)."""
    starts = np.flatnonzero(tokens == SOS_ID)
    if len(starts) < 2:
        raise ValueError(
            f"data.path={path}: has {len(starts)} document: give two or more, so that one can be validated on"
        )
    documents = np.stack([starts, np.append(starts[1:], len(tokens))], axis=1)
    first_validation = int(np.searchsorted(starts, TRAIN_SHARE * len(tokens)).clip(1, len(starts) - 1))
    return documents[:first_validation], documents[first_validation:]


def _rows(
    tokens: NDArray[np.integer], parts: Sequence[NDArray[np.int64]], layout: str, *, seq_len: int, seed: int
) -> list[Rows]:
    if layout == "padded":
        return [PaddedRows(tokens, documents, seq_len=seq_len) for documents in parts]
    return [TokenRows(tokens[documents[0, 0] : documents[-1, 1]], seq_len=seq_len, seed=seed) for documents in parts]


def _waste(
    tokens: NDArray[np.integer], documents: NDArray[np.int64], seq_len: int, *, has_unknown: bool
) -> dict[str, str]:
    """Return the share of targets that are not counted, in each layout: padding, and what the vocabulary lacks."""
    unknown = int((tokens == PAD_ID).sum()) if has_unknown else 0
    num_targets, rows_each = (int(each.sum()) for each in targets_and_rows(documents, seq_len))
    return {
        "waste padded": f"{1 - (num_targets - unknown) / (rows_each * seq_len):.2%}" if rows_each else "all",
        "waste packed": f"{unknown / len(tokens):.2%}",
    }
