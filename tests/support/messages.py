"""Whole messages, as they were when they were last looked at: one file holds them all."""

import json
import os
import re
from pathlib import Path

from samout_train.config import CONF

MESSAGES = Path(__file__).resolve().parent.parent / "config" / "messages.json"
REWRITES = "SAMOUT_TRAIN_REWRITE_MESSAGES"
BYTES = re.compile(r"\d+(?:[.,]\d+)* (?:[kMGTPE]i?B|bytes)")


def assert_recorded(name: str, message: str) -> None:
    """Compare a message with the one that messages.json has under this name.

    Where messages are meant to change, SAMOUT_TRAIN_REWRITE_MESSAGES=1 makes the tests write the file in place of
    comparing, in one process:

        SAMOUT_TRAIN_REWRITE_MESSAGES=1 python -m pytest -n 0 tests/config

    Numbers of bytes, and the place of conf/ and the lines in it, may differ from machine to machine and are left out.

    Args:
        name: Of the mistake, unique among all tests.
        message: As a person sees it.
    """
    lines = _without_machine(message).splitlines()
    recorded = json.loads(MESSAGES.read_text("utf-8")) if MESSAGES.exists() else {}
    if os.environ.get(REWRITES):
        recorded[name] = lines
        text = json.dumps(dict(sorted(recorded.items())), indent=1, ensure_ascii=False)
        MESSAGES.write_text(text + "\n", "utf-8")
    assert lines == recorded.get(name), f"{name}: if this is meant, set {REWRITES}=1 and run the tests again"


def _without_machine(message: str) -> str:
    message = message.replace(str(CONF), "conf").replace(str(Path.cwd()), "HERE")
    message = re.sub(r"(\bconf/[\w/.-]+) line \d+", r"\1 line N", message)
    return re.sub(r"there are [\d,]{6,}", "there are N", BYTES.sub("N bytes", message))
