"""The choice of kernels, and what is said of it."""

import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

import pytest
import torch

from samout_train.ops import Kernels, is_fused, max_scan, use_kernels
from samout_train.ops.kernels import power_of_two
from samout_train.ops.max_scan import max_mix


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    use_kernels("auto")


def test_the_choice_and_its_reason_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    use_kernels("auto")
    assert is_fused("cpu", torch.float32) and is_fused("cpu", torch.float32)
    assert not is_fused("cpu", torch.float16)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and messages[0].startswith("kernels     fused for float32 on cpu: numba ")
    assert messages[1] == "kernels     reference for float16 on cpu: the fused kernels for cpu take float32, bfloat16"


def test_a_library_without_metadata_of_its_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)  # as for a wheel of Triton under another name

    monkeypatch.setattr(importlib.metadata, "version", no_version)
    use_kernels("auto")
    assert is_fused("cpu", torch.float32)


def test_without_numba_everything_runs_and_a_line_says_how_to_get_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without_numba(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "numba" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_numba)
    caplog.set_level(logging.INFO)
    use_kernels("auto")
    packed_BTP = torch.randn(2, 5, 6, requires_grad=True)
    max_mix(packed_BTP, form="v8")[0].sum().backward()
    assert packed_BTP.grad is not None
    assert caplog.records[-1].getMessage() == (
        "kernels     reference for float32 on cpu: numba is not installed (pip install 'samout_train[fast]')"
    )
    use_kernels("fused")
    with pytest.raises(ValueError, match=r"kernels=fused is not possible: numba is not installed .* Set kernels=auto"):
        max_mix(packed_BTP, form="v8")


def test_only_the_first_call_looks_for_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels("fused")
    assert is_fused("cpu", torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail("a search takes the host 300 us"))
    assert is_fused("cpu", torch.float32)


def test_a_second_derivative_is_refused() -> None:
    packed_BTP = torch.randn(2, 5, 6, requires_grad=True)
    use_kernels("fused")
    y_BTD = max_mix(packed_BTP, form="v8")[0]
    upstream_BTD = torch.ones_like(y_BTD, requires_grad=True)
    (grad_BTP,) = torch.autograd.grad(y_BTD, packed_BTP, upstream_BTD, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_BTP.sum().backward()


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_a_choice_is_kept(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    truth = max_scan.reference.max_mix
    monkeypatch.setattr(max_scan.reference, "max_mix", lambda *given: called.append("reference") or truth(*given))
    use_kernels(kernels)
    max_mix(torch.randn(2, 5, 6), form="v8")
    assert called == (["reference"] if kernels == "reference" else [])


def test_fused_refuses_what_no_kernel_takes() -> None:
    use_kernels("fused")
    with pytest.raises(ValueError, match="the fused kernels for cpu take float32, bfloat16"):
        max_mix(torch.randn(2, 5, 6, dtype=torch.float64), form="v8")
    with pytest.raises(ValueError, match="there are fused kernels for cpu and cuda only"):
        max_mix(torch.randn(2, 5, 6, device="meta"), form="v8")


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernels \(quick\) must be one of auto, reference, fused"):
        use_kernels("quick")  # type: ignore[arg-type]


@pytest.mark.nightly
def test_the_threads_of_torch_stay_what_they_were() -> None:
    code = (
        "import torch; torch.set_num_threads(1); torch.get_num_threads()\n"
        "from samout_train.ops.max_scan import max_mix\n"
        "max_mix(torch.randn(2, 5, 6), form='v8')\n"
        "print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "1\n", done.stderr


def test_a_power_of_two_is_the_least_that_is_large_enough() -> None:
    assert [power_of_two(size) for size in (1, 2, 3, 4, 5, 64, 65, 1000)] == [1, 2, 4, 4, 8, 64, 128, 1024]
