"""Settings that are chosen for each model: what can be, and what cannot."""

from pathlib import Path
from typing import Any

import pytest

from samout_train.config import ConfigError, build
from samout_train.experiments import (
    Budget,
    Plan,
    candidates,
    check_choices,
    check_leaders,
    choices_of,
    with_operations,
)
from samout_train.experiments.compare.choices import first_settings, with_settings
from samout_train.training import source_from

SHARED = ["data=recall_small", "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]


def test_values_are_read_by_dotted_key_in_their_order() -> None:
    asked = {"model": {"dropout": [0, 0.1]}, "optimizer.weight_decay": [0.1, 0.01]}
    assert choices_of(asked) == {"model.dropout": [0, 0.1], "optimizer.weight_decay": [0.1, 0.01]}
    assert choices_of(None) == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data.seq_len": [8, 16]}, "choose.data.seq_len=[8, 16]: must be a setting of model, optimizer, schedule"),
        ({"model": [1, 2]}, "choose.model=[1, 2]: must be a setting of"),
        ({"optimizer.lr": [1, 2]}, "choose.optimizer.lr=[1, 2]: is chosen by lr"),
        ({"model.dropout": [0.1]}, "choose.model.dropout=[0.1]: must be a list of two values or more"),
        ({"optimizer": {"betas": [[0.9], [0.8]]}}, "choose.optimizer.betas=[[0.9], [0.8]]: chooses among lists"),
        ({"model.dropout": 0.1}, "choose.model.dropout=0.1: must be a list of two values or more"),
    ],
)
def test_what_cannot_be_chosen_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choices_of(asked)
    assert str(refused.value).startswith(message)


def test_a_choice_is_checked_with_each_model_that_has_it() -> None:
    models = candidates(["v8", "gru"], SHARED, None)
    decay = {"optimizer.weight_decay": [0.0, 0.1]}
    assert check_choices({"model.dropout": [0.0, 0.1], **decay}, models, None) == []
    assert first_settings({"model.use_prior": [True, False], **decay}, models[1].config) == {
        "optimizer.weight_decay": 0.0
    }
    (range_,) = check_choices({"model.dropout": [0.0, 1.5]}, models, None)
    assert str(range_).startswith("model.dropout=1.5: must be")
    (absent,) = check_choices({"model.absent": [0, 1]}, models, None)
    assert str(absent) == "choose.model.absent: no model of this comparison has it"
    (twice,) = check_choices({"model.num_layers": [1, 2]}, models[:1], None)
    assert str(twice) == "choose.model.num_layers: is chosen, and v8 sets it: leave one of the two out"


def test_a_choice_leaves_the_size_as_it_is() -> None:
    shared = [word for word in SHARED if "hidden_size" not in word and "layers" not in word]
    budget = Budget.of("parameters:20k")
    models = candidates(["v8"], shared, budget)
    assert check_choices({"model.dropout": [0.0, 0.1]}, models, budget) == []
    layers = models[0].config["model"]["num_layers"]
    (larger,) = check_choices({"model.num_layers": [layers, layers + 1]}, models, budget)
    assert str(larger).startswith(f"choose.model.num_layers={layers + 1}: takes ")


def test_a_choice_leaves_the_operations_of_a_training_as_they_are() -> None:
    (one,) = candidates(["gru"], [word for word in SHARED if "layers" not in word and "heads" not in word], None)
    limited = with_operations(one, 1e9)
    layers = one.config["model"]["num_layers"]
    assert check_choices({"model.num_layers": [layers, layers + 1]}, [one], None) == []
    assert check_choices({"model.dropout": [0.0, 0.1], "optimizer.weight_decay": [0, 0.1]}, [limited], None) == []
    (larger,) = check_choices({"model.num_layers": [layers, layers + 1]}, [limited], None)
    assert (larger.key, larger.value) == ("choose.model.num_layers", str(layers + 1)) and "train_flops" in str(larger)


def test_a_setting_is_changed_in_a_copy() -> None:
    config = {"model": {"dropout": 0.0, "mixer": {"decay": 1}}, "seed": 0}
    changed = with_settings(config, {"model.mixer.decay": 2, "seed": 3})
    assert changed == {"model": {"dropout": 0.0, "mixer": {"decay": 2}}, "seed": 3}
    assert config == {"model": {"dropout": 0.0, "mixer": {"decay": 1}}, "seed": 0}


def test_leaders_and_their_seeds_belong_together() -> None:
    assert check_leaders(None, None) == [] and check_leaders(2, 3) == []
    assert str(check_leaders(2, None)[0]).startswith("leaders=2: get no further seeds")
    assert str(check_leaders(None, 3)[0]).startswith("leader_seeds=3: are those of the best models")


def test_the_steps_of_a_model_follow_from_the_operations_of_its_training(tmp_path: Path) -> None:
    models = candidates(["gru", "transformer"], [*SHARED, "data.batch_size=4"], None)
    known = []
    for one in models:
        source = source_from(one.config)
        model = build(one.config["model"], vocab_size=source.vocab_size, pad_id=source.pad_id)
        length = source.train.seq_len
        known.append(3 * model.forward_flops_per_token(length) * 4 * length)  # forward, and backward twice that
    limited = [with_operations(one, 10.5 * max(known)) for one in models]
    assert [one.steps for one in limited] == [int(10.5 * max(known) // cost) for cost in known]
    assert sorted(one.steps or 0 for one in limited)[0] == 10 and known[0] != known[1]
    plan = Plan(tmp_path, limited, [1e-3], seed=0, num_seeds=1)
    (job, _) = map(plan.job, plan.scored(plan.best({})).values())
    assert f"trainer.max_steps={limited[0].steps}" in job.words and limited[0].words == models[0].words
    assert plan.lines()[0].endswith(f"as configured, {limited[0].steps} steps")
    with pytest.raises(ConfigError, match="train_flops=1: a step of gru takes"):
        with_operations(models[0], 1.0)
    (limited_otherwise,) = candidates(["v8"], [*SHARED, "trainer.max_steps=5"], None)
    with pytest.raises(ConfigError, match=r"trainer.max_steps=5.*: train_flops=1e\+09 decides how long v8"):
        with_operations(limited_otherwise, 1e9)
