"""Read multiple-choice questions, each with one right answer, for `evaluate data=choices`."""

import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samout_train.config import Problem, validated
from samout_train.data.source import Source, source_function
from samout_train.data.text.encoding import opened, printable
from samout_train.data.text.tables import table_kind, table_rows
from samout_train.runtime import home_path, sha256_of

QUESTION, CHOICES, ANSWER = ("question", "ctx", "query"), ("choices", "endings"), ("answer", "label", "gold")
COLUMNS = (*QUESTION, *CHOICES, *ANSWER, *"ABCDEFGHIJ")
EVALUATED_ONLY = "questions are evaluated on, not trained on"


@dataclass(frozen=True)
class Question:
    """Hold a question.

    Args:
        text: The text before a choice.
        choices: Two or more texts.
        answer: Index of the right choice.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


@validated
@dataclass(kw_only=True)
class Choices:
    """Read questions with choices, for `evaluate`.

    Each line, or row of a table, has the question (`question`, `ctx` or `query`), its choices (a list `choices` or
    `endings`, or a key for each: `A`, `B`, `C` ...) and the right one (`answer`, `label` or `gold`). The right one is
    given by its text, its letter or its number from 0, tried in this order.

    Args:
        path: A file of JSON Lines, also compressed, or a Parquet or Arrow table.
        separator: Text between the question and a choice.
        documents: Whether `<|sos|>` precedes the question, as it precedes each document in a run on JSON Lines or a
            folder; None to follow the data of the run.
        seed: Accepted as for other data; nothing is drawn.
    """

    path: str
    separator: str
    documents: bool | None
    seed: int

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problem that questions are not for training."""
        fix = "use it as `samout-train evaluate run=RUN data=choices data.path=FILE`"
        return [Problem(name, "choices", text=EVALUATED_ONLY, fix=fix)]

    def source(self) -> Source:
        """Raise ValueError: questions are not for training.

        Raises:
            ValueError: always.
        """
        raise ValueError(EVALUATED_ONLY)

    def questions(self) -> tuple[list[Question], str]:
        """Return all questions, and the sha256 of the file.

        Raises:
            ValueError: if the file does not exist, or one of its lines is not a question.
        """
        path = home_path(self.path)
        if not self.path or not path.is_file():
            raise ValueError(f"data.path={self.path}: is not a file: give JSON Lines or a table")
        found = []
        for place, entry in _entries(path):
            try:
                found.append(question_of(entry))
            except ValueError as error:
                raise ValueError(f"data.path={printable(path)}: {place}: {error}") from error
        if not found:
            raise ValueError(f"data.path={printable(path)}: has no question: give a file that has some")
        return found, sha256_of(path)


choices = source_function(Choices)


def question_of(entry: Any) -> Question:
    """Return the question that an object describes.

    Raises:
        ValueError: if it is not a question.
    """
    if not isinstance(entry, dict):
        raise ValueError('is no object: give {"question": ..., "choices": [...], "answer": ...}')
    text = _first_of(entry, QUESTION)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"has no text as {' or '.join(QUESTION)}")
    listed = _first_of(entry, CHOICES)
    if listed is None:
        listed = []
        for letter in string.ascii_uppercase:
            if entry.get(letter) is None:
                break
            listed.append(entry[letter])
    if not isinstance(listed, list) or len(listed) < 2 or not all(isinstance(one, str) and one for one in listed):
        raise ValueError(f"has no two choices or more, each a text, as a list {' or '.join(CHOICES)} or as A, B ...")
    return Question(text, tuple(listed), _answer(_first_of(entry, ANSWER), listed))


def _answer(given: Any, listed: list[str]) -> int:
    """Return the index of the right choice, given as its text, its letter or its number."""
    number = -1
    if isinstance(given, str):
        if listed.count(given) == 1:
            return listed.index(given)
        word = given.strip()
        if len(word) == 1 and word in string.ascii_uppercase:
            number = string.ascii_uppercase.index(word)
        elif word.isascii() and word.isdigit():
            number = int(word)
    elif isinstance(given, int) and not isinstance(given, bool):
        number = given
    if not 0 <= number < len(listed):
        last = string.ascii_uppercase[min(len(listed), 26) - 1]
        raise ValueError(
            f"answer {given!r} is not one of its {len(listed)} choices: give a text, a letter from A to {last}, "
            f"or a number from 0 to {len(listed) - 1}"
        )
    return number


def _first_of(entry: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each line or row that is not empty, with its place."""
    if table_kind(path):
        for row in table_rows(path, COLUMNS):
            yield f"row {row.end}", row.values
        return
    with opened(path) as file:
        number = 0
        while line := file.readline():
            number += 1
            try:
                text = line.decode().lstrip("\ufeff").strip()
                if text:
                    yield f"line {number}", json.loads(text)
            except ValueError as error:
                raise ValueError(
                    f"data.path={printable(path)}: line {number} is not JSON ({error}): mend it"
                ) from error
