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
