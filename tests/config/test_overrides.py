"""Overrides on their way to Hydra: text arrives as the shell gave it."""

import inspect
import random
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from samout_train.cli.generate import generate
from samout_train.cli.request import Request
from samout_train.config import PLAIN_TEXT_KEYS, check_overrides, compose_config

NASTY = [
    *("", " ", "'", '"', "'the hands", '"the" h', '"the"', "'the'", "the\\", "the\\\\", "\\'", "\\\\'", "it's", "'\\"),
    *("a,b", "a=b", "[a", "a]", "{a: b}", "(x)", "choice(a,b)", "12", "1e3", "true", "null", "???", "~", "#", "a: b"),
    *("${oc.env:HOME}", "\\${oc.env:HOME}", "\\\\${x}", "${", "${ ", "${x}\\", "'${x}'", "$", "$$", "\\$", "${prompt}"),
    *("\n", "a\n", "\\\n", "'\n", "\t a \t", "é𝄞", "a\r\nb", "@x", "-", "--help", "+a=b", "\\n", "x\\ y", "\\,", "%"),
]
PIECES = ["\\", "\\", "'", '"', "${", "$", "{", "}", "a", " ", ",", "=", "[", "]", "oc.env:HOME", "\n", "é", ":", "?"]


def drawn(count: int) -> list[str]:
    choose = random.Random(0)
    return ["".join(choose.choices(PIECES, k=choose.randint(1, 8))) for _ in range(count)]


@pytest.mark.nightly
@pytest.mark.parametrize("texts", [NASTY, drawn(120)], ids=["by hand", "drawn"])
def test_what_the_shell_gives_is_what_generate_receives(texts: list[str]) -> None:
    names = [name for name in PLAIN_TEXT_KEYS if name in inspect.signature(generate.keys).parameters]
    for start in range(0, len(texts), len(names)):
        given = dict(zip(names, texts[start:], strict=False))
        words = [f"{key}={text}" for key, text in ({"run": "x", "prompt": "x"} | given).items()]
        received = generate.composed(Request(words, "generate")).config
        assert {key: received[key] for key in given} == given


@pytest.mark.parametrize("path", ["the\\", "it's\\", "a\\'b", "a,b's"])
def test_a_path_with_backslashes_and_quotes_arrives_in_train(path: str) -> None:
    assert compose_config(["data=text", f"data.path={path}"]).config["data"]["path"] == path


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (
            "models={maxplus: [model=maxplus, model.num_layers=2]}",
            {"maxplus": ["model=maxplus", "model.num_layers=2"]},
        ),
        ("models={v8:{},deep:[model=v8]}", {"v8": {}, "deep": ["model=v8"]}),
        ("models={with window: {model: v8, note: a=b}}", {"with window": {"model": "v8", "note": "a=b"}}),
        ("tasks=[parity, model.pattern=[a,b], 3]", ["parity", "model.pattern=[a,b]", 3]),
        ("tasks=['a=b', \"c,d\", e=f]", ["a=b", "c,d", "e=f"]),
        ("tasks=[don't, é, x(1), 5\", a\\b=c]", ["don't", "é", "x(1)", '5"', "a\\b=c"]),
        ("tasks=[a=b,]", ["a=b"]),
    ],
)
def test_the_advice_on_an_unreadable_list_is_the_same_list(word: str, value: object) -> None:
    problem = check_overrides([word], folders=[])[word]
    assert "special characters need quotes" in problem.text
    (advised,) = shlex.split(problem.fix.removeprefix("write "))
    assert OverridesParser.create().parse_override(advised).value() == value


@pytest.mark.parametrize(
    "word", ["m=[a", "m={a:[b}", "m={a: [b=c}", "m=[a]]", "m=[a], [b=c]", "m=[", "m={a]", "m=[a}, {b]"]
)
def test_brackets_that_do_not_match_are_not_quoted_away(word: str) -> None:
    problem = check_overrides([word], folders=[])[word]
    assert str(problem) == f"{word}: cannot be read: its brackets do not match: close each bracket"


def test_names_that_no_quotes_can_mend_are_reported_as_names() -> None:
    for word in ["m={'a':1}", "m={a=b: 1}"]:
        assert "a name before a colon has" in check_overrides([word], folders=[])[word].text
