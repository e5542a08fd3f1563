"""The fused parts of a SamOut layer against float64, and what dropout drops."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model
from samout_train.ops import kernels, samout_layer, use_kernels
from samout_train.ops.samout_layer import Blended, blended, blended_reference, gated, gated_reference, operator
from tests.support.marks import spread

SIZES = [(3, 7, 24), (1, 1, 1), (2, 65, 33), (5, 384)]
# Relative in norm; bfloat16 is rounded once, at the end.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set before triton is imported: in a process of its own


@pytest.fixture(autouse=True)
def small_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samout_layer, "LEAST_ELEMENTS", {"cpu": 1, "cuda": 1})
    if INTERPRETED:
        from samout_train.ops.samout_layer import cuda

        monkeypatch.setattr(operator, "kernels_of", lambda package, tensor: cuda)
        monkeypatch.setitem(kernels.LIBRARIES, "cpu", kernels.LIBRARIES["cuda"])


def difference(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm().clamp(min=1e-30))


def inputs(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.LayerNorm, Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    f, x = (torch.randn(sizes, generator=generator) for _ in range(2))
    norm = nn.LayerNorm(sizes[-1])
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    return f.to(dtype).requires_grad_(), x.requires_grad_(), norm, torch.randn(sizes, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", spread(TOLERANCE, 2))
def test_blended_and_its_gradients_are_those_in_float64(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    f, x, norm, grad = inputs(sizes, dtype)
    alpha = torch.tensor(0.3, requires_grad=True)
    given = (f, x, alpha, norm.weight, norm.bias)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in given)
    got, want = blended(f, x, alpha, norm, 0.0), blended_reference(*exact, norm.eps, 0.0)
    assert isinstance(got, Tensor)
    assert got.dtype == torch.float32 and difference(got, want) < TOLERANCE[torch.float32]
    grads = torch.autograd.grad(got, given, grad), torch.autograd.grad(want, exact, grad.double())
    for one, other, tensor in zip(*grads, given, strict=True):
        assert one.dtype == tensor.dtype and one.shape == tensor.shape
        # The gradient of a sum in which everything cancels (a width of 1 has no deviation) is compared as it is.
        near = difference(one, other) < TOLERANCE[tensor.dtype] or float((one.double() - other).abs().max()) < 1e-5
        assert near, tensor.shape


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gated_and_its_gradients_are_those_of_torch_to_the_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    up, gate, grad = (torch.randn(3, 5, 47, generator=generator).to(dtype) for _ in range(3))
    gate[0, 0, :4] = torch.tensor([0.0, -0.0, float("nan"), float("inf")])
    results = []
    for function in (gated, gated_reference):
        one, two = up.clone().requires_grad_(), gate.clone().requires_grad_()
        y = function(one, two)
        results.append([y, *torch.autograd.grad(y, (one, two), grad)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not INTERPRETED, reason="only CUDA has a kernel for halves")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_gate_of_halves_is_that_of_two_tensors_to_the_bit(dtype: torch.dtype) -> None:
    packed, grad = torch.randn(3, 5, 94).to(dtype).requires_grad_(), torch.randn(3, 5, 47).to(dtype)
    results = []
    halves = [half.contiguous() for half in packed.chunk(2, dim=-1)]
    for y in (operator.gated_halves(packed, False), operator.gated(*halves)):
        results.append((y, *torch.autograd.grad(y, packed, grad)))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_dropout_drops_its_share_anew_each_time_and_the_same_in_both_directions() -> None:
    width, rows = 64, 2000
    norm = nn.LayerNorm(width)
    f = torch.ones(rows, width, requires_grad=True)
    masks = []
    for _ in range(2):
        # With alpha 1 and x = 0, what is normalised is either 0 or 1 / (1 - dropout).
        y = blended(f, torch.zeros(rows, width), torch.tensor(1.0), norm, 0.25)
        masks.append(y > 0)
        (grad,) = torch.autograd.grad(y, f, torch.randn(rows, width))
        assert torch.equal(grad != 0, masks[-1])
    for mask in masks:
        assert float(mask.float().mean()) == pytest.approx(0.75, abs=0.005)  # four deviations
        assert float(mask.float().mean(0).min()) > 0.71 and float(mask.float().mean(0).max()) < 0.79
    together = (masks[0] & masks[1]).float().mean()
    assert float(together) == pytest.approx(0.75**2, abs=0.006)
    neighbours = (masks[0][:, 1:] & masks[0][:, :-1]).float().mean()
    assert float(neighbours) == pytest.approx(0.75**2, abs=0.006)


@pytest.mark.parametrize("dropout", spread([0.5, 1.0], 2))
def test_dropout_follows_torchs_random_state_whatever_the_threads(
    dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    numba_support = pytest.importorskip("samout_train.ops.numba_support")
    monkeypatch.setattr(numba_support, "ELEMENTS_A_THREAD", 1)
    f, x, norm, grad = inputs((4, 100, 33), torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            y = blended(f, x, torch.tensor(0.5), norm, dropout)
            results.append((y, *torch.autograd.grad(y, (f, x, norm.weight), grad)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.isfinite(one).all() and torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("precision", spread(["fp32", "bf16"], 2))
def test_a_model_learns_the_same_with_and_without_the_kernels(precision: str) -> None:
    ids = torch.randint(0, 50, (4, 33), generator=torch.Generator().manual_seed(0))
    gradients: list[dict[str, Tensor]] = []
    for choice in ("auto", "reference"):
        use_kernels(choice)  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = build_model("v8", vocab_size=50, hidden_size=48, num_heads=4, num_layers=3, dropout=0.0).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits, _ = model(ids[:, :-1])
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    use_kernels("auto")
    scale = torch.cat([g.flatten() for g in gradients[1].values()]).norm()
    for name, gradient in gradients[0].items():
        worst = float((gradient - gradients[1][name]).norm() / scale)
        assert worst < (1e-5 if precision == "fp32" else 2e-2), name


@pytest.mark.skipif(not INTERPRETED, reason="both kernels run in the process of Triton's interpreter")
@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_the_kernels_for_cuda_drop_and_compute_what_those_for_the_cpu_do(dropout: float) -> None:
    from samout_train.ops.samout_layer import cpu, cuda

    f, x, norm, grad = inputs((3, 7, 24), torch.float32)
    given = (f.detach(), x.detach(), torch.tensor(0.3), norm.weight.detach())
    seed = torch.tensor(2**61 + 12_345)
    results = []
    for module in (cpu, cuda):
        y, statistics = torch.full_like(x, torch.nan), torch.full((2, 21), torch.nan)
        module.blend(*given, norm.bias.detach(), norm.eps, dropout, seed, y, statistics)
        grads = torch.full_like(f, torch.nan), torch.full_like(x, torch.nan), torch.full((49,), torch.nan)
        module.blend_gradients(*given, statistics, dropout, seed, grad, *grads)
        results.append((y, statistics, *grads))
    assert 0.6 < float((results[0][2] != 0).float().mean()) < 0.9 or dropout != 0.25
    for one, other in zip(*results, strict=True):
        assert torch.equal(one == 0, other == 0)
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="CUDA alone makes copies")
def test_a_copy_for_products_and_its_gradients_are_those_of_a_cast_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samout_layer.FUSED, "cpu", samout_layer.FUSED["cuda"])
    f, x, norm, grad = inputs((3, 7, 24), torch.float16)  # the interpreter cuts bfloat16 off instead of rounding it
    alpha, from_products = torch.tensor(0.3, requires_grad=True), torch.randn(3, 7, 24).half()
    given = (f, x, alpha, norm.weight, norm.bias)
    y = blended(f, x, alpha, norm, 0.0)
    assert isinstance(y, Tensor)
    want = torch.autograd.grad(y, given, grad + from_products.float(), retain_graph=True)
    want_of_copy = torch.autograd.grad(y, given, from_products.float())
    monkeypatch.setattr(samout_layer, "COPIES", {"cpu"})
    with torch.autocast("cpu", dtype=torch.float16):
        both = blended(f, x, alpha, norm, 0.0)
    assert isinstance(both, Blended) and torch.equal(both.x_BTD, y) and torch.equal(both.products_BTD, y.half())
    got = torch.autograd.grad(both, given, (grad, from_products), retain_graph=True)
    got_of_copy = torch.autograd.grad(both.products_BTD, given, from_products)
    for one, other in zip(got + got_of_copy, want + want_of_copy, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not INTERPRETED, reason="CUDA alone makes copies")
@pytest.mark.parametrize("settings", [{}, {"stochastic_depth": 0.5, "convolution_size": 3, "output_gate": "silu"}])
def test_a_model_has_the_gradients_that_it_has_without_copies_for_cuda(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(4, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = build_model("v8", vocab_size=50, hidden_size=16, num_heads=2, num_layers=2, dropout=0.0, **settings)
    gradients: list[dict[str, Tensor]] = []
    for devices, precision in (({"cpu"}, torch.bfloat16), (set[str](), torch.bfloat16), (set[str](), torch.float32)):
        monkeypatch.setattr(samout_layer, "COPIES", devices)
        model.zero_grad()
        torch.manual_seed(1)  # of the rows that stochastic depth drops
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            hidden, _ = model(ids[:, :-1], return_hidden=True)
            logits = torch.nn.functional.linear(hidden, model.head_weight)
        copied = devices == {"cpu"} and not settings  # stochastic depth makes a tensor of its own
        assert (hidden.dtype == torch.bfloat16) is copied
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    with_copies, without, exact = (torch.cat([grad.flatten() for grad in each.values()]) for each in gradients)
    assert gradients[0].keys() == gradients[2].keys()
    assert difference(with_copies, exact) < max(0.02, 1.5 * difference(without, exact))


@pytest.mark.skipif(INTERPRETED, reason="this process runs Triton's kernels already")
@pytest.mark.parametrize("cases", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)])
@pytest.mark.slow
def test_the_kernels_for_cuda_pass_in_tritons_interpreter(cases: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", "-W", "ignore"]
    # The interpreter cuts bfloat16 off instead of rounding it.
    command += ["-m", cases, "-k", "elementwise or for_cuda or (gradients and not dtype1)"]
    files = Path(__file__), *map(Path(__file__).with_name, ("test_elementwise.py", "test_opcheck.py"))
    command += map(str, files)
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
