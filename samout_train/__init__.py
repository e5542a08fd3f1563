"""samout_train: train causal language models without attention, and compare them fairly with models that have it.

Nothing is imported until it is asked for; torch in particular.
"""

import os
import sys

from samout_train.runtime.search_path import working_directory_last

# The program: `python -m samout_train` imports this before it replaces the first argument.
if sys.argv and (sys.argv[0] == "-m" or os.path.basename(sys.argv[0]).startswith("samout-train")):  # noqa: PTH119
    working_directory_last()

import importlib
from typing import TYPE_CHECKING, Any

from samout_train.config.moved import take_earlier_names

take_earlier_names()

if TYPE_CHECKING:
    from samout_train.checkpoint.export import load_exported
    from samout_train.checkpoint.load import load_run, load_vocabulary
    from samout_train.config.ranges import NonNegative, Positive, Probability, Range, validated
    from samout_train.data.batches import MatrixRows, Rows, Source
    from samout_train.data.tasks.base import task
    from samout_train.evaluation.generate import generate_text
    from samout_train.models.published import load_published
    from samout_train.training.callbacks.base import Callback, RunContext, StepReport
    from samout_train.training.run import build_model, build_trainer, train

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "MatrixRows",
    "NonNegative",
    "Positive",
    "Probability",
    "Range",
    "Rows",
    "RunContext",
    "Source",
    "StepReport",
    "build_model",
    "build_trainer",
    "generate_text",
    "load_exported",
    "load_published",
    "load_run",
    "load_vocabulary",
    "task",
    "train",
    "validated",
]

_HOME = {
    "Callback": "samout_train.training.callbacks.base",
    "RunContext": "samout_train.training.callbacks.base",
    "StepReport": "samout_train.training.callbacks.base",
    "MatrixRows": "samout_train.data.batches",
    "Rows": "samout_train.data.batches",
    "Source": "samout_train.data.batches",
    "task": "samout_train.data.tasks.base",
    "NonNegative": "samout_train.config.ranges",
    "Positive": "samout_train.config.ranges",
    "Probability": "samout_train.config.ranges",
    "Range": "samout_train.config.ranges",
    "validated": "samout_train.config.ranges",
    "build_model": "samout_train.training.run",
    "build_trainer": "samout_train.training.run",
    "train": "samout_train.training.run",
    "generate_text": "samout_train.evaluation.generate",
    "load_exported": "samout_train.checkpoint.export",
    "load_published": "samout_train.models.published",
    "load_run": "samout_train.checkpoint.load",
    "load_vocabulary": "samout_train.checkpoint.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
