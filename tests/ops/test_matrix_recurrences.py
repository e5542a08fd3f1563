"""Linear attention and the delta rule in chunks: against loops in float64, states, gradients, precision, resets."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samout_train.ops import kernels, use_kernels
from samout_train.ops.delta_rule import delta_rule
from samout_train.ops.kernels import Kernels
from samout_train.ops.linear_attention import linear_attention

INF = float("inf")
KINDS = ["none", "scalar", "channel", "delta", "gated delta"]
LENGTHS = [1, 2, 7, 64, 65, 150]
BATCH, HEADS, WIDTH, VALUES = 2, 3, 8, 5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Case:
    """Inputs of one kind of recurrence, drawn in float64."""

    def __init__(self, kind: str, time: int, *, has_state: bool = True) -> None:
        draw = torch.Generator().manual_seed(time)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        self.kind, rows = kind, (BATCH, HEADS, time)
        self.inputs: dict[str, Tensor] = {"q": normal(*rows, WIDTH), "k": normal(*rows, WIDTH)}
        self.inputs["v"] = normal(*rows, VALUES)
        if "delta" in kind:
            self.inputs["k"] = F.normalize(self.inputs["k"], dim=-1)
            self.inputs["beta"] = 2 * normal(*rows).sigmoid()
        if kind in ("scalar", "gated delta"):
            self.inputs["log_decay"] = F.logsigmoid(3 * normal(*rows))  # from keeping nearly all to nearly nothing
        if kind == "channel":
            self.inputs["log_decay"] = F.logsigmoid(3 * normal(*rows, WIDTH))
        if has_state:
            self.inputs["state"] = normal(BATCH, HEADS, WIDTH, VALUES)
        self.upstream = normal(*rows, VALUES), normal(BATCH, HEADS, WIDTH, VALUES)

    def fused(self, q: Tensor, k: Tensor, v: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
        state, log_decay = others.get("state"), others.get("log_decay")
        if "delta" in self.kind:
            return delta_rule(q, k, v, others["beta"], log_decay, state)
        return linear_attention(q, k, v, log_decay, state)

    def looped(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None = None,
        beta: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One token after another, by the formulas, with outer products and einsum."""
        if state is None:
            state = q.new_zeros(BATCH, HEADS, WIDTH, VALUES)
        found = []
        for t in range(q.shape[2]):
            if log_decay is not None:
                a = log_decay[:, :, t].exp()
                state = state * (a[..., None] if a.ndim == 3 else a[..., None, None])
            new = v[:, :, t]
            if beta is not None:
                new = beta[:, :, t, None] * (new - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t]))
            state = state + torch.einsum("bhk,bhv->bhkv", k[:, :, t], new)
            found.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
        return torch.stack(found, 2), state

    def both(
        self, way: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float64
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs, and the gradients of all inputs by name."""
        given = {name: tensor.to(dtype).requires_grad_() for name, tensor in self.inputs.items()}
        outputs = list(way(**given))
        upstream = [grad.to(output.dtype) for grad, output in zip(self.upstream, outputs, strict=True)]
        grads = torch.autograd.grad(outputs, list(given.values()), upstream, materialize_grads=True)
        return outputs, dict(zip(given, grads, strict=True))


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).detach().double().norm() / wanted.detach().double().norm())


@pytest.mark.parametrize("has_state", [True, False])
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_the_loop_with_all_gradients_in_float64(kind: str, time: int, has_state: bool) -> None:
    case = Case(kind, time, has_state=has_state)
    got, wanted = case.both(case.fused), case.both(case.looped)
    for one, other in zip(got[0], wanted[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-9, atol=1e-10, msg=f"the gradient of {name}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_less_precision_costs_its_rounding_alone(kind: str, dtype: torch.dtype) -> None:
    case = Case(kind, 150)
    case.inputs = {name: tensor.to(dtype).double() for name, tensor in case.inputs.items()}
    (got, got_grads), (wanted, wanted_grads) = case.both(case.fused, dtype), case.both(case.looped)
    assert got[0].dtype == dtype and got[1].dtype == torch.float32
    assert max(map(distance, got, wanted)) < TOLERANCE[dtype]
    for name, gradient in wanted_grads.items():
        assert distance(got_grads[name], gradient) < TOLERANCE[dtype], name


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_with_a_carried_state_are_the_whole(kind: str) -> None:
    case = Case(kind, 150, has_state=False)
    whole, last = case.fused(**case.inputs)
    for sizes in ([1] * 150, [40, 64, 46], [149, 1]):
        state, found, start = None, [], 0
        for size in sizes:
            piece = {name: tensor[:, :, start : start + size] for name, tensor in case.inputs.items()}
            out, state = case.fused(**piece, state=state)
            found.append(out)
            start += size
        torch.testing.assert_close(torch.cat(found, 2), whole, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["scalar", "channel", "gated delta"])
def test_minus_infinity_begins_anew_with_no_gradient_across(kind: str) -> None:
    case, start = Case(kind, 100), 37
    case.inputs["log_decay"][:, :, start] = -INF
    given = {name: tensor.requires_grad_() for name, tensor in case.inputs.items()}
    whole, last = case.fused(**given)
    alone = {name: tensor[:, :, start:] for name, tensor in given.items() if name != "state"}
    wanted, wanted_last = case.fused(**alone)
    torch.testing.assert_close(whole[:, :, start:], wanted, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(last, wanted_last, rtol=1e-10, atol=1e-11)
    later = whole[:, :, start:].square().sum() + last.square().sum()
    for name, gradient in zip(given, torch.autograd.grad(later, list(given.values())), strict=True):
        assert gradient.isfinite().all(), name
        assert not gradient[:, :, :start].any() if name != "state" else not gradient.any(), name


@pytest.mark.parametrize("choice", ["reference", pytest.param("fused", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["scalar", "channel", "gated delta"])
def test_decays_that_would_overflow_as_a_quotient_stay_exact(kind: str, choice: Kernels) -> None:
    use_kernels(choice)
    case = Case(kind, 130)
    case.inputs["log_decay"] = case.inputs["log_decay"] * 40  # sums of a chunk far below the smallest float
    case.inputs = {name: tensor.float().double() for name, tensor in case.inputs.items()}
    (got, got_grads), (wanted, wanted_grads) = case.both(case.fused, torch.float32), case.both(case.looped)
    assert max(map(distance, got, wanted)) < 1e-5
    for name in ("q", "k", "v"):
        assert distance(got_grads[name], wanted_grads[name]) < 1e-5, name


@pytest.mark.parametrize("choice", ["fused", "reference"])
@pytest.mark.parametrize("kind", ["scalar", "channel", "gated delta"])
def test_a_decay_that_is_no_number_is_not_taken_for_a_reset(kind: str, choice: Kernels) -> None:
    case = Case(kind, 9)
    inputs = {name: tensor.float() for name, tensor in case.inputs.items()}
    inputs["log_decay"][:, :, 4] = torch.nan
    use_kernels(choice)
    try:
        o, state = case.fused(**inputs)
    finally:
        use_kernels("auto")
    assert o[:, :, 4:].isnan().all() and state.isnan().all()


def test_a_decay_for_each_head_alone_is_broadcast() -> None:
    case = Case("scalar", 70)
    case.inputs["log_decay"] = case.inputs["log_decay"][:1, :, :1].expand(1, HEADS, 70)
    everywhere = case.inputs | {"log_decay": case.inputs["log_decay"].expand(BATCH, HEADS, 70)}
    for got, wanted in zip(case.fused(**case.inputs), case.fused(**everywhere), strict=True):
        assert torch.equal(got, wanted)


def test_autocast_changes_nothing() -> None:
    case = Case("gated delta", 70)
    given = {name: tensor.float() for name, tensor in case.inputs.items()}
    wanted = case.fused(**given)
    with torch.autocast("cpu", torch.bfloat16):
        got = case.fused(**given)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    x, state = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 4, 9)
    with pytest.raises(ValueError, match=r"state_BHKV \(2, 3, 4, 9\) must be \(2, 3, 4, 4\)"):
        linear_attention(x, x, x, None, state)
    with pytest.raises(ValueError, match=r"state_BHKV \(2, 3, 4, 9\) must be \(2, 3, 4, 4\)"):
        delta_rule(x, x, x, x[..., 0], None, state)
    with pytest.raises(ValueError, match=r"log_decay \(2, 3, 4\) must be \(2, 3, 5\)"):
        linear_attention(x, x, x, torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"beta_BHT \(2, 3, 5, 4\) must be \(2, 3, 5\)"):
        delta_rule(x, x, x, x)
    for function in (linear_attention, lambda q, k, v: delta_rule(q, k, v, q[..., 0])):
        with pytest.raises(ValueError, match="the same batch, heads and time, at least 1"):
            function(x, x[:, :, :4], x)


@pytest.mark.slow  # kernels compile for up to half a minute
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_the_loop_at_any_width_and_layout(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", 19)
    monkeypatch.setattr(sys.modules[__name__], "VALUES", 33)
    for time, has_state in ((2, True), (33, False), (120, True)):
        case = Case(kind, time, has_state=has_state)
        for name in ("q", "k", "v"):  # as the projections before a mixer lay them
            case.inputs[name] = case.inputs[name].float().transpose(1, 2).contiguous().transpose(1, 2)
        use_kernels("fused")
        assert kernels.has_head_kernels(case.inputs["q"].float())
        (got, got_grads), (wanted, wanted_grads) = case.both(case.fused, torch.float32), case.both(case.looped)
        assert max(map(distance, got, wanted)) < 1e-5
        for name, gradient in wanted_grads.items():
            assert distance(got_grads[name], gradient) < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scalar", "channel", "gated delta"])
def test_the_kernel_and_chunks_in_torch_have_no_gradient_across_minus_infinity(kind: str) -> None:
    case, start = Case(kind, 50), 21
    case.inputs["log_decay"][:, :, start] = -INF
    for choice in ("fused", "reference"):
        use_kernels(choice)
        given = {name: tensor.float().requires_grad_() for name, tensor in case.inputs.items()}
        whole, last = case.fused(**given)
        later = whole[:, :, start:].square().sum() + last.square().sum()
        for name, gradient in zip(given, torch.autograd.grad(later, list(given.values())), strict=True):
            assert gradient.isfinite().all(), name
            assert not gradient[:, :, :start].any() if name != "state" else not gradient.any(), name
    use_kernels("auto")


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs numba")
def test_strips_of_two_heights_have_two_names() -> None:
    from samout_train.ops.head_kernels.tiles import _strip

    names = {_strip(height).py_func.__qualname__ for height in (4, 8)}
    assert len(names) == 2, "kernels that different processes cached would share their machine code"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs numba")
def test_the_kernels_pass_where_the_processor_has_no_wide_vectors() -> None:
    program = "import pytest; from samout_train.ops.head_kernels.tiles import LANES, WIDE; assert WIDE == LANES; "
    program += f"raise SystemExit(pytest.main(['-q', '-o', 'addopts=', '-k', 'the_kernel_is_the_loop', {__file__!r}]))"
    target = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | target, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout, (done.stdout + done.stderr)[-3000:]
