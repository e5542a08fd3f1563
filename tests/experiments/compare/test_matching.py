"""Sizes at a budget."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from samout_train.config import CONF, build
from samout_train.experiments import Budget
from samout_train.experiments.compare import matching
from samout_train.experiments.compare.matching import Sizes, matched, model_cost, seconds_a_step
from samout_train.models import num_parameters
from samout_train.training import model_node
from tests.support.marks import spread
from tests.support.messages import assert_recorded

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
LAYERS = {"lstm": 2, "gru": 2, "rnn": 2}


def node_of(name: str) -> dict[str, Any]:
    node = model_node(name) | {"num_layers": LAYERS.get(name, 4)}
    return node | ({"num_heads": 4} if "num_heads" in node else {})


def sizes_at(name: str, budget: Budget, **settings: Any) -> Sizes:
    return matched(
        name,
        node_of(name) | settings,
        budget,
        lambda node: model_cost(budget.kind, node, vocab_size=70, pad_id=3, seq_len=64),
    )


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("parameters:800k", 8e5),
        ("flops:4.8M", 4.8e6),
        ("state_bytes:12_000", 12e3),
        ("seconds: 60", 60),
        ("parameters:1e6", 1e6),
    ],
)
def test_a_budget_is_read_as_it_is_typed(text: str, amount: float) -> None:
    assert Budget.of(text) == Budget(text.partition(":")[0], amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["parameters", "800k", "params:8", "parameters:", "parameters:x", "parameters:8q", "parameters:-3"]
)
def test_what_is_no_budget_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="must be a budget such as parameters:800k, with one of parameters, flops"):
        Budget.of(text)
    for nothing in ("0", "1e400"):
        with pytest.raises(ValueError, match="must be above 0, and finite"):
            Budget.of(f"parameters:{nothing}")
    with pytest.raises(ValueError, match="seconds have no unit: write seconds:300"):
        Budget.of("seconds:5m")


@pytest.mark.slow
@pytest.mark.parametrize("name", spread(MODELS, 3))
@pytest.mark.parametrize("budget", spread(["parameters:800k", "flops:5M", "state_bytes:41k"], 3))
def test_every_model_meets_a_budget_within_two_percent(name: str, budget: str) -> None:
    wanted = Budget.of(budget)
    found = sizes_at(name, wanted, **({"num_layers": 1} if wanted.kind == "state_bytes" else {}))
    assert abs(found.cost / wanted.amount - 1) <= 0.02
    if wanted.kind == "parameters":
        model = build(node_of(name) | dict(found.settings), vocab_size=70, pad_id=3)
        assert num_parameters(model) == found.cost


@pytest.mark.slow
def test_the_width_comes_first_and_the_feed_forward_only_where_no_width_fits() -> None:
    # Counted by hand: a Transformer of width D, 4 layers, ids V: V D + 4 (4 D D + 3 D + 8 D D + 5 D + 4 D) + 2 D + V D
    cost = {width: 2 * 70 * width + 4 * (12 * width**2 + 12 * width) + 2 * width for width in (120, 128, 136)}
    assert sizes_at("transformer", Budget("parameters", cost[128])).settings == {"hidden_size": 128}
    between = Budget("parameters", cost[120] * 1.06)
    assert cost[120] * 1.06 * 1.02 < cost[128]
    found = sizes_at("transformer", between)
    assert found.settings["hidden_size"] in (120, 128) and found.settings["ffn_size"] % 8 == 0


@pytest.mark.slow
def test_what_cannot_be_matched_is_refused_with_the_nearest_sizes() -> None:
    # a cache of 64 tokens, 4 layers, 4 heads of two: 2 x 4 x 64 x 4 x 8 bytes; no feed-forward changes it
    with pytest.raises(
        ValueError, match=r"transformer: no width.* match=state_bytes:12,000; hidden_size 8 takes 16,384"
    ):
        sizes_at("transformer", Budget("state_bytes", 12e3))
    with pytest.raises(
        ValueError, match=r"hidden_size 20 takes 9,520 \(-4.8%\); hidden_size 21 takes 10,332 \(\+3.3%\)"
    ):
        sizes_at("lstm", Budget("parameters", 1e4))
    with pytest.raises(ValueError, match="odd: has no hidden_size") as caught:
        matched("odd", {"_target_": "torch.nn.Linear"}, Budget("parameters", 1e4), lambda node: 1.0)
    assert_recorded("compare: no hidden_size", str(caught.value))


def test_a_model_that_no_width_suits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "LARGEST_UNIT", 5)
    with pytest.raises(ValueError, match="v8: no width of it is allowed") as caught:
        matched("v8", node_of("v8") | {"num_heads": 5}, Budget("parameters", 1e4), lambda node: 1.0)
    assert_recorded("compare: no width", str(caught.value))


def test_a_size_that_changes_nothing_ends_the_search() -> None:
    with pytest.raises(ValueError, match="no width"):
        matched("v8", node_of("v8"), Budget("parameters", 1e4), lambda node: 10.0)


def test_the_seconds_of_a_step_are_those_of_the_fastest_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now, calls = [0.0], [0]

    class Trainer:
        def step(self) -> torch.Tensor:
            calls[0] += 1
            now[0] += 0.5 if calls[0] in (9, 10, 11) else 2.0
            return torch.zeros(())

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert matching.WARM_UP_STEPS == 2 and matching.STEPS_IN_A_BLOCK == 3
    assert seconds_a_step(Trainer()) == 0.5  # steps 3 to 5, 6 to 8, 9 to 11, 12 to 14
