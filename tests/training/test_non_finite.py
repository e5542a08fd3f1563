"""Steps that are not finite: nothing is updated, on both ways of looking, and the report says what is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train.data import Batches, Characters, MatrixRows
from samout_train.training import NonFiniteError
from samout_train.training.non_finite import MOST_IN_A_ROW, OnNonFinite, describe_non_finite, needs_host, require_finite
from samout_train.training.step import TrainingStep
from tests.training.test_step import PROGRESS, model, step_of


def adam_step(
    on_non_finite: OnNonFinite, *, checks_on_host: bool, clip: float | None = 1.0, device: str = "cpu"
) -> TrainingStep:
    def adam(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)

    rows = torch.randint(4, 31, (64, 13), generator=torch.Generator().manual_seed(1))
    net = model().to(device)
    made = step_of(net, ids=rows, accumulate=2, clip=clip, optimizer=adam, device=device, on_non_finite=on_non_finite)
    made.checks_on_host = checks_on_host
    return made


@contextmanager
def poisoned(step: TrainingStep, *, batch: int, gradient: bool) -> Iterator[None]:
    """NaN in the loss of the second micro-step of one batch, or an infinity in one gradient."""
    ids_RT = step.batches.on_host(batch)[0][4:, :-1]

    def poison(net: nn.Module, args: Any, output: Any) -> Any:
        logits, state = output
        if not torch.equal(args[0].cpu(), ids_RT):
            return None
        if not gradient:
            return logits * float("nan"), state
        logits.register_hook(lambda grad: grad.index_fill(-1, torch.tensor([5], device=grad.device), float("inf")))
        return None

    handle = step.model.register_forward_hook(poison)
    try:
        yield
    finally:
        handle.remove()


def tensors(step: TrainingStep) -> list[Tensor]:
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    return [tensor.clone() for tensor in (*step.model.state_dict().values(), *moments, torch.get_rng_state())]


def make(step: TrainingStep, steps: int) -> None:
    """As a trainer does it."""
    while step.step_count < steps or not step.confirm_finite():
        step.confirm_finite(wait=False)
        step(PROGRESS)


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_only_cuda_leaves_the_decision_to_the_optimizer() -> None:
    devices = [torch.device(name) for name in ("cpu", "cuda", "mps")]
    assert [needs_host(device, holds_back=True) for device in devices] == [True, False, True]
    assert all(needs_host(device, holds_back=False) for device in devices)


LOOKS = pytest.mark.parametrize("checks_on_host", [True, False], ids=["at once", "later"])
POISONS = pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])


@pytest.mark.slow
@LOOKS
@POISONS
@pytest.mark.parametrize("clip", [None, 1.0])
def test_stop_leaves_all_as_it_was_before_the_step(checks_on_host: bool, gradient: bool, clip: float | None) -> None:
    wanted = adam_step("stop", checks_on_host=True, clip=clip)
    make(wanted, 3)
    before = tensors(wanted)
    step = adam_step("stop", checks_on_host=checks_on_host, clip=clip)
    what = "its gradient is not finite" if gradient else "its loss is nan"
    with poisoned(step, batch=3, gradient=gradient), pytest.raises(NonFiniteError, match=f"step 4 .*: {what}"):
        make(step, 8)
    assert step.step_count == 3 and step.tokens_seen == wanted.tokens_seen and step.loss == wanted.loss
    assert equal(tensors(step), before)


@pytest.mark.slow
@LOOKS
@POISONS
def test_skip_goes_on_as_if_the_batch_had_not_been(checks_on_host: bool, gradient: bool) -> None:
    wanted = adam_step("skip", checks_on_host=True)
    wanted.skipped_steps = {4}
    make(wanted, 8)
    step = adam_step("skip", checks_on_host=checks_on_host)
    with poisoned(step, batch=3, gradient=gradient):
        make(step, 8)
    assert step.skipped_steps == {4} and step.tokens_seen == wanted.tokens_seen == 7 * 8 * 12
    assert equal(tensors(step), tensors(wanted))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@POISONS
def test_on_cuda_it_is_the_same(gradient: bool) -> None:
    wanted = adam_step("stop", checks_on_host=True, device="cuda")
    make(wanted, 3)
    step = adam_step("stop", checks_on_host=False, device="cuda")
    with poisoned(step, batch=3, gradient=gradient), pytest.raises(NonFiniteError, match="step 4 was not applied"):
        make(step, 8)
    assert step.step_count == 3 and equal(tensors(step), tensors(wanted))


@pytest.mark.parametrize("choice", ["skip", "rollback"])
def test_too_many_in_a_row_end_the_run(choice: OnNonFinite) -> None:
    step = adam_step(choice, checks_on_host=True)
    step.model.register_forward_hook(lambda net, args, output: (output[0] * float("nan"), output[1]))
    with pytest.raises(NonFiniteError, match=f"the {MOST_IN_A_ROW} steps before it were skipped") as caught:
        for _ in range(20):
            try:
                step(PROGRESS)
            except NonFiniteError as error:
                if not error.goes_back:
                    raise
    assert not caught.value.goes_back and len(step.skipped_steps) == step.step_count == MOST_IN_A_ROW


def test_the_report_names_rows_text_and_gradients() -> None:
    vocabulary = Characters.of_text(["abc"])
    ids = torch.tensor([[5, 6, 7, 5], [7, 7, 6, 6]])
    batches = Batches(
        MatrixRows(ids), batch_size=2, seed=0, ignore_index=3, device=torch.device("cpu"), overfit_batches=0
    )
    net = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, float("inf") if number == 2 else 3.0)
    lines = describe_non_finite(5, 1.25, batches, net, vocabulary).splitlines()
    assert lines[:2] == ["step 5 was not applied: its gradient is not finite", "  loss            1.2500 nats"]
    first, second = (index for _, index in batches.places(4))
    assert lines[2] == f"  rows            of epoch 4: {first} {second}"
    assert lines[3].split()[1:] == [str(first), repr(["abc", "ccb"][first])]
    assert lines[5] == "  gradient norms  1 of 4 not finite"
    assert [line.split() for line in lines[6:8]] == [["inf", "1.weight"], ["4.243", "0.weight"]]


def test_what_is_not_finite_is_not_saved() -> None:
    step = adam_step("stop", checks_on_host=True)
    make(step, 1)
    require_finite(step.state_dict())
    with torch.no_grad():
        next(iter(step.model.parameters()))[0, 0] = float("inf")
    name = next(name for name, _ in step.model.named_parameters())
    with pytest.raises(NonFiniteError, match=f"after step 1, these are not finite.*: model.{name}"):
        step.state_dict()
