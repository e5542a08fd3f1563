"""Text of one's own: a file, or a folder of files."""

from collections.abc import Mapping
from typing import Annotated, Any

from samout_train.config import Positive, checked_by, validated
from samout_train.data.batches import Source
from samout_train.data.text.documents import LineEnds, TextReader
from samout_train.data.text.files import Survey, survey
from samout_train.data.text.folder import find
from samout_train.data.text.stream import file_problems, stream_source
from samout_train.data.vocabulary.bpe import BytePairSize
from samout_train.data.vocabulary.choice import VocabularyChoice, VocabularyName
from samout_train.runtime import home_path


def text_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What speaks against training on this text."""

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
