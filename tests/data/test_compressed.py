"""Compressed text and tables: the documents of the plain files, from any piece on, and what is damaged is named."""

import bz2
import gzip
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from samout_train.cli import tokenize
from samout_train.data import JsonlReader
from samout_train.data.shards.index import read_index
from samout_train.data.text.documents import Piece, Special, TextReader
from samout_train.data.text.files import survey
from samout_train.data.text.tables import row_to_cut, table_kind, table_rows

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content[:50]) + gzip.compress(content[50:]),
    "bz2": lambda content: bz2.compress(content[:50]) + bz2.compress(content[50:]),
    "zst": lambda content: zstandard.compress(content[:50]) + zstandard.compress(content[50:]),
}
TEXT = "\ufeffäöü€ 𝄞abc\r\n\n  and so on; the end ofaverylongwordindeedthatfillsapiece \r\n" * 9
DOCUMENTS: list[dict[str, Any]] = [
    {"text": "one\r\ntwo"},
    {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]},
    {"text": ""},
    {"text": "naïve 𝄞"},
] * 5
ROLES = {"user": "<|user|>", "assistant": "<|agent|>"}


def parts_of(pieces: list[Piece]) -> str:
    parts = [part for piece in pieces for part in piece.parts]
    return "".join(part.token if isinstance(part, Special) else part for part in parts)


def lines(documents: list[dict[str, Any]] = DOCUMENTS) -> bytes:
    return "".join(json.dumps(document) + "\n" for document in documents).encode()


@pytest.mark.parametrize("chunk_bytes", [7, 64, 1 << 20])
@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("kind", ["text", "lines"])
def test_a_compressed_file_has_the_pieces_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", chunk_bytes)
    content, reader = TEXT.encode(), TextReader(sos=True, line_ends="fold")
    if kind == "lines":
        content, reader = lines(), JsonlReader.of(ROLES)
    plain, packed = tmp_path / "plain", tmp_path / f"packed.{ending}"
    plain.write_bytes(content)
    packed.write_bytes(PACK[ending](content))
    wanted, pieces = list(reader.read(plain)), list(reader.read(packed))
    assert [(piece.parts, piece.end) for piece in pieces] == [(piece.parts, piece.end) for piece in wanted]
    assert pieces[-1].bytes_done == packed.stat().st_size and wanted[-1].bytes_done == len(content)
    for number in range(0, len(pieces), max(1, len(pieces) // 5)):
        again = list(reader.read(packed, pieces[number].end))
        assert [piece.parts for piece in again] == [piece.parts for piece in pieces[number + 1 :]]
    assert survey(tmp_path, [packed], reader).count() == survey(tmp_path, [plain], reader).count()


@pytest.mark.parametrize("ending", PACK)
def test_a_damaged_or_short_file_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    chance = random.Random(0)
    packed = PACK[ending](bytes(chance.choices(b"abcdefgh", k=20000)))
    path.write_bytes(packed[:-30])
    with pytest.raises(ValueError, match=rf"a\.{ending} is (cut short|damaged).*: copy or download it again"):
        list(TextReader(sos=False).read(path))
    path.write_bytes(packed[:4000] + b"something" + packed[4009:])
    with pytest.raises(ValueError, match=rf"a\.{ending} is damaged"):
        list(TextReader(sos=False).read(path))


def test_a_line_of_a_compressed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines() + b"no JSON\n"))
    with pytest.raises(ValueError, match=r"a.jsonl.gz line 21: is not JSON"):
        list(JsonlReader.of(ROLES).read(tmp_path / "a.jsonl.gz"))


def table(documents: list[dict[str, Any]]) -> pa.Table:
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    columns = {
        "id": pa.array(range(len(documents))),
        "text": pa.array([document.get("text") for document in documents], pa.string()),
        "conversations": pa.array([document.get("conversations") for document in documents], turns),
    }
    return pa.table(columns)


def written(folder: Path, kind: str, documents: list[dict[str, Any]] = DOCUMENTS, group: int = 3) -> Path:
    path, content = folder / f"table.{kind}", table(documents)
    if kind == "parquet":
        parquet.write_table(content, path, row_group_size=group)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
            writer.write_table(content, max_chunksize=group)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content, max_chunksize=group)
    return path


@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_a_table_has_the_documents_of_the_same_lines_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr("samout_train.data.text.tables.ROWS_TOGETHER", 2)
    path, plain = written(tmp_path, kind), tmp_path / "plain.jsonl"
    plain.write_bytes(lines())
    reader = JsonlReader.of(ROLES, "fold")
    pieces = list(reader.read(path))
    assert parts_of(pieces) == parts_of(list(reader.read(plain)))
    assert survey(tmp_path, [path], reader).count() == survey(tmp_path, [plain], reader).count()
    assert pieces[-1].end == len(DOCUMENTS) and 0 < pieces[-1].bytes_done <= path.stat().st_size
    for piece in pieces:
        plain.write_bytes(lines(DOCUMENTS[piece.end :]))
        assert parts_of(list(reader.read(path, piece.end))) == parts_of(list(reader.read(plain)))


def test_the_column_of_text_is_read_as_documents(tmp_path: Path) -> None:
    path = written(tmp_path, "parquet", [{"text": "a\r\nb"}, {}, {"text": "c"}])
    pieces = list(TextReader(sos=False, line_ends="fold").read(path))
    assert parts_of(pieces) == "<|sos|>a\nb<|sos|>c" and pieces[0].left_out == {"documents without text": 1}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_a_table_is_cut_between_groups_of_rows_or_record_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("samout_train.data.text.tables.RELEASED_TOGETHER", 1)
    monkeypatch.setattr("samout_train.data.text.tables.ROWS_TOGETHER", 2)
    path = written(tmp_path, kind, [{"text": f"{number:02} " * 10} for number in range(20)], group=5)
    size = path.stat().st_size
    assert [row_to_cut(path, size * part // 8, size) for part in range(9)] == [0, 5, 5, 10, 10, 15, 15, 20, 20]
    for start, stop in [(0, None), (5, 10), (7, 13), (20, None)]:
        rows = list(table_rows(path, ["text"], start, stop))
        wanted = range(start, 20)[: stop and stop - start]
        assert [row.end - 1 for row in rows] == list(wanted)
        assert [row.values["text"] for row in rows] == [f"{number:02} " * 10 for number in wanted]
        assert all(0 < row.bytes_done <= size for row in rows)


def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(pa.table({"body": ["a"], "text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r'a.parquet row 1: "text" is not text: rename the column'):
        list(TextReader(sos=False).read(tmp_path / "a.parquet"))
    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet is a table without a column text \(it has body\): rename"):
        list(TextReader(sos=False).read(tmp_path / "b.parquet"))
    path = written(tmp_path, "parquet", [{"conversations": [{"role": "robot", "content": "beep"}]}])
    with pytest.raises(ValueError, match=r"table.parquet row 1: role 'robot' has no token"):
        list(JsonlReader.of(ROLES).read(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"table.parquet is a Parquet table that cannot be read .*: copy or download"):
        list(JsonlReader.of(ROLES).read(path))
    with pytest.raises(ValueError, match=r"table.parquet is a Parquet table that cannot be read .*: copy or download"):
        row_to_cut(path, 1, 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"b.parquet is a table .Parquet.: reading it needs pyarrow: pip install"):
        list(TextReader(sos=False).read(tmp_path / "b.parquet"))
    (tmp_path / "a.zst").write_bytes(zstandard.compress(b"text"))
    with pytest.raises(ValueError, match=r"a.zst is compressed .zstd.: reading it needs zstandard: pip install"):
        list(TextReader(sos=False).read(tmp_path / "a.zst"))


@pytest.mark.parametrize("content", [b"", b"PAR1 is text", b"ARROW1 is text", b"text"])
def test_text_is_no_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert table_kind(tmp_path / "a") is None and table_kind(tmp_path / "gone") is None


def shards(folder: Path, path: Path) -> list[int]:
    words = [f"path={path}", f"out={folder}", "vocabulary=bytes", "jobs=1", "part_bytes=2000"]
    assert tokenize.tokenize(words) == 0
    index = read_index(folder)
    ids = [np.fromfile(folder / f"{shard.name}.bin", dtype=index.dtype) for shard in index.shards]
    return np.concatenate(ids).tolist()


@pytest.mark.slow
def test_shards_of_tables_and_compressed_lines_have_the_same_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(0)
    documents = [{"text": "".join(chance.choices("abc d\n", k=chance.randrange(300)))} for _ in range(60)]
    plain = tmp_path / "a.jsonl"
    plain.write_bytes(lines(documents))
    wanted = shards(tmp_path / "plain", plain)
    packed = tmp_path / "a.jsonl.zst"
    packed.write_bytes(PACK["zst"](plain.read_bytes()))
    assert shards(tmp_path / "zst", packed) == wanted
    assert "not cut     a.jsonl.zst: compressed text" in capsys.readouterr().out
    for kind in ("parquet", "arrow"):
        path = written(tmp_path, kind, documents)
        assert shards(tmp_path / kind, path) == wanted
        assert len(read_index(tmp_path / kind).shards) > 1, "it is cut between groups of rows or record batches"
    assert "not cut" not in capsys.readouterr().out
    plan = tmp_path / "arrow" / "plan.json"
    plan.write_text(plan.read_text().replace('"cuts_arrow": true', '"cuts_arrow": false'))
    words = [f"path={tmp_path / 'table.arrow'}", f"out={tmp_path / 'arrow'}", "vocabulary=bytes", "part_bytes=2000"]
    assert tokenize.tokenize(words) == 2 and "did not cut Arrow tables: delete it" in capsys.readouterr().err


READ = """
import resource, sys
from pathlib import Path
from samout_train.data.text.documents import JsonlReader
from samout_train.data.text.tables import row_to_cut, table_kind
import hashlib, pyarrow.parquet, zstandard
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digest = hashlib.sha256()
if table_kind(Path(sys.argv[1])):
    row_to_cut(Path(sys.argv[1]), 1, 2)
for piece in JsonlReader.of({}).read(Path(sys.argv[1])):
    for part in piece.parts:
        digest.update(str(part).encode())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024, digest.hexdigest())
"""


@pytest.mark.nightly
def test_reading_takes_memory_for_a_batch_and_not_for_the_file(tmp_path: Path) -> None:
    """100 MB of documents, of which a Parquet table is one group: 50 MB at the most, mapped files included."""
    word = random.Random(0).randbytes(1 << 16).hex()
    documents = [{"text": word[place : place + 40000]} for place in range(0, 90000, 36)]
    plain = tmp_path / "a.jsonl"
    plain.write_bytes(lines(documents))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    tables = [written(tmp_path, "parquet", documents, group=1 << 20), written(tmp_path, "arrow", documents, group=100)]
    found = {}
    for path in (plain, tmp_path / "a.jsonl.zst", *tables):
        done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
        megabytes, found[path.name] = done.stdout.split()
        assert float(megabytes) < 50, path.name
    assert len(set(found.values())) == 1


@pytest.mark.slow
def test_tokenizing_does_without_torch(tmp_path: Path) -> None:
    """It would be five sixths of the memory of the process that starts the others."""
    (tmp_path / "a.txt").write_text("some text")
    words = ["tokenize", f"path={tmp_path / 'a.txt'}", f"out={tmp_path / 'out'}", "vocabulary=bytes", "jobs=1"]
    code = (
        "import sys\n"
        "from samout_train.cli.main import main\n"
        f"sys.argv = ['samout_train', *{words!r}]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done
