"""What is measured on a machine, how it is kept, and that a run goes on with what it was begun with."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samout_train import build_model, train
from samout_train.checkpoint import load_run
from samout_train.models import bfloat16_share, choose_products, decided, product_of, products as measuring, resume_with
from samout_train.models.products import kept, machine
from samout_train.ops import Products, chosen_products, use_products
from tests.support.program import samout
from tests.support.together import samout_together

CPU = torch.device("cpu")
SHAPE = (4096, 64, 256)  # 2^26 multiplications
TINY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("data.seq_len=9", "data.num_sequences=20", "data.batch_size=8", "~callbacks.tensorboard"),
]


@pytest.fixture(autouse=True)
def nothing_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAMOUT_TRAIN_PRODUCTS")
    yield
    use_products(None)


def as_measured(monkeypatch: pytest.MonkeyPatch, **seconds: dict[str, float]) -> list[str]:
    """Lets measurements come out as they are given; returns the list of those that are made."""
    made: list[str] = []

    def measured(name: str, found: dict[str, float]) -> Any:
        return lambda *shape: made.append(name) or found

    for name, found in seconds.items():
        monkeypatch.setattr(measuring, f"_{name}", measured(name, found))
    return made


@pytest.mark.parametrize(
    ("many", "few", "chosen"),
    [
        ({"torch": 2.0, "onednn": 1.0}, {"torch": 2.0, "numba": 1.0}, "onednn,numba"),
        ({"torch": 1.0, "onednn": 0.9}, {"torch": 1.0, "numba": 0.9}, "torch,torch"),
        ({"torch": 1.0, "onednn": 0.8}, {"torch": 1.0, "numba": 3.0}, "onednn,torch"),
    ],
)
def test_what_is_clearly_faster_is_taken(
    many: dict[str, float], few: dict[str, float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = as_measured(monkeypatch, many_rows=many, few_rows=few)
    large = (4096, 256, 256)
    found = choose_products(large, device=CPU, precision="fp32", decodes=True)
    assert str(found) == chosen and Products.of(chosen) == found and made == ["many_rows", "few_rows"]
    assert choose_products(large, device=CPU, precision="fp32", decodes=True) == found and len(made) == 2
    # What has no such products, or no choice, is not measured.
    for shape, precision, decodes in ((large, "bf16", True), ((1, 64, 64), "fp32", True), (None, "fp32", True)):
        assert choose_products(shape, device=CPU, precision=precision, decodes=decodes) == Products()
    assert choose_products(large, device=torch.device("cuda"), precision="fp32", decodes=True) == Products()
    assert len(made) == 2
    monkeypatch.setenv("SAMOUT_TRAIN_PRODUCTS", "torch,numba")
    assert choose_products((1, 1, 1), device=CPU, precision="fp32", decodes=False) == Products("torch", "numba")
    monkeypatch.setenv("SAMOUT_TRAIN_PRODUCTS", "fastest")
    with pytest.raises(ValueError, match="SAMOUT_TRAIN_PRODUCTS=fastest: must be torch or onednn, a comma, and"):
        choose_products(large, device=CPU, precision="fp32", decodes=True)


@pytest.mark.slow
def test_it_is_measured_for_real_in_some_tens_of_milliseconds() -> None:
    for found, names in (
        (measuring._many_rows(SHAPE), {"torch", "onednn"}),
        (measuring._both_passes(SHAPE), {"fp32", "bf16"}),
        (measuring._few_rows(256, 256), {"torch", "numba"}),
    ):
        assert found.keys() == names and all(0 < seconds < 2 for seconds in found.values())
    share = bfloat16_share(SHAPE)
    assert share is not None and share > 0 and share == bfloat16_share(SHAPE)
    assert bfloat16_share((4095, 64, 256)) is None, "products so small are not what a step takes its time for"


def test_a_measurement_takes_no_random_number_of_the_run() -> None:
    before = torch.get_rng_state()
    measuring._many_rows((64, 32, 32)), measuring._few_rows(32, 32), measuring._both_passes((64, 32, 32))
    assert torch.equal(before, torch.get_rng_state())


def kept_x(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    return kept("x", SHAPE, ("torch",), measure)


def test_the_first_measurement_that_is_kept_counts(tmp_path: Path) -> None:
    assert kept_x(lambda: {"torch": 1.0}) == {"torch": 1.0} == kept_x(lambda: {"torch": 2.0})
    (path,) = (tmp_path / "cache").glob("*.measured.json")
    assert json.loads(path.read_text())["seconds"] == {"torch": 1.0}

    def while_another_process_is_quicker() -> dict[str, float]:
        assert kept("y", SHAPE, ("torch",), lambda: {"torch": 3.0}) == {"torch": 3.0}
        return {"torch": 4.0}

    assert kept("y", SHAPE, ("torch",), while_another_process_is_quicker) == {"torch": 3.0}
    path.write_text("{")
    assert kept_x(lambda: {"torch": 5.0}) == {"torch": 5.0} == kept_x(lambda: {"torch": 6.0})
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_without_a_place_to_keep_it_it_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "file" / "cache"))
    assert [kept_x(lambda n=n: {"torch": n}) for n in (1.0, 2.0)] == [{"torch": 1.0}, {"torch": 2.0}]
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "_keep_first", lambda *given: (_ for _ in ()).throw(OSError(28, "full")))
    assert [kept_x(lambda n=n: {"torch": n}) for n in (1.0, 2.0)] == [{"torch": 1.0}, {"torch": 2.0}]


@pytest.mark.parametrize(
    "seconds",
    [
        *('{"torch": 1.0}', '{"torch": 1.0, "foo": 0.1}', '{"torch": 1.0, "onednn": 0.1, "x": 0.1}', "[1]", '"x"'),
        *('{"torch": Infinity, "onednn": 1.0}', '{"torch": NaN, "onednn": 1.0}', '{"torch": -1.0, "onednn": 1.0}'),
    ],
)
def test_a_damaged_measurement_is_made_again(tmp_path: Path, seconds: str) -> None:
    names, found = ("torch", "onednn"), {"torch": 2.0, "onednn": 1.0}
    kept("many rows", SHAPE, names, lambda: found)
    (path,) = (tmp_path / "cache").glob("*.measured.json")
    path.write_text(f'{{"seconds": {seconds}}}')
    again = {"torch": 4.0, "onednn": 3.0}
    assert kept("many rows", SHAPE, names, lambda: again) == again
    assert kept("many rows", SHAPE, names, lambda: found) == again


def test_a_measurement_is_that_of_a_machine_with_its_threads_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine()
    assert before == machine() and json.loads(json.dumps(before)) == before
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine() != before
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    torch.set_num_threads(2)
    try:
        assert machine() != before
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_the_product_is_that_of_the_largest_matrices_of_a_model() -> None:
    sizes = {"hidden_size": 24, "num_heads": 2, "num_layers": 2, "ffn_size": 56}
    assert product_of(build_model("v8", vocab_size=900, **sizes), 77) == (77, 900, 24)  # the head
    found = product_of(build_model("v8", vocab_size=30, **sizes), 77)
    assert found in [(77, 56, 24), (77, 24, 56)]  # three in each layer
    assert product_of(nn.LayerNorm(3), 5) is None


def manifest(run_dir: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "checkpoints" / f"step_{step:08d}.json").read_text())
    return found


@pytest.mark.slow
def test_a_run_goes_on_with_what_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured = [Products("onednn", "numba")]
    monkeypatch.setattr("samout_train.training.run.choose_products", lambda *args, **settings: measured[0])
    words = [*TINY, f"run_dir={tmp_path / 'run'}", "resume=auto"]
    train([*words, "trainer.max_steps=2"])
    assert manifest(tmp_path / "run", 2)["products"] == "onednn,numba"
    measured[0] = Products()
    train([*words, "trainer.max_steps=4"])
    assert manifest(tmp_path / "run", 4)["products"] == "onednn,numba" and "last bits" not in caplog.text
    # A new run from another's checkpoint has its own.
    train([*TINY, f"run_dir={tmp_path / 'new'}", f"resume={tmp_path / 'run'}", "trainer.max_steps=6"])
    assert manifest(tmp_path / "new", 6)["products"] == "torch,torch"
    caplog.clear()
    monkeypatch.setenv("SAMOUT_TRAIN_PRODUCTS", "torch,torch")
    train([*words, "trainer.max_steps=6"])
    assert manifest(tmp_path / "run", 6)["products"] == "torch,torch"
    assert "made with products onednn,numba, now torch,torch: the last bits of what follows will differ" in caplog.text


@pytest.mark.slow
def test_what_is_not_possible_here_is_said_and_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "samout_train.training.run.choose_products", lambda *args, **settings: Products("onednn", "torch")
    )
    words = [*TINY, f"run_dir={tmp_path / 'run'}", "resume=auto"]
    train([*words, "trainer.max_steps=1"])
    monkeypatch.setattr("samout_train.training.run.choose_products", lambda *args, **settings: Products())
    monkeypatch.setattr(measuring, "has_onednn", lambda: False)
    train([*words, "trainer.max_steps=2"])
    assert manifest(tmp_path / "run", 2)["products"] == "torch,torch"
    assert "made with products onednn,torch, now torch,torch" in caplog.text
    use_products(Products())
    for unknown in (None, "", "mkl", 3):
        resume_with(unknown)
        assert chosen_products() == Products()


def test_programs_that_are_started_may_be_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    with decided(None):
        assert "SAMOUT_TRAIN_PRODUCTS" not in os.environ
    with decided("onednn,torch"):
        assert choose_products(SHAPE, device=CPU, precision="fp32", decodes=True) == Products("onednn", "torch")
        with decided("torch,torch"):
            assert os.environ["SAMOUT_TRAIN_PRODUCTS"] == "onednn,torch"
    assert "SAMOUT_TRAIN_PRODUCTS" not in os.environ


@pytest.mark.slow
def test_a_wrong_word_in_the_environment_is_told(tmp_path: Path) -> None:
    done = samout(tmp_path, *TINY, "trainer=debug", environment={"SAMOUT_TRAIN_PRODUCTS": "mkl"})
    assert done.returncode == 2 and "SAMOUT_TRAIN_PRODUCTS=mkl: must be torch or onednn" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_that_is_loaded_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train([*TINY, "trainer.max_steps=1", f"run_dir={tmp_path / 'run'}"])
    asked: list[Any] = []
    monkeypatch.setattr(
        measuring, "choose_products", lambda shape, **settings: asked.append(shape) or Products("torch", "numba")
    )
    use_products(None)
    for _ in range(2):
        load_run(tmp_path / "run")
    assert len(asked) == 1 and chosen_products() == Products("torch", "numba")


@pytest.mark.nightly
def test_all_processes_take_what_the_first_one_measured(tmp_path: Path) -> None:
    words = [*TINY, "trainer.max_steps=1", "run_dir=run", "model.hidden_size=256", "data.seq_len=1024"]
    done = samout_together(tmp_path, 2, *words)
    assert [each.returncode for each in done] == [0, 0], done[1].stderr
    assert len(list((tmp_path / "cache").glob("*.measured.json"))) >= 1
    assert manifest(tmp_path / "run", 1)["products"] in ("torch,torch", "onednn,torch")
