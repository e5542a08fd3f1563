"""Copies of weights, made once a step: their products and gradients are those without copies."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from samout_train import build_model
from samout_train.models import ParallelModel
from samout_train.ops import use_kernels
from samout_train.ops.linear import copies

IGNORED = 3
CPU = torch.device("cpu")
# Of all gradients together, relative in norm: products in another order. In bfloat16, of those in float32.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


@pytest.fixture(autouse=True)
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(copies, "DEVICES", {"cpu"})
    use_kernels("reference")
    yield
    use_kernels("auto")


def gradients(shared: ParallelModel, dtype: torch.dtype, pieces: list[Tensor], with_copies: bool) -> dict[str, Tensor]:
    """The gradients of micro-steps of one step."""
    shared.model.zero_grad()

    def accumulate() -> None:
        for ids_BT in pieces:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
                nats, _ = shared.loss_sum(ids_BT[:, :-1], ids_BT[:, 1:], IGNORED, ids_BT.numel(), None)
            nats.backward()  # type: ignore[no-untyped-call]

    if with_copies:
        with shared.weight_copies(dtype):
            accumulate()
    else:
        accumulate()
    return {name: weight.grad.clone() for name, weight in shared.model.named_parameters() if weight.grad is not None}


def error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    largest = max(float(grad.norm()) for grad in want.values())
    return max(float((got[name] - want[name]).norm() / (want[name].norm() + 1e-3 * largest)) for name in want)


WITHOUT_B = {
    "_target_": "samout_train.models.maxplus.MaxPlus",
    "_partial_": True,
    "decay": "token",
    "decay_at_start": 0.14,
    "b_projection": False,
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("v1", {}), ("v8", {}), ("maxplus", {}), ("maxplus", {"mixer": WITHOUT_B}), ("transformer", {})],
)
def test_gradients_are_those_without_copies(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 16, "num_heads": 2, "num_layers": 2, "dropout": 0.0}
    model = build_model(name, **sizes, **settings).train()
    pieces = list(torch.randint(4, 11, (2, 3, 8)))
    shared = ParallelModel(model, parallel="ddp", device=CPU, compile=False)
    want = gradients(shared, torch.float32, pieces, False)
    assert error(gradients(shared, torch.float32, pieces, True), want) < TOLERANCE[torch.float32]
    narrow, narrow_with = (gradients(shared, torch.bfloat16, pieces, way) for way in (False, True))
    assert all(grad.dtype == torch.float32 for grad in narrow_with.values())
    assert error(narrow_with, want) < max(TOLERANCE[torch.bfloat16], 1.5 * error(narrow, want))


def test_a_step_copies_once_and_nothing_else_reads_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("v8", vocab_size=11, hidden_size=16, num_heads=2, num_layers=1, dropout=0.0).train()
    shared = ParallelModel(model, parallel="ddp", device=CPU, compile=False)
    pieces, filled = list(torch.randint(4, 11, (3, 2, 8))), []
    fill = copies.WeightCopies.fill

    def counted(self: Any) -> None:
        filled.append(self)
        fill(self)

    monkeypatch.setattr(copies.WeightCopies, "fill", counted)
    first = gradients(shared, torch.float32, pieces, True)
    assert len(filled) == 1
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    # Behind the step the weights themselves are read, and in the next one they are copied as they are now.
    want = gradients(shared, torch.float32, pieces, False)
    assert error(first, want) > 0.1 and len(filled) == 1
    assert error(gradients(shared, torch.float32, pieces, True), want) < TOLERANCE[torch.float32]
    assert filled == filled[:1] * 2  # in the same memory, as a CUDA graph needs


def test_a_class_that_is_derived_from_a_mixer_keeps_its_own_streams() -> None:
    from samout_train.models.samout import MaxState

    class Halved(MaxState):
        """V1 with another scale."""

        def _streams(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            return b, c, (a + b) * 0.5

    mixer = Halved(hidden_size=8, num_heads=2)
    x = torch.randn(2, 40, 8)
    want = mixer.project(x)
    with copies.weight_copies(copies.WeightCopies(mixer, torch.float32)):
        assert torch.equal(mixer.project(x), want)
