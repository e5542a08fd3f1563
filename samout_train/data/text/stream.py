"""What the sources that read files share: finding them, looking at them before a run, and splitting their tokens."""

from collections.abc import Callable, Mapping
from typing import Any

from samout_train.data.batches import Source
from samout_train.data.text.copies import starts_of, warn_of_copies
from samout_train.data.text.files import Survey
from samout_train.data.text.rows import TokenRows
from samout_train.data.text.short_text import place_of, too_short
from samout_train.data.text.token_cache import TokenizedText, tokenize
from samout_train.data.vocabulary.base import PAD_ID, Bytes, Characters
from samout_train.data.vocabulary.choice import VocabularyChoice

TRAIN_SHARE = 0.9


def file_problems(
    settings: Mapping[str, Any], name: str, look: Callable[[], Survey], *, documents: bool = False
) -> list[str]:
    """What speaks against training on files: seen by reading them once, before anything is built.

    Args:
        settings: The keys of the data YAML; the vocabulary, `seq_len` and `ignore_index` are looked at.
        name: The key that the settings stand under, such as `data`.
        look: Finds the files.
        documents: Whether they hold documents, which are split between two of them, and not one text.
    """
    found, choice = [], None
    try:
        choice = vocabulary_of(settings)
    except ValueError as error:
        found.append(f"{name}.{error}")
    if settings["ignore_index"] != PAD_ID:
        ignored = settings["ignore_index"]
        found.append(f"{name}.ignore_index={ignored}: must be {PAD_ID}, the padding id, or padding is learned")
    try:
        looked_at = look()
    except (ValueError, OSError) as error:
        return [*found, f"{name}.{error}" if isinstance(error, ValueError) else f"{name}.path: {error}"]
    try:
        counts = looked_at.count()
    except (ValueError, OSError) as error:
        return [*found, f"{name}.path: {error}"]
    if counts.num_bytes == 0:
        where = place_of(looked_at.root, looked_at.files)
        return [*found, f"{name}.path: no text in {where}, {looked_at.num_bytes} bytes: give one that has some"]
    if documents and counts.documents < 2:
        where = place_of(looked_at.root, looked_at.files)
        found.append(
            f"{name}.path: {where} has {counts.documents} document: give two or more, so that one can be validated on"
        )
    if not documents and choice is not None and choice.given is None:
        exact = {Characters.name: counts.characters, Bytes.name: counts.num_bytes}
        num_tokens = exact.get(choice.name, counts.num_bytes) + counts.special_tokens
        problem = _too_short(looked_at, num_tokens, counts.num_bytes, settings["seq_len"])
        found += [problem] if problem else []
    return found


def _too_short(looked_at: Survey, num_tokens: int, num_bytes: int, seq_len: int) -> str | None:
    """Return what is wrong if the part to validate on is shorter than a row; it is the shorter part."""
    return too_short(
        place_of(looked_at.root, looked_at.files),
        seq_len=seq_len,
        num_tokens=num_tokens,
        num_part=num_tokens - int(TRAIN_SHARE * num_tokens),
        part="to validate on",
        num_bytes=num_bytes,
    )


def vocabulary_of(settings: Mapping[str, Any]) -> VocabularyChoice:
    """The vocabulary that the keys of a data YAML choose.

    Raises:
        ValueError: if a vocabulary file is given that cannot be used.
    """
    names = ("vocabulary", "vocab_size", "vocabulary_path")
    return VocabularyChoice.of(**{name: settings[name] for name in names})


def stream_source(
    looked_at: Survey,
    choice: VocabularyChoice,
    *,
    seq_len: int,
    ignore_index: int,
    seed: int,
    looks_for_copies: bool = True,
) -> Source:
    """Files as one stream of tokens, split by position.

    Args:
        looked_at: The files.
        choice: The vocabulary.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides where rows are cut in each epoch.
        looks_for_copies: Whether to warn of files that are learned from and validated on, so that they can be removed.

    Raises:
        ValueError: if a file cannot be read, or there is too little in them.
    """
    tokenized = tokenize(looked_at, choice)
    if problem := _too_short(looked_at, len(tokenized.tokens), looked_at.num_bytes, seq_len):
        raise ValueError(problem)
    num_train = int(TRAIN_SHARE * len(tokenized.tokens))
    if looks_for_copies and len(starts := starts_of(tokenized.tokens)) > 1:
        names = [str(entry["name"]) for entry in looked_at.record if entry["bytes"]]
        named = names if len(names) == len(starts) else []
        warn_of_copies(tokenized.tokens, starts, num_train, tokenized.vocabulary, what="files", names=named)
    return Source(
        vocab_size=len(tokenized.vocabulary),
        pad_id=PAD_ID,
        ignore_index=ignore_index,
        train=TokenRows(tokenized.tokens[:num_train], seq_len=seq_len, seed=seed),
        validation=TokenRows(tokenized.tokens[num_train:], seq_len=seq_len, seed=seed),
        vocabulary=tokenized.vocabulary,
        floor_nats=None,
        line_ends=looked_at.reader.line_ends,
        description={
            **counts_of(tokenized),
            "train_tokens": num_train,
            **looked_at.description(),
        },
    )


def counts_of(tokenized: TokenizedText) -> dict[str, object]:
    """What a person wants to know of tokens: how many, and how many stand for what the vocabulary has not."""
    counts: dict[str, object] = {"tokens": len(tokenized.tokens), "vocabulary": len(tokenized.vocabulary)}
    if tokenized.unknown:
        share = tokenized.unknown / len(tokenized.tokens)
        counts["not in the vocabulary, so padding"] = f"{tokenized.unknown} ({share:.2%})"
    return counts
