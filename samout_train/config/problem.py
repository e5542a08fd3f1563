"""Describe a mistake in a request as an object: the key, its value, what is wrong, what to do, and where it stands.

Checks return problems, and a `ConfigError` carries them. Code looks at their fields; `str` is for people.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

LONGEST_VALUE = 200
# The kinds that code distinguishes:
#   value     the value itself is wrong, or the key, wherever it was set
#   text      the value is text whose content would be right without quotes, such as '32'
#   missing   a required key is not set
#   unchosen  no option of a group is chosen
#   target    settings lack the _target_ that they build
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
    """A mistake in a request; `str` gives `KEY=VALUE: text: fix (FILE line N)`.

    Args:
        key: With dots, such as `model.hidden_size`, or a flag; empty if the problem is not about one key. Then the
            place stands first: `FILE line N: text: fix`.
        value: As typed; None if the key itself is wrong or missing.
        text: What is wrong.
        fix: What to do about it, in the imperative.
        where: The place in a file; None if the key was typed, or the place is unknown.
        kind: For code that treats problems differently.
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
        """Return the problem of an override as typed, such as `model.hidden_size=3` or `~model`."""
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
    """Return problems; a text, which a check of a user's component may return, becomes one."""
    problems = []
    for one in found:
        if isinstance(one, str):
            one = Problem(text=one)
        problems.append(one)
    return problems


def require_no_problems(problems: Sequence[Problem | str]) -> None:
    """Raise the problems of a check, if there are any.

    Raises:
        ConfigError: with all of them.
    """
    if problems:
        raise ConfigError(*problems)


def shown(value: Any) -> str:
    """Return a value as a person would type it, shortened to LONGEST_VALUE characters."""
    if value is None:
        return "null"
    text = str(value)
    if isinstance(value, bool):
        text = text.lower()
    if len(text) > LONGEST_VALUE:
        text = text[:LONGEST_VALUE] + "..."
    return text


def short_path(path: str | Path) -> str:
    """Return a path, relative to the working directory if it lies below it."""
    path = Path(path)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)
