"""One row of the table of reliability: what happens to a run, made to happen, and what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Weights and two moments of 58 KB, and of 21 MB.
SMALL = ("model=v8", "data=random", "device=cpu", "model.hidden_size=24", "model.num_heads=4", "model.num_layers=1")
LARGE = ("model=v8", "data=random", "device=cpu", "model.hidden_size=256", "model.num_heads=4", "model.num_layers=4")


@dataclass(frozen=True)
class Case:
    """How often something is made to happen, and to what.

    Args:
        count: How often.
        seed: Of whatever is random in it.
        folder: An empty one, for everything that is written.
        run: Overrides that make a run of the size wanted.
    """

    count: int
    seed: int
    folder: Path
    run: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        number: As the table counts.
        what: What happens.
        few: How often in every run of the tests.
        many: How often for the table.
        happen: Makes it happen; raises AssertionError where the program does not what it must, and else says what was
            measured, in a few words.
    """

    number: int
    what: str
    few: int
    many: int
    happen: Callable[[Case], str]
