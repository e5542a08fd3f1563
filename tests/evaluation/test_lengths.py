"""Losses by length and position against whole windows at once, and what is said of them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from samout_train import build_model, train
from samout_train.data import MatrixRows, TokenRows
from samout_train.evaluation import Evaluator, Extrapolation, draw_extrapolation, perplexity, stream_of
from tests.support.evaluation import evaluator_of
from tests.support.marks import spread
from tests.support.program import samout

TOKENS = np.random.default_rng(0).integers(4, 30, size=200).astype(np.uint16)
TOLERANCE = 1e-5  # float32, in chunks
PNG = b"\x89PNG\r\n\x1a\n"


def model_of(name: str) -> nn.Module:
    heads = {"num_heads": 2} if name in ("v1", "v8", "maxplus", "transformer") else {}
    room = {"max_seq_len": 64} if name == "transformer" else {}
    return build_model(name, vocab_size=30, pad_id=3, hidden_size=8, num_layers=2, **heads, **room).eval()


def evaluator(model: nn.Module) -> Evaluator:
    return evaluator_of(model, TokenRows(TOKENS, seq_len=5, seed=0))


def nats_of(model: nn.Module, window: np.ndarray[Any, Any]) -> list[float]:
    """Of each target of one window, read at once."""
    ids = torch.from_numpy(window.astype(np.int64))
    with torch.inference_mode():
        return F.cross_entropy(model(ids[None, :-1])[0][0], ids[1:], reduction="none").tolist()


@pytest.mark.parametrize("name", ["v8", "lstm", "transformer"])
def test_losses_by_length_and_position_are_those_of_whole_windows(name: str) -> None:
    model, lengths = model_of(name), [5, 20, 60]
    found = evaluator(model).by_length(TOKENS, lengths, 130, trained_length=5)
    assert found.num_tokens == 120 and not found.left_out
    by_length = {
        length: [nats_of(model, TOKENS[start : start + length + 1]) for start in range(0, 120, length)]
        for length in lengths
    }
    for length, windows in by_length.items():
        assert found.loss_nats[length] == pytest.approx(np.mean(windows), abs=TOLERANCE)
    assert [part[:2] for part in found.by_position][:4] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    covered = [place for first, last, _ in found.by_position for place in range(first, last + 1)]
    assert covered == list(range(1, 61))
    for first, last, nats in found.by_position:
        windows = np.array(by_length[next(length for length in lengths if length >= last)])
        assert nats == pytest.approx(windows[:, first - 1 : last].mean(), abs=TOLERANCE)


@pytest.mark.slow
def test_norms_of_the_states_are_those_after_each_chunk_of_the_longest_windows() -> None:
    model = model_of("v8")
    found = evaluator(model).by_length(TOKENS, [5, 20], 80, trained_length=5)
    assert set(found.state_norm) == {"layer_1", "layer_2"}
    windows = torch.from_numpy(TOKENS[:80].astype(np.int64)).view(4, 20)
    for chunk in range(4):
        with torch.inference_mode():
            states = model(windows[:, : 5 * (chunk + 1)])[1]
        for name, state in zip(("layer_1", "layer_2"), states, strict=True):
            assert found.state_norm[name][chunk] == pytest.approx(float(state.norm(dim=1).mean()), rel=TOLERANCE)
    growth = found.state_norm["layer_1"][-1] / found.state_norm["layer_1"][0]
    assert found.state_growth["layer_1"] == growth and growth > 1
    cached = evaluator(model_of("transformer")).by_length(TOKENS, [5, 20], 80, trained_length=5)
    assert cached.state_norm == {}
    mixed = build_model("hybrid", hidden_size=8, num_heads=2, num_layers=3, pattern=["attention", "gla"], vocab_size=30)
    norms = evaluator(mixed.eval()).by_length(TOKENS, [5, 20], 80, trained_length=5).state_norm
    assert list(norms) == ["layer_2"] and len(norms["layer_2"]) == 4  # the others hold a cache


@pytest.mark.slow
def test_rows_that_do_not_follow_each_other_are_read_one_by_one_and_padding_is_left_out() -> None:
    model = model_of("lstm")
    ids = torch.from_numpy(TOKENS[:36].astype(np.int64)).view(4, 9)
    ids[1, 6:] = 3
    assert stream_of(MatrixRows(ids)) is None
    assert stream_of(TokenRows(TOKENS, seq_len=5, seed=0)) is not None
    found = evaluator(model.train()).by_position(MatrixRows(torch.cat([ids, ids])), 32, trained_length=8)
    assert model.training
    rows = [nats_of(model.eval(), row.numpy()) for row in ids]
    counted = [
        [nats for nats, target in zip(row, row_ids[1:], strict=True) if target != 3]
        for row, row_ids in zip(rows, ids, strict=True)
    ]
    assert found.num_tokens == sum(map(len, counted)) == 29
    assert found.loss_nats == {8: pytest.approx(sum(map(sum, counted)) / 29, abs=TOLERANCE)}
    assert found.by_position[-1][:2] == (7, 8)
    last = [nats for row in counted for nats in row[6:]]
    assert found.by_position[-1][2] == pytest.approx(sum(last) / len(last), abs=TOLERANCE)


@pytest.mark.slow
def test_what_there_is_no_room_or_no_text_for_is_left_out_with_the_reason() -> None:
    found = evaluator(model_of("transformer")).by_length(TOKENS, [5, 80, 400], 50, trained_length=5)
    assert set(found.loss_nats) == {5} and found.num_tokens == 50
    assert "room for 64 tokens" in found.left_out[80] and "room for 64 tokens" in found.left_out[400]
    found = evaluator(model_of("gru")).by_length(TOKENS, [400], 50, trained_length=5)
    assert found.loss_nats == {} and "has 200 tokens" in found.left_out[400] and found.extrapolates is None
    assert "unknown" in found.verdict()[0]


def found_with(far: float | None, **more: Any) -> Extrapolation:
    losses = {10: 2.0, 40: 2.1} | ({160: far} if far is not None else {})
    return Extrapolation(trained_length=10, num_tokens=160, loss_nats=losses, **more)


def test_the_verdict_names_what_grows() -> None:
    """By hand: 2.0 nats in a row and 2.3 at 16 times its length are 15 % more; 2.2 is the last that extrapolates."""
    norms = {"layer_1": [2.0, 2.0, 3.0], "layer_2": [1.0, 4.0, 5.0]}
    bad = found_with(2.3, state_norm=norms)
    assert bad.extrapolates is False and bad.far_growth == pytest.approx(1.15)
    first, second = bad.verdict()
    assert (
        first.startswith("does not extrapolate: the loss at 160 tokens, 16 times") and "15% above that at 10" in first
    )
    assert second.startswith("layer_2's state grows the most") and "layer_1 1.50, layer_2 5.00" in second
    good = found_with(2.19, state_norm=norms)
    assert good.extrapolates is True and good.verdict() == [
        "extrapolates: the loss at 160 tokens is 9.5% above that at 10"
    ]
    assert found_with(1.9).verdict() == ["extrapolates: the loss at 160 tokens is 5.0% below that at 10"]
    assert found_with(None).extrapolates is None
    assert found_with(2.3).verdict()[1:] == []  # a cache: no state of a fixed size to name
    falling = found_with(2.3, state_norm={"layer_1": [2.0, 1.9]}).verdict()
    assert falling[1:] == ["no layer's state grows past a training row"]
    assert found_with(math.nan).extrapolates is False and "is not finite" in found_with(math.nan).verdict()[0]
    far_only = Extrapolation(trained_length=10, num_tokens=160, loss_nats={160: 2.0})
    assert far_only.verdict() == ["extrapolation is unknown: there is no loss at 10 tokens"]
    assert found_with(2.0, state_norm={"layer_1": [0.0, 0.0]}).state_growth == {"layer_1": 1.0}
    assert perplexity(math.log(7)) == pytest.approx(7) and perplexity(1e6) == math.inf


@pytest.mark.slow
def test_a_picture_is_a_png_file(tmp_path: Path) -> None:
    found = found_with(2.3, by_position=[(1, 1, 3.0), (2, 160, 2.0)], state_norm={"layer_1": [0.0, 1.0]})
    path = tmp_path / "a.png"
    picture = draw_extrapolation({"one": found, "two": found_with(None)}, path)
    assert picture is not None and picture.startswith(PNG) and path.read_bytes() == picture


def words_for(folder: Path) -> list[str]:
    """A short run on the text of a folder."""
    words = ["model=v8", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=2", "device=cpu"]
    words += ["data=text", f"data.path={folder / 'text.txt'}", "data.seq_len=8", "data.batch_size=4"]
    return [
        *words,
        "trainer.max_steps=20",
        f"run_dir={folder / 'run'}",
        "callbacks.lengths.most_tokens=1024",
        "callbacks.report.verbose=true",
    ]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on text, in a folder of its own as `run`."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("".join(f"line {number % 17} of it. " for number in range(900)), "utf-8")
    train(words_for(folder))
    return folder


@pytest.mark.slow
def test_a_run_on_text_ends_with_losses_by_length(text_run: Path) -> None:
    run = text_run / "run"
    summary = json.loads((run / "summary.json").read_text())
    lengths = summary["lengths"]
    assert list(lengths["loss_nats"]) == ["8", "32", "128", "512"] and lengths["num_tokens"] == 1024
    assert lengths["far_growth"] == lengths["loss_nats"]["128"] / lengths["loss_nats"]["8"]
    shown = run / "evaluate" / "text"
    assert (shown / "lengths.png").read_bytes().startswith(PNG)
    assert json.loads((shown / "evaluation.json").read_text()) == {"step": 20, "weights": "last", **lengths}
    events = EventAccumulator(str(shown), size_guidance={"images": 0, "scalars": 0}).Reload()
    chart = events.Scalars("val_by_position/loss_nats")
    assert [point.step for point in chart] == [last for _, last, _ in lengths["by_position"]]
    assert events.Images("lengths")[0].encoded_image_string == (shown / "lengths.png").read_bytes()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_length/loss_nats/128_tokens"] == lengths["loss_nats"]["128"]
    log = (run / "samout_train.log").read_text()
    assert "xtrapolate" in log and "lengths.png" in log


@pytest.mark.slow
def test_evaluate_says_what_is_lost_at_each_length(text_run: Path) -> None:
    done = samout(text_run, "evaluate", "run=run", "lengths=[8,100,9999]", "most_tokens=1024", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "9,999" in done.stdout and "left out: the text has" in done.stdout and "loss by position: 1 " in done.stdout
    plain = (text_run / "run/evaluate/text/evaluation.json").read_bytes()
    folder = text_run / "run" / "evaluate" / "text-lengths_8_100_9999_most_tokens_1024"
    figures = json.loads((folder / "evaluation.json").read_text())
    assert list(figures["loss_nats"]) == ["8", "100", "128"] and figures["step"] == 20
    assert (folder / "lengths.png").exists() and len(list(folder.glob("events.out.tfevents.*"))) == 1
    again = samout(text_run, "evaluate", "run=run", "most_tokens=1", "device=cpu")
    assert "most_tokens=1: raised to 512, which the longest window needs" in again.stdout
    assert (text_run / "run/evaluate/text/evaluation.json").read_bytes() == plain, "that of the run stays"
    again = samout(text_run, "evaluate", "run=run", "most_tokens=1024", "device=cpu")
    folder = folder.with_name("text-most_tokens_1024")
    assert again.returncode == 0 and len(list(folder.glob("events.out.tfevents.*"))) == 1
    own = json.loads((text_run / "run" / "summary.json").read_text())["lengths"]["loss_nats"]
    now = json.loads((folder / "evaluation.json").read_text())["loss_nats"]
    assert now == pytest.approx(own, abs=TOLERANCE)


@pytest.mark.slow
def test_evaluate_reads_other_text_by_the_vocabulary_of_the_run(text_run: Path) -> None:
    (text_run / "other.txt").write_text("of it line 3 ZZZ. " * 60, "utf-8")  # too short for rows of 256
    done = samout(text_run, "evaluate", "run=run", "data=text", "data.path=other.txt", "lengths=[8,16]", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "on text-other-" in done.stdout and len(list((text_run / "run/evaluate").glob("text-other-*"))) == 1
    found = re.search(r"(\S+) nats a token, perplexity (\S+), \S+ bits per byte", done.stdout)
    assert found and float(found[2]) == pytest.approx(math.exp(float(found[1])), rel=1e-3)
    assert "whole text read at " in done.stdout and "windows read at " in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    spread(
        [
            ([], "run: is missing"),
            (["run=nowhere"], "nowhere is not there"),
            (
                ["run=run", "lengths=[0]"],
                "lengths=[0]: must be a list such as [1] (each a whole number above 0) or null",
            ),
            (["run=run", "length=[8]"], "length=[8]: no such key; did you mean lengths?"),
            (["run=run", "data=texd"], "data=texd: no such option; did you mean data=text?"),
            (["run=run", "data=random"], "data=random: has 128 ids, the model"),
            (["run=run", "data=text", "data.path=gone.txt"], "data.path=gone.txt: is not there"),
            (["run=run", "data.path=text.txt"], "data.path=text.txt: no data is chosen: set data=NAME, too"),
            (
                ["run=run", "data=text", "data.path=text.txt", "data.seq_len=4"],
                "data.seq_len=4: rows are as long as those",
            ),
            (["run=run", "-m"], "evaluate makes no sweeps"),
            (
                ["run=run", "lengths=4,8"],
                "lengths=4,8: several values; evaluate takes one, and a list is written lengths=[...]",
            ),
        ],
        3,
    ),
)
def test_evaluate_says_what_is_wrong(text_run: Path, words: list[str], told: str) -> None:
    done = samout(text_run, "evaluate", *words)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_evaluate_counts_the_answers_of_a_task_at_other_lengths(tmp_path: Path) -> None:
    words = ["model=gru", "model.hidden_size=8", "model.num_layers=1", "device=cpu", "data=parity", "data.seq_len=4"]
    train([*words, "data.test_lengths=[4]", "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}"])
    done = samout(tmp_path, "evaluate", "run=run", "lengths=[4,12]", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "accuracy, length 12" in done.stdout and "of 500 answers" in done.stdout and "chance" in done.stdout
    figures = json.loads((tmp_path / "run/evaluate/parity-lengths_4_12/evaluation.json").read_text())
    kept = json.loads((tmp_path / "run/summary.json").read_text())["accuracy"]
    assert set(figures["accuracy"]) == {"length_4", "length_12"} and figures["accuracy"]["length_4"] == kept["length_4"]


@pytest.mark.slow
def test_evaluate_reads_rows_that_have_no_longer_ones(tmp_path: Path) -> None:
    words = ["model=gru", "model.hidden_size=8", "model.num_layers=1", "device=cpu", "data=random", "data.seq_len=6"]
    train([*words, "trainer=debug", f"run_dir={tmp_path / 'run'}"])
    done = samout(tmp_path, "evaluate", "run=run", "device=cpu")
    assert done.returncode == 0 and "loss by position: 1 " in done.stdout, done.stderr
    wrong = samout(tmp_path, "evaluate", "run=run", "lengths=[12]", "device=cpu")
    assert wrong.returncode == 2 and "lengths=[12]: the rows of this data do not follow each other" in wrong.stderr


@pytest.mark.nightly
def test_a_run_that_is_continued_behind_its_reading_keeps_it(text_run: Path) -> None:
    before = json.loads((text_run / "run" / "summary.json").read_text())
    (text_run / "run" / "summary.json").unlink()
    after, _ = train([*words_for(text_run), "resume=auto"])
    assert after["lengths"] == before["lengths"] and after["weights_sha256"] == before["weights_sha256"]


@pytest.mark.nightly
def test_a_run_that_goes_on_does_not_show_what_was_read_before(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text to read. " * 200, "utf-8")
    train([*words_for(tmp_path), "callbacks.sample.num_samples=1"])
    further = [word for word in words_for(tmp_path) if not word.startswith(("trainer.max_steps", "callbacks.lengths"))]
    words = [*further, "trainer.max_steps=22", "resume=auto", "callbacks.lengths.times=[]"]
    after, _ = train(words)
    assert after["steps"] == 22 and "lengths" not in after


def test_rows_of_tests_that_a_model_has_no_room_for_are_refused_before_the_run(tmp_path: Path) -> None:
    words = ["model=transformer", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "device=cpu"]
    with pytest.raises(ValueError, match=r"max_seq_len \(64\): rows of this data, or of its tests, are longer: .* 131"):
        train([*words, "model.max_seq_len=64", "data=needle", f"run_dir={tmp_path / 'run'}"])
