"""The CPU kernels have the same bits with one thread, which they run without a launch, and with two."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from samout_train.ops import nats_and_errors, samout_layer, use_kernels
from samout_train.ops.block_scan import block_mix
from samout_train.ops.max_scan import max_mix
from samout_train.ops.samout_layer import blended, gated
from samout_train.ops.semiring_scan import semiring_scan

numba_support = pytest.importorskip("samout_train.ops.numba_support")


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def with_gradients(outputs: tuple[Tensor, ...], given: list[Tensor]) -> list[Tensor]:
    upstream = [torch.randn(each.shape).to(each.dtype) for each in outputs]
    return [*outputs, *torch.autograd.grad(outputs, given, upstream)]


def of_max_mix(dtype: torch.dtype) -> list[Tensor]:
    packed, state, decay = drawn(3, 70, 120, dtype=dtype), drawn(3, 40), drawn(3, 70, 40, dtype=dtype)
    results = with_gradients(max_mix(packed, state, decay, form="v8"), [packed, state, decay])
    return results + with_gradients(max_mix(packed, form="v1"), [packed])


def of_block_mix(dtype: torch.dtype) -> list[Tensor]:
    packed, state = drawn(3, 70, 8 * 35, dtype=dtype), drawn(3, 2, 35)
    return with_gradients(block_mix(packed, state, torch.tensor(0.7)), [packed, state])


def of_semirings(dtype: torch.dtype) -> list[Tensor]:
    a, x, state = drawn(3, 9, 40, dtype=dtype), drawn(3, 9, 40, dtype=dtype), drawn(3, 40)
    results = []
    for semiring in ("plus_times", "max_min"):
        results += with_gradients(semiring_scan(a, x, state, semiring=semiring), [a, x, state])  # type: ignore[arg-type]
    return results


def of_a_layer(dtype: torch.dtype) -> list[Tensor]:
    f, x, up, alpha = drawn(300, 96, dtype=dtype), drawn(300, 96), drawn(300, 96, dtype=dtype), drawn(1)[0]
    norm = nn.LayerNorm(96)
    y = blended(f, x, alpha, norm, 0.3)
    assert isinstance(y, Tensor)
    given = [f, x, alpha, norm.weight, norm.bias]
    return with_gradients((y,), given) + with_gradients((gated(f, up),), [f, up])


def of_cross_entropy(dtype: torch.dtype) -> list[Tensor]:
    logits, targets, nats = torch.randn(7, 600).to(dtype), torch.randint(600, (7,)), torch.empty(7)
    targets[2] = -100
    nats_and_errors(logits, targets, nats, -100)
    return [logits, nats]


@pytest.mark.skipif(numba_support.MOST_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of", [of_max_mix, of_block_mix, of_semirings, of_a_layer, of_cross_entropy])
def test_one_and_two_threads_have_the_same_bits(
    of: Callable[[torch.dtype], list[Tensor]], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samout_layer, "LEAST_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(numba_support, "ELEMENTS_A_THREAD", 1)
    launched, use_threads = set(), numba_support._use_threads

    def spied(threads: int) -> None:
        launched.add(threads)
        use_threads(threads)

    monkeypatch.setattr(numba_support, "_use_threads", spied)
    use_kernels("fused")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            results.append(of(dtype))
    finally:
        torch.set_num_threads(before)
    assert 2 in launched
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_a_thread_more_needs_its_share_of_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_support, "ELEMENTS_A_THREAD", 100)
    monkeypatch.setattr(numba_support, "MOST_THREADS", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert [numba_support.num_threads(elements) for elements in (0, 199, 200, 399, 10_000)] == [1, 1, 2, 3, 3]
    assert numba_support.num_threads() == 3
    monkeypatch.setattr(numba_support, "MOST_THREADS", 1)
    assert numba_support.num_threads(10_000) == numba_support.num_threads() == 1
