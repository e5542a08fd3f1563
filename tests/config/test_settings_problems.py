"""Every mistake is named at once: the key, what was given, what is wanted, the nearest right name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samout_train import build_model, build_trainer
from samout_train.config import ConfigError, Positive, Probability, Range, Share, compose_config, validated
from samout_train.training import model_node
from samout_train.training.schedules import Constant, Progress, schedule_problem
from samout_train.training.settings import problems
from tests.support.marks import spread
from tests.support.messages import assert_recorded


def found(*overrides: str) -> list[str]:
    return [str(problem) for problem in problems(compose_config(["device=cpu", *overrides]).config)]


@pytest.mark.slow
def test_the_defaults_have_no_mistake() -> None:
    assert found() == []
    assert found("model=v1", "optimizer=adamw", "schedule=wsd", "optimizer.lr=1", "model.ffn_size=12") == []


@pytest.mark.parametrize(
    ("override", "message"),
    spread(
        [
            ("+model.hiden_size=12", "model.hiden_size=12: no such key; did you mean model.hidden_size?"),
            ("model.hiden_size=12", "model.hiden_size=12: no such key; did you mean model.hidden_size?"),
            ("modle=v1", "modle=v1: no such key; did you mean model?"),
            ("seed.x=1", "seed={'x': 1}: must be a whole number"),
            ("+sed=1", "sed=1: no such key; did you mean seed?"),
            ("+data.num_sequence=5", "data.num_sequence=5: no such key; did you mean data.num_sequences?"),
            ("+data.budget_step=5", "data.budget_step=5: no such key; did you mean data.budget_steps?"),
            ("+model.mixer.width=5", "model.mixer.width=5: no such key; there are "),
            ("+callbacks.sample.k=5", "callbacks.sample.k=5: no such key; there are num_samples"),
            ("+model.vocab_size=9", "model.vocab_size=9: is not set in the configuration, the run gives it"),
            ("model.hidden_size=abc", "model.hidden_size=abc: must be a whole number, from 1 to 16777216"),
            ("model.hidden_size=12.5", "model.hidden_size=12.5: must be a whole number, from 1 to 16777216"),
            ("model.hidden_size=true", "model.hidden_size=true: must be a whole number, from 1 to 16777216"),
            ("model.hidden_size=null", "model.hidden_size=null: must be a whole number, from 1 to 16777216"),
            ("model.hidden_size=0", "model.hidden_size=0: must be from 1 to 16777216"),
            ("model.dropout=1", "model.dropout=1: must be from 0 to below 1"),
            ("model.init=large", "model.init=large: must be published, small"),
            ("optimizer.lr=-1e-3", "optimizer.lr=-0.001: must be above 0"),
            ("optimizer.lr=fast", "optimizer.lr=fast: must be a number, above 0"),
            (
                "optimizer.betas=[0.9]",
                "optimizer.betas=[0.9]: must be a list such as [0.9, 0.9] (2 numbers, each a number from 0 to below 1)",
            ),
            ("trainer.max_steps=0", "trainer.max_steps=0: must be above 0"),
            ("trainer.max_steps=x", "trainer.max_steps=x: must be a whole number or null, above 0"),
            (
                "trainer.accumulate=3",
                "data.batch_size (100) must be divisible by trainer.accumulate (3): try 99 or 102",
            ),
            (
                "trainer.accumulate=300",
                "data.batch_size (100) must be divisible by trainer.accumulate (300): try data.batch_size=300, "
                "or a smaller trainer.accumulate",
            ),
            (
                "+trainer.precision=bf16",
                "trainer.precision=bf16: is not set here: write precision=bf16",
            ),
            ("model.num_heads=5", "model.hidden_size (384) must be divisible by model.num_heads (5): try 380 or 385"),
            ("data.batch_size=0", "data.batch_size=0: must be above 0"),
            ("data.ignore_index=-100", "data.ignore_index=-100: must be data.pad_id (3)"),
            ("precision=fp8", "precision=fp8: must be auto, fp32, bf16, fp16"),
            ("precision=fp16", "precision (fp16) needs a CUDA device"),
            ("device=cuda:99", "device (cuda:99) is not there"),
            ("device=tpu", "device (tpu) must be auto, cpu, cuda, cuda:N or mps"),
            ("seed=-1", "seed=-1: must be from 0 to 9223372036854775807"),
            ("model._target_=samout_train.models.absent.Thing", "cannot be imported"),
            ("~optimizer.lr", "optimizer.lr: is missing: set optimizer.lr=..."),
            ("data=text", "data.path: is missing: set data.path=..."),
        ],
        2,
    ),
)
def test_a_mistake_is_named(override: str, message: str) -> None:
    (got,) = found(override)
    assert message in got
    assert_recorded(f"settings: {override}", got)


def test_all_mistakes_come_at_once() -> None:
    got = found("+model.hiden_size=12", "optimizer.lr=0", "seed=x", "trainer.accumulate=0")
    assert len(got) == 4


@pytest.mark.slow
def test_cosine_without_a_number_of_steps_is_refused_in_favour_of_the_others() -> None:
    (got,) = found("schedule=cosine", "trainer.max_seconds=5")
    assert "schedule=constant or schedule=wsd" in got
    assert found("schedule=wsd", "trainer.max_seconds=5") == []
    assert found("schedule=cosine", "trainer.max_seconds=5", "trainer.max_steps=5") == []


def test_a_text_that_is_not_there_is_found_before_anything_is_built(tmp_path: Path) -> None:
    (got,) = found("data=text", f"data.path={tmp_path / 'absent.txt'}")
    assert "is not there" in got


@pytest.mark.parametrize("overrides", [["model=v9"], ["model=v8", "trainer.max_steps"], ["data=[", "seed=1"]])
def test_what_hydra_cannot_compose_is_a_short_message(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides)
    assert 1 <= len(str(caught.value).splitlines()) <= 8


@pytest.mark.parametrize("value", ["a,b=c", "123", "[x]", "it's here", "with space", "{a: b}", "1e3"])
def test_text_values_are_what_the_shell_gave(value: str) -> None:
    assert compose_config([f"run_dir={value}"]).config["run_dir"] == value
    assert compose_config([f"+callbacks.sample.prompt={value}"]).config["callbacks"]["sample"]["prompt"] == value


@pytest.mark.slow
def test_text_that_is_quoted_or_null_is_left_to_hydra() -> None:
    assert compose_config(["resume=null"]).config["resume"] is None
    assert compose_config(["run_dir='a b'"]).config["run_dir"] == "a b"
    assert compose_config(["run_dir=outputs/${seed}"]).config["run_dir"] == "outputs/0"


@pytest.mark.slow
def test_python_functions_refuse_the_same_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"did you mean model\.hidden_size"):
        build_model("v8", vocab_size=9, hiden_size=12)
    with pytest.raises(ConfigError, match=r"optimizer.lr=0: must be above 0"):
        build_trainer(["optimizer.lr=0"])
    with pytest.raises(ConfigError, match="model=v9: no such option; there are counting, deltanet"):
        build_model("v9", vocab_size=9)


@pytest.mark.slow
def test_a_model_by_itself_is_not_judged_by_the_data_of_the_configuration(tmp_path: Path) -> None:
    assert build_model("gru", vocab_size=9, hidden_size=8, bidirectional=True).sees_future
    assert build_model("transformer", vocab_size=9, hidden_size=8, num_heads=2, max_seq_len=5).max_seq_len == 5
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "short.yaml").write_text("defaults:\n  - transformer\nmax_seq_len: 5\n")
    assert model_node("short", config_dirs=[str(tmp_path)])["max_seq_len"] == 5
    (tmp_path / "model" / "short.yaml").write_text("defaults:\n  - transformer\nmax_seq_len: 0\n")
    with pytest.raises(ConfigError, match=r"model\.max_seq_len=0: must be above 0"):
        model_node("short", config_dirs=[str(tmp_path)])


@pytest.mark.slow
def test_what_settings_do_not_show_is_told_when_the_model_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"model.max_seq_len \(4\): rows of this data, or of its tests, are longer: set it to 5"
    ):
        build_trainer(["data=hello", "model=transformer", "model.max_seq_len=4", "device=cpu"])
    monkeypatch.setattr(
        "samout_train.training.settings.FOR_LABELS_ONLY", ()
    )  # as for a model whose settings have other names
    with pytest.raises(ConfigError, match="this model sees the whole sequence, and so the token"):
        build_trainer(["model=gru", "model.bidirectional=true", "device=cpu"])


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Positive, [1, 0.1], [0, -1, float("inf"), float("nan")], "above 0"),
        (Share, [0, 1, 0.5], [-0.1, 1.1], "from 0 to 1"),
        (Probability, [0, 0.99], [1, -1], "from 0 to below 1"),
        (Range(2, 5), [2, 5], [1, 6], "from 2 to 5"),
    ],
)
def test_ranges(allowed: Range, inside: list[float], outside: list[float], text: str) -> None:
    assert all(value in allowed for value in inside) and not any(value in allowed for value in outside)
    assert str(allowed) == text


@pytest.mark.parametrize(
    "schedule", [lambda progress: "x", lambda progress: float("nan"), lambda: 1.0, lambda p: True, 3]
)
def test_what_is_no_schedule_is_refused_before_the_first_step(schedule: Any) -> None:
    told = schedule_problem(schedule, Progress(1, 10, 0.1)) or ""
    assert told.startswith("schedule: ") and told.endswith("such as 0.5, like samout_train/training/schedules.py")


@pytest.mark.parametrize("schedule", [Constant(), lambda *words, **settings: 0.5, lambda progress: np.float32(0)])
def test_what_returns_a_factor_is_a_schedule(schedule: Any) -> None:
    assert schedule_problem(schedule, Progress(1, 10, 0.1)) is None


def test_constructors_refuse_what_the_check_would() -> None:
    from samout_train.training.schedules import Cosine

    with pytest.raises(ValueError, match=r"final_share \(1.5\) must be from 0 to 1"):
        Cosine(warmup_steps=3, final_share=1.5)

    @validated
    def anything(*, name: str, size: Any = 3) -> str:
        return name * size

    assert anything(name="a") == "aaa"
