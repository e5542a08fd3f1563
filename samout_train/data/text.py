"""Text of one's own: a file, or a folder of files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from samout_train.data.batches import Source
from samout_train.data.bpe import SMALLEST_SIZE
from samout_train.data.documents import TextReader
from samout_train.data.survey import Survey, survey
from samout_train.data.text_files import file_problems, find_files, stream_source
from samout_train.data.vocabulary_choice import VocabularyChoice, VocabularyName
from samout_train.ranges import Positive, Range, checked_by, validated


def text_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What speaks against training on this text."""
    return file_problems(settings, name, lambda: _survey(settings["path"], settings["pattern"]))


@checked_by(text_problems)
@validated
def text(
    *,
    path: str,
    pattern: str,
    vocabulary: VocabularyName,
    vocab_size: Annotated[int, Range(SMALLEST_SIZE)],
    vocabulary_path: str | None,
    seq_len: Annotated[int, Positive],
    ignore_index: int,
    seed: int,
) -> Source:
    """A source from UTF-8 text; the first 90 % of its tokens are for training, the rest for validation.

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

    Raises:
        ValueError: if there is no such file, none matches, or the text is empty, no UTF-8 or too short.
    """
    choice = VocabularyChoice.of(vocabulary=vocabulary, vocab_size=vocab_size, vocabulary_path=vocabulary_path)
    return stream_source(_survey(path, pattern), choice, seq_len=seq_len, ignore_index=ignore_index, seed=seed)


def _survey(path: str, pattern: str) -> Survey:
    root, files = find_files(path, pattern)
    return survey(root, files, TextReader(sos=Path(path).expanduser().is_dir()))
