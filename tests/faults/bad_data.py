"""Data that cannot be trained on, a file of each kind."""

import contextlib
import json
import os
import pickle
import random
import sys
import tempfile
from pathlib import Path
from unittest import mock

from samout_train import train as train_in_process
from samout_train.cli import train
from samout_train.runtime.home import cache_directory
from tests.faults.answers import refused, told
from tests.faults.row import Case

LINE = json.dumps({"text": "one and two"}) + "\n"
OWN = """
import torch
from samout_train.data.batches import MatrixRows, Source

def rows(*, seq_len: int, value: int, ignore_index: int, seed: int) -> Source:
    ids = torch.ones(4, seq_len + 1, dtype=torch.int64)
    ids[2, 3:] = value
    if value == ignore_index:
        ids[:] = value
    fresh = MatrixRows(ids)
    return Source(vocab_size=9, pad_id=None, ignore_index=ignore_index, train=fresh, validation=fresh, vocabulary=None,
                  floor_nats=None, description={})
"""
BAD_FILES: dict[str, bytes] = {
    "empty.txt": b"",
    "short.txt": b"short text",
    "bad.txt": b"abc" * 500 + b"\xff" + b"abc" * 500,
    "cut.txt": b"abc" * 500 + "é".encode()[:1],
    "lines.jsonl": (LINE * 2 + '{"text": "three\n').encode(),
    "other.jsonl": (LINE + '{"txt": "two"}\n').encode(),
    "one.jsonl": LINE.encode(),
    "empty.jsonl": b"\n\n",
    "bad.jsonl": LINE.encode() + b'{"text": "\xff"}\n',
    "half.jsonl": (LINE + '{"text": "\\ud800"}\n').encode(),
    "voc.pkl": pickle.dumps(["<|sos|>", "<|user|>", "<|agent|>", "<|pad|>", "<|history|>", "~"]),
    "cut.pkl": pickle.dumps(["<|sos|>"] * 9)[:-4],
}
TEXT, JSONL = ("data=text", "data.seq_len=8"), ("data=jsonl", "data.seq_len=8")
# What is typed, and what the message has to name: the file or key, the value, and the limit.
BAD_DATA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "empty": ((*TEXT, "data.path=empty.txt"), ("empty.txt", "0 bytes")),
    "shorter than a block": (
        (*TEXT, "data.path=short.txt"),
        ("short.txt has 10 (10 bytes)", "takes 9 tokens"),
    ),
    "bad UTF-8": ((*TEXT, "data.path=bad.txt"), ("bad.txt", "byte 1500", "0xff")),
    "a character cut in two": ((*TEXT, "data.path=cut.txt"), ("cut.txt", "byte 1500", "0xc3")),
    "a folder without such files": (
        (*TEXT, "data.path=."),
        (".", "**/*.md"),
    ),
    "a broken line": ((*JSONL, "data.path=lines.jsonl"), ("lines.jsonl line 3", "is not JSON")),
    "another line": ((*JSONL, "data.path=other.jsonl"), ("other.jsonl line 2", "it has: txt")),
    "one document": ((*JSONL, "data.path=one.jsonl"), ("1 document", "two or more")),
    "no document": ((*JSONL, "data.path=empty.jsonl"), ("empty.jsonl", "no text")),
    "bad UTF-8 in a line": ((*JSONL, "data.path=bad.jsonl"), ("bad.jsonl", "byte 34", "0xff")),
    "half a character": ((*JSONL, "data.path=half.jsonl"), ("half.jsonl line 2", "ud800")),
    "a cut vocabulary": ((*TEXT, "data.path=bad.txt", "data.vocabulary_path=cut.pkl"), ("cut.pkl", "cannot be used")),
    "ids beyond the vocabulary": (("data.vocab_size=3",), ("data.pad_id=3", "from 0 to 2")),
    "padding that is learned": ((*TEXT, "data.path=bad.txt", "data.ignore_index=0"), ("data.ignore_index=0", "3")),
}
BUILT = (
    "model.hidden_size=8",
    "model.num_heads=1",
    "model.num_layers=1",
    "device=cpu",
    "trainer=debug",
    "kernels=reference",
    "~callbacks.tensorboard",
)


def bad_data(case: Case) -> str:
    """Gives data of each kind that cannot be trained on, and reads what is said."""
    for name, content in BAD_FILES.items():
        (case.folder / name).write_bytes(content)
    tried = list(BAD_DATA.items())
    random.Random(case.seed).shuffle(tried)
    before = sorted(case.folder.rglob("*"))
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, SAMOUT_TRAIN_CACHE=cache):
        for name, (words, wanted) in tried[: case.count]:
            pattern = ("data.pattern=**/*.md",) if "data.path=." in words else ()
            code, said = told(train.train, [*words, *pattern, *BUILT], case.folder)
            assert code == 2 and 1 <= len(said.splitlines()) <= 8 and "Traceback" not in said, f"{name}: {said}"
            assert all(part in said for part in wanted), f"{name}: {said}"
            assert sorted(case.folder.rglob("*")) == before, f"{name} left something behind"
        seen_when_built(case.folder)
    return f"{min(case.count, len(tried)) + 5} of {min(case.count, len(tried)) + 5} told before step 1"


def seen_when_built(folder: Path) -> None:
    """What only building shows: rows of one's own, a vocabulary of another text, a damaged token cache."""
    (folder / "rows_of_mine.py").write_text(OWN, "utf-8")
    (folder / "good.txt").write_text("abc" * 400, "utf-8")
    own = [*BUILT, "data._target_=rows_of_mine.rows", "+data.value=5", "data.ignore_index=-100", "data.seq_len=8"]
    own += [f"~data.{key}" for key in ("vocab_size", "num_sequences", "pad_probability", "pad_id")]
    text, run = [*BUILT, *TEXT, "data.path=good.txt"], "run_dir=run"
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder):
            for value, wanted in ((9, "id 9 in training row 2, place 3"), (-1, "id -1 in training row 2, place 3")):
                said = refused(lambda value=value: train_in_process([*own, f"data.value={value}", run]))
                assert wanted in said and "0 to 8" in said, said
            said = refused(lambda: train_in_process([*own, "data.value=-100", run]))
            assert "every target is -100" in said, said
            said = refused(lambda: train_in_process([*text, "data.vocabulary_path=voc.pkl", run]))
            assert "1200 of 1200 tokens" in said and "vocabulary_path" in said, said
            train_in_process([*text, "run_dir=good"])
            cached = max(cache_directory().rglob("*.bin"), key=lambda path: path.stat().st_mtime)
            whole = cached.read_bytes()
            cached.write_bytes(whole[:-2] + b"\xff\xff")
            assert not Path("run").exists(), "a refused run leaves nothing behind"
            train_in_process([*text, run])
            assert cached.read_bytes() == whole, "a damaged token cache is made again"
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("rows_of_mine", None)
