"""samout_train: train causal language models without attention, and compare them fairly with models that have it.

Nothing is imported until it is asked for; torch in particular.
"""

import os
import sys

from samout_train.search_path import working_directory_last

# The program: `python -m samout_train` imports this before it replaces the first argument.
if sys.argv and (sys.argv[0] == "-m" or os.path.basename(sys.argv[0]).startswith("samout-train")):  # noqa: PTH119
    working_directory_last()

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samout_train.exporting import load_exported
    from samout_train.generation import generate_text
    from samout_train.loading import load_run, load_vocabulary
    from samout_train.models.published import load_published
    from samout_train.run import build_model, build_trainer, train

__version__ = "0.1.0"
__all__ = [
    "build_model",
    "build_trainer",
    "generate_text",
    "load_exported",
    "load_published",
    "load_run",
    "load_vocabulary",
    "train",
]

_HOME = {
    "build_model": "samout_train.run",
    "build_trainer": "samout_train.run",
    "train": "samout_train.run",
    "generate_text": "samout_train.generation",
    "load_exported": "samout_train.exporting",
    "load_published": "samout_train.models.published",
    "load_run": "samout_train.loading",
    "load_vocabulary": "samout_train.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
