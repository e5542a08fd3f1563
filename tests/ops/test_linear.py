"""The linear layer against float64, where a few rows take the fast way and where they do not."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samout_train.ops import Products, few_rows, linear as package, use_kernels, use_products
from samout_train.ops.linear import LEAST_WEIGHTS, MOST_ROWS, linear

MANY_ROWS = 64


@pytest.fixture(autouse=True)
def both_fast_ways() -> Iterator[None]:
    use_products(Products("onednn", "numba"))
    yield
    use_products(None)


def tensors(*sizes: int, outputs: int = 301, inputs: int = 267) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return (
        torch.randn(*sizes, inputs, generator=generator),
        torch.randn(outputs, inputs, generator=generator),
        torch.randn(outputs, generator=generator),
    )


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1), (2, 3), (MOST_ROWS,), (MOST_ROWS + 1,), (0,)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_is_the_product_in_float64(sizes: tuple[int, ...], has_bias: bool) -> None:
    x, weight_NK, bias_N = tensors(*sizes)
    bias = bias_N if has_bias else None
    assert weight_NK.numel() >= LEAST_WEIGHTS
    with torch.inference_mode():
        y = linear(x, weight_NK, bias)
    expected = x.double() @ weight_NK.double().T + (bias_N.double() if has_bias else 0)
    assert y.shape == expected.shape and y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)  # 267 products of size 1 in float32


def test_a_few_rows_are_read_from_any_layout() -> None:
    x, weight_NK, bias_N = tensors(2, 2)
    crossed = x.transpose(0, 1)
    with torch.no_grad():
        assert torch.equal(linear(crossed, weight_NK, bias_N), linear(crossed.contiguous(), weight_NK, bias_N))
        columns_NK = weight_NK.T.contiguous().T
        torch.testing.assert_close(linear(x, columns_NK), F.linear(x, weight_NK), rtol=0, atol=1e-4)


def test_few_rows_have_the_same_bits_with_one_and_two_threads() -> None:
    x, weight_NK, bias_N = tensors(3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(few_rows(x, weight_NK, bias_N))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_nan_and_infinity_go_through_a_few_rows() -> None:
    x, weight_NK, _ = tensors(3)
    x[0, 5], x[1, 5] = float("nan"), float("inf")
    y_RN = few_rows(x, weight_NK, None)
    assert y_RN[0].isnan().all()
    assert torch.equal(y_RN[1], weight_NK[:, 5].sign() * float("inf"))
    assert y_RN[2].isfinite().all()


def test_the_fast_way_is_taken_only_without_gradient_and_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "samout_train.ops.linear.cpu.few_rows", lambda x, *rest: taken.append(x.shape) or F.linear(x, *rest)
    )
    x, weight_NK, bias_N = tensors(1)
    weight_NK.requires_grad_()
    linear(x, weight_NK, bias_N).sum().backward()
    assert weight_NK.grad is not None and not taken
    with torch.no_grad():
        linear(x.double(), weight_NK.double(), bias_N.double())
        linear(x.expand(MOST_ROWS + 1, -1), weight_NK, bias_N)
        linear(x[:, :8], weight_NK[:, :8], bias_N)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight_NK, bias_N).dtype == torch.bfloat16
        assert not taken
        linear(x, weight_NK, bias_N)
        assert taken == [x.shape]


@pytest.fixture
def reference() -> Iterator[None]:
    use_kernels("reference")
    yield
    use_kernels("auto")


def test_without_fused_kernels_torch_does_it(reference: None) -> None:
    x, weight_NK, bias_N = tensors(1)
    with torch.no_grad():
        assert torch.equal(linear(x, weight_NK, bias_N), F.linear(x, weight_NK, bias_N))


def test_a_wrong_width_has_the_message_of_torch() -> None:
    x, weight_NK, _ = tensors(1, inputs=300)
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :267], weight_NK)


@pytest.mark.parametrize("sizes", [(MANY_ROWS,), (3, 50), (MANY_ROWS - 1,)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_many_rows_in_onednn_and_their_gradients_are_those_in_float64(
    sizes: tuple[int, ...], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setattr(package, "LEAST_PRODUCTS", MANY_ROWS * 301 * 267)
    x, weight_NK, bias_N = tensors(*sizes)
    given = [
        x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim > 2 else x,
        weight_NK,
        *([bias_N] if has_bias else []),
    ]
    exact = [tensor.double().requires_grad_() for tensor in given]
    given = [tensor.clone().requires_grad_() for tensor in given]
    y, expected = linear(*given), F.linear(*exact)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for got, want in zip(
        [y, *torch.autograd.grad(y, given, grad)],
        [expected, *torch.autograd.grad(expected, exact, grad.double())],
        strict=True,
    ):
        assert got.dtype == torch.float32
        assert float(((got.double() - want).norm() / want.norm()).detach()) < 1e-6


def test_what_onednn_gets_is_told_by_size_and_by_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(package, "many_rows", lambda x, weight, bias: calls.append(len(x)) or F.linear(x, weight, bias))
    monkeypatch.setattr(package, "LEAST_PRODUCTS", MANY_ROWS * 301 * 267)
    _, weight_NK, _ = tensors(1)
    for rows in (MANY_ROWS - 1, MANY_ROWS):
        linear(torch.ones(rows, 267), weight_NK)
    linear(torch.ones(MANY_ROWS, 267, dtype=torch.float64), weight_NK.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear(torch.ones(MANY_ROWS, 267), weight_NK)
    use_kernels("reference")
    try:
        linear(torch.ones(MANY_ROWS, 267), weight_NK)
    finally:
        use_kernels("auto")
    assert calls == [MANY_ROWS]
