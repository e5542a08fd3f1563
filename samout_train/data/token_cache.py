"""Text files to token ids, once: a memory-mapped file keyed by content and vocabulary.

The cache lies outside every run directory (`SAMOUT_TRAIN_CACHE`, else `XDG_CACHE_HOME` or `~/.cache`, below
`samout_train/`) and can be deleted at any time. An entry is complete when its `.json` is there: that is written last.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from samout_train.atomic import replace_file
from samout_train.data.vocabulary import SOS_ID, Bytes, Characters, Vocabulary, VocabularyName, vocabulary_from

FORMAT = 1
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class TokenizedText:
    """A text as ids.

    Args:
        tokens: (N,) memory map, uint16 where the vocabulary allows, else uint32.
        vocabulary: Ids to text.
        sha256: Of the content: the file's own for one file, of the list of digests and names for several.
        files: Name, bytes and sha256 of each file.
    """

    tokens: NDArray[np.integer]
    vocabulary: Vocabulary
    sha256: str
    files: list[dict[str, object]]


def tokenize_files(root: Path, files: Sequence[Path], vocabulary_name: VocabularyName) -> TokenizedText:
    """Reads files in the order given; several are joined, each behind `<|sos|>`.

    Args:
        root: What file names are relative to in the record.
        files: UTF-8 files, at least one.
        vocabulary_name: `characters`, those that occur, or `bytes`.

    Raises:
        ValueError: if a file is no UTF-8, or all are empty.
        OSError: if a file cannot be read, or the cache not be written.
    """
    record: list[dict[str, object]] = []
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record.append({"name": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": digest})
    num_bytes = sum(int(str(entry["bytes"])) for entry in record)
    if num_bytes == 0:
        raise ValueError(f"{root} has no text: {len(files)} file(s), 0 bytes")
    listing = "\n".join(f"{entry['sha256']} {entry['name']}" for entry in record)
    content = str(record[0]["sha256"]) if len(files) == 1 else hashlib.sha256(listing.encode()).hexdigest()
    key = hashlib.sha256(f"{FORMAT} {vocabulary_name} {len(files) > 1} {content}".encode()).hexdigest()[:32]
    stem = cache_directory() / key
    ids_path, note_path = stem.with_suffix(".bin"), stem.with_suffix(".json")
    if not note_path.is_file():
        stem.parent.mkdir(parents=True, exist_ok=True)
        _write(files, num_bytes, vocabulary_name, ids_path, note_path)
    note = json.loads(note_path.read_text(encoding="utf-8"))
    tokens = np.memmap(ids_path, dtype=note["dtype"], mode="r", shape=(note["num_tokens"],))
    return TokenizedText(tokens, vocabulary_from(note["vocabulary"]), content, record)


def cache_directory() -> Path:
    """Where tokenized texts are kept."""
    if chosen := os.environ.get("SAMOUT_TRAIN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samout_train"


def read_text(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces.

    Raises:
        ValueError: at the first byte that is no UTF-8, with its offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            held_back = len(decoder.getstate()[0])
            try:
                yield decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                where = offset - held_back + error.start
                raise ValueError(
                    f"{path} is no UTF-8 at byte {where} (0x{error.object[error.start]:02x}): convert it, "
                    "for example with `iconv -t utf-8`, or leave it out"
                ) from error
            if not chunk:
                return
            offset += len(chunk)


def _write(
    files: Sequence[Path], num_bytes: int, vocabulary_name: VocabularyName, ids_path: Path, note_path: Path
) -> None:
    vocabulary: Vocabulary = Bytes()
    if vocabulary_name == Characters.name:
        found: set[str] = set()
        for path in files:
            for text in read_text(path):
                found.update(text)
        vocabulary = Characters(found)
    dtype = np.dtype(np.uint16 if len(vocabulary) <= 1 << 16 else np.uint32)
    num_tokens = 0

    def write_ids(output: IO[bytes]) -> None:
        nonlocal num_tokens
        with tqdm(total=num_bytes, unit="B", unit_scale=True, desc="tokenizing", delay=1, leave=False) as bar:
            for path in files:
                if len(files) > 1:
                    num_tokens += output.write(np.array([SOS_ID], dtype=dtype).tobytes()) // dtype.itemsize
                for text in read_text(path):
                    num_tokens += output.write(vocabulary.encode(text).astype(dtype).tobytes()) // dtype.itemsize
                    bar.update(len(text.encode()))

    replace_file(ids_path, write_ids)
    note = {"dtype": dtype.name, "num_tokens": num_tokens, "vocabulary": vocabulary.state_dict()}
    replace_file(note_path, lambda output: output.write(json.dumps(note).encode()))
