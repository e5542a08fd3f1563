"""Steps as CUDA graphs: what is around a graph, with a stand-in that repeats the step in place of one."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model, build_trainer
from samout_train.training import cuda_graph
from samout_train.training.average import WeightAverage
from samout_train.training.cuda_graph import (
    MOST_GRAPHS,
    WARM_UP_STEPS,
    Results,
    StepGraph,
    model_problem,
    rounded_bound,
    settings_problem,
)
from samout_train.training.optimizers.muon import muon
from samout_train.training.schedules import Limits
from samout_train.training.step import TrainingStep
from tests.training.test_step import ragged_rows, step_of

CUDA = torch.device("cuda")


class Repeats:
    """Records a step as a graph does: the same memory in each run, and nothing done by recording it.

    A run calls the step again, so it shows whether inputs, results and state are where the graph expects them.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.warm_ups = self.records = self.runs = 0
        self.error: Exception | None = None
        self.draws_on_host = False

    def tensors(self) -> list[Tensor]:
        state = self.step.optimizer.state.values()
        flag = [] if self.step._monitor.flag is None else [self.step._monitor.flag]
        return [*self.step.parameters, *(value for values in state for value in values.values()), *flag]

    def aside(self, work: Callable[[], Results]) -> Results:
        self.warm_ups += 1
        return work()

    def record(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        self.records += 1
        before, random = [tensor.detach().clone() for tensor in self.tensors()], torch.get_rng_state()
        results = work()
        with torch.no_grad():
            for tensor, value in zip(self.tensors(), before, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(random)
        if self.error is not None:
            raise self.error
        kept = [parameter.grad for parameter in self.step.parameters]
        addresses = [tensor.data_ptr() for tensor in self.tensors()]

        def run() -> None:
            self.runs += 1
            assert [tensor.data_ptr() for tensor in self.tensors()] == addresses
            made = work()
            for place, value in zip(results, made, strict=True):
                assert place is not None and value is not None
                place.copy_(value)
            for gradient, parameter in zip(kept, self.step.parameters, strict=True):
                assert gradient is not None and parameter.grad is not None
                gradient.copy_(parameter.grad)

        return run, results

    def host_random_state(self) -> Tensor:
        """Draws of this device are on the host, and are those of a graph unless the test says otherwise."""
        return torch.get_rng_state() if self.draws_on_host else torch.zeros(())

    def reset(self) -> None:
        """Do nothing: it has no memory of its own."""


class Net(nn.Module):
    """A small model with a state and dropout; its logits are NaN where a row begins with id 30."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(31, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 31)

    def forward(self, ids_BT: Tensor, state_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x_BTD = self.dropout(self.embedding(ids_BT)).cumsum(1)
        if state_BD is not None:
            x_BTD = x_BTD + state_BD[:, None]
        is_clean_B11 = (ids_BT[:, :1, None] != 30).float()
        return self.head(x_BTD) * (is_clean_B11 / is_clean_B11), x_BTD[:, -1]


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1]},
        {"params": [p for p in net.parameters() if p.ndim < 2]},
    ]
    return torch.optim.AdamW(groups, lr=0.01, fused=True)


def rows(*, poisoned: int | None = None) -> Tensor:
    """Forty rows with other numbers of targets in each batch of eight."""
    ids = torch.cat([ragged_rows(), torch.randint(4, 30, (32, 13), generator=torch.Generator().manual_seed(1))])
    ids[:, 0] = 5
    ids[9:20, 9:] = 3
    if poisoned is not None:
        ids[poisoned, 0] = 30
    return ids


def made(
    monkeypatch: pytest.MonkeyPatch, *, graph: bool, device: str = "cpu", dropout: float = 0.2, **settings: Any
) -> TrainingStep:
    """A step that reads scalars, with its random state at the same place each time."""
    monkeypatch.setattr("samout_train.training.step.takes_scalars", lambda *given, **named: True)
    torch.manual_seed(0)
    ema = settings.pop("ema", None)
    settings = {"ids": rows(), "clip": 1.0, "optimizer": adamw, "device": device, **settings}
    step = step_of(Net(dropout).to(device), **settings)
    step.schedule = lambda progress: 1 / progress.step  # type: ignore[assignment]
    step.checks_on_host = False
    if ema is not None:
        step.average = WeightAverage(step.shared, half_life=ema)
    if graph and device == "cuda":
        step.use_graph()
    elif graph:
        step.graph = StepGraph(
            step._device_step,
            model=step.model,
            optimizer=step.optimizer,
            device=step.batches.device,
            recorder=Repeats(step),
        )
    return step


def run(step: TrainingStep, steps: int) -> list[Tensor]:
    """Make steps as a trainer does; return losses, norms, weights, moments and the random state."""
    found: list[Tensor] = []
    if step.step_count == 0:
        torch.manual_seed(7)
    while step.step_count < steps or not step.confirm_finite():
        step.confirm_finite(wait=False)
        loss = step(Limits(20, None).progress(step.step_count + 1, 0.0))
        found += [loss, torch.tensor(step.grad_norm())]
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    generator = torch.cuda.get_rng_state() if step.batches.device.type == "cuda" else torch.get_rng_state()
    return [tensor.detach().clone().cpu() for tensor in (*found[-8:], *step.parameters, *moments, generator)]


def recorder_of(step: TrainingStep) -> Repeats:
    assert step.graph is not None and isinstance(step.graph._recorder, Repeats)
    return step.graph._recorder


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


WAYS = pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate": 2}, {"chunk_len": 5, "clip": None}, {"precision": "bf16", "ema": 500.0}],
    ids=["whole", "accumulated", "chunked", "bf16 and average"],
)


@WAYS
def test_ten_steps_from_a_record_have_the_bits_of_ten_plain_ones(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    wanted = made(monkeypatch, graph=False, **settings)
    step = made(monkeypatch, graph=True, **settings)
    assert equal(run(step, 10), run(wanted, 10))
    recorder = recorder_of(step)
    assert (recorder.warm_ups, recorder.records, recorder.runs) == (WARM_UP_STEPS, 1, 10 - WARM_UP_STEPS)
    if step.average is not None and wanted.average is not None:
        pairs = zip(step.average._averages.values(), wanted.average._averages.values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_poisoned_batch_is_skipped_and_the_record_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = made(monkeypatch, graph=False, ids=rows(poisoned=30), on_non_finite="skip")
    wanted.checks_on_host = True
    step = made(monkeypatch, graph=True, ids=rows(poisoned=30), on_non_finite="skip")
    found = run(step, 12)
    assert equal(found[8:], run(wanted, 12)[8:])
    assert step.skipped_steps == wanted.skipped_steps and len(step.skipped_steps) == 2
    assert recorder_of(step).records == 1 and recorder_of(step).runs > 12 - WARM_UP_STEPS - 2


def test_a_loaded_state_is_trained_on_with_a_new_record(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = made(monkeypatch, graph=False, dropout=0.0)
    run(wanted, 6)
    state = copy.deepcopy(wanted.state_dict())
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [0.01 * (1 / 6)] * 2
    assert not any(group["capturable"] for group in state["optimizer"]["param_groups"])
    step = made(monkeypatch, graph=True, dropout=0.0)
    run(step, 5)
    step.load_state_dict(state)
    assert step.rates() == wanted.rates() and step.graph is not None and step.graph.count == 0
    assert equal(run(step, 12), run(wanted, 12))
    assert recorder_of(step).records == 2


def test_a_step_with_a_hook_runs_by_itself(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    step, seen = made(monkeypatch, graph=True, dropout=0.0), []
    run(step, 5)
    handle = step.model.register_forward_hook(lambda *given: seen.append(1))
    run(step, 7)
    handle.remove()
    weight = step.parameters[0].register_hook(lambda gradient: seen.append(2))
    run(step, 8)
    weight.remove()
    run(step, 10)
    assert seen == [1, 1, 2] and recorder_of(step).runs == 5 - WARM_UP_STEPS + 2
    assert [record.message for record in caplog.records if "a hook" in record.message] == [
        "graph       steps run one operation at a time: a hook is on the model, its parameters or the optimizer"
    ]


def test_each_shape_has_a_record_and_there_are_few(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = made(monkeypatch, graph=True, dropout=0.0)
    assert step.graph is not None
    for length in range(4, 4 + MOST_GRAPHS + 1):
        batch = torch.randint(4, 30, (8, length))
        inputs = step._inputs(step.batches.get(0))
        for _ in range(WARM_UP_STEPS + 1):
            step.graph(replace(inputs, ids_RT=batch))
    assert step.graph.count == recorder_of(step).records == MOST_GRAPHS
    assert "shapes change from step to step" in caplog.text


@pytest.mark.parametrize("what", ["a capture that fails", "a draw on the host"])
def test_a_step_that_cannot_be_recorded_runs_by_itself_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    dropout = 0.0
    if what == "a draw on the host":
        dropout = 0.2
    wanted, step = (made(monkeypatch, graph=graph, dropout=dropout) for graph in (False, True))
    if not dropout:
        recorder_of(step).error = RuntimeError("operation not permitted when stream is capturing")
    recorder_of(step).draws_on_host = bool(dropout)
    found = run(step, 10)
    assert equal(found, run(wanted, 10)) and recorder_of(step).runs == 0
    text = "draws random numbers on the host" if dropout else "not permitted when stream is capturing"
    assert step.graph is not None and step.graph.failed and caplog.text.count(text) == 1


def test_weights_that_moved_are_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, step = (made(monkeypatch, graph=graph, dropout=0.0) for graph in (False, True))
    run(step, 5)
    step.parameters[0].data = step.parameters[0].data.clone()
    assert equal(run(step, 10), run(wanted, 10)) and recorder_of(step).records == 2


def test_the_bound_on_targets_is_theirs_or_more_and_changes_seldom() -> None:
    bounds = {targets: rounded_bound(targets, (32, 64), 2, None) for targets in range(1, 32 * 64 + 1)}
    assert all(bound >= targets for targets, bound in bounds.items())
    # A sixteenth of 2,048 is 128. From half of a pass of 16 rows on, 512, the loss takes all targets.
    assert sorted(set(bounds.values())) == [128, 256, 384, 2048]
    assert rounded_bound(100, (32, 64), 1, 32) == 128 and rounded_bound(100, (32, 64), 1, 8) == 2048


FINE = {"precision": "bf16", "compile": False, "activation_checkpointing": False, "profile": False}


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({}, None),
        ({"passes": 64}, None),
        ({"passes": 65}, "65 forward"),
        ({"precision": "fp16"}, "fp16"),
        ({"compile": True}, "trainer.compile"),
        ({"activation_checkpointing": True}, "trainer.activation_checkpointing"),
        ({"profile": True}, "trainer.profile"),
        ({"splits_documents": True}, "where documents begin"),
        ({"device": torch.device("cpu")}, "on cpu"),
    ],
)
def test_settings_that_a_graph_cannot_have_are_named(setting: dict[str, Any], word: str | None) -> None:
    problem = settings_problem(**{"device": CUDA, **FINE, **setting})
    assert problem is None if word is None else word in (problem or "")


def test_models_and_optimizers_that_a_graph_cannot_have_are_named() -> None:
    net = build_model("v8", vocab_size=31, hidden_size=16, num_heads=2, num_layers=1)
    assert model_problem(net, adamw(net), scalars=True) is None
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.9, "ns_steps": 5}
    other = muon(net, **settings)  # type: ignore[arg-type]
    assert not cuda_graph.takes_scalars(other, CUDA, is_sharded=False)
    assert "MuonWithAdamW" in (model_problem(net, other, scalars=False) or "")
    assert cuda_graph.takes_scalars(adamw(net), CUDA, is_sharded=False)
    assert not cuda_graph.takes_scalars(adamw(net), torch.device("cpu"), is_sharded=False)
    for_decay = adamw(net)
    for_decay.param_groups[0]["weight_decay_end"] = 0.5
    assert "weight decay" in (model_problem(net, for_decay, scalars=True) or "")
    for dropout, reason in ((0.0, None), (0.2, "between the layers of LSTM")):
        lstm = build_model("lstm", vocab_size=31, hidden_size=16, num_layers=2, dropout=dropout)
        found = model_problem(lstm, adamw(lstm), scalars=True)
        assert found is None if reason is None else reason in (found or "")
    net.layers[0].anneal = lambda share: share  # type: ignore[union-attr, index, operator]
    assert "temperature" in (model_problem(net, adamw(net), scalars=True) or "")


def test_a_graph_that_was_asked_for_and_cannot_be_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"trainer.cuda_graph=true: it is for CUDA, and this run is on cpu"):
        build_trainer(["model=v8", "data=random", "device=cpu", "trainer.cuda_graph=true"])
    with caplog.at_level(logging.INFO):
        trainer = build_trainer(["model=v8", "data=random", "device=cpu", "model.hidden_size=16", "model.num_heads=2"])
    assert trainer.training_step.graph is None and trainer.training_step.scalars is None
    assert "graph" not in caplog.text


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@WAYS
def test_ten_steps_of_a_graph_have_the_bits_of_ten_plain_ones_on_cuda(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    wanted, step = (made(monkeypatch, graph=graph, device="cuda", **settings) for graph in (False, True))
    found = run(step, 10)
    assert equal(found, run(wanted, 10))
    assert step.graph is not None and step.graph.count == 1 and not step.graph.failed


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_poisoned_batch_is_skipped_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"ids": rows(poisoned=30), "on_non_finite": "skip", "device": "cuda"}
    wanted, step = (made(monkeypatch, graph=graph, **settings) for graph in (False, True))
    wanted.checks_on_host = True
    found = run(step, 12)
    assert equal(found[8:], run(wanted, 12)[8:]) and step.skipped_steps == wanted.skipped_steps
    assert step.graph is not None and step.graph.count == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["v1", "v8", "maxplus", "mingru", "lstm", "transformer"])
def test_ten_steps_of_every_kind_of_model_have_the_bits_of_plain_ones(name: str, precision: str) -> None:
    ends = []
    for graph in ("false", "auto"):
        trainer = build_trainer(
            [f"model={name}", "data=random", "device=cuda", f"precision={precision}", f"trainer.cuda_graph={graph}"]
        )
        torch.manual_seed(7)
        losses = [trainer.step() for _ in range(10)]
        ends.append([*losses, *(parameter.detach().clone() for parameter in trainer.model.parameters())])
        assert (trainer.training_step.graph is not None) == (graph == "auto")
        if trainer.training_step.graph is not None:
            assert trainer.training_step.graph.count == 1, "it was not captured"
    assert equal(*ends)
