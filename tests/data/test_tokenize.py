"""Shards made by several processes: the ids of the text read from one end to the other, whatever interrupts them."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samout_train.cli import tokenize
from samout_train.data import INDEX, SOS_ID, SPECIAL_TOKENS, JsonlReader
from samout_train.data.shards import parts, write as tokenizing
from samout_train.data.shards.index import PLAN, VOCABULARY, read_index
from samout_train.data.shards.parts import Span, parts_of, place_to_cut
from samout_train.data.text.documents import Reader, Special, TextReader
from samout_train.runtime import program_file, typed_line
from tests.support.marks import mostly_nightly

LETTERS = ["a", "b", "ä", "ö", "ß", "😀", "文", " ", " ", "\n", "  ", "\u3000", "\x85", "word", "Wörter"]


def made_up(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Files of many sizes, with umlauts and emoji wherever they may be cut."""
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    for name, length in (("a.txt", 1500), ("b.txt", 3), ("below/c.txt", 700), ("d.txt", 0), ("e.txt", 40)):
        (folder / name).write_text(made_up(length, length), "utf-8")
    documents = [{"text": made_up(20 + 7 * number, number)} for number in range(12)] + [{"text": ""}]
    turns = [{"role": "user", "content": "früh 😀"}, {"role": "assistant", "content": "spät"}]
    lines = [json.dumps(document, ensure_ascii=False) for document in [*documents, {"conversations": turns}]]
    (folder / "f.jsonl").write_text("\n".join([*lines, ""]), "utf-8")
    return folder


def run(*words: Any) -> int:
    return tokenize.tokenize([str(word) for word in words])


def ids_of(out: Path) -> list[int]:
    index = read_index(out)
    return [int(i) for shard in index.shards for i in np.fromfile(out / f"{shard.name}.bin", dtype=index.dtype)]


def ids_by_reader(folder: Path, names: list[str], out: Path) -> list[int]:
    """What the readers give for one file after another, whole."""
    vocabulary, ids = read_index(out).vocabulary, []
    roles = JsonlReader.of({"user": "<|user|>", "assistant": "<|agent|>"})
    for name in names:
        reader: Reader = roles if name.endswith(".jsonl") else TextReader(sos=True)
        for piece in reader.read(folder / name):
            for part in piece.parts:
                special = isinstance(part, Special)
                ids += [SPECIAL_TOKENS.index(part.token)] if special else vocabulary.encode(part).tolist()  # type: ignore
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("pattern", mostly_nightly(["**/*.txt", "**/*.jsonl", "**/*.*"], ["**/*.*"]))
@pytest.mark.parametrize("vocabulary", ["characters", "bytes", "bpe"])
def test_shards_hold_the_ids_of_the_files_read_one_after_another(
    texts: Path, tmp_path: Path, vocabulary: str, pattern: str
) -> None:
    out = tmp_path / "out"
    common = (f"path={texts}", f"pattern={pattern}", f"vocabulary={vocabulary}", "vocab_size=300", "jobs=2")
    assert run(*common, f"out={out}", "part_bytes=97") == 0
    names = [path.relative_to(texts).as_posix() for path in sorted(texts.glob(pattern)) if path.is_file()]
    assert (wanted := ids_by_reader(texts, names, out)) == ids_of(out)
    index = read_index(out)
    assert len(index.shards) > 10
    starts: list[int] = []
    for shard in index.shards:
        before = index.shards[: int(shard.name)]
        places = np.fromfile(out / f"{shard.name}.documents", dtype="<u4")
        starts += [int(place) + sum(each.num_tokens for each in before) for place in places]
    assert starts == [place for place, token in enumerate(wanted) if token == SOS_ID]
    assert sum(shard.text_bytes for shard in index.shards) > 0
    assert max(wanted) == max(shard.largest_id for shard in index.shards)


def test_the_plan_depends_on_sizes_alone_and_cuts_into_parts_of_one_size() -> None:
    whole = [Span(0, 0, 3), Span(1, 0, 4)]
    assert parts_of([3, 4, 0, 25, 10, 1], 10) == [
        whole,
        *([Span(3, start, stop)] for start, stop in ((0, 8), (8, 16), (16, 25))),
        [Span(4, 0, 10)],
        [Span(5, 0, 1)],
    ]
    assert parts_of([], 10) == parts_of([0, 0], 10) == []


@pytest.mark.parametrize("together", [8, 1 << 16])
def test_text_is_cut_behind_a_word_and_json_lines_between_lines(
    tmp_path: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "LOOKED_AT_TOGETHER", together)
    path = tmp_path / "text.txt"
    for seed in range(5):
        content = made_up(100, seed).encode()
        path.write_bytes(content)
        size = len(content)
        for place in range(1, size):
            for at_lines in (False, True):
                good = [end for end in range(place, size) if _may_be_cut(content, end, at_lines)]
                assert place_to_cut(path, place, size, at_lines=at_lines) == (good[0] if good else size)
        assert (
            place_to_cut(path, 0, size, at_lines=True) == 0 and place_to_cut(path, size, size, at_lines=False) == size
        )


def _may_be_cut(content: bytes, end: int, at_lines: bool) -> bool:
    if at_lines:
        return content[end - 1 : end] == b"\n"
    before = content[:end].decode(errors="ignore")
    return content[end : end + 1] in (b" ", b"\n") and not before[-1].isspace()


@pytest.mark.slow
def test_documents_without_text_are_counted(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"path={texts / 'f.jsonl'}", f"out={tmp_path / 'out'}", "part_bytes=300") == 0
    assert "left out    documents without text: 1\n" in capsys.readouterr().out
    assert read_index(tmp_path / "out").left_out == ["documents without text: 1"]


@pytest.mark.slow
def test_ids_that_need_more_than_two_bytes_get_four(tmp_path: Path) -> None:
    points = [chr(point) for point in range(0x20, 0x10FFFF) if not 0xD800 <= point < 0xE000][:66_000]
    text = tmp_path / "text.txt"
    text.write_text("".join(points), "utf-8", newline="")
    assert run(f"path={text}", f"out={tmp_path / 'out'}", "vocabulary=characters") == 0
    index = read_index(tmp_path / "out")
    assert index.dtype.itemsize == 4 and len(index.vocabulary) == 66_005
    assert ids_of(tmp_path / "out") == [SOS_ID, *range(5, 66_005)]


@pytest.mark.slow
def test_a_given_vocabulary_is_used_and_what_it_has_not_is_counted(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(f"path={texts}", f"out={first}", "vocabulary=characters") == 0
    (tmp_path / "other.txt").write_text("word word abc ", "utf-8")
    given = f"vocabulary_path={first / VOCABULARY}"
    assert run(f"path={tmp_path / 'other.txt'}", f"out={second}", "vocabulary=characters", given) == 0
    assert "unknown     1 (6.67%) are not in the vocabulary and become padding" in capsys.readouterr().out
    assert read_index(second).vocabulary_state == read_index(first).vocabulary_state
    (tmp_path / "other.txt").write_text("XYZ", "utf-8")
    assert run(f"path={tmp_path / 'other.txt'}", f"out={tmp_path / 'third'}", "vocabulary=characters", given) == 2
    assert "3 of 4 tokens of the text are not in it" in capsys.readouterr().err


@pytest.mark.slow
def test_bpe_is_learned_from_a_sample_of_every_part(texts: Path, tmp_path: Path) -> None:
    common = (f"path={texts}", "vocab_size=300", "part_bytes=400")
    assert run(*common, f"out={tmp_path / 'all'}") == 0
    assert run(*common, f"out={tmp_path / 'some'}", "vocabulary_bytes=300") == 0
    one, other = (read_index(tmp_path / name).vocabulary_state for name in ("all", "some"))
    assert one != other
    assert run(*common, f"out={tmp_path / 'again'}", "jobs=1") == 0
    assert read_index(tmp_path / "again").vocabulary_state == one


@pytest.mark.slow
def test_bpe_of_a_compressed_text_is_that_of_the_text(tmp_path: Path) -> None:
    """The stored size says nothing about the text: the second half has other words."""
    content = (made_up(20_000, 0) + " zyzzyva quokka" * 2_000).encode()
    states = []
    for name, stored in (("plain.txt", content), ("packed.txt.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(stored)
        assert run(f"path={tmp_path / name}", "pattern=*", f"out={tmp_path / f'of {name}'}", "vocab_size=300") == 0
        states.append(read_index(tmp_path / f"of {name}").vocabulary_state)
    assert states[0] == states[1]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def command(texts: Path, out: Path) -> list[str]:
    settings = (f"path={texts}", f"out={out}", "vocab_size=300", "part_bytes=2000", "jobs=2")
    return [sys.executable, "-m", "samout_train", "tokenize", *settings]


@pytest.mark.nightly
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_whatever_ends_it_the_same_command_makes_only_what_is_missing(tmp_path: Path, number: str) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in range(5):
        (texts / f"{name}.txt").write_text(made_up(200_000, name), "utf-8")
    subprocess.run(command(texts, tmp_path / "whole"), check=True, capture_output=True)
    wanted, out = contents(tmp_path / "whole"), tmp_path / "out"
    for least in (0, 1, 100):  # while it learns, at its beginning, in the middle
        process = subprocess.Popen(command(texts, out), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(list(out.glob("*.bin"))) < least or not out.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.001)
        process.send_signal(getattr(signal, number))
        _, error = process.communicate(timeout=30)
        if number != "SIGKILL" and least:
            assert process.returncode == {"SIGTERM": 143, "SIGINT": 130}[number]
            assert "repeat the same command to resume" in error and "Traceback" not in error
        assert not (out / INDEX).exists()
    _workers_end(out)
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert len(there) > 50 and PLAN in there
    done = subprocess.run(command(texts, out), check=True, capture_output=True, text=True)
    assert f"train       {typed_line([program_file(), '-m', 'samout_train', 'data=shards'])}" in done.stdout
    assert contents(out) == wanted
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there


def _workers_end(out: Path) -> None:
    """Processes whose parent was killed end by themselves: nothing is written any more."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        alive = subprocess.run(["pgrep", "-f", f"out={out}"], capture_output=True, text=True).stdout
        before = len(list(out.iterdir()))
        time.sleep(1)
        if not alive and before == len(list(out.iterdir())):
            return
    raise AssertionError("a process goes on")


@pytest.mark.slow
def test_what_is_damaged_is_found_and_made_anew(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (f"path={texts}", f"out={out}", "vocabulary=bytes", "part_bytes=500")
    assert run(*words) == 0
    whole = contents(out)
    assert run(*words) == 0
    num = len(read_index(out).shards)
    assert f"verified    {num} of {num} shards match their sha256\n" in capsys.readouterr().out
    flipped = bytearray(whole["00001.bin"])
    flipped[10] ^= 1
    (out / "00001.bin").write_bytes(flipped)
    assert run(*words) == 0
    assert f"verified    {num - 1} of {num} shards match their sha256; the others" in capsys.readouterr().out
    assert contents(out) == whole
    (out / "00002.bin").write_bytes(b"")
    for name in ("00000.documents", "vocabulary.json"):
        (out / name).unlink()
    assert run(*words) == 0
    assert contents(out) == whole


@pytest.mark.slow
def test_other_settings_and_changed_files_are_refused(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (f"path={texts}", f"out={out}", "vocabulary=bytes")
    assert run(*words, "part_bytes=500") == 0
    whole = contents(out)

    def refused(message: str, *more: str) -> None:
        capsys.readouterr()
        assert run(*words, *(more or ("part_bytes=500",))) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
        assert contents(out) == whole

    refused("holds shards of other settings (part_bytes was 500 and is 600): set another folder", "part_bytes=600")
    times, text = (texts / "b.txt").stat(), (texts / "b.txt").read_bytes()
    (texts / "b.txt").write_bytes(text[:-1] + b"~")  # of the same size, and with the same time, as from an archive
    os.utime(texts / "b.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    refused("its shards were begun with other files (b.txt has changed)")
    (texts / "b.txt").write_bytes(text)
    os.utime(texts / "b.txt", (1, 1))
    refused("its shards were begun with other files (b.txt has changed)")
    (texts / "b.txt").unlink()
    refused("its shards were begun with other files (b.txt is gone)")
    (texts / "bb.txt").write_text("new")
    (out / PLAN).write_text("{")
    whole[PLAN] = b"{"
    refused("plan.json is damaged, or of another version")


def test_a_file_that_is_changed_meanwhile_is_refused(
    texts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    learned = tokenizing._Making.learned

    def slow(making: Any) -> Any:
        vocabulary = learned(making)
        (texts / "e.txt").write_text("another text", "utf-8")
        return vocabulary

    monkeypatch.setattr(tokenizing._Making, "learned", slow)
    assert run(f"path={texts}", f"out={tmp_path / 'out'}", "vocabulary=bytes") == 2
    assert "e.txt has changed since the shards in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "path: is missing"),
        (["path=absent", "out=out"], "path=absent: is not there: give a file or a folder"),
        (["path=texts", "out=out", "pattern=*.md"], "has no file that matches pattern=*.md"),
        (["path=texts", "out=out", "part_bytes=1MB"], "part_bytes=1MB: must be bytes from 50 to 1073741824"),
        (["path=texts", "out=out", "part_bytes=1"], "part_bytes=1: must be bytes from 50 to 1073741824"),
        (["path=texts", "out=out", "part_bytes=2GiB"], "part_bytes=2GiB: must be bytes from 50 to 1073741824"),
        (["path=texts", "out=out", "vocab_size=1000000000"], "vocab_size=1000000000: must be from 261 to 16777216"),
        (["path=texts", "out=out", "jobs=0"], "jobs=0: must be"),
        (["path=texts", "out=out", "job=2"], "job=2: no such key; did you mean jobs?"),
        (["path=texts", "out=out", "vocabulary=words"], "vocabulary=words: must be characters, bytes, bpe"),
        (["path=texts", "out=texts"], "out=texts: has other files (a.txt): set a new or empty folder"),
        (["path=texts", "out=texts/a.txt"], "out=texts/a.txt: is a file: give a directory"),
        (["path=texts/d.txt", "out=out"], "path: there is no text in 1 file(s)"),
        (["path=texts", "out=out", "roles.user=x"], "roles.user=x: must be <|user|>"),
        (["path=bad.txt", "out=out"], "bad.txt is not UTF-8 at byte 3 (0xff): convert it"),
        (["path=bad.txt", "out=out", "vocabulary=bytes"], "bad.txt is not UTF-8 at byte 3 (0xff): convert it"),
        (["path=bad.jsonl", "out=out"], "bad.jsonl line 2: is not JSON"),
        (["path=role.jsonl", "out=out"], "role 'x' has no token (agent, assistant, developer"),
        (["path=role.jsonl", "out=out"], "set '+roles.x=<|user|>'"),
        (["-m", "path=texts", "out=out"], "tokenize makes no sweeps"),
    ],
)
def test_mistakes_are_messages(
    texts: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = texts.parent
    monkeypatch.chdir(folder)
    (folder / "bad.txt").write_bytes(b"abc\xff")
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (folder / "role.jsonl").write_text('{"conversations": [{"role": "x", "content": "a"}]}\n')
    assert run(*words) == 2
    out, error = capsys.readouterr()
    assert message in error and len(error.splitlines()) <= 2 and not out
    assert not (folder / "out" / INDEX).exists()


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    (texts / "large.txt").write_text(made_up(30_000), "utf-8")
    out = tmp_path / "out"
    words = (f"path={texts}", f"out={out}", "vocabulary=bytes", "part_bytes=8000", "jobs=1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        assert run(*words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err
    assert "cannot be written (File too large)" in error and "Then repeat the same command to resume" in error
    assert not list(out.glob("*.tmp")) and not (out / INDEX).exists()
    assert run(*words) == 0 and run(*words[:1], f"out={tmp_path / 'other'}", *words[2:]) == 0
    assert contents(out) == contents(tmp_path / "other")


@pytest.mark.slow
def test_a_process_that_dies_is_told(texts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(tokenizing, "PartWorker", Dying)
    assert run(f"path={texts}", f"out={tmp_path / 'out'}", "vocabulary=bytes") == 1
    assert "a process ended with code -9 before its part was done" in capsys.readouterr().err


class Dying(tokenizing.PartWorker):
    """Kills its process."""

    def write(self, number: int, progress: Any) -> Any:
        """Does not come back."""
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_two_at_one_folder_are_not_let(texts: Path, tmp_path: Path, capsys: Any) -> None:
    from filelock import FileLock

    out = tmp_path / "out"
    assert run(f"path={texts}", f"out={out}", "vocabulary=bytes") == 0
    with FileLock(out / ".lock"):
        assert run(f"path={texts}", f"out={out}", "vocabulary=bytes") == 2
    assert "another process tokenizes into it" in capsys.readouterr().err


def test_workers_do_not_import_torch() -> None:
    code = "import sys; from samout_train.data.shards import workers, write; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
