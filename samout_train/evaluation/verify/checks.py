"""The checks of a model in order, each with its bound."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from samout_train.evaluation.verify import causality, packing, sequence, training
from samout_train.evaluation.verify.result import (
    BF16,
    FINITE_DIFFERENCES,
    FP32,
    OVERFIT_NATS,
    CheckResult,
    Measured,
    check_result,
)
from samout_train.evaluation.verify.subject import ModelUnderTest
from samout_train.models import sees_future
from samout_train.runtime import PrecisionName

PARAMETERS_FOR_THREADS = 1_000_000
Check = tuple[str, float, Callable[[], Measured]]


def verify(
    subject: ModelUnderTest, tiny: ModelUnderTest, *, device: torch.device, compiles: bool = True
) -> Iterator[CheckResult]:
    """Yield the results of all checks of one model, one after another.

    Args:
        subject: The model.
        tiny: A small new model of the same kind for slow checks: gradients in float64, compilation, learning.
        device: The device to verify on.
        compiles: Whether to check compilation, which takes most of the time.
    """
    built: list[nn.Module] = []

    def build() -> Measured:
        built.append(subject.model(device))
        return 0.0, ""

    if not (row := check_result("it can be built", 0.0, build)).passed:
        yield row
        return
    (model,) = built
    with _threads_for(model):
        if sees_future(model):
            note = "the model declares that it sees the whole sequence"
            yield CheckResult("causality, state, padding", 0.0, 0.0, note, skipped=True)
        else:
            yield from _rows(_of_order(model, subject, device))
        yield from _rows(_of_any_model(model, subject, tiny, device, compiles))


@contextmanager
def _threads_for(model: nn.Module) -> Iterator[None]:
    """Use one thread for a small model: more threads gain little, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < PARAMETERS_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(checks: list[Check]) -> Iterator[CheckResult]:
    return (check_result(name, bound, measure) for name, bound, measure in checks)


def _of_order(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> list[Check]:
    """Return the checks of causal models: causality, states, padding."""
    given = (model, subject, device)
    before, at = "causality: a token changes nothing before it", "causality: a token changes what is at it"
    later = partial(causality.nothing_before_changes, *given)
    checks: list[Check] = [
        (before, 0.0, partial(later, training=False, precision="fp32", share=1.0)),
        (f"{before}, in training", 0.0, partial(later, training=True, precision="fp32", share=0.25)),
        (f"{before}, in bf16", 0.0, partial(later, training=False, precision="bf16", share=0.1)),
        (at, 0.0, partial(causality.what_is_there_changes, *given)),
    ]
    pieces = {1: "step by step", 7: "in chunks of 7", 64: "in chunks of 64"}
    precisions: tuple[tuple[PrecisionName, float], ...] = (("fp32", FP32), ("bf16", BF16))
    for precision, bound in precisions:
        for size, how in pieces.items():
            measure = partial(sequence.in_chunks, *given, size=size, precision=precision)
            checks.append((f"{precision}: {how}, from a carried state, as the whole", bound, measure))
    for size, how in pieces.items():
        measure = partial(sequence.gradients_in_chunks, *given, size=size)
        checks.append((f"gradients: {how}, from a carried state, as the whole", FP32, measure))
    for what in ("logits", "loss", "gradients"):
        checks.append((f"padding after a row leaves the {what}", FP32, partial(sequence.padded, *given, what=what)))
    alone, packed = partial(packing.gradients_as_alone, *given), "documents packed: logits in chunks of 7 as alone"
    logits = partial(packing.logits_as_alone, *given)
    checks += [
        (packed, FP32, partial(logits, precision="fp32")),
        (f"{packed}, in bf16", BF16, partial(logits, precision="bf16")),
        ("documents packed: gradients as alone", FP32, partial(alone, chunk=packing.NUM_TOKENS)),
        ("documents packed: gradients in chunks of 7 as alone", FP32, partial(alone, chunk=packing.CHUNK)),
        ("documents packed: no gradient from one to another", 0.0, partial(packing.gradient_across, *given)),
    ]
    return [*checks, ("state_bytes is what a state holds", 0.0, partial(sequence.bytes_of_state, *given))]


def _of_any_model(
    model: nn.Module, subject: ModelUnderTest, tiny: ModelUnderTest, device: torch.device, compiles: bool
) -> list[Check]:
    """Return the checks of every model, including those that see the whole sequence."""
    given = (model, subject, device)
    missing = partial(training.missing_gradients, *given)
    checks: list[Check] = [
        ("a row is the same in any batch", FP32, partial(sequence.in_any_batch, *given)),
        ("a row's gradients are the same in any batch", FP32, partial(sequence.gradients_in_any_batch, *given)),
        ("fp32: with gradients as without", FP32, partial(sequence.with_gradients, *given, precision="fp32")),
        ("bf16: with gradients as without", BF16, partial(sequence.with_gradients, *given, precision="bf16")),
        (
            "gradient as float64 finite differences",
            FINITE_DIFFERENCES,
            partial(training.finite_differences, tiny, device),
        ),
        ("gradient in float32 as in float64", FP32, partial(training.as_in_float64, tiny, device)),
    ]
    if compiles:
        checks.append(("compiled as eager, logits and gradients", FP32, partial(training.compiled, tiny, device)))
    return [
        *checks,
        ("a finite gradient that is not zero for every parameter", 0.0, missing),
        ("the same twice", 0.0, partial(training.twice, *given)),
        ("saved and loaded: weights and state", 0.0, partial(training.saved_and_loaded, *given)),
        ("memorises one batch", OVERFIT_NATS, partial(training.memorised_batch, tiny, device)),
    ]
