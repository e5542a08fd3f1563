"""The fused elementwise parts of layers against torch's operations in float64, in Triton's interpreter."""

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from samout_train.models.layers import CausalConvolution
from samout_train.ops import causal_convolution, elementwise, kernels, samout_layer
from samout_train.ops.elementwise import Residual, add_norm, minus_softplus, reference, residual, turned, turned_heads
from tests.support.marks import spread

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # test_samout_layer.py starts the process for it
pytestmark = [pytest.mark.skipif(not INTERPRETED, reason="CUDA alone has kernels, and Triton's interpreter")]
# Relative in norm to float64. The interpreter cuts bfloat16 off instead of rounding it.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from samout_train.ops.causal_convolution import cuda as convolution, operator as of_convolution
    from samout_train.ops.elementwise import cuda, operator

    monkeypatch.setattr(operator, "kernels_of", lambda package, tensor: cuda)
    monkeypatch.setattr(elementwise, "DEVICES", {"cpu"})
    monkeypatch.setattr(of_convolution, "kernels_of", lambda package, tensor: convolution)
    monkeypatch.setattr(causal_convolution, "DEVICES", {"cpu"})
    for name, value in {"PROGRAMS": 2, "ROWS": 4, "BLOCK": 16}.items():
        monkeypatch.setattr(convolution, name, value)
    monkeypatch.setattr(cuda, "PROGRAMS", 3)  # so that each has several rows
    monkeypatch.setattr(cuda, "ELEMENTS", 16)
    monkeypatch.setitem(kernels.LIBRARIES, "cpu", kernels.LIBRARIES["cuda"])
    kernels.use_kernels("fused")
    yield
    kernels.use_kernels("auto")


def difference(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm().clamp(min=1e-30))


def norm_of(name: str, width: int) -> nn.Module:
    norm = nn.LayerNorm(width) if name == "layer" else nn.RMSNorm(width, eps=1e-5)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize(("name", "dtype"), spread([(name, dtype) for name in ("layer", "rms") for dtype in DTYPES], 4))
def test_add_norm_and_its_gradients_are_those_in_float64(name: str, dtype: torch.dtype, adds: bool) -> None:
    torch.manual_seed(0)
    x, branch, norm = random(2, 5, 24), random(2, 5, 24, dtype=dtype), norm_of(name, 24)
    stream = residual(x, branch) if adds else x
    assert isinstance(stream, Residual) is adds
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        total, y = add_norm(stream, norm)
    assert (total.dtype, y.dtype) == (torch.float32, dtype)
    given = [x, *([branch] if adds else []), *norm.parameters()]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    exact_norm = norm_of(name, 24).double()
    for own, value in zip(list(exact_norm.parameters()), exact[1 + adds :], strict=True):
        own.data = value.data
    inputs = [*exact[: 1 + adds], *exact_norm.parameters()]
    want_total, want_y = reference.added_and_normalised(inputs[0], inputs[1] if adds else None, 0.0, exact_norm)
    assert difference(total, want_total) < TOLERANCE[torch.float32] and difference(y, want_y) < TOLERANCE[dtype]
    upstream = torch.randn(x.shape), torch.randn(x.shape).to(dtype)
    grads = torch.autograd.grad((total, y), given, upstream)
    wanted = torch.autograd.grad((want_total, want_y), inputs, [grad.double() for grad in upstream])
    for one, other, tensor in zip(grads, wanted, given, strict=True):
        assert one.dtype == tensor.dtype and difference(one, other) < TOLERANCE[tensor.dtype], tensor.shape
    (alone,) = torch.autograd.grad(add_norm(residual(x, branch), norm)[1], x, upstream[1].float())
    assert alone.isfinite().all()


def test_add_norm_drops_the_same_elements_in_both_directions() -> None:
    torch.manual_seed(0)
    branch = torch.ones(40, 50, requires_grad=True)
    total, y = add_norm(residual(torch.zeros(40, 50), branch, 0.25), norm_of("layer", 50))
    assert 0.7 < float((total != 0).float().mean()) < 0.8
    assert torch.equal(total[total != 0], torch.full_like(total[total != 0], 1 / 0.75))
    (grad,) = torch.autograd.grad(y, branch, torch.randn(40, 50))
    assert torch.equal(grad != 0, total != 0)


@pytest.mark.parametrize(
    ("normalises", "dtype"), spread([(norms, dtype) for norms in (True, False) for dtype in DTYPES], 4)
)
def test_turned_heads_and_their_gradients_are_those_in_float64(normalises: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    packed = random(2, 7, 3 * 3 * 12, dtype=dtype)
    norms = [norm_of("rms", 12) if normalises else None for _ in range(2)]

    def heads(packed: Tensor) -> list[Tensor]:
        return [stream.unflatten(-1, (3, 12)).transpose(1, 2) for stream in packed.chunk(3, dim=-1)]

    got = turned_heads(*heads(packed)[:2], *norms)
    assert got is not None
    exact = packed.detach().double().requires_grad_()
    weights = [norm.weight.detach().double().requires_grad_() for norm in norms if norm is not None]
    streams = heads(exact)[:2]
    if normalises:
        streams = [nn.functional.rms_norm(x, (12,), w, 1e-5) for x, w in zip(streams, weights, strict=True)]
    position = torch.arange(7)
    want = [turned(streams[0], position), turned(streams[1], position), streams[1]]
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype and difference(one, other) < TOLERANCE[dtype]
    upstream = [torch.randn(2, 3, 7, 12).to(dtype) for _ in want]
    given = [packed, *(norm.weight for norm in norms if norm is not None)]
    grads = torch.autograd.grad(got, given, upstream)
    wanted = torch.autograd.grad(want, [exact, *weights], [grad.double() for grad in upstream])
    for one, other in zip(grads, wanted, strict=True):
        assert difference(one, other) < 2 * TOLERANCE[dtype]  # a sum of two gradients, each cut off


@pytest.mark.nightly
def test_angles_of_late_positions_are_those_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    from samout_train.ops.elementwise import cuda

    monkeypatch.setattr(cuda, "ELEMENTS", 2**16)
    torch.manual_seed(0)
    q, k = random(1, 1, 2**17, 2), random(1, 1, 2**17, 2)  # one pair, whose angle is its position
    got = turned_heads(q, k)
    assert got is not None
    position = torch.arange(2**17)
    for one, x in zip(got, (q, k), strict=False):
        worst = (one.double() - turned(x.detach().double(), position)).abs().max()
        assert float(worst) < 2e-6


def test_a_gate_of_silu_is_that_of_float64() -> None:
    from samout_train.ops.samout_layer import cuda, operator

    torch.manual_seed(0)
    packed, grad = random(3, 5, 94), torch.randn(3, 5, 47)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "kernels_of", lambda package, tensor: cuda)
        y = operator.gated_halves(packed, True)
        (got,) = torch.autograd.grad(y, packed, grad)
    exact = packed.detach().double().requires_grad_()
    want = samout_layer.gated_halves(exact, silu=True)
    assert difference(y, want) < TOLERANCE[torch.float32]
    assert difference(got, torch.autograd.grad(want, exact, grad.double())[0]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", spread(DTYPES, 2))
def test_a_decay_and_its_gradient_are_those_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z, grad = random(3, 5, 47, dtype=dtype), torch.randn(3, 5, 47).to(dtype)
    with torch.no_grad():
        z[0, 0, :6] = torch.tensor([-30.0, -12.0, 0.0, 25.0, float("inf"), -float("inf")])
        z[1] *= 8
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = minus_softplus(z)
    assert y.dtype == dtype
    exact = z.detach().double().requires_grad_()
    want = -nn.functional.softplus(exact, threshold=1000.0)
    finite = want.isfinite()
    assert torch.equal(y[~finite], torch.tensor([-float("inf")], dtype=dtype))
    # Each decay by itself: a channel that hardly forgets has a small one.
    relative = ((y.double() - want)[finite] / want[finite].clamp(max=-1e-30)).abs().max()
    assert float(relative) < 2 * TOLERANCE[dtype]
    got, wanted = torch.autograd.grad(y, z, grad), torch.autograd.grad(want, exact, grad.double())
    assert got[0].dtype == dtype and difference(got[0], wanted[0]) < TOLERANCE[dtype]


CONVOLUTIONS = [(True, True, 4, torch.bfloat16, True), (True, True, 4, torch.float32, False)]
CONVOLUTIONS += [(False, False, 2, torch.float32, True), (True, True, 1, torch.bfloat16, False)]


@pytest.mark.parametrize(("bias", "silu", "size", "dtype", "carries"), spread(CONVOLUTIONS, 4))
def test_a_convolution_and_its_gradients_are_those_in_float64(
    bias: bool, silu: bool, size: int, dtype: torch.dtype, carries: bool
) -> None:
    torch.manual_seed(0)
    packed, tokens = random(2, 9, 3 * 20, dtype=dtype), random(2, size - 1, 20, dtype=dtype)
    module = CausalConvolution(hidden_size=20, size=size, bias=bias, silu=silu, feeds_products=True)
    exact = CausalConvolution(hidden_size=20, size=size, bias=bias, silu=silu).double()
    exact.load_state_dict(module.state_dict())
    upstream, results = torch.randn(2, 9, 20).to(dtype), []
    for of, convert in ((module, Tensor.clone), (exact, Tensor.double)):
        x, before = (convert(tensor.detach()).requires_grad_() for tensor in (packed, tokens))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16 and of is module):
            y, after = of(x.chunk(3, dim=-1)[1], before if carries else None)
        given = [x, *of.parameters(), *([before] if carries and size > 1 else [])]
        results.append([y, after, *torch.autograd.grad(y, given, upstream.to(y.dtype))])
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        assert difference(got, want) < (TOLERANCE[dtype] if got.dtype == dtype else 4e-3), got.shape
    assert results[0][0].dtype == results[0][2].dtype == dtype
