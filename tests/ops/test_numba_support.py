"""The cache of numba's kernels on disk."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

numba_support = pytest.importorskip("samout_train.ops.numba_support")

KERNEL = """from samout_train.ops.numba_support import compiled


@compiled()
def following(x):
    return x + 1
"""


def kernel_of(path: Path) -> Any:
    """The kernel of a file, in a module of its own."""
    spec = importlib.util.spec_from_file_location("kernel_of_a_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.following(1) == 2
    return module.following


def test_a_kernel_is_compiled_again_after_a_change_in_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernel.py"
    path.write_text(KERNEL, "utf-8")
    assert not kernel_of(path).stats.cache_hits
    assert kernel_of(path).stats.cache_hits
    monkeypatch.setattr(numba_support, "_digest_of_sources", lambda: "of another state of the sources")
    assert not kernel_of(path).stats.cache_hits
    assert kernel_of(path).stats.cache_hits


def test_a_data_file_belongs_to_one_kernel_of_one_state_of_the_sources(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    from samout_train.ops.numba_support import CacheFile

    before = CacheFile(str(tmp_path), "kernel-1.py311", "earlier sources")
    before.save("float32", "earlier kernel")
    now = CacheFile(str(tmp_path), "kernel-1.py311", "sources")
    now._save_data, save_data = _ended, now._save_data
    with pytest.raises(InterruptedError):
        now.save("float32", "kernel")
    assert now.load("float32") is None  # and not the earlier one, as where the index is written first
    now._save_data = save_data
    now.save("float32", "kernel")
    seen_before = {**now._load_index()}
    now._load_index, load_index = dict, now._load_index  # as a process that began at the same time
    now.save("bfloat16", "other kernel")
    now._load_index = load_index
    assert now.load("bfloat16") == "other kernel"
    now._save_index(seen_before)
    assert now.load("float32") in (None, "kernel")
    now.save("float32", "kernel")
    assert now.load("float32") == "kernel" and before.load("float32") is None
    assert len(list(tmp_path.glob("*.nbc"))) == 2, "the earlier kernel's file is gone"


def _ended(name: str, data: Any) -> None:
    raise InterruptedError
