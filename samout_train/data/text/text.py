"""Text of one's own, a file or a folder of files, and what it shares with the other sources that read files.

Files are looked at before a run, tokenized into one stream, and split by position.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from samout_train.config import Positive, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.text.copies import starts_of, warn_of_copies
from samout_train.data.text.documents import LineEnds, TextReader
from samout_train.data.text.encoding import printable
from samout_train.data.text.files import Survey, find, survey
from samout_train.data.text.rows import TokenRows
from samout_train.data.text.token_cache import TokenizedText, tokenize
from samout_train.data.vocabulary.base import PAD_ID, Bytes, Characters
from samout_train.data.vocabulary.bpe import BytePairSize
from samout_train.data.vocabulary.choice import VocabularyChoice, VocabularyName
from samout_train.runtime import home_path

TRAIN_SHARE = 0.9


def text_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """Return what prevents training on this text."""

    def look() -> Survey:
        return look_at(settings["path"], settings["pattern"], settings.get("line_ends", "keep"))

    return file_problems(settings, name, look)


@checked_by(text_problems)
@validated
def text(
    *,
    path: str,
    pattern: str,
    vocabulary: VocabularyName,
    vocab_size: Annotated[int, BytePairSize],
    vocabulary_path: str | None,
    seq_len: Annotated[int, Positive],
    ignore_index: int,
    seed: int,
    line_ends: LineEnds = "keep",
) -> Source:
    """Return a source from UTF-8 text; the first 90 % of its tokens are for training, the rest for validation.

    Args:
        path: A file, or a folder: all files in it that match `pattern`, in the order of their names, each behind
            `<|sos|>`.
        pattern: Which files of a folder, such as `**/*.txt`.
        vocabulary: `characters`, `bytes` or `bpe`.
        vocab_size: Ids of `bpe`, the special tokens and the 256 bytes included.
        vocabulary_path: A pickled vocabulary of the published kind, or the `vocabulary.json` of an export; None to make
            one from the text.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides where rows are cut in each epoch.
        line_ends: `fold` makes CRLF and CR into LF.

    Raises:
        ValueError: if there is no such file, none matches, or the text is empty, no UTF-8 or too short.
    """
    choice = VocabularyChoice.of(vocabulary=vocabulary, vocab_size=vocab_size, vocabulary_path=vocabulary_path)
    looked_at = look_at(path, pattern, line_ends)
    return stream_source(looked_at, choice, seq_len=seq_len, ignore_index=ignore_index, seed=seed)


def look_at(path: str, pattern: str, line_ends: LineEnds) -> Survey:
    """Find the files of a text, and take their digests."""
    found = find(path, pattern)
    reader = TextReader(sos=home_path(path).is_dir(), line_ends=line_ends)
    return survey(found.root, found.files, reader, found.left_out_in_words())


def stream_source(
    looked_at: Survey,
    choice: VocabularyChoice,
    *,
    seq_len: int,
    ignore_index: int,
    seed: int,
    looks_for_copies: bool = True,
) -> Source:
    """Return a source of files as one stream of tokens, split by position.

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
    """Return what a person wants to know of tokens: how many, and how many stand for what the vocabulary has not."""
    counts: dict[str, object] = {"tokens": len(tokenized.tokens), "vocabulary": len(tokenized.vocabulary)}
    if tokenized.unknown:
        share = tokenized.unknown / len(tokenized.tokens)
        counts["not in the vocabulary, so padding"] = f"{tokenized.unknown} ({share:.2%})"
    return counts


def file_problems(
    settings: Mapping[str, Any], name: str, look: Callable[[], Survey], *, documents: bool = False
) -> list[str]:
    """Return what prevents training on files: seen by reading them once, before anything is built.

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


def vocabulary_of(settings: Mapping[str, Any]) -> VocabularyChoice:
    """Return the vocabulary that the keys of a data YAML choose.

    Raises:
        ValueError: if a vocabulary file is given that cannot be used.
    """
    names = ("vocabulary", "vocab_size", "vocabulary_path")
    return VocabularyChoice.of(**{name: settings[name] for name in names})


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


def too_short(where: str, *, seq_len: int, num_tokens: int, num_part: int, part: str, num_bytes: int) -> str | None:
    """Return what is wrong if a part of a text is shorter than a row, and what would fit.

    Args:
        where: Its file or folder.
        seq_len: Targets in a row; a row has one token more, which is only read.
        num_tokens: Of the whole text.
        num_part: Of the part.
        part: Such as `to validate on`.
        num_bytes: Of the whole text in UTF-8, which its tokens stand for.
    """
    wanted = seq_len + 1
    if num_part >= wanted:
        return None
    enough = max(1, -(-wanted * num_bytes // max(1, num_part)))
    fits = f"set data.seq_len to {num_part - 1} or less, or give" if num_part > 1 else "give"
    return (
        f"data.seq_len={seq_len}: a row takes {wanted:,} tokens, and {where} has {num_tokens:,} ({num_bytes:,} bytes), "
        f"{num_part:,} of them {part}: {fits} a text of about {enough:,} bytes or more"
    )


def place_of(root: Path, files: Sequence[Path]) -> str:
    """Return how a message calls the files of a text."""
    return printable(files[0]) if len(files) == 1 else f"{len(files)} files in {printable(root)}"
