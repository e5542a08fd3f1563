"""What all tests share: one thread, a cache of their own, and the data that lies beside a checkout."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samout_train.ops import use_kernels, use_products

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets what it starts in the background ignore Ctrl-C, and nohup a hangup; processes of tests inherit that.
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), usual)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Both ways that are not torch's, without a measurement.
    monkeypatch.setenv("SAMOUT_TRAIN_PRODUCTS", "onednn,numba")
    handlers = list(logging.getLogger().handlers)
    yield
    # What a verb that was called in this process decided for all of it.
    for handler in [handler for handler in logging.getLogger().handlers if handler not in handlers]:
        logging.getLogger().removeHandler(handler)
        handler.close()
    use_kernels("auto")
    use_products(None)


@pytest.fixture
def shared() -> Path:
    """The folder of golden files and text; not part of the repository."""
    folder = Path(os.environ.get("SAMOUT_TRAIN_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder} is not there: golden files and text lie outside the repository")
    return folder


@pytest.fixture
def small_text(tmp_path: Path) -> Path:
    """A text of 4,000 characters with a structure that can be learned."""
    path = tmp_path / "small.txt"
    path.write_text(
        "".join(f"line {number % 17}: {'ab' * (number % 5)} äöü.\n" for number in range(250))[:4000], "utf-8"
    )
    return path
