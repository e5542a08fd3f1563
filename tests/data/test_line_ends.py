"""Marks, line ends and other kinds of files: one way of reading, wherever text comes from."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samout_train.checkpoint import evaluation_data, load_run
from samout_train.cli import generate, tokenize
from samout_train.data import Characters, JsonlReader, LineEnds, read_vocabulary_file, text_of
from samout_train.data.shards.index import read_index
from samout_train.data.shards.parts import place_to_cut
from samout_train.data.text import encoding as encoding_module
from samout_train.data.text.documents import Special, TextReader
from samout_train.data.text.encoding import other_kind, printable
from samout_train.data.text.files import survey
from samout_train.runtime import file_kind
from samout_train.training import DATA_SETTINGS, data_problems, train

MARK = b"\xef\xbb\xbf"


def read(path: Path, line_ends: LineEnds = "keep") -> str:
    reader = JsonlReader.of({}, line_ends) if path.suffix == ".jsonl" else TextReader(sos=True, line_ends=line_ends)
    parts = [part for piece in reader.read(path) for part in piece.parts]
    return "".join(part.token if isinstance(part, Special) else part for part in parts)


@pytest.mark.parametrize(
    ("content", "keep", "fold"),
    [
        (b"a\r\nb\rc\n\r\n", "a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        (MARK + b"a\n", "a\n", "a\n"),
        (b"a" + MARK + b"\r", "a\ufeff\r", "a\ufeff\n"),
    ],
)
def test_files_prompts_and_json_strings_are_read_alike(tmp_path: Path, content: bytes, keep: str, fold: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    document = content.removeprefix(MARK).replace(b"\r", rb"\r").replace(b"\n", rb"\n")
    (tmp_path / "a.jsonl").write_bytes(MARK + b'{"text": "' + document + b'"}\r\n')
    wanted: list[tuple[LineEnds, str]] = [("keep", keep), ("fold", fold)]
    for line_ends, text in wanted:
        assert read(tmp_path / "a.txt", line_ends) == read(tmp_path / "a.jsonl", line_ends) == "<|sos|>" + text
        assert text_of("a", content, line_ends) == text


def test_counts_are_those_of_the_text_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(MARK + b"a\r\nb\r\n")
    for line_ends, size in (("keep", 6), ("fold", 4)):
        reader = TextReader(sos=True, line_ends=line_ends)  # type: ignore[arg-type]
        counts = survey(tmp_path, [tmp_path / "a.txt"], reader).count()
        assert (counts.num_bytes, counts.characters, counts.documents) == (size, size, 1)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_marks_at_the_beginning_go(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(MARK * number + b"a " + MARK + b"b")
    assert read(path) == "<|sos|>a \ufeffb" and text_of("a", path.read_bytes(), "keep") == "a \ufeffb"
    (piece,) = TextReader(sos=True).read(path)
    assert list(TextReader(sos=True).read(path, piece.end)) == [] and piece.end == 3 * number + 6
    assert list(TextReader(sos=True).read(path, 0, 3)) == []


def test_marks_where_files_of_json_lines_were_joined_go(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARK * 2 + b'{"text": "a"}\n' + MARK + b'{"text": "' + MARK + b'b"}\n' + MARK)
    assert read(path) == "<|sos|>a<|sos|>\ufeffb"


def test_a_mark_alone_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(MARK)
    assert list(TextReader(sos=True).read(tmp_path / "a.txt")) == []


def test_folded_text_is_cut_before_a_carriage_return(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"word\r\n" * 20)
    assert place_to_cut(path, 8, 120, at_lines=False, fold=True) == 10
    assert place_to_cut(path, 8, 120, at_lines=False) == 120


def zipped(text: bytes = b"text") -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", text)
        return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lzma.compress(b"text"), "is compressed (xz): decompress it first, for example with `xz -dc "),
        (zipped(), "is compressed (zip)"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is cut short (zstd)"),
        (gzip.compress(b"text", mtime=0)[:-4], "is cut short (gzip): copy or download it again"),
        (b"PAR1\x15\x04\x15\x10", "is a Parquet table"),
        (b"%PDF-1.7\n", "is a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run `git lfs pull`"),
        ("text".encode("utf-16"), "is UTF-16: save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8 "),
        (b"\xfe\xff" + "text".encode("utf-16-be"), "is UTF-16"),
        ("text".encode("utf-32"), "is UTF-32"),
        ("text".encode("utf-16-le"), "has a zero byte at byte 1, so it is probably UTF-16LE and not UTF-8"),
        (b"text" * 5 + b"\0", "has a zero byte at byte 20, so it is not text: leave it out"),
        ("ab".encode("utf-16-be"), "so it is probably UTF-16BE and not UTF-8"),
        ("Привет, мир\n".encode("utf-16-be"), "so it is probably UTF-16BE and not UTF-8"),
        ("Привет, мир\n".encode("utf-16-le"), "so it is probably UTF-16LE and not UTF-8"),
        ("日本 text".encode("utf-32-le"), "so it is probably UTF-32LE and not UTF-8"),
        ("日本 text".encode("utf-32-be"), "so it is probably UTF-32BE and not UTF-8"),
        ("naïve é".encode()[:-1], "ends within a character at byte 7 (0xc3), so it is cut short: copy or download it"),
        (b"caf\xe9", "is not UTF-8 at byte 3 (0xe9), or ends within a character: convert it, for example with `iconv"),
        (b"ab\xed\xa0\x80", "has half a surrogate pair at byte 2 (0xed), as in CESU-8, which is not UTF-8: save it"),
    ],
)
def test_a_file_of_another_kind_is_named_whatever_it_is_called(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} ") as caught:
            read(tmp_path / name)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="prompt "):
        text_of("prompt", content, "keep")


@pytest.mark.parametrize(("pack", "command"), [(gzip.compress, "gunzip -c"), (bz2.compress, "bzip2 -dc")])
def test_a_prompt_is_not_decompressed(pack: Callable[[bytes], bytes], command: str) -> None:
    with pytest.raises(ValueError, match=rf"standard input is compressed .*`{command}`"):
        text_of("standard input", pack(b"text"), "keep")


CHINESE = "第一行。语言模型不用注意力。\r\nline 2, 第二行\r\n"
BIG_FIVE = "第一行。語言模型不用注意力。\r\n"


@pytest.mark.parametrize(
    ("text", "encoding", "proposed"),
    [
        (CHINESE, "gbk", "GB18030"),
        ("English first. " * 9000 + CHINESE * 5000, "gb18030", "GB18030"),
        (BIG_FIVE, "big5", "WINDOWS-1252"),
        ("Où est le café ?", "cp1252", "WINDOWS-1252"),
        ("ÄÖÜ sind Umlaute, ß nicht.", "cp1252", "WINDOWS-1252"),
        ("Это мир", "cp1251", "WINDOWS-1252"),
    ],
)
@pytest.mark.parametrize("system", ["posix", "nt"])
def test_the_line_for_text_in_an_older_encoding_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, text: str, encoding: str, proposed: str
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    monkeypatch.setattr(encoding_module, "os", SimpleNamespace(name=system))
    with pytest.raises(ValueError, match=" `") as caught:
        list(TextReader(sos=False).read(tmp_path / "a.txt"))
    line = str(caught.value).split("`")[1]
    assert proposed in line and ("iconv" in line) == (system == "posix")
    language = {"GB18030": "Chinese"}.get(proposed, "Western European")
    assert f"if it is {language}" in str(caught.value)
    if proposed != "GB18030" and encoding != "cp1252":
        return
    if shutil.which("bash") is None or (system == "posix" and shutil.which("iconv") is None):
        pytest.skip("there is no iconv, or no bash")
    subprocess.run(["bash", "-c", line], check=True)
    assert (tmp_path / "a.utf8.txt").read_bytes() == text.encode("utf-8")


def test_on_windows_an_archive_is_unpacked_by_a_program_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(lzma.compress(b"text"))
    monkeypatch.setattr(file_kind, "os", SimpleNamespace(name="nt"))
    with pytest.raises(
        ValueError, match=r"is compressed \(xz\): decompress it first, for example with 7-Zip, and give"
    ):
        list(TextReader(sos=False).read(tmp_path / "a.txt"))


TOOLS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "xz": ("xz -dc", lzma.compress),
    "lz4": ("lz4 -dc", lambda text: piped(["lz4", "-c"], text)),
    "unzip": ("unzip -p", lambda text: zipped(text)),
    "iconv": ("iconv -f WINDOWS-1252 -t UTF-8", lambda text: text.decode().encode("cp1252")),
    "iconv of UTF-16": ("iconv -f UTF-16 -t UTF-8", lambda text: text.decode().encode("utf-16")),
    "iconv of UTF-16BE": ("iconv -f UTF-16BE -t UTF-8", lambda text: text.decode().encode("utf-16-be")),
    "iconv of UTF-32LE": ("iconv -f UTF-32LE -t UTF-8", lambda text: text.decode().encode("utf-32-le")),
    "iconv without a mark": ("iconv -f UTF-16LE -t UTF-8", lambda text: text.decode().encode("utf-16-le")),
}


def piped(command: list[str], content: bytes) -> bytes:
    return subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", ["a.txt", "it's $HOME b.txt", "-n.txt", "plain"])
def test_the_line_that_is_printed_makes_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, name: str
) -> None:
    if shutil.which(tool.partition(" ")[0]) is None or shutil.which("bash") is None:
        pytest.skip(f"{tool} is not installed")
    monkeypatch.chdir(tmp_path)
    text = "the naïve café "
    command, pack = TOOLS[tool]
    Path(name).write_bytes(pack(text.encode()))
    Path(name).with_name(f"{Path(name).stem}.unpacked{Path(name).suffix}").write_text("is not written over", "utf-8")
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=" `") as caught:
        list(TextReader(sos=False).read(Path(name)))
    line = str(caught.value).split("`")[1]
    assert line.startswith(command + " ")
    subprocess.run(["bash", "-c", line], check=True)
    (new,) = set(tmp_path.iterdir()) - before
    assert "move the old file out" in str(caught.value), "or a folder would still hold it"
    assert read(new) == "<|sos|>" + text and Path(name).suffix in ("", new.suffix)
    with pytest.raises(ValueError) as caught:
        text_of("standard input", pack(text.encode()), "keep")
    assert f"`{command}`" in str(caught.value), "which has no name to give"


@pytest.mark.parametrize("content", [b"", b"BZh9 is text", b"PAR1 is text", b"PK is text", b"%PDF", b"\xc3\xa4"])
def test_text_that_begins_like_another_kind_is_text(content: bytes) -> None:
    assert other_kind(content) is None


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone.txt cannot be read \(No such file or directory\): make it readable"):
        read(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match=r"path: .*gone.txt cannot be read"):
        survey(tmp_path, [tmp_path / "gone.txt"], TextReader(sos=True))


def test_a_file_that_is_gone_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    looked_at = survey(tmp_path, [tmp_path / "a.txt"], TextReader(sos=True))
    assert not looked_at.changed()
    (tmp_path / "a.txt").unlink()
    assert looked_at.changed()


def test_a_vocabulary_that_an_editor_saved_with_a_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_bytes(MARK + b'{"name": "bytes"}')
    assert read_vocabulary_file(tmp_path / "vocabulary.json").name == "bytes"


def test_names_are_printed_in_one_line_of_utf_8() -> None:
    assert printable("a\nb\udcff\x1b[31mä") == "a\\nb\\udcff\\x1b[31mä"


@pytest.mark.slow
@pytest.mark.parametrize("line_ends", [pytest.param("keep", marks=pytest.mark.nightly), "fold"])
def test_prompts_and_given_text_are_read_as_the_run_reads_its_own(
    tmp_path: Path, line_ends: LineEnds, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(MARK + b"one two\r\nthree\r" * 100)
    data = ["data=text", f"data.path={tmp_path / 'a.txt'}", f"data.line_ends={line_ends}", "data.seq_len=8"]
    sizes = ["model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "data.batch_size=4"]
    run = tmp_path / "run"
    quick = ["kernels=reference", "~callbacks.tensorboard", "~callbacks.sample", "~callbacks.lengths"]
    train([*data, *sizes, *quick, "trainer=debug", "device=cpu", f"run_dir={run}"])
    (tmp_path / "prompt.txt").write_bytes(MARK + b"one\r\n\r")
    words = [f"run={run}", f"prompt=@{tmp_path / 'prompt.txt'}", "max_new_tokens=1", "device=cpu", "kernels=reference"]
    capsys.readouterr()
    assert generate.generate(words) == 0
    out, error = capsys.readouterr()
    assert out.startswith({"keep": "one\r\n\r", "fold": "one\n\n"}[line_ends])
    assert f"prompt: {6 if line_ends == 'keep' else 5} tokens" in error
    loaded = load_run(run)
    words = ["data=text", f"data.path={tmp_path / 'a.txt'}"]
    _, source, _ = evaluation_data(loaded, words, None, data_problems=data_problems, loop_keys=DATA_SETTINGS)
    assert source.line_ends == loaded.line_ends == line_ends


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (
            "a\r\n",
            "prompt=a\r\n: character '\\r' at position 1 is not in the vocabulary of this data: save the prompt with",
        ),
        ("aЖ", "prompt=aЖ: character 'Ж' at position 1 is not in the vocabulary of this data: leave it out, or write"),
    ],
)
def test_a_prompt_with_other_characters_says_what_to_do(prompt: str, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        generate._encoded(Characters.of_text(["a\n"]), prompt, prompt)
    assert str(refused.value).startswith(told)


@pytest.mark.slow
@pytest.mark.parametrize("line_ends", ["keep", "fold"])
def test_shards_are_cut_anywhere_and_keep_how_they_were_read(tmp_path: Path, line_ends: LineEnds) -> None:
    content = "".join(f"word{number}\r\n" + "two\tthree\r" * (number % 3) for number in range(200))
    (tmp_path / "a.txt").write_bytes(MARK + content.encode())
    out = tmp_path / "out"
    words = [f"path={tmp_path}", f"out={out}", "part_bytes=300", "jobs=1", f"line_ends={line_ends}"]
    assert tokenize.tokenize([*words, "vocabulary=bytes"]) == 0
    index = read_index(out)
    ids = np.concatenate([np.fromfile(path, "<u2") for path in sorted(out.glob("*.bin"))])
    assert index.vocabulary.decode(ids.tolist()) == read(tmp_path / "a.txt", line_ends)
    assert index.line_ends == line_ends and len(index.shards) > 1
    assert tokenize.tokenize([*words, "vocabulary=bytes"]) == 0
    other = "fold" if line_ends == "keep" else "keep"
    assert tokenize.tokenize([*words[:-1], f"line_ends={other}", "vocabulary=bytes"]) == 2
