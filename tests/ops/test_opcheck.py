"""Each operator that the project registers keeps to torch's rules for operators: torch.library.opcheck.

It mutates and shares nothing undeclared, its fake outputs are like the real ones, and compiled it has the same results
and gradients. Operators with kernels for CUDA alone run them in Triton's interpreter.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import samout_train
from samout_train.ops import kernels

Arguments = tuple[Any, ...]

SOURCES = Path(samout_train.__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # test_samout_layer.py starts the process for it
SEED = torch.tensor(7)


def operator(name: str) -> Any:
    return getattr(torch.ops.samout_train, name).default


def random(*shape: int) -> Tensor:
    return torch.randn(shape)


def block_mix() -> Iterator[Arguments]:
    for temperature in (torch.tensor(0.7), None):
        yield random(2, 5, 24), random(2, 2, 3), temperature


def block_mix_backward() -> Iterator[Arguments]:
    for packed, state, temperature in block_mix():
        y, last, carries = operator("block_mix")(packed, state, temperature)
        yield packed, carries, temperature, torch.randn_like(y), torch.randn_like(last)


def nats_and_errors() -> Iterator[Arguments]:
    yield random(3, 50), torch.tensor([4, -100, 49]), torch.zeros(3), -100, True


def head_recurrence() -> Iterator[Arguments]:
    rows = (2, 3, 20)
    q, k, v = random(*rows, 8), F.normalize(random(*rows, 8), dim=-1), random(*rows, 5)
    scalar, channel, beta = F.logsigmoid(random(*rows)), F.logsigmoid(random(*rows, 8)), random(*rows).sigmoid()
    yield q, k, v, scalar, None, None
    yield q, k, v, channel, None, random(2, 3, 8, 5)
    yield q, k, v, scalar, beta, random(2, 3, 8, 5)


def head_recurrence_backward() -> Iterator[Arguments]:
    for given in head_recurrence():
        _, last, *kept = operator("head_recurrence")(*given)
        yield *given, *kept, torch.randn_like(given[2]), None if given[5] is None else torch.randn_like(last)


def max_mix() -> Iterator[Arguments]:
    yield random(2, 20, 24), random(2, 8), -random(2, 20, 8).abs(), "v8"
    yield random(2, 20, 24), None, None, "v8"


def max_mix_backward() -> Iterator[Arguments]:
    for packed, state, decay, form in max_mix():
        y, last, carries = operator("max_mix")(packed, state, decay, form)
        yield packed, carries, decay, form, torch.randn_like(y), None if state is None else torch.randn_like(last)


def gated() -> Iterator[Arguments]:
    yield random(2, 5, 6), random(2, 5, 6)


def gated_backward() -> Iterator[Arguments]:
    yield random(2, 5, 6), random(2, 5, 6), random(2, 5, 6)


def gated_halves() -> Iterator[Arguments]:
    for silu in (False, True):
        yield random(2, 3, 8), silu


def gated_halves_backward() -> Iterator[Arguments]:
    for silu in (False, True):
        yield random(2, 3, 8), random(2, 3, 4), silu


def blended() -> Iterator[Arguments]:
    yield random(2, 5, 6), random(2, 5, 6), torch.tensor(0.5), random(6), random(6), 1e-5, 0.25, SEED, None


def blended_backward() -> Iterator[Arguments]:
    for f, x, alpha, weight, bias, eps, dropout, seed, copy in blended():
        _, _, statistics = operator("blended")(f, x, alpha, weight, bias, eps, dropout, seed, copy)
        yield f, x, alpha, weight, statistics, dropout, seed, random(2, 5, 6), None


def blended_with_copy() -> Iterator[Arguments]:
    for *given, _ in blended():
        yield *given, torch.bfloat16


def blended_with_copy_backward() -> Iterator[Arguments]:
    for *given, _ in blended_backward():
        yield *given, random(2, 5, 6).bfloat16()


def semiring_scan() -> Iterator[Arguments]:
    for semiring in ("plus_times", "max_min"):
        yield random(2, 9, 4), random(2, 9, 4), random(2, 4), semiring


def semiring_scan_backward() -> Iterator[Arguments]:
    for a, x, state, semiring in semiring_scan():
        h = operator("semiring_scan")(a, x, state, semiring)
        yield a, x, h, state, semiring, torch.randn_like(h)


def convolve() -> Iterator[Arguments]:
    yield random(2, 4, 3), random(3, 2), random(3), True, 3, torch.bfloat16
    yield random(2, 3, 6).chunk(2, dim=-1)[1], random(3, 2), None, False, 3, torch.float32


def convolve_backward() -> Iterator[Arguments]:
    for x, weight, bias, silu, time, dtype in convolve():
        yield x, weight, bias, silu, random(2, time, 3).to(dtype)


def add_norm() -> Iterator[Arguments]:
    yield random(2, 3, 6), random(2, 3, 6).bfloat16(), random(6), random(6), 1e-5, 0.25, SEED, torch.bfloat16
    yield random(2, 3, 6), None, random(6), None, 1e-5, 0.0, SEED, torch.float32


def add_norm_backward() -> Iterator[Arguments]:
    for x, branch, weight, bias, eps, dropout, seed, dtype in add_norm():
        total, y, statistics = operator("add_norm")(x, branch, weight, bias, eps, dropout, seed, dtype)
        saved = (x if branch is None else total, weight, statistics, dropout, seed)
        upstream = (None if branch is None else torch.randn_like(total), torch.randn_like(y))
        yield *saved, *upstream, None if branch is None else branch.dtype


def turn() -> Iterator[Arguments]:
    q, k = random(2, 2, 3, 4).transpose(1, 2), random(2, 2, 3, 4).transpose(1, 2)
    yield q, k, random(4), random(4), 1e-5
    yield q, k, None, None, 0.0


def turn_backward() -> Iterator[Arguments]:
    for q, k, q_weight, k_weight, eps in turn():
        plain = None if q_weight is None else random(2, 3, 2, 4)
        yield q, k, q_weight, k_weight, eps, random(2, 3, 2, 4), random(2, 3, 2, 4), plain


def minus_softplus() -> Iterator[Arguments]:
    yield (random(2, 3, 4).bfloat16(),)


def minus_softplus_backward() -> Iterator[Arguments]:
    yield random(2, 3, 4), random(2, 3, 4)


def table(*rows: Callable[[], Iterator[Arguments]]) -> dict[str, Callable[[], Iterator[Arguments]]]:
    return {row.__name__: row for row in rows}


FOR_CPU = table(
    block_mix,
    block_mix_backward,
    nats_and_errors,
    head_recurrence,
    head_recurrence_backward,
    max_mix,
    max_mix_backward,
    gated,
    gated_backward,
    blended,
    blended_backward,
    semiring_scan,
    semiring_scan_backward,
)
FOR_CUDA = table(
    convolve,
    convolve_backward,
    add_norm,
    add_norm_backward,
    turn,
    turn_backward,
    gated_halves,
    gated_halves_backward,
    minus_softplus,
    minus_softplus_backward,
) | {"blended": blended_with_copy, "blended_backward": blended_with_copy_backward}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in SOURCES.rglob("operator.py"):
        importlib.import_module(".".join(path.relative_to(SOURCES.parent).with_suffix("").parts))
    if INTERPRETED:
        monkeypatch.setattr(kernels, "_kernels_for", lambda package, _: importlib.import_module(f"{package}.cuda"))
        convolution = importlib.import_module("samout_train.ops.causal_convolution.cuda")
        monkeypatch.setattr(convolution, "ROWS", 3)  # the interpreter takes each row by itself
        monkeypatch.setattr(convolution, "PROGRAMS", 2)
    torch.manual_seed(0)


def check(name: str, given: Arguments) -> None:
    """Check one operator; one that has a backward pass gets inputs that need gradients."""
    if f"{name}_backward" in FOR_CPU | FOR_CUDA:
        given = tuple(
            each.clone().requires_grad_() if isinstance(each, Tensor) and each.is_floating_point() else each
            for each in given
        )
    torch.library.opcheck(operator(name), given)


@pytest.mark.skipif(INTERPRETED, reason="the list is the same")
def test_each_registered_operator_has_a_row() -> None:
    named = [re.findall(r'"samout_train::(\w+)"', path.read_text("utf-8")) for path in SOURCES.rglob("*.py")]
    assert {name for names in named for name in names} == FOR_CPU.keys() | FOR_CUDA.keys()


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the operators are the same")
@pytest.mark.parametrize("name", FOR_CPU)
def test_torch_accepts_an_operator(name: str) -> None:
    for given in FOR_CPU[name]():
        check(name, given)


@pytest.mark.skipif(not INTERPRETED, reason="CUDA alone has kernels, and Triton's interpreter")
@pytest.mark.parametrize("name", FOR_CUDA)
def test_torch_accepts_an_operator_with_kernels_for_cuda(name: str) -> None:
    for given in FOR_CUDA[name]():
        check(name, given)
