"""Streams of every kind: closed, full, without a reader, not UTF-8, non-blocking, or no stream at all."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from samout_train import train
from samout_train.checkpoint import find_checkpoint, read_checkpoint
from samout_train.runtime import Bar, StopRequestedError, StopSignals, console, input_as_utf_8, text_of_word
from samout_train.runtime.console import Quiet
from tests.support.marks import spread
from tests.support.program import context, samout

TINY = [
    *("device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "data.seq_len=16"),
    *("data.batch_size=4", "kernels=reference"),
]
RANDOM = [*TINY, "data=random", "data.num_sequences=8", "trainer.max_steps=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run on text with characters of three scripts lies in `run`."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "text.txt").write_text("häuser 中文 лес; " * 40, "utf-8")
    train([*TINY, "data=text", f"data.path={folder / 'text.txt'}", "trainer.max_steps=1", f"run_dir={folder / 'run'}"])
    return folder


def code_of(folder: Path, words: list[str], *, streams: Callable[[], None]) -> int | None:
    """The exit code of the program in a process whose standard streams a function prepares."""
    process = context.Process(target=_main, args=(words, folder, streams))
    process.start()
    process.join(120)
    process.kill()
    return process.exitcode


def _main(words: list[str], folder: Path, streams: Callable[[], None]) -> None:
    os.chdir(folder)
    sys.argv = ["samout_train", *words]
    streams()
    from samout_train.cli.main import main

    main()


def _replace(number: int, descriptor: int | None, encoding: str = "utf-8") -> None:
    """What the interpreter finds at its start where a standard stream is another file, or closed."""
    name = ("stdin", "stdout", "stderr")[number]
    stream: Any = None
    if descriptor is None:
        os.close(number)
    else:
        os.dup2(descriptor, number)
        file = os.fdopen(number, "wb", closefd=False)
        stream = io.TextIOWrapper(file, encoding=encoding, line_buffering=number == 2)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


class Closed:
    """Some descriptors are closed."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __call__(self) -> None:
        for number in self.numbers:
            _replace(number, None)


class Full:
    """Some descriptors are a disk without room."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __call__(self) -> None:
        for number in self.numbers:
            _replace(number, os.open("/dev/full", os.O_WRONLY))


class Unread:
    """Some descriptors are a pipe whose reader is gone."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __call__(self) -> None:
        for number in self.numbers:
            reader, writer = os.pipe()
            os.close(reader)
            _replace(number, writer)


class Encoded:
    """Standard output and error are files in an encoding."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.encoding = path, encoding

    def __call__(self) -> None:
        for number in (1, 2):
            flags = os.O_WRONLY | os.O_CREAT
            _replace(number, os.open(self.path.with_suffix(f".{number}"), flags), self.encoding)


class ReadOnly:
    """Standard output can be read from, and not be written to."""

    def __call__(self) -> None:
        _replace(1, os.open(os.devnull, os.O_RDONLY))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", spread([["--help"], [], ["--version"], ["--cfg=job"], ["verify", "--help"]], 5), ids=str
)
def test_what_is_only_printed_has_failed_where_it_is_lost(tmp_path: Path, words: list[str]) -> None:
    assert code_of(tmp_path, words, streams=Full(1)) == 1
    assert code_of(tmp_path, words, streams=ReadOnly()) == 1
    assert code_of(tmp_path, words, streams=Unread(1)) == 0


QUICK = [Closed(0, 1, 2), Full(1, 2), Unread(1, 2)]
ALL = [*QUICK, Closed(1), Closed(2), Full(2), Unread(1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "streams",
    [pytest.param(one, marks=[] if one in QUICK else pytest.mark.nightly) for one in ALL],
    ids=[f"{type(one).__name__}{one.numbers}" for one in ALL],
)
def test_a_run_comes_to_its_end_whatever_the_streams_are(tmp_path: Path, streams: Callable[[], None]) -> None:
    assert code_of(tmp_path, [*RANDOM, "run_dir=run"], streams=streams) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    assert find_checkpoint(tmp_path / "run") and read_checkpoint(find_checkpoint(tmp_path / "run"))["step"] == 2
    log = (tmp_path / "run" / "samout_train.log").read_text()
    assert "val loss" in log and "resume" in log
    printed = [path for path in tmp_path.rglob("*") if path.is_file() and b"val loss    " in path.read_bytes()]
    assert [path.name for path in printed] == ["samout_train.log"], "text went into a file"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "encoding", ["cp1252", "ascii", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("latin-1", "koi8-r"))]
)
def test_generated_text_has_replacements_in_any_encoding(folder: Path, tmp_path: Path, encoding: str) -> None:
    words = ["generate", "run=run", "prompt=häuser 中文 лес", "max_new_tokens=200", "kernels=reference"]
    whole = samout(folder, *words).stdout
    assert code_of(folder, words, streams=Encoded(tmp_path / "printed", encoding)) == 0
    printed = (tmp_path / "printed.1").read_bytes()
    assert printed == whole.encode(encoding, "replace") and printed.count(b"?") > 2


@pytest.mark.nightly
def test_samples_after_training_and_bars_are_printed_in_any_encoding(folder: Path, tmp_path: Path) -> None:
    words = [*TINY, "data=text", "data.path=text.txt", "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}"]
    words.append("callbacks.report.verbose=true")
    assert code_of(folder, words, streams=Encoded(tmp_path / "printed", "cp1252")) == 0
    printed = (tmp_path / "printed.1").read_text("cp1252")
    log = (tmp_path / "run" / "samout_train.log").read_text("utf-8")
    wanted = log[log.index("sample 3, after") :].splitlines()[1].rpartition(" - ")[2]
    assert wanted.encode("cp1252", "replace").decode("cp1252") in printed and "ä" in printed
    assert "100%" in (tmp_path / "printed.2").read_text("cp1252")


@pytest.mark.slow
def test_generate_stops_where_nobody_reads_and_reports_a_full_disk(folder: Path) -> None:
    words = ["generate", "run=run", "prompt=h", "kernels=reference"]
    started = time.monotonic()
    assert code_of(folder, [*words, "max_new_tokens=10000000"], streams=Unread(1)) == 0
    assert time.monotonic() - started < 60
    assert code_of(folder, [*words, "max_new_tokens=3"], streams=Full(1)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["inspect", pytest.param("evaluate", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("streams", [Closed(1, 2), Full(1), Unread(1, 2)], ids=lambda streams: type(streams).__name__)
def test_other_verbs_come_to_their_end(folder: Path, verb: str, streams: Callable[[], None]) -> None:
    words = {"inspect": ["path=run"], "evaluate": ["run=run", "lengths=[16]"]}[verb]
    assert code_of(folder, [verb, *words], streams=streams) == 0


def test_words_and_input_in_other_encodings_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_of_word("häuser 中") == "häuser 中"
    monkeypatch.setattr(os, "fsencode", lambda word: word.encode("ascii", "surrogateescape"))
    assert text_of_word("h\udcc3\udca4user") == "häuser"  # as Python reads a word in the C locale
    with pytest.raises(UnicodeError):
        text_of_word("\udcff")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert input_as_utf_8("häuser".encode()) == input_as_utf_8(b"h\xe4user") == "häuser".encode()
    monkeypatch.setattr(sys, "stdin", None)
    assert input_as_utf_8(b"h\xe4user") == b"h\xe4user"


class WritesOnly:
    """What some notebooks and services put in place of a stream."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def write(self, text: str) -> None:
        self.texts.append(text)


class Raises(WritesOnly):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> None:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        raise self.error


STRANGE = [None, WritesOnly(), Raises(OSError(28, "full")), Raises(BrokenPipeError()), Raises(ValueError("closed"))]


@pytest.mark.parametrize("stream", STRANGE, ids=lambda stream: type(stream).__name__)
def test_bars_are_drawn_on_anything(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    with Bar(total=3, mininterval=0) as bar:
        bar.update()
        with tqdm.external_write_mode():
            pass
    if type(stream) is WritesOnly:
        assert "1/3" in "".join(stream.texts)


@pytest.mark.parametrize("stream", [None, WritesOnly(), Raises(OSError(5, "gone"))], ids=lambda one: type(one).__name__)
def test_training_from_python_takes_any_streams(stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    summary, _ = train([*RANDOM, f"run_dir={tmp_path / 'run'}"])
    assert summary["steps"] == 2


def test_a_bar_is_replaced_where_the_encoding_lacks_its_characters() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    stream = Quiet(file)
    stream.write("läuft █")
    assert file.buffer.getvalue() == b"l?uft ?" and stream.encoding == "ascii"  # type: ignore[attr-defined]


def test_a_stream_that_would_block_is_waited_for_and_all_of_it_arrives() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text, found = os.urandom(1 << 20), []

    def read() -> None:
        while content := os.read(reader, 1 << 16):
            found.append(content)

    thread = threading.Thread(target=read)
    thread.start()
    buffered = io.BufferedWriter(console._LastingFile(writer, "test"))
    buffered.write(text)
    buffered.flush()
    os.close(writer)
    thread.join(20)
    os.close(reader)
    assert b"".join(found) == text and "test" not in console._lost


def test_a_full_disk_loses_only_what_it_did_not_take(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    file = console._LastingFile(descriptor, "test")
    full = os.open("/dev/full", os.O_WRONLY)
    kept = os.dup(descriptor)
    os.dup2(full, descriptor)
    assert file.write(b"lost") == 4 and console._lost.pop("test").errno == 28
    os.dup2(kept, descriptor)
    assert file.write(b"kept") == 4 and (tmp_path / "out").read_bytes() == b"kept"
    for each in (descriptor, full, kept):
        os.close(each)


def test_file_names_that_are_not_utf_8_are_printed_as_they_are() -> None:
    console.codecs.register_error(console.ERRORS, console._replaced)
    assert os.fsdecode(b"a\xffb").encode("utf-8", console.ERRORS) == b"a\xffb"
    assert "ä\ud800中".encode("latin-1", console.ERRORS) == b"\xe4??"


@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 143), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_hangup_is_a_stop_like_the_others(name: str, code: int) -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), getattr(signal, name))
        with pytest.raises(StopRequestedError, match=f"stopped by {name}") as caught:
            signals.check()
    assert caught.value.exit_code == code


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_what_the_parent_ignores_stays_ignored(name: str) -> None:
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), number)
            signals.check()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


# What is hung up, and where its runs log.
PARENTS = {
    "train": ([], "run"),
    "sweep": (["-m", "seed=1,2"], "run/*"),
    "compare": (["compare", "models=[v1,v8]", "lr=1e-3", "seeds=1", "run_dir=run"], "run/*"),
    "search": (["search", "space={optimizer.lr: [1e-3, 1e-2]}", "trials=2", "run_dir=run"], "run/*"),
    "prove_resume": (["prove_resume", "steps=100000", "kills=1", "run_dir=run"], "run/*"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("parent", PARENTS)
def test_a_hangup_stops_what_runs_and_its_children(tmp_path: Path, parent: str) -> None:
    words, where = PARENTS[parent]
    own = {"train": ["run_dir=run"], "sweep": ["hydra.sweep.dir=run"]}.get(parent, [])
    limit = [] if parent == "prove_resume" else ["trainer.max_steps=100000"]
    settings = [word for word in RANDOM if not word.startswith("trainer.max_steps")]
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "samout_train", *words, *settings, *limit, *own, "schedule=constant"],
            cwd=tmp_path,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
    deadline = time.monotonic() + 100
    while not any(path.stat().st_size for path in tmp_path.glob(f"{where}/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "printed").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 143, (tmp_path / "printed").read_text()
    assert "stopped by SIGHUP" in (tmp_path / "printed").read_text()
    if parent != "prove_resume":  # whose runs are killed anyway
        assert list(tmp_path.glob(f"{where}/checkpoints/step_*.pt"))
    for lock in tmp_path.glob("**/.hydra/lock"):
        from samout_train.checkpoint import is_taken

        assert not is_taken(lock.parent.parent), "a child lives on"
