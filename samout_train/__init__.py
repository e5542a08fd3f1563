"""samout_train: train causal language models without attention, and compare them fairly with models that have it.

Nothing is imported until it is asked for; torch in particular.
"""

import os
import sys

# ruff: noqa: E402, PTH100, PTH109, PTH119, PTH120


def working_directory_last() -> None:
    """Let modules of the working directory be imported, such as a `_target_` of one's own, but those of Python first.

    Only `os` and `sys` are imported before, which the interpreter has loaded before it looks into any folder.

    `python -m` and an empty entry of PYTHONPATH put it first. PYTHONSAFEPATH and `python -P` keep it out.
    """
    try:
        here = os.path.normcase(os.getcwd())
    except OSError:  # it is gone
        return
    package = os.path.normcase(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    kept = [entry for entry in sys.path if os.path.normcase(os.path.abspath(entry)) != here]
    if len(kept) == len(sys.path) and sys.flags.safe_path:
        return
    # In a checkout, this very package lies there, and one that is installed must not take its place.
    installed = (index for index, entry in enumerate(kept) if entry.endswith("-packages"))
    kept.insert(next(installed, len(kept)) if here == package else len(kept), os.getcwd())
    sys.path[:] = kept


# The program: `python -m samout_train` imports this before it replaces the first argument.
if sys.argv and (sys.argv[0] == "-m" or os.path.basename(sys.argv[0]).startswith("samout-train")):
    working_directory_last()

import lazy_loader

from samout_train.config import take_earlier_names

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

take_earlier_names()
