"""samout_train: train causal language models without attention, and compare them fairly with models that have it.

Nothing is imported before its first use, torch in particular.
"""

import os
import sys

# ruff: noqa: E402, PTH100, PTH109, PTH119, PTH120


def working_directory_last() -> None:
    """Move the working directory behind Python's own modules in `sys.path`, so that it can hold a user's `_target_`.

    Until then, only `os` and `sys` are imported: the interpreter loads both before it searches any folder.

    `python -m` and an empty entry of PYTHONPATH put the directory first. PYTHONSAFEPATH and `python -P` keep it out.
    """
    try:
        here = os.path.normcase(os.getcwd())
    except OSError:  # the directory no longer exists
        return
    package = os.path.normcase(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    kept = [entry for entry in sys.path if os.path.normcase(os.path.abspath(entry)) != here]
    if len(kept) == len(sys.path) and sys.flags.safe_path:
        return
    # In a checkout, the directory holds this package, and an installed copy must not be imported in its place.
    installed = (index for index, entry in enumerate(kept) if entry.endswith("-packages"))
    kept.insert(next(installed, len(kept)) if here == package else len(kept), os.getcwd())
    sys.path[:] = kept


# Only for the program. `python -m samout_train` imports this module while the first argument is still `-m`.
if sys.argv and (sys.argv[0] == "-m" or os.path.basename(sys.argv[0]).startswith("samout-train")):
    working_directory_last()

import lazy_loader

from samout_train.config import take_earlier_names

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

take_earlier_names()
