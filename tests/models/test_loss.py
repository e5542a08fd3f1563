"""The loss in pieces against the loss of all logits: its value, its gradients, ten steps, and what it holds."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samout_train import build_model, build_trainer
from samout_train.config import CONF
from samout_train.models import cross_entropy_sum, loss as losses, next_token_nats
from samout_train.models.loss import linear_cross_entropy_sum
from samout_train.ops import use_kernels
from tests.support.marks import mostly_nightly, spread

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
ROWS, WIDTH, IDS = 23, 8, 50
# Float32 sums of 50 terms in another order; bfloat16 keeps 8 bits of every product.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


def inputs(ignored: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(IDS, WIDTH, generator=generator, requires_grad=True)
    targets = torch.randint(IDS, (ROWS,), generator=generator)
    targets[::5] = ignored
    return hidden, weight, targets


@pytest.mark.parametrize("ignored", [3, -100])
@pytest.mark.parametrize("rows", mostly_nightly([1, 7, ROWS, 100], {7}))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_pieces_add_up_to_the_loss_and_the_gradients_of_all_logits(dtype: torch.dtype, rows: int, ignored: int) -> None:
    hidden, weight, targets = inputs(ignored)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        nats = linear_cross_entropy_sum(hidden, weight, targets, ignored, rows * IDS)
    gradients = torch.autograd.grad(nats / 7, (hidden, weight))
    wanted = F.cross_entropy(hidden @ weight.t(), targets, ignore_index=ignored, reduction="sum")
    wanted_gradients = torch.autograd.grad(wanted / 7, (hidden, weight))
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, wanted, rtol=TOLERANCES[dtype], atol=0)
    for gradient, right in zip(gradients, wanted_gradients, strict=True):
        assert float((gradient - right).norm() / right.norm()) < TOLERANCES[dtype]
    assert not gradients[0][::5].any(), "what is ignored takes no gradient"


def test_a_broken_row_that_is_ignored_spoils_nothing() -> None:
    hidden, weight, targets = inputs(3)
    with torch.no_grad():
        hidden[0] = torch.nan
    nats = linear_cross_entropy_sum(hidden, weight, targets, 3, IDS)
    to_hidden, _ = torch.autograd.grad(nats, (hidden, weight))
    assert nats.isfinite() and not to_hidden[0].any()


def test_nothing_counted_is_nothing_lost() -> None:
    hidden, weight, targets = inputs(3)
    nats = linear_cross_entropy_sum(hidden, weight, torch.full_like(targets, 3), 3, IDS)
    gradients = torch.autograd.grad(nats, (hidden, weight))
    assert nats == 0 and not any(gradient.any() for gradient in gradients)


class Largest(TorchDispatchMode):
    """The most rows that a tensor of logits has; a head's matrix, turned, is none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.most = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.shape[-1:] == (IDS,) and leaf.shape != (self.width, IDS):
                self.most = max(self.most, leaf.numel() // IDS)
        return result


def model_and_ids(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build_model(name, vocab_size=IDS, hidden_size=24, num_layers=2, dropout=0.0)
    return model, torch.randint(IDS, (4, 30), generator=torch.Generator().manual_seed(1))


SLOW_TO_COMPILE = {"counting", "mamba2"}  # their mixers' kernels, which this does not test, and each takes ten seconds


@pytest.mark.parametrize("name", spread(NAMES, 3))
def test_every_model_learns_the_same_without_all_of_its_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in SLOW_TO_COMPILE:
        use_kernels("reference")
    model, ids = model_and_ids(name)
    whole = cross_entropy_sum(model(ids)[0], ids, 3)
    wanted = torch.autograd.grad(whole, list(model.parameters()), allow_unused=True)
    monkeypatch.setattr(losses, "MOST_LOGITS", 9 * IDS)
    weight = getattr(model, "head_weight", None)  # none without a head: the hidden state is the logits
    with Largest(0 if weight is None else weight.shape[1]) as largest:
        nats = next_token_nats(model, ids, ids, 3)
        gradients = torch.autograd.grad(nats, list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            assert next_token_nats(model, ids, ids, 3) == nats
    torch.testing.assert_close(nats, whole, rtol=1e-6, atol=0)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert (gradient is None) == (right is None)
        assert right is None or float((gradient - right).norm()) <= 2e-5 * float(right.norm())
    assert weight is None or largest.most == 9


@pytest.mark.slow
@pytest.mark.parametrize("precision", mostly_nightly(["fp32", "bf16"], ["fp32"]))
@pytest.mark.parametrize("extra", [[], ["trainer.accumulate=2"], ["trainer.activation_checkpointing=true"]])
def test_ten_steps_in_pieces_come_to_the_weights_of_ten_whole_ones(
    extra: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights_of_ten() -> dict[str, Tensor]:
        sizes = ["model.hidden_size=32", "model.num_heads=4", "model.num_layers=2", "data.batch_size=8"]
        sizes.append("optimizer.eps=1e-5")  # with Adam's 1e-8, gradients that are rounding alone move weights, too
        trainer = build_trainer(["model=v1", "data=random", "device=cpu", f"precision={precision}", *sizes, *extra])
        for _ in range(10):
            trainer.step()
        return trainer.model.state_dict()

    wanted = weights_of_ten()
    monkeypatch.setattr(losses, "MOST_LOGITS", 1000)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    for name, weight in weights_of_ten().items():
        assert float((weight - wanted[name]).abs().max()) < tolerance, name
