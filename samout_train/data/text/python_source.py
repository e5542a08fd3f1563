"""The Python files of the running interpreter's standard library: 10 MB and more of real text on every machine.

Tests are left out: some systems ship them and some do not. What is read differs between Python versions, so the
files and their digest are part of the record.
"""

import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from samout_train.config import Positive, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.text.documents import LineEnds, TextReader
from samout_train.data.text.files import Survey, survey
from samout_train.data.text.text import file_problems, stream_source
from samout_train.data.vocabulary.bpe import BytePairSize
from samout_train.data.vocabulary.choice import VocabularyChoice, VocabularyName

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def python_source_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """Return what prevents training on the standard library."""
    return file_problems(settings, name, lambda: _survey(settings.get("line_ends", "keep")))


@checked_by(python_source_problems)
@validated
def python_source(
    *,
    vocabulary: VocabularyName,
    vocab_size: Annotated[int, BytePairSize],
    vocabulary_path: str | None,
    seq_len: Annotated[int, Positive],
    ignore_index: int,
    seed: int,
    line_ends: LineEnds = "keep",
) -> Source:
    """Return a source from the standard library, files in the order of their names, each behind `<|sos|>`; split 90/10.

    Args:
        vocabulary: `characters`, `bytes` or `bpe`.
        vocab_size: Ids of `bpe`, the special tokens and the 256 bytes included.
        vocabulary_path: A pickled vocabulary of the published kind, or the `vocabulary.json` of an export; None to make
            one from the text.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides where rows are cut in each epoch.
        line_ends: `fold` makes CRLF and CR into LF.

    Raises:
        ValueError: if this interpreter has no standard library in files.
    """
    choice = VocabularyChoice.of(vocabulary=vocabulary, vocab_size=vocab_size, vocabulary_path=vocabulary_path)
    # The files are Python's own, so nobody can remove a copy; those that there are, are a few lines long.
    return stream_source(
        _survey(line_ends), choice, seq_len=seq_len, ignore_index=ignore_index, seed=seed, looks_for_copies=False
    )


@cache
def _survey(line_ends: LineEnds) -> Survey:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(root).parts) and _is_utf8(path)
    )
    if not files:
        raise ValueError(
            f"path: {root} has no Python files: this interpreter's standard library is not in files, use data=text"
        )
    return survey(root, files, TextReader(sos=True, line_ends=line_ends))


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
