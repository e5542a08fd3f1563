"""What is compared, and with what settings."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from samout_train.cli import compare
from samout_train.config import CONF, ConfigError
from samout_train.experiments import Budget, candidates, check_decided
from samout_train.experiments.compare.candidates import folder_name, labelled, word_of
from samout_train.training import trainer_from

RANDOM = ["data=random", "device=cpu", "data.batch_size=8"]


def test_models_are_names_or_labels_with_settings() -> None:
    small = {"model": "v8", "model.num_layers": 2}
    wanted: dict[str, Any] = {"v1": {"model": "v1"}, "small": small}
    assert labelled({"v1": None, "small": small}) == labelled(["v1", {"small": small}]) == wanted
    assert labelled("gru") == {"gru": {"model": "gru"}}
    for wrong, message in (
        (["v8", "v8"], "v8 is there twice: write one as {another name: {model: v8}}"),
        ({"a b": {"model": "v8"}, "a_b": {"model": "v8"}}, "a b, a_b: are one directory"),
        ({"V8": {"model": "v8"}, "v8": {}}, "V8, v8: are one directory"),
        ([], "models: is empty"),
        ({"v8": 3}, "v8: must be settings in braces"),
        ([["v8", "gru"]], "must be a name, or a label with settings in braces"),
        (
            "deep:model:v8",
            "models: deep:model:v8: is not a name: put quotes around settings in braces, as in 'models={deep:",
        ),
    ):
        with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
            labelled(wrong)  # type: ignore[arg-type]
    assert folder_name("v8, no decay") == "v8_no_decay"


@pytest.mark.nightly
def test_settings_of_all_go_to_the_models_that_have_them() -> None:
    shared = [*RANDOM, "model.num_heads=2", "model.hidden_size=12", "model.num_layers=1", "model.mixer.decay=none"]
    found = candidates(["maxplus", "v8", "lstm"], shared, None)
    assert [one.config["model"].get("num_heads") for one in found] == [2, 2, None]
    assert [one.config["model"].get("mixer", {}).get("decay") for one in found] == ["none", None, None]
    assert found[2].words == (*RANDOM, "model=lstm", "model.hidden_size=12", "model.num_layers=1")


@pytest.mark.slow
def test_settings_of_a_preset_that_a_model_has_not_are_left_out(small_text: Path) -> None:
    shared = ["experiment=shakespeare_small", "data=text", f"data.path={small_text}", "data.seq_len=8", "device=cpu"]
    lstm, own = candidates(
        {"lstm": {"model.num_layers": 2}, "own": {"model": "gru"}}, shared, Budget("parameters", 5e4)
    )
    assert "~model.num_heads" in lstm.words and lstm.config["model"]["num_layers"] == 2
    assert own.config["model"]["num_layers"] == 4 and own.config["model"]["cell"] == "gru"
    assert lstm.sizes is not None and lstm.words[-1] == f"model.hidden_size={lstm.sizes.settings['hidden_size']}"


@pytest.mark.slow
def test_shards_that_no_model_has_are_reported_once_with_the_commands_that_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.compare(["experiment=contenders_text", "models=[gla,lstm]"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "data.paths: outputs/corpus/shards is not there: make it with `make corpus`, then `samout-train tokenize "
        "path=outputs/corpus/documentation.jsonl out=outputs/corpus/shards vocab_size=2048`"
    ]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError) as told:
        candidates(
            {"a": ["model=gla", "model.num_heads=0"], "b": ["model=lstm"]}, ["data=shards", "data.paths=[]"], None
        )
    assert [str(problem).partition(" ")[0] for problem in told.value.problems] == ["data.paths:", "a:"]


def test_the_text_of_one_epoch_has_the_models_of_the_small_one_and_thirty_million_tokens() -> None:
    small, text = (OmegaConf.load(CONF / "experiment" / f"contenders_{name}.yaml") for name in ("cpu", "text"))
    with_muon = {  # maxplus without the matrix that it needs least
        "maxplus": ["model.mixer.b_projection=false"],
        "maxplus and window": ["model.mixers.maxplus.b_projection=false"],
    }
    expected = {name: [*words, *with_muon.get(name, [])] for name, words in small.compare.models.items()}
    assert text.compare.models == expected and text.model == small.model
    data = text.data
    assert 30e6 < data.budget_steps * data.batch_size * data.seq_len < 30.1e6
    assert text.compare.screen_steps == data.budget_steps // 10


@pytest.mark.nightly
def test_each_mistake_is_told_with_its_label() -> None:
    with pytest.raises(ConfigError) as told:
        candidates({"v9": {}, "lstm": {"model.num_heads": 2}, "v8": {"optimizer.rate": 1}}, [*RANDOM], None)
    lines = str(told.value).splitlines()
    assert lines[0].startswith("v9: model=v9: no such option; there are counting, deltanet")
    assert lines[1].startswith("lstm: model.num_heads=2: no such key")
    assert lines[2].startswith("v8: optimizer.rate=1: no such key")
    with pytest.raises(ConfigError, match=r"model.num_heds=2: no model of this comparison has it"):
        candidates(["v8"], [*RANDOM, "model.num_heds=2"], None)
    with pytest.raises(ConfigError, match=r"v8: model.hidden_size=12: match=parameters:50,000 decides it"):
        candidates(["v8"], [*RANDOM, "model.hidden_size=12"], Budget("parameters", 5e4))
    with pytest.raises(ConfigError, match=r"lstm: no width.* is within 2% of match=parameters:10,000"):
        candidates(["lstm"], [*RANDOM, "model.num_layers=4"], Budget("parameters", 1e4))
    assert list(map(str, check_decided(["model=v8", "optimizer.lr=1", "data=random"]))) == [
        "model=v8: models=[...] says which: leave it out",
        "optimizer.lr=1: lr=[...] says which: leave it out",
    ]


@pytest.mark.nightly
def test_all_models_see_the_same_tokens_in_the_same_order(small_text: Path) -> None:
    text = ["data=text", f"data.path={small_text}", "data.seq_len=16", "data.batch_size=4", "device=cpu"]
    models = ["v1", "transformer", "gru", "mingru", "maxplus"]
    found = candidates(models, [*text, "model.num_heads=2", "model.num_layers=1"], Budget("parameters", 2e4))
    batches = {one.label: trainer_from({**one.config, "seed": 5}).training_step.batches for one in found}
    for step in (0, 1, 70):  # 70 is in the second epoch
        first = batches["v1"].on_host(step)[0]
        assert all(torch.equal(of.on_host(step)[0], first) for of in batches.values())
    assert not torch.equal(batches["v1"].on_host(0)[0], batches["v1"].on_host(1)[0])


def test_what_is_the_same_for_all_is_not_a_label_s_to_set() -> None:
    for key, value, reason in (
        ("optimizer.lr", 1, "lr=[...] says which"),
        ("seed", 3, "is the same for all models: give it outside of models"),
        ("run_dir", "q", "is the same for all models"),
        ("data.seq_len", 9, "is the same for all models"),
        ("experiment", "x", "is the same for all models"),
    ):
        with pytest.raises(ConfigError, match=re.escape(reason)):
            candidates({"a": {"model": "v8", key: value}}, RANDOM, None)


@pytest.mark.slow
def test_a_model_is_the_one_that_train_would_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    yaml = "defaults: [gru]\n"
    (tmp_path / "mine" / "model" / "typo.yaml").write_text(f"{yaml}num_layer: 4\n")
    (tmp_path / "mine" / "model" / "any.yaml").write_text(f"{yaml}_target_: any_model.build\nextra: 3\n")
    (tmp_path / "mine" / "model" / "gone.yaml").write_text(f"{yaml}_target_: nowhere.Model\n")
    (tmp_path / "any_model.py").write_text("def build(**settings):\n    raise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path)
    folders = [str(tmp_path / "mine")]
    with pytest.raises(ConfigError, match=r"typo: model.num_layer=4: no such key; did you mean model.num_layers"):
        candidates(["typo"], RANDOM, None, config_dirs=folders)
    with pytest.raises(ConfigError, match=r"gone: model._target_=nowhere.Model: cannot be imported"):
        candidates(["gone"], RANDOM, None, config_dirs=folders)
    (one,) = candidates(["any"], RANDOM, None, config_dirs=folders)
    assert one.words == (*RANDOM, "model=any") and one.config["model"]["extra"] == 3


@pytest.mark.slow
def test_heads_that_do_not_divide_the_configured_width_divide_the_one_that_is_found() -> None:
    (one,) = candidates(["v8"], [*RANDOM, "model.num_heads=5"], Budget("parameters", 5e5))
    assert one.sizes is not None and one.sizes.settings["hidden_size"] % 5 == 0


@pytest.mark.slow
def test_a_feed_forward_that_was_chosen_stays_as_it_is() -> None:
    (one,) = candidates(["v8"], [*RANDOM, "model.num_heads=1", "model.ffn_size=64"], Budget("parameters", 5e5))
    assert one.sizes is not None and set(one.sizes.settings) == {"hidden_size"}
    assert one.config["model"]["ffn_size"] == 64


@pytest.mark.nightly
def test_a_budget_of_seconds_is_met_by_what_steps_are_measured_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step here takes 5 ms, and 1 us more for each thousand parameters; small widths differ by noise only."""

    def seconds(trainer: Any) -> float:
        size = sum(parameter.numel() for parameter in trainer.model.parameters())
        return 0.005 + size * 1e-9 + (1e-6 if size % 3 else 0.0)

    monkeypatch.setattr("samout_train.experiments.compare.candidates.seconds_a_step", seconds)
    words = ["data=random", "device=cpu", "trainer.max_steps=100", "model.num_layers=1", "model.num_heads=1"]
    (one,) = candidates(["v8"], words, Budget("seconds", 0.8))
    assert one.sizes is not None and one.sizes.cost == pytest.approx(0.8, rel=0.02)
    with pytest.raises(ConfigError, match="needs a number of steps"):
        candidates(["v8"], [*words, "trainer.max_steps=null", "trainer.max_seconds=3"], Budget("seconds", 0.8))
    monkeypatch.setattr("samout_train.experiments.compare.candidates.seconds_a_step", lambda trainer: out_of_memory())
    with pytest.raises(ConfigError, match="v8: no width"):
        candidates(["v8"], words, Budget("seconds", 0.8))


def out_of_memory() -> float:
    raise RuntimeError("out of memory")


def test_values_are_written_as_a_person_would_type_them() -> None:
    assert word_of("a", [1, 2.5, True, None]) == "a=[1, 2.5, true, null]" and word_of("a", None) == "a=null"
    assert word_of("a", "b c") == "a='b c'" and word_of("data.path", "b c") == "data.path=b c"


def test_a_shared_setting_may_change_nothing_in_some_models_but_not_in_all() -> None:
    shared = [*RANDOM, "model.num_heads=2", "model.hidden_size=12", "model.num_layers=1", "model.output_gate=silu"]
    found = candidates(["gla", "maxplus"], shared, None)
    assert [one.config["model"]["output_gate"] for one in found] == ["silu", "silu"]
    with pytest.raises(ConfigError, match=r"model.output_gate=silu: no model of this comparison has it"):
        candidates(["gla", "mamba2"], shared, None)
    with pytest.raises(ConfigError, match=r"model.convolution_size=4: changes nothing, as the mixer has a convolution"):
        candidates({"own": ["model=mlstm", "model.convolution_size=4"], "v8": ["model=v8"]}, RANDOM, None)
