"""Text of one's own: a file, or a folder of files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from samout_train.data.batches import Source, TokenRows
from samout_train.data.token_cache import tokenize_files
from samout_train.data.vocabulary import PAD_ID, VocabularyName
from samout_train.ranges import Positive, validated

TRAIN_SHARE = 0.9


@validated
def text(
    *,
    path: str,
    pattern: str,
    vocabulary: VocabularyName,
    seq_len: Annotated[int, Positive],
    ignore_index: int,
    seed: int,
) -> Source:
    """A source from UTF-8 text; the first 90 % of its tokens are for training, the rest for validation.

    Args:
        path: A file, or a folder: all files in it that match `pattern`, in the order of their names, each behind
            `<|sos|>`.
        pattern: Which files of a folder, such as `**/*.txt`.
        vocabulary: `characters` or `bytes`.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides where rows are cut in each epoch.

    Raises:
        ValueError: if there is no such file, none matches, or the text is empty, no UTF-8 or too short.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path ({path}) is not there: give a text file or a folder of them")
    files = [root] if root.is_file() else sorted(file for file in root.glob(pattern) if file.is_file())
    if not files:
        raise ValueError(f"data.path ({path}) has no file that matches data.pattern ({pattern})")
    base = root.parent if root.is_file() else root
    return source_from_files(base, files, vocabulary=vocabulary, seq_len=seq_len, ignore_index=ignore_index, seed=seed)


def source_from_files(
    root: Path, files: Sequence[Path], *, vocabulary: VocabularyName, seq_len: int, ignore_index: int, seed: int
) -> Source:
    """What `text` and `python_source` share: files to a source."""
    tokenized = tokenize_files(root, files, vocabulary)
    num_train = int(TRAIN_SHARE * len(tokenized.tokens))
    return Source(
        vocab_size=len(tokenized.vocabulary),
        pad_id=PAD_ID,
        ignore_index=ignore_index,
        train=TokenRows(tokenized.tokens[:num_train], seq_len=seq_len, seed=seed),
        validation=TokenRows(tokenized.tokens[num_train:], seq_len=seq_len, seed=seed),
        vocabulary=tokenized.vocabulary,
        floor_nats=None,
        description={
            "tokens": len(tokenized.tokens),
            "train_tokens": num_train,
            "sha256": tokenized.sha256,
            "files": tokenized.files,
        },
    )
