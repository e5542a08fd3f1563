"""The state along a row and what branches are worth, against lists worked out by hand and against slow loops."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from samout_train import build_model, train
from samout_train.config import build
from samout_train.data import MatrixRows
from samout_train.evaluation import (
    EVERYWHERE,
    Evaluator,
    LayerHealth,
    added_nats,
    calm_rows,
    growing_layers,
    positions_of,
)
from samout_train.evaluation.ablation import branches_of, mixed_by, said_by, without
from samout_train.models import cross_entropy_sum, map_state
from samout_train.models.maxplus import MaxPlus
from samout_train.models.samout import MaxStateSuper
from samout_train.models.state import LayerState
from samout_train.ops.max_scan import max_scan
from samout_train.training import Callback, model_node
from tests.support.evaluation import evaluator_of
from tests.support.marks import mostly_nightly
from tests.support.models import HEADED, NAMES as MODELS, ONLY_GROWS, STATE_GROWS

CPU = torch.device("cpu")
TINY = ["device=cpu", "model.hidden_size=12", "model.num_layers=2", "data=random", "data.seq_len=9"]
TOLERANCE = 1e-5  # float32, chunks of other sizes


class Maximum(nn.Module):
    """A mixer that says that its state is a maximum."""

    state_is_maximum = True

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        return max_scan(x_BTD, state_BD)


class Sum(nn.Module):
    """A mixer that says nothing."""

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        sums_BTD = x_BTD.cumsum(1) + (0 if state_BD is None else state_BD[:, None])
        return sums_BTD, sums_BTD[:, -1]


class Layer(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer


class Model(nn.Module):
    """Ids to rows of a table, mixed once; what the mixer makes of them is the logits."""

    def __init__(self, mixer: nn.Module, table: list[list[float]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(mixer)])
        self.table_VD = torch.tensor(table)

    def forward(self, ids_BT: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        mixer: Any = self.layers[0].mixer
        y_BTD, state_BD = mixer(self.table_VD[ids_BT], None if state is None else state[0])
        return y_BTD, [state_BD]


def health_of(model: nn.Module, ids: list[list[int]] | Tensor) -> dict[str, LayerHealth]:
    ids_BT = torch.as_tensor(ids)
    return evaluator_of(model, MatrixRows(ids_BT)).state_health(ids_BT)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_layers": 2}
    sizes |= {"num_heads": 2} if name in HEADED else {}
    sizes |= {"init": "published"} if name in ("v1", "v8") else {}
    return build_model(name, vocab_size=11, **sizes)


def floats(part: Any) -> Tensor:
    """(B, numbers): a layer's memory, its parts one behind the other."""
    found: list[Tensor] = []
    map_state(lambda tensor: found.append(tensor.flatten(1)) or tensor, part)  # type: ignore[func-returns-value]
    return torch.cat(found, dim=1)


def some_ids(rows: int, length: int) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(1))


def test_positions_are_the_powers_of_two_and_the_last() -> None:
    assert positions_of(1) == [1]
    assert positions_of(8) == [1, 2, 4, 8]
    assert positions_of(9) == [1, 2, 4, 8, 9]


@pytest.mark.slow
def test_channels_of_a_tiny_maximum_move_as_worked_out_by_hand() -> None:
    # Tokens 0 to 4 in order. Channel 0 rises at each token, 1 never, 2 at the third only, 3 ties, which is no move.
    table = [[1.0, 9.0, 0.0, 2.0], [2.0, 1.0, 0.0, 2.0], [3.0, 1.0, 7.0, 1.0], [4.0, 1.0, 7.0, 2.0], [5.0, 0, 0, 0]]
    layer = health_of(Model(Maximum(), table), [[0, 1, 2, 3, 4]])["layer_1"]
    # Positions 1, 2, 4, 5; maxima 1902, 2902, 4972, 5972.
    assert layer.moved_share == [1.0, 0.25, 0.25, 0.25]
    assert layer.never_moved_share == 0.5
    assert layer.largest == [9.0, 9.0, 9.0, 9.0]
    assert layer.norm == pytest.approx([math.sqrt(n) for n in (86, 89, 150, 159)])
    assert layer.growth == pytest.approx(math.sqrt(159 / 86))


def test_a_mixer_that_does_not_say_that_it_is_a_maximum_has_norms_and_no_moves() -> None:
    layer = health_of(Model(Sum(), [[3.0, 4.0], [0.0, 0.0]]), [[0, 1, 0], [1, 1, 1]])["layer_1"]
    assert layer.norm == [2.5, 2.5, 5.0] and layer.largest == [4.0, 4.0, 8.0]
    assert layer.moved_share is None and layer.never_moved_share is None


@pytest.mark.parametrize("name", mostly_nightly(sorted(set(MODELS) - STATE_GROWS), {"v8", "maxplus", "lstm"}))
def test_figures_are_those_of_a_slow_loop(name: str) -> None:
    model, ids = small(name).eval(), some_ids(3, 11)
    found, states, state = health_of(model, ids), [], None
    with torch.no_grad():
        for index in range(ids.shape[1]):
            state = model(ids[:, index : index + 1], state)[1]
            parts = [part for both in state for part in both.unbind(1)] if isinstance(state, tuple) else state
            parts = [part.mixer if isinstance(part, LayerState) else part for part in parts]
            states.append([floats(part) for part in parts])
    assert len(found) == len(states[0])
    for index, layer in enumerate(found.values()):
        along = [states[position - 1][index] for position in (1, 2, 4, 8, 11)]
        assert layer.norm == pytest.approx([float(part.norm(dim=1).mean()) for part in along], rel=TOLERANCE)
        assert layer.largest == pytest.approx([float(part.abs().max()) for part in along], rel=TOLERANCE)
        if name in ("v1", "v8"):
            never = torch.stack([each[index] == states[0][index] for each in states]).all(0).float().mean()
            assert layer.never_moved_share == pytest.approx(float(never))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ONLY_GROWS))
def test_a_state_that_grows_has_no_health(name: str) -> None:
    assert health_of(small(name), some_ids(2, 7)) == {}


def hybrid(window: int | None) -> nn.Module:
    """Return a layer of maxplus, one of attention over a window, and one of maxplus."""
    torch.manual_seed(0)
    node = model_node("hybrid") | {"hidden_size": 8, "num_heads": 2, "num_layers": 3}
    node["pattern"] = ["maxplus", "attention", "maxplus"]
    node["mixers"]["attention"]["window"] = window
    model: nn.Module = build(node, vocab_size=11, pad_id=None)
    return model.eval()


def state_after(model: nn.Module, ids_BT: Tensor, name: str) -> Tensor:
    """Return the numbers of a layer's state after a whole sequence, (B, numbers)."""
    with torch.no_grad():
        state = model(ids_BT)[1]
    return floats(model.state_by_layer(state)[name])  # type: ignore[operator]


@pytest.mark.parametrize("chunk_len", [None, 5])
def test_a_layer_whose_state_grows_does_not_hide_the_others(chunk_len: int | None) -> None:
    model, ids_BT = hybrid(None), some_ids(3, 11)
    found = evaluator_of(model, MatrixRows(ids_BT), chunk_len=chunk_len).state_health(ids_BT)
    assert list(found) == ["layer_1", "layer_3"]
    for name, layer in found.items():
        assert layer.positions == [1, 2, 4, 8, 11]
        for position, norm, largest in zip(layer.positions, layer.norm, layer.largest, strict=True):
            state_BN = state_after(model, ids_BT[:, :position], name)
            assert norm == pytest.approx(float(state_BN.norm(dim=1).mean()), rel=TOLERANCE)
            assert largest == pytest.approx(float(state_BN.abs().max()), rel=TOLERANCE)


def test_a_window_is_measured_from_the_first_position_at_which_it_is_full() -> None:
    ids_BT = some_ids(3, 20)
    assert list(health_of(hybrid(20), ids_BT)) == ["layer_1", "layer_3"], "it is full once, at the end"
    model = hybrid(5)
    found = health_of(model, ids_BT)
    assert list(found) == ["layer_1", "layer_2", "layer_3"]
    assert found["layer_2"].positions == [4, 8, 16, 20]
    wanted = [state_after(model, ids_BT[:, :position], "layer_2").norm(dim=1).mean() for position in (4, 8, 16, 20)]
    assert found["layer_2"].norm == pytest.approx([float(norm) for norm in wanted], rel=TOLERANCE)
    assert found["layer_2"].growth == pytest.approx(float(wanted[-1] / wanted[0]), rel=TOLERANCE)
    others = health_of(hybrid(20), ids_BT)
    assert found["layer_1"] == others["layer_1"], "the layer before it is the same in both"


@pytest.mark.slow
def test_a_row_of_one_token_has_no_health() -> None:
    assert health_of(small("v8"), some_ids(2, 1)) == {}


@pytest.mark.slow
def test_measuring_leaves_mode_and_random_states_alone() -> None:
    model = small("v8").train()
    before = torch.get_rng_state()
    health_of(model, some_ids(2, 7))
    assert model.training and all(part.training for part in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_number_and_infinity_are_reported_as_such() -> None:
    layer = health_of(Model(Maximum(), [[1.0, 1.0], [math.nan, 1.0]]), [[0, 1, 0, 0]])["layer_1"]
    assert layer.moved_share == [1.0, 0.5, 0.0] and layer.never_moved_share == 0.5
    assert math.isnan(layer.norm[-1]) and growing_layers({"layer_1": layer}, 10) == {}
    assert list(growing_layers(health_of(Model(Sum(), [[1.0], [math.inf]]), [[0, 1]]), 10)) == ["layer_1"]
    assert health_of(Model(Sum(), [[0.0]]), [[0, 0]])["layer_1"].growth == 1.0


def test_a_state_that_grows_more_than_ten_times_is_warned_of_and_no_other() -> None:
    model = Model(Sum(), [[3.0, 4.0]])
    assert growing_layers(health_of(model, [[0] * 10]), 10) == {}
    (warning,) = growing_layers(health_of(model, [[0] * 11]), 10).values()
    assert warning.startswith("layer_1: the norm of its state is 11 times as large at the end of a row as at its start")


def test_rows_with_the_least_padding_are_taken_at_even_distances() -> None:
    ids = torch.arange(8)[:, None].repeat(1, 4) + 10
    ids[1::2, 2:] = 3
    assert calm_rows(MatrixRows(ids), 2, 3)[:, 0].tolist() == [10, 16]
    assert calm_rows(MatrixRows(ids), 5, 3)[:, 0].tolist() == [10, 12, 14, 15, 17]
    assert calm_rows(MatrixRows(ids), 100, None).shape == (8, 3)


def loss_of(model: nn.Module) -> Callable[[], float]:
    ids = some_ids(4, 13)

    def loss_nats() -> float:
        with torch.inference_mode():
            return float(cross_entropy_sum(model(ids[:, :-1])[0], ids[:, 1:], -1)) / 48

    return loss_nats


@contextmanager
def zeroed(model: nn.Module, edit: Callable[[Tensor], None]) -> Iterator[None]:
    """Edits the projection of every mixer, and takes it back."""
    saved = {name: part.clone() for name, part in model.state_dict().items()}
    with torch.no_grad():
        for layer in mixed_by(model).values():
            edit(layer.mixer.projection.weight)
    yield
    model.load_state_dict(saved)


def first_half(weight_PD: Tensor) -> None:
    weight_PD[:16] = 0


def third_quarter(weight_PD: Tensor) -> None:
    weight_PD[16:24] = 0


def only_the_sum_of_the_first_two(weight_PD: Tensor) -> None:
    weight_PD[:8] += weight_PD[8:16]
    weight_PD[8:16] = 0


def first_against_second(weight_PD: Tensor) -> None:
    weight_PD[:8] = -weight_PD[8:16]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "branch", "edit"),
    [
        ("v8", "a+b", first_half),
        ("v8", "c", third_quarter),
        ("v1", "b", only_the_sum_of_the_first_two),
        ("v1", "c", third_quarter),
        ("v1", "m", first_against_second),
    ],
)
def test_a_branch_is_worth_what_zeroing_it_in_the_weights_adds(
    name: str, branch: str, edit: Callable[[Tensor], None]
) -> None:
    model = small(name).eval()
    loss_nats = loss_of(model)
    found = added_nats(model, loss_nats, each_layer=False)[EVERYWHERE][branch]
    whole = loss_nats()
    with zeroed(model, edit):
        assert found == pytest.approx(loss_nats() - whole, abs=TOLERANCE) and abs(found) > 10 * TOLERANCE


@pytest.mark.slow
def test_without_its_past_a_model_sees_one_token_at_a_time() -> None:
    for name in ("v1", "v8", "mingru", "gru"):
        model, ids = small(name).eval(), some_ids(2, 5)
        with torch.no_grad():
            with without(mixed_by(model), "past"):
                alone_BTV = model(ids)[0]
            wanted_BTV = torch.cat([model(ids[:, index : index + 1])[0] for index in range(5)], dim=1)
        torch.testing.assert_close(alone_BTV, wanted_BTV, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", mostly_nightly(sorted(set(MODELS) - ONLY_GROWS), {"v8", "lstm"}))
def test_a_whole_mixer_is_worth_what_a_zero_in_its_place_adds(name: str) -> None:
    model = small(name).eval()
    loss_nats = loss_of(model)
    whole = loss_nats()
    found = added_nats(model, loss_nats, each_layer=True)
    assert loss_nats() == whole
    layers = mixed_by(model)
    assert list(found) == [EVERYWHERE, *(layers if len(layers) > 1 else [])]
    assert all(list(worth)[-2:] == ["past", "mixer"] for worth in found.values())

    def zero(module: nn.Module, args: Any, output: Any) -> Any:
        return output[0] * 0, output[1]

    for place, there in {EVERYWHERE: layers, "layer_1": {"layer_1": layers["layer_1"]}}.items():
        handles = [layer.mixer.register_forward_hook(zero) for layer in there.values()]
        assert found.get(place, found[EVERYWHERE])["mixer"] == pytest.approx(loss_nats() - whole, abs=TOLERANCE)
        for handle in handles:
            handle.remove()


def test_mixers_are_in_their_places_after_an_error() -> None:
    model = small("v8")
    before = list(model.named_modules())
    with pytest.raises(KeyboardInterrupt), without(mixed_by(model), "mixer"):
        raise KeyboardInterrupt
    assert list(model.named_modules()) == before


def test_what_a_mixer_says_does_not_hold_for_another_forward_of_a_subclass() -> None:
    class Other(MaxStateSuper):
        def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
            return x_BTD, x_BTD[:, -1]

    class Named(Other):
        branches: ClassVar[dict[str, int]] = {"mine": 0}

    sizes = {"hidden_size": 4, "num_heads": 1}
    assert branches_of(MaxStateSuper(**sizes)) == ["a+b", "c", "past", "mixer"]
    assert branches_of(Other(**sizes)) == ["past", "mixer"] and not said_by(Other(**sizes), "state_is_maximum")
    assert branches_of(Named(**sizes)) == ["mine", "past", "mixer"]


def test_parts_of_a_mixer_are_left_out_by_their_channels() -> None:
    torch.manual_seed(0)
    model = build_model("maxplus", vocab_size=9, hidden_size=12, num_heads=1, num_layers=1, ffn_size=8).eval()
    mixer = MaxPlus(hidden_size=12, num_heads=1, decay="token", decay_at_start=0.14, counters=0.5)
    model.layers[0].mixer = mixer
    assert branches_of(mixer) == ["maximum", "blocks", "past", "mixer"]
    x_BTD = torch.randn(2, 5, 12)
    whole_BTD, _ = mixer(x_BTD, None)
    with without(mixed_by(model), "blocks"):
        left_BTD, _ = model.layers[0].mixer(x_BTD, None)
    assert torch.equal(left_BTD[..., :6], whole_BTD[..., :6]) and not left_BTD[..., 6:].any()
    assert whole_BTD[..., 6:].any()


def run(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return train([*TINY, f"run_dir={run_dir}", *overrides])[0]


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(MODELS, {"v8", "maxplus", "transformer", "lstm", "hybrid"}))
def test_every_model_runs_with_it(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heads = ["model.num_heads=2"] if name in HEADED else []
    run(tmp_path, f"model={name}", *heads, "trainer.max_steps=1", "callbacks.report.verbose=true")
    summary = json.loads((tmp_path / "summary.json").read_text())
    tags = {tag for line in metrics_of(tmp_path) for tag in line if tag.startswith(("val_state/", "val_added_nats/"))}
    if name in ONLY_GROWS:
        assert "state_health" not in summary and not tags
        return
    health = summary["state_health"]
    assert health["positions"] == [1, 2, 4, 8, 9] and health["rows"] == 10 and health["warnings"] == []
    assert ({"layer_1", "layer_2"} <= set(health["layers"])) == (name != "hybrid"), "its second layer has a long window"
    assert not any("positions" in layer for layer in health["layers"].values()), "they are those of the run"
    assert {"past", "mixer"} <= set(health["added_nats"]["all_layers"])
    assert any(record.message.endswith("nats in all layers") for record in caplog.records)


@pytest.mark.slow
def test_tags_are_in_tensorboard_and_in_metrics_once_a_step(tmp_path: Path) -> None:
    summary = run(tmp_path, "model.num_heads=2", "trainer.max_steps=5", "trainer.eval_every_n_steps=2")
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag for tag in events.Tags()["scalars"] if tag.startswith("val_")}
    layers = ("layer_1", "layer_2")
    states = {f"val_state/{what}/{n}/token_{t}" for what in ("norm", "largest") for n in layers for t in (1, 4, 9)}
    states |= {f"val_state/moved_share/{n}/token_{t}" for n in layers for t in (4, 9)}
    states |= {f"val_state/never_moved_share/{n}" for n in layers}
    worth = {f"val_added_nats/{branch}/all_layers" for branch in ("a+b", "c", "past", "mixer")}
    assert found == states | worth
    for tag in found:
        assert [event.step for event in events.Scalars(tag)] == ([5] if tag in worth else [2, 4, 5]), tag
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    layer = summary["state_health"]["layers"]["layer_2"]
    assert lines[-1]["val_state/norm/layer_2/token_9"] == layer["norm"][-1]
    assert lines[-1]["val_added_nats/c/all_layers"] == summary["state_health"]["added_nats"]["all_layers"]["c"]


@pytest.mark.slow
def test_a_run_reports_a_window_at_the_positions_at_which_it_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    window = ["model=hybrid", "model.num_heads=2", "model.mixers.window_attention.window=4"]
    run(tmp_path, *window, "trainer.max_steps=1", "callbacks.report.verbose=true")
    layers = json.loads((tmp_path / "summary.json").read_text())["state_health"]["layers"]
    assert "positions" not in layers["layer_1"] and layers["layer_2"]["positions"] == [4, 8, 9]
    assert len(layers["layer_2"]["norm"]) == 3 and layers["layer_2"]["moved_share"] is None
    line = metrics_of(tmp_path)[-1]
    tags = {tag: line[tag] for tag in line if tag.startswith("val_state/norm/layer_2/")}
    norms = layers["layer_2"]["norm"]
    assert tags == {"val_state/norm/layer_2/token_4": norms[0], "val_state/norm/layer_2/token_9": norms[2]}
    (row,) = [record.message for record in caplog.records if record.message.startswith("layer_2 ")]
    assert len(row.split()) == 3, "its name, the norm at the end and the largest value"


@pytest.mark.slow
def test_a_run_with_it_has_the_weights_of_a_run_without(tmp_path: Path) -> None:
    settings = ["model.num_heads=2", "model.dropout=0.1", "trainer.max_steps=4", "trainer.eval_every_n_steps=1"]
    with_it = run(tmp_path / "with", *settings, "callbacks.state_health.branches=each_layer")
    without_it = run(tmp_path / "without", *settings, "~callbacks.state_health")
    assert with_it["weights_sha256"] == without_it["weights_sha256"]
    assert set(with_it["state_health"]["added_nats"]) == {"all_layers", "layer_1", "layer_2"}
    assert set(with_it) - set(without_it) == {"state_health"}


class StopAtEvaluation(Callback):
    """Ends the run at a step that was evaluated as one among others."""

    def on_report(self, report: Any) -> str | None:
        return "seen" if report.step == 2 else None


@pytest.mark.slow
def test_branches_are_measured_once_also_where_a_callback_ends_the_run_and_it_is_continued(tmp_path: Path) -> None:
    settings = ["model.num_heads=2", "trainer.max_steps=4", "trainer.eval_every_n_steps=2"]
    first = run(tmp_path, *settings, f"+callbacks.stop._target_={__name__}.StopAtEvaluation")
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 2] and all("val_added_nats" in tag for tag in list(lines[2])[1:])
    assert "val_state/norm/layer_1/token_1" in lines[1] and "added_nats" in first["state_health"]
    run(tmp_path, *settings, "resume=auto")
    again = run(tmp_path, *settings, "resume=auto")
    assert again["steps"] == 4 and "added_nats" in again["state_health"]
    assert [line["step"] for line in metrics_of(tmp_path)] == [1, 2, 2, 3, 4]


@pytest.mark.slow
def test_the_warning_is_in_the_log_once_and_in_the_summary(tmp_path: Path) -> None:
    settings = ["model.num_heads=2", "trainer.max_steps=2", "trainer.eval_every_n_steps=1"]
    summary = run(tmp_path / "low", *settings, "callbacks.state_health.max_growth=0.5")
    text = (tmp_path / "low" / "samout_train.log").read_text()
    assert text.count("the norm of its state is") == 2 == len(summary["state_health"]["warnings"])
    assert "step 1     layer_1: " in text and "the state keeps growing" in text
    run(tmp_path / "usual", *settings)
    assert "the norm of its state is" not in (tmp_path / "usual" / "samout_train.log").read_text()


@pytest.mark.slow
def test_a_state_that_is_no_number_ends_in_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = health_of(Model(Maximum(), [[math.nan], [1.0]]), [[1, 0, 1]])

    def lost(*args: Any, **kwargs: Any) -> dict[str, LayerHealth]:
        return measured

    monkeypatch.setattr(Evaluator, "state_health", lost)
    run(tmp_path, "model.num_heads=2", "trainer.max_steps=1", "data.seq_len=3")
    layer = json.loads((tmp_path / "summary.json").read_text())["state_health"]["layers"]["layer_1"]
    assert layer["norm"] == [1.0, None, None] and layer["growth"] is None
    assert metrics_of(tmp_path)[-1]["val_state/norm/layer_1/token_3"] is None
