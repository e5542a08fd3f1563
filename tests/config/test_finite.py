"""Numbers that are not finite, or have more than 64 bits, in any setting: one sentence each."""

from typing import Annotated, Any

import pytest

from samout_train.cli.compare import compare
from samout_train.cli.generate import generate
from samout_train.cli.search import search
from samout_train.cli.tokenize import tokenize
from samout_train.cli.train import train
from samout_train.config import Positive, check_call, compose_config, validated
from samout_train.config.ranges import beyond_numbers
from samout_train.training.settings import problems
from tests.support.marks import spread

LARGE = 10**30
FINITE = "must be finite"


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "+Inf", "NaN"])
@pytest.mark.parametrize(
    "key",
    spread(
        ["optimizer.lr", "model.dropout", "data.batch_size", "trainer.max_seconds", "trainer.clip_grad_norm", "seed"], 3
    ),
)
def test_a_number_that_is_not_finite_is_said_to_be_so(key: str, value: str) -> None:
    found = problems(compose_config([f"{key}={value}"]).config)
    assert len(found) == 1 and str(found[0]).startswith(f"{key}=") and str(found[0]).endswith(FINITE)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.betas=[0.9,nan]", "optimizer.betas=[0.9, nan]: must be finite"),
        ("optimizer.betas=[inf,0.9]", "optimizer.betas=[inf, 0.9]: must be finite"),
        (f"data.batch_size={LARGE}", "must be at most 9223372036854775807"),
        (f"model.hidden_size=1{'0' * 400}", "must be from 1 to 16777216"),
        (f"seed={LARGE}", "must be from 0 to 9223372036854775807"),
        (f"optimizer.lr={LARGE}", "must be at most 9223372036854775807 where it is a whole number: write 1e+30"),
        ("data.batch_size=1e3", "data.batch_size=1000.0: must be a whole number, above 0: write 1000"),
        ("data.batch_size=2.5", "data.batch_size=2.5: must be a whole number, above 0"),
    ],
)
def test_other_numbers_that_cannot_be_meant(override: str, message: str) -> None:
    (found,) = problems(compose_config([override]).config)
    assert str(found).endswith(message)


@pytest.mark.slow
def test_in_a_yaml_file_it_is_the_same(tmp_path: Any) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\noptimizer:\n  lr: .inf\ntrainer:\n  clip_grad_norm: .nan\n"
    )
    composed = compose_config(["experiment=mine"], config_dirs=[str(tmp_path)])
    wanted = ["optimizer.lr=inf: must be finite", "trainer.clip_grad_norm=nan: must be finite"]
    assert list(map(str, problems(composed.config))) == wanted


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        (train, ["-m", "optimizer.lr=1e-3,inf"], "optimizer.lr=inf: must be finite"),
        (train, ["-m", "trainer.max_seconds=nan,5"], "trainer.max_seconds=nan: must be finite"),
        (generate, ["run=run", "prompt=a", "temperature=nan"], "temperature=nan: must be finite"),
        (generate, ["run=run", "prompt=a", "max_new_tokens=inf"], "max_new_tokens=inf: must be finite"),
        (tokenize, ["path=a", "out=b", "jobs=inf"], "jobs=inf: must be finite"),
        (compare, ["models=[v1,v8]", "lr=[1e-3,nan]"], "lr=[0.001, nan]: must be finite"),
        (search, ["trials=inf"], "trials=inf: must be finite"),
    ],
)
def test_every_verb_says_so(
    verb: Any, words: list[str], message: str, tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verb(words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_numbers_are_found_wherever_they_lie() -> None:
    inf = float("inf")
    for value in (inf, [1, inf], {"a": {"b": [inf]}}, (1.0, [inf]), LARGE, -LARGE, [LARGE]):
        assert beyond_numbers(value)
    for fine in (1, -1.5, 2**63 - 1, True, "inf", None, [1], {"a": 1}, {"_target_": "x", "lr": inf}):
        assert beyond_numbers(fine) is None


def test_settings_without_a_known_name_or_type_are_looked_at_too() -> None:
    def anything(**settings: Any) -> None: ...

    def untyped(value, node: dict[str, Any]) -> None: ...  # type: ignore[no-untyped-def]

    inf = float("inf")
    assert list(map(str, check_call("x", anything, {"a": inf, "b": 1}))) == ["x.a=inf: must be finite"]
    node = {"_target_": "thing", "lr": inf}
    found = check_call("x", untyped, {"value": [inf], "node": node})
    assert list(map(str, found)) == ["x.value=[inf]: must be finite"]


def test_from_python_it_is_the_same() -> None:
    @validated
    def build(*, size: Annotated[int, Positive] = 1, betas: list[float] | None = None) -> int:
        return size

    for wrong in ({"size": float("inf")}, {"size": float("nan")}, {"betas": [0.9, float("nan")]}):
        with pytest.raises(ValueError, match="must be finite"):
            build(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be at most 9223372036854775807"):
        build(size=10**400)
    assert build(size=2, betas=[0.9]) == 2
