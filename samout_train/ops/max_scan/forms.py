"""What is made of the running maximum m, from which streams side by side; the scanned one, d, is the last."""

from typing import Literal

Form = Literal["scan", "v8", "v1"]

STREAMS = {
    "scan": ("d",),  # y = m
    "v8": ("e", "c", "d"),  # y = (e m + c) m
    "v1": ("b", "c", "d"),  # y = (m + c) m + b
}
CODES = {form: code for code, form in enumerate(STREAMS)}


def num_streams(form: str) -> int:
    """How many streams a form is made from."""
    return len(STREAMS[form])
