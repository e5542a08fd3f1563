"""Out of memory is recognised by the errors that torch, numpy and Python raise."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samout_train.runtime import is_out_of_memory, total_memory_bytes

ALLOCATIONS: dict[str, Callable[[], object]] = {
    "torch's allocator": lambda: torch.empty(10**15),
    "a layer": lambda: torch.nn.Linear(10**9, 10**9),
    "a product": lambda: torch.ones(2**25, 1) @ torch.ones(1, 2**25),
    "more bytes than 64 bits count": lambda: torch.empty(2**62),
    "more elements than 64 bits count": lambda: torch.empty(2**40, 2**40),
    "numpy's": lambda: np.empty(10**15),
    "Python's": lambda: bytes(10**17),
}
OTHERS: dict[str, Callable[[], object]] = {
    "shapes": lambda: torch.ones(2, 3) @ torch.ones(2, 3),
    "a number that fp16 cannot hold": lambda: torch.zeros(1, dtype=torch.half).masked_fill(torch.tensor([True]), -1e9),
    "a view of other strides": lambda: torch.ones(2, 3).t().view(6),
    "a division": lambda: 1 // 0,
}


def raised_by(run: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        run()
    return caught.value


def test_windows_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """MEMORYSTATUSEX of sysinfoapi.h: two numbers of 4 bytes, the first its size, 64, and seven of 8."""
    told = []

    def status(reference: object) -> int:
        target = ctypes.cast(reference, ctypes.POINTER(ctypes.c_uint32))  # type: ignore[arg-type]
        told.append(target[0])
        ctypes.cast(reference, ctypes.POINTER(ctypes.c_uint64))[1] = 5_000_000_000  # type: ignore[arg-type]
        return len(told) < 2

    kernel32 = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    assert total_memory_bytes(torch.device("cpu")) == 5_000_000_000
    assert told == [64]
    assert total_memory_bytes(torch.device("cpu")) is None


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_failed_allocations_are_recognised(name: str) -> None:
    assert is_out_of_memory(raised_by(ALLOCATIONS[name]))


@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_are_not(name: str) -> None:
    assert not is_out_of_memory(raised_by(OTHERS[name]))


def test_what_a_gpu_raises_is_recognised_by_type_or_words() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    for words in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 18.00 GB)",
    ):
        assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_words_of_other_kinds_of_errors_do_not_count() -> None:
    assert not is_out_of_memory(ValueError("the paper is named out of memory"))
