"""Describe a file of JSON Lines: its size, its skipped content, and the tokens that are learned."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

from samout_train.data.text.conversations import ROLES
from samout_train.data.text.documents import SOS, JsonlReader, Special
from samout_train.data.text.learned import AGENT_ID
from samout_train.data.vocabulary.base import SPECIAL_TOKENS

NUM_SHOWN = 2
LONGEST = 400
BEGIN, END = "[[", "]]"


def rows_of_jsonl(path: Path) -> list[tuple[str, str]]:
    """Return names and values that describe a file of JSON Lines.

    Args:
        path: The file; roles are the defaults of `data=jsonl`.

    Raises:
        ValueError: if a line cannot be read; the message names the place.
    """
    documents = conversations = 0
    left_out: Counter[str] = Counter()
    shown: list[tuple[str, str]] = []
    for piece in JsonlReader.of(ROLES, closes=True).read(path):
        left_out.update(piece.left_out)
        starts = [number for number, part in enumerate(piece.parts) if part == Special(SOS)]
        documents += len(starts)
        for start, end in pairwise([*starts, len(piece.parts)]):
            parts = piece.parts[start:end]
            if not any(isinstance(part, Special) for part in parts[1:]):
                continue
            conversations += 1
            if len(shown) < NUM_SHOWN:
                shown.append((f"conversation {conversations}", marked(parts)))
    rows = [("documents", f"{documents}, {conversations} of them conversations")]
    if left_out:
        rows.append(("left out", "; ".join(f"{what}: {count}" for what, count in left_out.items())))
    if shown:
        rows.append(("data.learn=agent", f"learns what stands between {BEGIN} and {END}"))
    return rows + shown


def marked(parts: list[str | Special]) -> str:
    """Return the text of a document on one line, with marks around the text that `data.learn=agent` learns."""
    agent = Special(SPECIAL_TOKENS[AGENT_ID])
    text, speaks = "", False
    for part in parts:
        piece = part
        if isinstance(part, Special):
            piece = part.token
        piece = shortened(str(piece))
        is_end = speaks and isinstance(part, Special)
        if is_end:
            piece = f"{piece}{END}"
        if isinstance(part, Special):
            speaks = part == agent
        if speaks and isinstance(part, Special):
            piece = f"{piece}{BEGIN}"
        text += piece
    if speaks:
        text += END
    return text


def shortened(text: str) -> str:
    """Return a text on one line, without its middle if it is long."""
    line = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    if len(line) <= LONGEST:
        return line
    half = LONGEST // 2
    return f"{line[:half]} ... {line[-half:]}"
