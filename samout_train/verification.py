"""Proofs by measurement that a model is what it says: causal, with a real state, with right gradients.

Every check gives a row: what was measured, its bound, and whether it held. Bounds are the same for every model.
"""

# B batch, T time, V vocabulary

import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samout_train.losses import cross_entropy_sum
from samout_train.runtime import PrecisionName, autocast

FP32, BF16 = 1e-5, 2e-2  # relative in norm
FINITE_DIFFERENCES = 1e-5  # relative in norm, float64
OVERFIT_NATS, OVERFIT_STEPS, OVERFIT_RATE = 0.1, 500, 1e-2
NUM_TOKENS, PREFIX, CHUNKS = 150, 40, (1, 7, 64)
BORDERS = (1, 2, 7, 8, 31, 32, 63, 64, 65, 127, 128, 149)
OTHER_TOKENS = 8
STEP = 1e-6
Build = Callable[[bool], nn.Module]


@dataclass(frozen=True)
class Row:
    """One check.

    Args:
        name: What must hold.
        measured: How far it is from holding.
        bound: How far it may be.
        note: What else a reader has to know.
        skipped: Whether it was left out, for the reason in the note.
    """

    name: str
    measured: float
    bound: float
    note: str = ""
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Whether it holds; a NaN never does."""
        return self.measured <= self.bound


def verify(
    build: Build, *, vocab_size: int, pad_id: int | None, device: torch.device, compiles: bool = True
) -> Iterator[Row]:
    """All checks of one model, one after another.

    Args:
        build: Builds the model to verify; called with True, a tiny one of the same kind, with new weights.
        vocab_size: Number of ids V of both.
        pad_id: Id of the padding; None where there is none.
        device: Where to verify.
        compiles: Whether to compile it too, which takes most of the time.
    """
    torch.manual_seed(0)
    model = build(False).to(device).eval()
    first = 0 if pad_id is None or vocab_size < pad_id + 3 else pad_id + 1  # two ids at least, none of them padding
    ids_BT = torch.randint(first, vocab_size, (3, NUM_TOKENS), generator=torch.Generator().manual_seed(1)).to(device)
    if getattr(model, "sees_future", False):
        yield Row("causality, state, padding", 0.0, 0.0, "the model says that it sees the whole sequence", skipped=True)
    else:
        yield from _causality(model, ids_BT[:1], first, vocab_size)
        yield from _chunks(model, ids_BT, "fp32", FP32)
        yield from _chunks(model, ids_BT, "bf16", BF16)
        if pad_id is not None:
            yield from _padding(model, ids_BT[:, :20], pad_id)
    yield _batch_invariance(model, ids_BT)
    yield _finite_differences(build(True).double().to(device).eval(), ids_BT[:2, :7])
    if compiles:
        yield _compiled(build(True).to(device).eval(), ids_BT[:2, :16])
    yield _gradients(model, ids_BT[:, :20])
    yield _determinism(model, ids_BT[:, :20])
    yield _save_and_load(model, build(False).to(device).eval(), ids_BT)
    yield _overfit(build(True).to(device).train(), ids_BT[:, :16])


def distance(got: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, relative to that of what is wanted."""
    return float((got - wanted).double().norm() / wanted.double().norm())


@torch.inference_mode()
def _causality(model: nn.Module, ids_1T: Tensor, first: int, vocab_size: int) -> Iterator[Row]:
    """Each row of the batch has another token at one of the borders; what is before it must not change by a bit.

    A maximum shows a later token only where that token is larger than all before it, so several are tried.
    """
    places = [t for t in BORDERS for _ in range(OTHER_TOKENS)]
    before_BTV = model(ids_1T.repeat(len(places), 1))[0]
    changed_BT = ids_1T.repeat(len(places), 1)
    for row, t in enumerate(places):
        other = 1 + row % OTHER_TOKENS % (vocab_size - first - 1)  # 1 or more: never the token itself
        changed_BT[row, t] = first + (changed_BT[row, t] - first + other) % (vocab_size - first)
    after_BTV = model(changed_BT)[0]
    worst, unmoved = 0.0, 0
    for row, t in enumerate(places):
        worst = max(worst, float((after_BTV[row, :t] - before_BTV[row, :t]).abs().max()))
        unmoved += int(torch.equal(after_BTV[row, t], before_BTV[row, t]))
    yield Row("causality: a token changes nothing before it", worst, 0.0, "largest difference in logits")
    yield Row("causality: a token changes what is at it", float(unmoved), 0.0, f"of {len(places)} changes")


@torch.inference_mode()
def _chunks(model: nn.Module, ids_BT: Tensor, precision: PrecisionName, bound: float) -> Iterator[Row]:
    with autocast(precision, ids_BT.device):
        whole_BTV = model(ids_BT)[0].float()
        for size in CHUNKS:
            _, state = model(ids_BT[:, :PREFIX])
            pieces = []
            for chunk_BT in ids_BT[:, PREFIX:].split(size, dim=1):
                logits_BTV, state = model(chunk_BT, state)
                pieces.append(logits_BTV.float())
            name = "step by step" if size == 1 else f"in chunks of {size}"
            measured = distance(torch.cat(pieces, dim=1), whole_BTV[:, PREFIX:])
            yield Row(f"{precision}: {name}, from a carried state, as the whole", measured, bound)


def _padding(model: nn.Module, ids_BT: Tensor, pad_id: int) -> Iterator[Row]:
    padded_BT = torch.cat([ids_BT, torch.full_like(ids_BT[:, :9], pad_id)], dim=1)
    results = []
    for given_BT in (ids_BT, padded_BT):
        model.zero_grad()
        logits_BTV, _ = model(given_BT[:, :-1])
        loss = cross_entropy_sum(logits_BTV, given_BT[:, 1:], pad_id)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((logits_BTV[:, : ids_BT.shape[1] - 1].detach(), loss.detach(), gradient))
    for name, alone, padded in zip(("logits", "loss", "gradients"), *results, strict=True):
        yield Row(f"padding behind it leaves the {name}", distance(padded, alone), FP32)


@torch.inference_mode()
def _batch_invariance(model: nn.Module, ids_BT: Tensor) -> Row:
    together_BTV = model(ids_BT)[0]
    alone_BTV = torch.cat([model(row_BT)[0] for row_BT in ids_BT.split(1)])
    return Row("a row is the same in any batch", distance(together_BTV, alone_BTV), FP32)


def _finite_differences(model: nn.Module, ids_BT: Tensor) -> Row:
    """Each parameter along a random direction, by the gradient and by two evaluations."""
    loss = _loss(model, ids_BT)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    generator = torch.Generator().manual_seed(2)
    by_gradient, by_difference = [], []
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
            by_gradient.append((gradient * direction).sum())
            here = parameter.clone()
            parameter.copy_(here + STEP * direction)
            above = _loss(model, ids_BT)
            parameter.copy_(here - STEP * direction)
            by_difference.append((above - _loss(model, ids_BT)) / (2 * STEP))
            parameter.copy_(here)
    measured = distance(torch.stack(by_gradient), torch.stack(by_difference))
    return Row("gradient as float64 finite differences", measured, FINITE_DIFFERENCES, f"{len(parameters)} parameters")


def _compiled(model: nn.Module, ids_BT: Tensor) -> Row:
    on_cpu = ids_BT.device.type == "cpu"
    has_compiler = not on_cpu or any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    backend = "inductor" if has_compiler else "aot_eager"
    started = time.monotonic()
    compiled: Any = torch.compile(model, backend=backend)
    results = []
    for function in (model, compiled):
        model.zero_grad()
        logits_BTV, _ = function(ids_BT[:, :-1])
        cross_entropy_sum(logits_BTV, ids_BT[:, 1:], -100).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append(torch.cat([logits_BTV.detach().flatten(), gradient]))
    torch._dynamo.reset()
    note = f"{backend}, {time.monotonic() - started:.0f} s" + ("" if has_compiler else ": no C++ compiler here")
    return Row("compiled as eager, logits and gradients", distance(results[1], results[0]), FP32, note)


def _gradients(model: nn.Module, ids_BT: Tensor) -> Row:
    model.zero_grad()
    _loss(model, ids_BT).backward()
    bad = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or not p.grad.any())
    ]
    return Row("a finite gradient that is not zero for every parameter", float(len(bad)), 0.0, ", ".join(bad[:3]))


def _determinism(model: nn.Module, ids_BT: Tensor) -> Row:
    results = []
    for _ in range(2):
        model.zero_grad()
        loss = _loss(model, ids_BT)
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append(torch.cat([loss.detach()[None], *gradients]))
    return Row("the same twice", float((results[0] - results[1]).abs().max()), 0.0)


@torch.inference_mode()
def _save_and_load(model: nn.Module, other: nn.Module, ids_BT: Tensor) -> Row:
    """Weights into a model with others, and a state through a file."""
    file = io.BytesIO()
    _, state = model(ids_BT[:, :PREFIX])
    torch.save({"weights": model.state_dict(), "state": state}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True, map_location=ids_BT.device)
    other.load_state_dict(saved["weights"])
    difference = (other(ids_BT)[0] - model(ids_BT)[0]).abs().max()
    if not getattr(model, "sees_future", False):
        went_on = (other(ids_BT[:, PREFIX:], saved["state"])[0] - model(ids_BT[:, PREFIX:], state)[0]).abs().max()
        difference = torch.maximum(difference, went_on)
    return Row("saved and loaded: weights and state", float(difference), 0.0)


def _overfit(model: nn.Module, ids_BT: Tensor) -> Row:
    optimizer = torch.optim.Adam(model.parameters(), lr=OVERFIT_RATE)
    for step in range(OVERFIT_STEPS):
        loss = _loss(model, ids_BT)
        if float(loss.detach()) <= OVERFIT_NATS:
            return Row("learns one batch by heart", float(loss.detach()), OVERFIT_NATS, f"nats after {step} steps")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    measured = float(_loss(model, ids_BT).detach())
    return Row("learns one batch by heart", measured, OVERFIT_NATS, f"nats after {OVERFIT_STEPS} steps")


def _loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Mean nats: of the next token, or where a model sees the whole sequence, of the tokens turned round."""
    if getattr(model, "sees_future", False):
        inputs_BT, targets_BT = ids_BT, ids_BT.flip(1)
    else:
        inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    logits_BTV, _ = model(inputs_BT)
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
