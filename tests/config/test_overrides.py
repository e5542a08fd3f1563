"""Overrides on their way to Hydra: text arrives as the shell gave it."""

import inspect
import random

import pytest

from samout_train.cli.generate import generate
from samout_train.cli.request import Request
from samout_train.config import PLAIN_TEXT_KEYS, compose_config

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
