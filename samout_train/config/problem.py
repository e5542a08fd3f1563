"""A mistake in what was asked for, as an object: which key, its value, what is wrong, what to do, and where it stands.

Checks return problems, and a `ConfigError` carries them. Code looks at their fields; `str` is for people.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

LONGEST_VALUE = 200
# Which problem it is, where code has to know that:
#   value     the value itself is wrong, or the key, wherever it was set
#   text      the value is text that says something right, such as '32'
#   missing   a key that has to be set is not
#   unchosen  a group has no option
#   target    settings do not name what they build
#   option    a group lacks the option that was chosen
#   other     the value is wrong because of something else: another key, a file, the machine
Kind = Literal["value", "text", "missing", "unchosen", "target", "option", "other"]


@dataclass(frozen=True)
class Place:
    """A place in a file; `line` and `column` count from 1."""

    path: Path
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        text = short_path(self.path)
        if self.line is not None:
            text += f" line {self.line}"
        if self.column is not None:
            text += f", column {self.column}"
        return text


@dataclass(frozen=True)
class Problem:
    """A mistake in what was asked for; `str` gives `KEY=VALUE: text: fix (FILE line N)`.

    Args:
        key: With dots, such as `model.hidden_size`, or a flag; empty for what is not about one key. Then the place
            stands in front: `FILE line N: text: fix`.
        value: As a person types it; None where the key is wrong, or missing.
        text: What is wrong.
        fix: What to do about it, in the imperative.
        where: The file that says so; None for what was typed, or where it is not known.
        kind: Which problem it is, for code that has to know.
    """

    key: str = ""
    value: str | None = None
    _: KW_ONLY
    text: str
    fix: str = ""
    where: Place | None = None
    kind: Kind = "other"

    @classmethod
    def of_word(cls, word: str, *, text: str, fix: str = "", kind: Kind = "other") -> "Problem":
        """Return the problem of a word as it was typed, such as `model.hidden_size=3` or `~model`."""
        key, equals, value = word.partition("=")
        if equals:
            return cls(key, value, text=text, fix=fix, kind=kind)
        return cls(key, text=text, fix=fix, kind=kind)

    def __str__(self) -> str:
        head = self.key
        if self.key and self.value is not None:
            head = f"{self.key}={self.value}"
        if not self.key and self.where is not None:
            head = str(self.where)
        message = self.text
        if head:
            message = f"{head}: {message}"
        if self.fix:
            message += f": {self.fix}"
        if self.key and self.where is not None:
            message += f" ({self.where})"
        return message


class ConfigError(ValueError):
    """The request is wrong; `problems` has every mistake, and the message lists them.

    Args:
        problems: Each a `Problem`, or a whole message.
    """

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        self.problems = as_problems(problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def as_problems(found: Sequence[Problem | str]) -> list[Problem]:
    """Return problems, also of texts, which a check of a user's own part may return."""
    problems = []
    for one in found:
        if isinstance(one, str):
            one = Problem(text=one)
        problems.append(one)
    return problems


def require_no_problems(problems: Sequence[Problem | str]) -> None:
    """Raise what a check found.

    Raises:
        ConfigError: with these problems, if there is one.
    """
    if problems:
        raise ConfigError(*problems)


def shown(value: Any) -> str:
    """Return a value as a person would type it, not at any length."""
    if value is None:
        return "null"
    text = str(value)
    if isinstance(value, bool):
        text = text.lower()
    if len(text) > LONGEST_VALUE:
        text = text[:LONGEST_VALUE] + "..."
    return text


def short_path(path: str | Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    path = Path(path)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)
