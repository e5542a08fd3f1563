"""Tiny Shakespeare: the text that small language models are compared on, downloaded once where no file is given.

Source: karpathy/char-rnn, data/tinyshakespeare/input.txt; 1,115,394 bytes, 65 characters.
"""

import hashlib
import http.client
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from samout_train.config import Positive, checked_by, validated
from samout_train.data.source import Source
from samout_train.data.text.documents import LineEnds, TextReader
from samout_train.data.text.files import Survey, survey
from samout_train.data.text.text import file_problems, stream_source
from samout_train.data.vocabulary.bpe import BytePairSize
from samout_train.data.vocabulary.choice import VocabularyChoice, VocabularyName
from samout_train.runtime import cache_path, home_path, replace_file, sha256_of

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
NUM_BYTES = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TIMEOUT_SECONDS = 20


def shakespeare_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """Return what prevents training on it; nothing is downloaded yet."""
    if settings["path"] is None:
        return []
    return file_problems(settings, name, lambda: _survey(Path(settings["path"]), settings.get("line_ends", "keep")))


@checked_by(shakespeare_problems)
@validated
def shakespeare(
    *,
    path: str | None,
    vocabulary: VocabularyName,
    vocab_size: Annotated[int, BytePairSize],
    vocabulary_path: str | None,
    seq_len: Annotated[int, Positive],
    ignore_index: int,
    seed: int,
    line_ends: LineEnds = "keep",
) -> Source:
    """Return a source from tiny Shakespeare, the first 90 % for training.

    Args:
        path: A copy of it; None to download it once into the cache.
        vocabulary: `characters`, `bytes` or `bpe`.
        vocab_size: Ids of `bpe`, the special tokens and the 256 bytes included.
        vocabulary_path: A pickled vocabulary of the published kind, or the `vocabulary.json` of an export; None to make
            one from the text.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides where rows are cut in each epoch.
        line_ends: `fold` makes CRLF and CR into LF.

    Raises:
        ValueError: if the file is another text.
        ConnectionError: if it cannot be downloaded.
    """
    choice = VocabularyChoice.of(vocabulary=vocabulary, vocab_size=vocab_size, vocabulary_path=vocabulary_path)
    file = Path(path) if path is not None else _downloaded()
    return stream_source(_survey(file, line_ends), choice, seq_len=seq_len, ignore_index=ignore_index, seed=seed)


def _survey(path: Path, line_ends: LineEnds) -> Survey:
    if not home_path(path).is_file():
        raise ValueError(f"path={path}: is no file: give a copy of it, or null to download it")
    looked_at = survey(home_path(path).parent, [home_path(path)], TextReader(sos=False, line_ends=line_ends))
    if looked_at.sha256 != SHA256:
        raise ValueError(
            f"path={path}: is not tiny Shakespeare ({looked_at.num_bytes:,} bytes, sha256 {looked_at.sha256}): it has "
            f"{NUM_BYTES:,} bytes, sha256 {SHA256}; for another text use data=text"
        )
    return looked_at


def _downloaded() -> Path:
    path = cache_path("shakespeare", SHA256, ending=".txt")
    if path.is_file() and sha256_of(path) == SHA256:
        return path
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read(NUM_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"data=shakespeare could not be downloaded from {URL} ({reason}): bring a copy "
            f"({NUM_BYTES:,} bytes, sha256 {SHA256[:8]}...) and give data.path=FILE"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ConnectionError(
            f"what came from {URL} is not tiny Shakespeare (its sha256 differs): give a copy with data.path=FILE"
        )
    replace_file(path, lambda output: output.write(content))
    return path
