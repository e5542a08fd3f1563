"""The smallest labelling task: the input is "hello", the labels are "ohlol", one per position.

Source: the published hello programs: letters e h l o as 0 1 2 3, inputs 1 0 2 2 3, labels 3 1 2 3 2.
"""

from collections.abc import Mapping
from typing import Any

import torch

from samout_train.config import Problem, checked_by, require_no_problems
from samout_train.data.source import LabelledRows, Source

LETTERS = ("e", "h", "l", "o")
INPUTS = (1, 0, 2, 2, 3)
LABELS = (3, 1, 2, 3, 2)


def hello_problems(settings: Mapping[str, Any], name: str) -> list[Problem]:
    """Return the problem of an ignore_index that is a letter."""
    ignored = settings["ignore_index"]
    if not 0 <= ignored < len(LETTERS):
        return []
    text = f"is the letter {LETTERS[ignored]}, which would not be learned"
    return [Problem(f"{name}.ignore_index", str(ignored), text=text, fix="set it to -100")]


@checked_by(hello_problems)
def hello(*, ignore_index: int, seed: int) -> Source:
    """Return a source with one row for both training and validation.

    Args:
        ignore_index: Labels of this value are not counted; 0 to 3 are letters.
        seed: The run's seed; has no effect, since nothing is random.

    Raises:
        ValueError: if a letter is ignored.
    """
    require_no_problems(hello_problems({"ignore_index": ignore_index}, "data"))
    rows = LabelledRows(torch.tensor([INPUTS]), torch.tensor([LABELS]))
    return Source(
        vocab_size=len(LETTERS),
        pad_id=None,
        ignore_index=ignore_index,
        train=rows,
        validation=rows,
        vocabulary=None,
        floor_nats=None,
        description={"inputs": "hello", "labels": "ohlol"},
        labels=LETTERS,
    )


hello.labelling = True  # type: ignore[attr-defined]  # checked before anything is built
