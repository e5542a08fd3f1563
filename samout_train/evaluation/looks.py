"""Choose the colour and the marker of a model, the same in every chart.

A label begins with the name of its model, such as "v8" or "v8, no decay". The first label of a model has the model's
own look. Its other labels, and labels without a model's name, take free looks.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import NamedTuple


class Look(NamedTuple):
    """Hold the colour and the marker of a model, in matplotlib's names."""

    color: str
    marker: str


# The most compared models have the colours of Okabe and Ito, which readers with colour blindness can tell apart.
LOOKS = {
    "v8": Look("#0072B2", "o"),
    "transformer": Look("#D55E00", "s"),
    "maxplus": Look("#009E73", "D"),
    "mingru": Look("#CC79A7", "^"),
    "gru": Look("#E69F00", "v"),
    "v1": Look("#56B4E9", "P"),
    "lstm": Look("#000000", "*"),
    "rnn": Look("#7F7F7F", "X"),
    "lstm_attention": Look("#8C6D31", "h"),
    "counting": Look("#7CAE3A", "<"),
    "transformer_modern": Look("#8B2E16", ">"),
    "hybrid": Look("#B79F00", "p"),
    "retnet": Look("#5E3C99", "o"),
    "gla": Look("#9E8FD0", "s"),
    "mamba2": Look("#C51B7D", "D"),
    "hgrn2": Look("#17BECF", "^"),
    "mlstm": Look("#4D4D80", "v"),
    "deltanet": Look("#E34A6F", "P"),
    "gated_deltanet": Look("#A50F3C", "*"),
    "rglru": Look("#35605A", "X"),
}


def looks_of(labels: Iterable[str]) -> dict[str, Look]:
    """Return the look of each label. The order of the labels does not matter."""
    ordered = sorted(set(labels))
    found: dict[str, Look] = {}
    for label in sorted(ordered, key=lambda label: label.lower() not in LOOKS):  # a bare name before "v8, no decay"
        look = LOOKS.get(_model_of(label))
        if look is not None and look not in found.values():
            found[label] = look
    rest = [label for label in ordered if label not in found]
    used = set(found.values())
    all_looks = [*_all_looks()]
    free = [look for look in all_looks if look not in used]
    found.update(zip(rest, cycle(free or all_looks), strict=False))
    return found


def _all_looks() -> Iterator[Look]:
    """Yield every colour with its own marker, then every colour with the next marker, and so on."""
    markers = [*dict.fromkeys(look.marker for look in LOOKS.values())]
    for shift in range(len(markers)):
        for color, marker in LOOKS.values():
            yield Look(color, markers[(markers.index(marker) + shift) % len(markers)])


def _model_of(label: str) -> str:
    """Return the first word of a label, without `model=`, in lower case."""
    match = re.match(r"(?:model=)?(\w+)", label)
    if match is None:
        return ""
    return match[1].lower()
