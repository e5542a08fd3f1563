"""Environments: no home, no name, compilers that do not work, and files that are called like a module."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
import torch

import samout_train
from samout_train.ops import is_fused, kernels, numba_support, use_kernels
from samout_train.ops.max_scan import max_mix
from samout_train.ops.numba_support import compiled
from samout_train.runtime import ensure_home, home, own_folder, provenance
from samout_train.runtime.home import cache_directory
from tests.support.program import samout

PROGRAM = [sys.executable, "-m", "samout_train"]
TINY = [
    *("data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("data.seq_len=9", "data.num_sequences=8", "data.batch_size=4", "trainer.max_steps=2"),
]


@pytest.fixture
def fresh_kernels() -> Iterator[None]:
    kernels._unusable.cache_clear()
    use_kernels("auto")
    yield
    kernels._unusable.cache_clear()
    use_kernels("auto")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["model=v8"], ["compare", "models=[v8,gru]"], ["--help"]])
def test_a_package_that_was_copied_without_its_conf_names_the_file_that_it_lacks(
    tmp_path: Path, words: list[str]
) -> None:
    shutil.copytree(
        Path(samout_train.__file__).parent, tmp_path / "samout_train", ignore=shutil.ignore_patterns("conf")
    )
    found = subprocess.run(
        [PROGRAM[0], "-P", *PROGRAM[1:], *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr
    name = {"compare": "compare.yaml"}.get(words[0], "config.yaml")
    assert found.stderr.strip() == f"{tmp_path / 'samout_train' / 'conf' / name}: No such file or directory"


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user id without an entry in the password file and without HOME."""
    import pwd
    import tempfile

    def unknown(uid: Any) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME", "SAMOUT_TRAIN_CACHE"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"samout_train-{os.getuid()}"


def test_a_user_without_name_and_home_gets_both(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import getpass

    assert cache_directory() == nobody / ".cache" / "samout_train"
    assert Path.home() == nobody and getpass.getuser() == f"user{os.getuid()}"
    assert nobody.stat().st_mode & 0o777 == 0o700
    told = capsys.readouterr().err
    assert "HOME: is not set" in told and str(nobody) in told and "Set HOME." in told
    ensure_home()
    assert not capsys.readouterr().err, "said once"


def test_a_home_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    ensure_home()
    assert os.environ["HOME"] == "/somewhere"


def test_a_folder_for_compiled_code_that_cannot_be_written_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    ensure_home()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    told = capsys.readouterr().err
    assert f"TORCHINDUCTOR_CACHE_DIR={tmp_path / 'file' / 'cache'}: cannot be written to (Not a directory)" in told
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "good"))
    ensure_home()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "good") and not capsys.readouterr().err


def test_a_folder_of_another_user_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"samout_train-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="belongs to another user"):
        own_folder(str(tmp_path))
    monkeypatch.setattr(home.os, "getuid", lambda: 4711)
    (tmp_path / "samout_train-4711").mkdir()
    with pytest.raises(PermissionError, match="belongs to another user"):
        own_folder(str(tmp_path))


@pytest.mark.nightly
def test_a_user_id_that_nobody_knows_trains_and_makes_no_folder_named_tilde(tmp_path: Path) -> None:
    code = (
        "import pwd, sys\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from samout_train.cli.main import main\n"
        "main()"
    )
    (tmp_path / "text.txt").write_text("a text of a few words, again and again; " * 50)
    words = [word for word in TINY if not word.startswith(("data=", "data.num"))]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "data=text", "data.path=text.txt", "run_dir=run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "HOME: is not set" in done.stderr, done.stderr
    # torch has a folder of its own for compiled code there.
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")}
    assert names == {"text.txt", "run", f"samout_train-{os.getuid()}"}


def function_in(folder: Path, name: str) -> Any:
    """A function of a file, as numba asks for it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text("def twice(x):\n    return 2 * x\n")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.twice


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = numba.config.CACHE_DIR
    numba_support._own_folder.cache_clear()
    numba_support._report.cache_clear()
    yield
    numba.config.CACHE_DIR = before
    numba_support._own_folder.cache_clear()
    numba_support._report.cache_clear()


def no_folder_but(monkeypatch: pytest.MonkeyPatch, allowed: Path | None) -> None:
    """Lets numba find no folder that it can write to, but for those below one."""
    from numba.core.caching import _CacheLocator

    truth = _CacheLocator.ensure_cache_path

    def ensure(self: Any) -> None:
        if allowed is None or not Path(self.get_cache_path()).is_relative_to(allowed):
            raise OSError(30, "Read-only file system")
        truth(self)

    monkeypatch.setattr(_CacheLocator, "ensure_cache_path", ensure)


@pytest.mark.usefixtures("fresh_cache")
def test_kernels_are_kept_elsewhere_where_numba_finds_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    no_folder_but(monkeypatch, tmp_path / "cache")
    twice = compiled()(function_in(tmp_path / "code", "elsewhere"))
    assert twice(3) == 6 and list((tmp_path / "cache" / "kernels").rglob("*.nbc"))


@pytest.mark.usefixtures("fresh_cache")
def test_kernels_run_without_any_place_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_folder_but(monkeypatch, None)
    for name in ("first", "second"):
        assert compiled()(function_in(tmp_path, name))(3) == 6
    (message,) = [record.getMessage() for record in caplog.records]
    assert "compiled in each process" in message and "set NUMBA_CACHE_DIR" in message


@pytest.mark.usefixtures("fresh_cache")
def test_a_full_cache_of_kernels_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from numba.core.caching import FunctionCache

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    for name in ("full_one", "full_two"):
        twice = compiled()(function_in(tmp_path, name))
        assert twice(3) == 6 and twice(np.float32(0.5)) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "No space left on device" in messages[0] and "NUMBA_CACHE_DIR" in messages[0]


@pytest.mark.usefixtures("fresh_cache")
def test_a_damaged_cache_of_kernels_is_compiled_again(tmp_path: Path) -> None:
    function = function_in(tmp_path, "damaged")
    assert compiled()(function)(3) == 6
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(b"x")
    assert compiled()(function)(3) == 6


def broken(error: Exception) -> Any:
    truth = importlib.import_module

    def import_module(name: str, package: str | None = None) -> ModuleType:
        if name == "numba":
            raise error
        return truth(name, package)

    return import_module


@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("Numba needs NumPy 2.2 or less. Got NumPy 2.4."), "ImportError: Numba needs NumPy 2.2 or less"),
        (OSError("Could not find/load shared object file: libllvmlite.so"), "OSError: Could not find/load"),
        (AttributeError("module 'llvmlite' has no attribute 'ir'"), "AttributeError: module 'llvmlite'"),
    ],
)
def test_a_numba_that_cannot_be_imported_is_done_without(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib, "import_module", broken(error))
    caplog.set_level(logging.INFO)
    packed_BTP = torch.randn(2, 5, 6)
    mixed = max_mix(packed_BTP, form="v8")[0]
    use_kernels("reference")
    assert torch.equal(mixed, max_mix(packed_BTP, form="v8")[0])
    assert f"kernels     reference for float32 on cpu: numba cannot be used ({reason}" in caplog.text


@pytest.mark.usefixtures("fresh_kernels")
def test_numba_that_compiles_nothing_is_done_without_and_refused_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    caplog.set_level(logging.INFO)
    assert not is_fused("cpu", torch.float32) and "NUMBA_DISABLE_JIT is set: unset it" in caplog.text
    use_kernels("fused")
    with pytest.raises(ValueError, match=r"kernels=fused is not possible: .*NUMBA_DISABLE_JIT"):
        is_fused("cpu", torch.float32)


@pytest.mark.usefixtures("fresh_kernels")
def test_triton_without_a_c_compiler_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not is_fused("cuda", torch.float32)
    assert "no C compiler: install gcc" in kernels._choose("auto", "cuda", torch.float32).reason


@pytest.mark.nightly
def test_a_run_without_the_compiler_and_one_that_is_refused(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [*PROGRAM, *TINY, "run_dir=run"], cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment
    )
    assert done.returncode == 0 and "reference for float32 on cpu: numba cannot be used" in done.stdout, done.stderr
    refused = subprocess.run(
        [*PROGRAM, *TINY, "run_dir=other", "kernels=fused"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert refused.returncode == 2 and "NUMBA_DISABLE_JIT is set" in refused.stderr and len(refused.stderr) < 200
    assert not (tmp_path / "other").exists()


MODULES = ["random.py", "queue.py", "tokenize.py", "numpy.py", "logging.py", "json.py", "torch/__init__.py"]
SHADOW = "raise RuntimeError('a file of the working directory was imported')\n"


def shadows(folder: Path) -> None:
    for name in MODULES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(SHADOW)


@pytest.mark.slow
@pytest.mark.parametrize("command", [PROGRAM, [str(Path(sys.executable).with_name("samout-train"))]], ids=len)
def test_a_file_called_like_a_module_hides_none(tmp_path: Path, command: list[str]) -> None:
    shadows(tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment
    )
    assert done.returncode == 0 and "seed: 0" in done.stdout, done.stderr


@pytest.mark.nightly
def test_files_called_like_modules_hide_none_in_a_run_and_in_processes_that_tokenize(tmp_path: Path) -> None:
    shadows(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from samout_train.training.callbacks.base import Callback\n\n\nclass Says(Callback):\n"
        "    def on_end(self, summary):\n        print('said at step', summary['steps'])\n"
    )
    (tmp_path / "text.txt").write_text("words and words, " * 200)
    for words in ([*TINY, "+callbacks.mine._target_=mine.Says"], ["tokenize", "path=text.txt", "out=shards", "jobs=2"]):
        done = subprocess.run([*PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert "said at step 2" in done.stdout or "shards" in done.stdout


def test_a_file_on_pythonpath_that_hides_a_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("empty = True\n")
    done = subprocess.run(
        [*PROGRAM, "--cfg", "job"],
        cwd=tmp_path.parent,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2 and f"{tmp_path / 'argparse.py'}: hides a module" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "rename it" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "place"), [("x = 1\nraise RuntimeError(x)\n", 2), ("x = = 1\n", 1)])
def test_a_plugin_of_hydra_that_cannot_be_imported_is_named(tmp_path: Path, plugin: str, place: int) -> None:
    file = tmp_path / "hydra_plugins" / "mine.py"
    file.parent.mkdir()
    file.write_text(plugin)
    done = subprocess.run([*PROGRAM, "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and f"{file}:{place}: this Hydra plugin" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_working_directory_is_last_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3", str(tmp_path), "/x/site-packages"])
    samout_train.working_directory_last()
    assert sys.path == ["/usr/lib/python3", "/x/site-packages", str(tmp_path)]
    samout_train.working_directory_last()
    assert sys.path == ["/usr/lib/python3", "/x/site-packages", str(tmp_path)]
    checkout = Path(samout_train.__file__).parent.parent
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3", "/x/site-packages", "/y"])
    samout_train.working_directory_last()
    assert sys.path == ["/usr/lib/python3", str(checkout), "/x/site-packages", "/y"]


@pytest.mark.nightly
def test_a_safe_path_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Says:\n    pass\n")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("samout-train")), *TINY, "+callbacks.mine._target_=mine.Says"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 2 and "PYTHONSAFEPATH keeps the working directory out" in done.stderr, done.stderr


@pytest.mark.nightly
def test_a_run_without_asserts_and_docstrings_is_the_same(tmp_path: Path) -> None:
    own = {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "7", "COLUMNS": "0", "TERM": "dumb"}
    done = subprocess.run(
        [*PROGRAM, *TINY, "run_dir=stripped"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | own | {"LANG": "tr_TR.ISO-8859-9", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    whole = samout(tmp_path, *TINY, "run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("stripped", "whole")]
    assert summaries[0]["weights_sha256"] == summaries[1]["weights_sha256"]


def test_asking_for_the_commit_takes_no_lock_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "samout_train" / "runtime" / "provenance.py"
    package.parent.mkdir(parents=True)
    package.touch()
    monkeypatch.setattr(provenance, "__file__", str(package))
    assert provenance.commit() is None, "no checkout"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    index = tmp_path / ".git" / "index"
    os.utime(package, (1, 1))  # so that git would like to write what it found
    before = index.stat().st_mtime_ns, index.read_bytes()
    assert provenance.commit() == head and (index.stat().st_mtime_ns, index.read_bytes()) == before
    package.write_text("changed")
    assert provenance.commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None, "git is not installed"


def test_a_program_of_ones_own_keeps_its_search_path(tmp_path: Path) -> None:
    folder = tmp_path / "samout-train-experiments"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "import sys\nbefore = [*sys.path]\nimport samout_train\nprint(sys.path == before)\n"
    )
    done = subprocess.run([sys.executable, folder / "mine.py"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.nightly
@pytest.mark.parametrize("variable", ["TQDM_MININTERVAL=abc", "TORCH_LOGS=nonsense"])
@pytest.mark.parametrize(
    "words",
    [["data=random", "trainer=debug"], pytest.param(["generate", "run=r", "prompt=a"], marks=pytest.mark.nightly)],
    ids=len,
)
def test_a_variable_that_a_library_refuses_is_named(tmp_path: Path, variable: str, words: list[str]) -> None:
    name, _, value = variable.partition("=")
    program = [sys.executable, "-m", "samout_train", *words]
    # torch sets variables of its own in a process that has compiled something, such as that of another test
    kept = {key: setting for key, setting in os.environ.items() if not key.startswith(("TORCH", "TQDM"))}
    done = subprocess.run(program, cwd=tmp_path, env=kept | {name: value}, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"{variable}: a library that reads this cannot be imported with it: unset it"
    assert not list(tmp_path.iterdir())
