"""Places that cannot be written to or are full: what is said, the exit code, and what is left."""

import errno
import importlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samout_train import train
from samout_train.cli import compare, export, search, tokenize, train as train_verb
from samout_train.cli.main import main
from samout_train.cli.verb import Verb
from samout_train.config import ConfigError
from samout_train.data.text import token_cache
from samout_train.evaluation import draw_search, missing_charts
from samout_train.runtime import (
    PlaceError,
    append,
    compile_problem,
    device,
    in_words,
    is_of_a_place,
    message_of,
    os_errors,
    place_problem,
    replace_file,
)
from tests.support.program import context

TINY = [
    *("device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "data.seq_len=16"),
    *("data.batch_size=4", "kernels=reference", "trainer.max_steps=1"),
]
RANDOM = [*TINY, "data=random", "data.num_sequences=8"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Lets no file grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ["12,345 bytes are needed", "bytes are free", "delete what is not needed"]),
        (errno.EDQUOT, ["Disk quota exceeded", "12,345 bytes are needed"]),
        (errno.EFBIG, ["File too large", "12,345 bytes are needed", "ulimit -f"]),
        (errno.EROFS, ["Read-only file system", "choose a place that can be written to"]),
        (errno.EACCES, ["Permission denied", "that this user can read and write"]),
        (errno.ENAMETOOLONG, ["File name too long", "choose a shorter name"]),
        (errno.ENOTDIR, ["Not a directory", "a part of this path is a file"]),
        (errno.EMFILE, ["Too many open files", "ulimit -n"]),
    ],
)
def test_what_the_system_refuses_is_said_with_the_place_and_what_to_do(
    tmp_path: Path, number: int, words: list[str]
) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path / "not" / "there"))
    said = in_words(error, needed=12_345)
    assert said.startswith(f"{tmp_path / 'not' / 'there'}: ") and all(word in said for word in words), said
    assert "\n" not in said and "Errno" not in said
    assert in_words(PlaceError(number, "a whole sentence")) == str(PlaceError(number, "a whole sentence"))


def test_the_compilers_error_says_what_the_system_refused() -> None:
    from torch._inductor.exc import InductorError

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/x")
    for error in (InductorError(full, None), full):
        assert is_of_a_place(error) and message_of(error).startswith("/cache/x: cannot be written (No space left")
    other = InductorError(KeyError("x"), None)
    assert not is_of_a_place(other) and message_of(KeyError("x")) == "'x'"


def test_errors_of_files_name_the_file(tmp_path: Path) -> None:
    content = bytes(200_000)
    with files_of_at_most(1000):
        with pytest.raises(OSError) as caught:
            replace_file(tmp_path / "one", lambda file: file.write(content))
        assert caught.value.filename == str(tmp_path / "one")
        with (tmp_path / "two").open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
            append(file, content)
        assert caught.value.filename == str(tmp_path / "two")
    assert (tmp_path / "two").stat().st_size == 0 and not (tmp_path / "one").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        replace_file(tmp_path / "file" / "x", lambda file: file.write(content))
    assert caught.value.filename == str(tmp_path / "file" / "x")


def test_a_full_disk_at_the_start_is_said_in_bytes_with_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with files_of_at_most(1000):
        assert train_verb.train([*RANDOM, "run_dir=run"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("run_dir=run: cannot be written") and "65,536 bytes are needed" in told, told
    assert "(ulimit -f)" in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [
        ("file/run", "run_dir=file/run: file is a file: give a directory"),
        ("a" * 300, "File name too long: choose a shorter name"),
        ("/proc/run", "run_dir=/proc/run: cannot be written to"),
    ],
)
def test_a_run_directory_that_cannot_be_made_is_refused(
    tmp_path: Path, run_dir: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert train_verb.train([*RANDOM, f"run_dir={run_dir}"]) == 2
    assert message in capsys.readouterr().err


def test_windows_reasons_have_their_own_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = PermissionError(errno.EACCES, "in use", "a.txt")
    in_use.winerror = 32  # type: ignore[attr-defined]
    assert in_words(in_use) == "a.txt: in use: close the program that has it open"
    assert in_words(PermissionError(errno.EACCES, "denied", "a.txt")).endswith("this user can read and write")
    long = FileNotFoundError(errno.ENOENT, "No such file", f"/{'a' * 250}")
    assert "characters" not in in_words(long)
    monkeypatch.setattr(os_errors, "os", SimpleNamespace(name="nt"))
    assert in_words(long).endswith(
        "choose a shorter directory, since Windows takes 259 characters unless long paths are enabled"
    )
    assert in_words(FileNotFoundError(errno.ENOENT, "No such file", "/a")) == "/a: No such file"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a text of a few words, again and again; " * 5000)
    return path


@pytest.mark.slow
def test_a_full_cache_is_named_with_what_it_needs_and_what_to_set(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    words = [*TINY, "data=text", f"data.path={text}", f"run_dir={tmp_path / 'run'}"]
    with files_of_at_most(10_000), pytest.raises(PlaceError) as caught:
        train(words)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'cache'}: cannot be written (File too large): 800,000 bytes are needed"), told
    assert "are needed: raise the limit on the size of files (ulimit -f)" in told
    assert train(words)[0]["steps"] == 1, "with room it goes on"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_cache_that_cannot_be_written_to_is_named(
    tmp_path: Path, text: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lock:
        is_locked = False

        def __init__(self, path: Path) -> None:
            self.path = path

        def acquire(self, timeout: float) -> None:
            raise OSError(number, os.strerror(number), str(self.path))

    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "FileLock", Lock)
    with pytest.raises(PlaceError) as caught:
        train([*TINY, "data=text", f"data.path={text}", f"run_dir={tmp_path / 'run'}"])
    assert os.strerror(number) in str(caught.value) and "set SAMOUT_TRAIN_CACHE" in str(caught.value)


def test_a_cache_below_a_file_is_refused(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(text / "cache"))
    with pytest.raises((ConfigError, ValueError), match=r"Not a directory: set SAMOUT_TRAIN_CACHE to another folder"):
        train([*TINY, "data=text", f"data.path={text}", f"run_dir={tmp_path / 'run'}"])


@pytest.mark.slow
def test_the_program_says_the_same_with_exit_code_1(tmp_path: Path, text: Path) -> None:
    process = context.Process(target=_limited, args=([*TINY, "data=text", f"data.path={text}"], tmp_path))
    process.start()
    process.join(60)
    told = (tmp_path / "err").read_text()
    assert process.exitcode == 1 and "Traceback" not in told, told
    assert "raise the limit on the size of files (ulimit -f)" in told


def _limited(words: list[str], folder: Path) -> None:
    os.chdir(folder)
    os.environ["SAMOUT_TRAIN_CACHE"] = str(folder / "cache")
    os.dup2(os.open("err", os.O_WRONLY | os.O_CREAT), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, resource.RLIM_INFINITY))
    sys.argv = ["samout_train", *words, "run_dir=run"]
    main()


@pytest.mark.slow
def test_a_full_disk_while_tokenizing_or_exporting_names_the_place(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train([*RANDOM, f"run_dir={tmp_path / 'run'}"])
    with files_of_at_most(3000):
        assert tokenize.tokenize([f"path={text}", f"out={tmp_path / 'shards'}", "jobs=1", "vocabulary=bytes"]) == 1
        told = capsys.readouterr().err
        assert (
            str(tmp_path / "shards") in told and "(ulimit -f)" in told and "repeat the same command to resume" in told
        ), told
        assert export.export([f"run={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"{tmp_path / 'out'}: cannot be written") and "nothing is left there" in told
    assert not (tmp_path / "out").exists()


def test_verbs_answer_with_1_where_there_is_no_room_and_with_2_where_the_place_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def raises(number: int) -> Verb:
        def inspect(*, path: str) -> int:
            raise OSError(number, os.strerror(number), "/some/place")

        return Verb(inspect)

    for number, code in ((errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EROFS, 2), (errno.EACCES, 2)):
        assert raises(number)(["path=x"]) == code
        assert capsys.readouterr().err.startswith("/some/place: ")


def test_the_folder_of_torchs_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    told = compile_problem(torch.device("cpu")) or ""
    assert told.startswith("trainer.compile=true: needs a folder for what is compiled") and str(tmp_path) in told
    assert "set TORCHINDUCTOR_CACHE_DIR to another folder, or leave it out" in told
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert device._cache_problem() is None


def test_a_matplotlib_that_cannot_be_used_leaves_pictures_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> Any:
        raise OSError("Matplotlib requires access to a writable cache directory")

    monkeypatch.setattr(importlib, "import_module", refused)
    assert "requires access to a writable cache directory): fix this" in (missing_charts() or "")
    assert draw_search([(0, "done", 1.0)], path=tmp_path / "x.png") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("file", "is a file: give a directory"),
        pytest.param("file/x", "file is a file: give a directory", marks=pytest.mark.nightly),
        pytest.param(
            "link",
            "is a link to gone/x, which is not there: make that, or give another directory",
            marks=pytest.mark.nightly,
        ),
        ("link/x", "link is a link to gone/x, which is not there: make that, or give another directory"),
    ],
)
def test_a_directory_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("gone/x")
    assert place_problem(Path(where)) == said and place_problem(Path("new/x")) is None
    requests: list[tuple[Callable[[list[str]], int], list[str], str]] = [
        (tokenize.tokenize, ["path=not there"], "out"),
        (export.export, ["run=not there", "format=safetensors"], "out"),
        (train_verb.train, RANDOM, "run_dir"),
        (train_verb.train, ["-m", *RANDOM, "seed=1,2"], "hydra.sweep.dir"),
        (compare.compare, ["models=[v1,v8]", "data=random", "device=cpu"], "run_dir"),
        (compare.compare, ["runs=[not there]"], "run_dir"),
        (search.search, [*RANDOM, "space={optimizer.lr:[1e-3,1e-2]}"], "run_dir"),
    ]
    for verb, words, key in requests:
        assert verb([*words, f"{key}={where}"]) == 2
        assert f"{key}={where}: {said}\n" in capsys.readouterr().err, (verb, words)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


@pytest.mark.slow
def test_a_batch_whose_step_does_not_fit_is_refused_with_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("samout_train.runtime.memory.total_memory_bytes", lambda device: 50_000_000)
    words = [*RANDOM, "data.batch_size=4000", f"run_dir={tmp_path / 'run'}"]
    assert train_verb.train(words) == 2
    said = capsys.readouterr().err
    assert "data.batch_size=4000: does not fit into memory: " in said, said
    assert "bytes are needed, and there are 50,000,000: choose a smaller one, or a larger trainer.accumulate" in said
    assert not (tmp_path / "run").exists()
