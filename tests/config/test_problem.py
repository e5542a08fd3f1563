"""A problem has fields for code and one line for people; an error carries problems across processes."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from samout_train import ConfigError, Problem
from samout_train.config import Place, compose_config, require_no_problems
from samout_train.training import checked_config

FULL = Problem("model.width", "3", text="is odd", fix="write 4", where=Place(Path("mine/own.yaml"), 5), kind="value")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (FULL, "model.width=3: is odd: write 4 (mine/own.yaml line 5)"),
        (replace(FULL, value=None), "model.width: is odd: write 4 (mine/own.yaml line 5)"),
        (replace(FULL, value=""), "model.width=: is odd: write 4 (mine/own.yaml line 5)"),
        (replace(FULL, where=None, fix=""), "model.width=3: is odd"),
        (replace(FULL, key=""), "mine/own.yaml line 5: is odd: write 4"),
        (replace(FULL, key="", where=Place(Path("a.yaml"), 1, 2)), "a.yaml line 1, column 2: is odd: write 4"),
        (Problem(text="is wrong"), "is wrong"),
        (Problem.of_word("+data=a=b", text="is wrong"), "+data=a=b: is wrong"),
        (Problem.of_word("~data", text="is wrong"), "~data: is wrong"),
    ],
)
def test_a_problem_prints_as_one_line(problem: Problem, message: str) -> None:
    assert str(problem) == message


def test_an_error_lists_its_problems_and_keeps_them_when_it_is_pickled() -> None:
    error = ConfigError(FULL, "a whole message")
    assert str(error) == f"{FULL}\na whole message"
    assert error.problems == [FULL, Problem(text="a whole message")]
    assert pickle.loads(pickle.dumps(error)).problems == error.problems
    require_no_problems([])
    with pytest.raises(ConfigError) as caught:
        require_no_problems([FULL])
    assert caught.value.problems == [FULL]


def test_code_finds_key_and_value_without_reading_the_message() -> None:
    _, (first, second) = checked_config(["model.hidden_size=0", "optimizer.lrr=1", "device=cpu"])
    assert (first.key, first.value, first.kind) == ("model.hidden_size", "0", "value")
    assert (second.key, second.value, second.kind) == ("optimizer.lrr", "1", "value")
    with pytest.raises(ConfigError) as caught:
        compose_config(["model=v9"])
    (problem,) = caught.value.problems
    assert (problem.key, problem.value, problem.kind) == ("model", "v9", "option")
