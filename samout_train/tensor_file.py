"""Files that `torch.save` wrote, read without running what is in them."""

import pickle
import re
import warnings
from pathlib import Path
from typing import IO, Any

import torch

# What a damaged or hostile file makes torch.load raise beside UnpicklingError and OSError.
UNREADABLE = (EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


def read_tensor_file(path: Path | IO[bytes]) -> Any:
    """The content of a file of tensors, numbers, text, lists and dictionaries, on the CPU.

    Args:
        path: The file, or its content.

    Raises:
        ValueError: if it holds anything else, or is damaged; the message is the reason, without the path.
        OSError: if it cannot be opened.
    """
    if isinstance(path, Path):
        with path.open("rb"):
            pass  # from here on, an OSError is one of a damaged content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch does not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"it holds more than tensors, numbers, text and lists{_asked_for(str(error))}: code in a file is never run"
        ) from error
    except (*UNREADABLE, AssertionError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(f"it cannot be read ({reason or type(error).__name__})") from error


def _asked_for(words: str) -> str:
    """What a pickle wanted, where torch says it."""
    named = re.search(r"GLOBAL (\S+) ", words) or re.search(r"(Unsupported operand \d+)", words)
    return f" ({named[1].lower() if named[1].startswith('Unsupported') else named[1]})" if named else ""
