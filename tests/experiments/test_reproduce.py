"""Golden curves: spans and tolerances by hand, and the verb that compares with one."""

import json
from pathlib import Path

import pytest

from samout_train.cli.reproduce import reproduce as main
from samout_train.config import CONF, compose_config
from samout_train.experiments import GoldenCurve
from samout_train.experiments.reproduce import CURVES, span_means, spans_of
from tests.support.marks import mostly_nightly

# Many runs, a run for a GPU, and one on data that a script makes.
SWEEPS = {
    *("capabilities", "zoology_recall", "zoology_small", "maxplus_ablation", "contenders_cpu", "contenders_text"),
    *("counting", "counting_swaps", "ingredients_maxplus", "ingredients_transformer"),
}
WITHOUT = SWEEPS | {"maxplus_shakespeare_gpu", "transformer_shakespeare_gpu", "chat_small"}


def test_spans_grow_and_end_with_the_run() -> None:
    assert spans_of(1) == [1] and spans_of(3) == [1, 2, 3] and spans_of(10) == [1, 2, 5, 10]
    assert spans_of(60) == [1, 2, 5, 10, 20, 50, 60]
    assert span_means([4.0, 2.0, 1.0, 2.0, 3.0], [1, 2, 5]) == [4.0, 2.0, 2.0]


def test_the_tolerance_is_four_times_what_replicas_differ_by_and_never_shrinks() -> None:
    replicas = [[3.0, 2.0, 1.0, 1.0, 1.0], [3.0, 2.25, 1.0, 1.0, 1.0], [3.0, 2.0, 1.0, 1.0, 1.75]]
    curve = GoldenCurve.of_replicas("x", replicas, {})
    assert (curve.ends, curve.loss_nats) == ([1, 2, 5], [3.0, 2.0, 1.0])
    assert curve.tolerance_nats == [1e-4, 1.0, 1.0]


def test_spans_are_compared_as_they_come_in_and_a_part_of_one_is_left_out(tmp_path: Path) -> None:
    GoldenCurve("x", [1, 2, 5], [3.0, 2.0, 1.0], [0.1, 0.1, 0.1], {}).write(tmp_path)
    curve = GoldenCurve.read("x", tmp_path)
    spans = list(curve.compared([3.05, 2.2, 1.0, 1.1]))
    assert [(span.first, span.last, span.is_on) for span in spans] == [(1, 1, True), (2, 2, False)]
    assert "2    2.0000    2.2000    +0.20000    0.10000  OFF" in spans[1].line()
    spans = list(curve.compared([3.0, 2.0, 1.0, 1.1, 1.0, 7.0]))
    assert len(spans) == 3 and all(span.is_on for span in spans) and spans[2].here_nats == pytest.approx(3.1 / 3)
    assert not any(span.is_on for span in curve.compared([float("nan")]))
    with pytest.raises(ValueError, match="experiment=y: has no recorded curve; there are x"):
        GoldenCurve.read("y", tmp_path)


@pytest.mark.slow
def test_every_preset_has_a_curve_as_long_as_its_run_or_of_its_first_steps() -> None:
    presets = {path.stem for path in (CONF / "experiment").glob("*.yaml")} - WITHOUT
    assert {path.stem for path in CURVES.glob("*.json")} == presets
    for name in presets:
        curve = GoldenCurve.read(name)
        assert 10 <= curve.ends[-1] <= compose_config([f"experiment={name}"]).config["data"]["budget_steps"]


@pytest.mark.slow
def test_a_machine_is_on_the_curve_or_off_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["experiment=hello_embedding", "device=cpu", "steps=10"]
    assert main(words) == 0
    assert "on the curve, as far as step 10" in capsys.readouterr().out
    content = json.loads((CURVES / "hello_embedding.json").read_text())
    content["loss_nats"][2] += 0.01
    changed = GoldenCurve("hello_embedding", **content)
    monkeypatch.setattr(GoldenCurve, "read", classmethod(lambda cls, preset: changed))
    assert main(words) == 1
    assert "OFF the curve from step 3 on" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("preset", mostly_nightly(sorted(path.stem for path in CURVES.glob("*.json")), {"hello_cell"}))
def test_every_curve_is_that_of_the_program_as_it_is(preset: str, shared: Path) -> None:
    words = [f"experiment={preset}", "device=cpu", "steps=5"]
    if "shakespeare" in preset:
        words.append(f"data.path={shared / 'data' / 'tinyshakespeare.txt'}")
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "experiment: is missing: set experiment=NAME"),
        (["experiment=capabilities"], "experiment=capabilities: has no recorded curve; there are hello_cell"),
        (["experiment=hello_cell", "optimizer.lr=1"], "optimizer.lr=1: changes the recorded preset: leave it out"),
        (["experiment=hello_cell", "steps=0"], "steps=0: must be"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.nightly
def test_recording_writes_a_curve_of_three_replicas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GoldenCurve.write, "__defaults__", (tmp_path,))
    assert main(["experiment=hello_cell", "device=cpu", "steps=5", "record=true"]) == 0
    assert "written to" in capsys.readouterr().out
    fresh, kept = GoldenCurve.read("hello_cell", tmp_path), GoldenCurve.read("hello_cell")
    assert fresh.ends == [1, 2, 5] and len(fresh.recorded["replicas"]) == 3
    assert fresh.loss_nats == pytest.approx(kept.loss_nats[:3], abs=kept.tolerance_nats[2])
