"""What is compared, and with what settings."""

from pathlib import Path
from typing import Any

import pytest
import torch

from samout_train.comparison.contenders import contenders, decided_problems, folder_name, labelled
from samout_train.comparison.matching import Budget
from samout_train.config import ConfigError
from samout_train.run import trainer_from

RANDOM = ["data=random", "device=cpu", "data.batch_size=8"]


def test_models_are_names_or_labels_with_settings() -> None:
    small = {"model": "v8", "model.num_layers": 2}
    wanted: dict[str, Any] = {"v1": {"model": "v1"}, "small": small}
    assert labelled({"v1": None, "small": small}) == labelled(["v1", {"small": small}]) == wanted
    assert labelled("gru") == {"gru": {"model": "gru"}}
    for wrong, message in (
        (["v8", "v8"], "v8 is there twice: write one as {another name: {model: v8}}"),
        ({"a b": {"model": "v8"}, "a_b": {"model": "v8"}}, "a b, a_b: are one directory"),
        ([], "models: is empty"),
        ({"v8": 3}, "v8: must be settings in braces"),
    ):
        with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
            labelled(wrong)  # type: ignore[arg-type]
    assert folder_name("v8, no decay") == "v8_no_decay"


def test_settings_of_all_go_to_the_models_that_have_them() -> None:
    shared = [*RANDOM, "model.num_heads=2", "model.hidden_size=12", "model.num_layers=1", "model.mixer.decay=none"]
    found = contenders(["maxplus", "v8", "lstm"], shared, None)
    assert [one.config["model"].get("num_heads") for one in found] == [2, 2, None]
    assert [one.config["model"].get("mixer", {}).get("decay") for one in found] == ["none", None, None]
    assert found[2].words == (*RANDOM, "model=lstm", "model.hidden_size=12", "model.num_layers=1")


def test_settings_of_a_preset_that_a_model_has_not_are_left_out(small_text: Path) -> None:
    shared = ["experiment=shakespeare_small", "data=text", f"data.path={small_text}", "data.seq_len=8", "device=cpu"]
    lstm, own = contenders(
        {"lstm": {"model.num_layers": 2}, "own": {"model": "gru"}}, shared, Budget("parameters", 5e4)
    )
    assert "~model.num_heads" in lstm.words and lstm.config["model"]["num_layers"] == 2
    assert own.config["model"]["num_layers"] == 4 and own.config["model"]["cell"] == "gru"
    assert lstm.sizes is not None and lstm.words[-1] == f"model.hidden_size={lstm.sizes.settings['hidden_size']}"


def test_each_mistake_is_told_with_its_label() -> None:
    with pytest.raises(ConfigError) as told:
        contenders({"v9": {}, "lstm": {"model.num_heads": 2}, "v8": {"optimizer.rate": 1}}, [*RANDOM], None)
    lines = str(told.value).splitlines()
    assert lines[0].startswith("v9: model=v9: no such option; there are gru, lstm")
    assert lines[1].startswith("lstm: model.num_heads=2: no such key")
    assert lines[2].startswith("v8: optimizer.rate=1: no such key")
    with pytest.raises(ConfigError, match=r"model.num_heds=2: no model of this comparison has it"):
        contenders(["v8"], [*RANDOM, "model.num_heds=2"], None)
    with pytest.raises(ConfigError, match=r"model.hidden_size: match=parameters:50,000 decides it: leave it out"):
        contenders(["v8"], [*RANDOM, "model.hidden_size=12"], Budget("parameters", 5e4))
    with pytest.raises(ConfigError, match=r"lstm: no width.* is within 2% of match=parameters:10,000"):
        contenders(["lstm"], [*RANDOM, "model.num_layers=4"], Budget("parameters", 1e4))
    assert decided_problems(["model=v8", "optimizer.lr=1", "data=random"]) == [
        "model=v8: models=[...] says which: leave it out",
        "optimizer.lr=1: lr=[...] says which: leave it out",
    ]


def test_all_models_see_the_same_tokens_in_the_same_order(small_text: Path) -> None:
    text = ["data=text", f"data.path={small_text}", "data.seq_len=16", "data.batch_size=4", "device=cpu"]
    models = ["v1", "transformer", "gru", "mingru", "maxplus"]
    found = contenders(models, [*text, "model.num_heads=2", "model.num_layers=1"], Budget("parameters", 2e4))
    batches = {one.label: trainer_from({**one.config, "seed": 5}).training_step.batches for one in found}
    for step in (0, 1, 70):  # 70 is in the second epoch
        first = batches["v1"].on_host(step)[0]
        assert all(torch.equal(of.on_host(step)[0], first) for of in batches.values())
    assert not torch.equal(batches["v1"].on_host(0)[0], batches["v1"].on_host(1)[0])
