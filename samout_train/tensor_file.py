"""Files that `torch.save` wrote, read without running what is in them."""

import pickle
import re
import warnings
from pathlib import Path
from typing import IO, Any

import torch

# What a damaged or hostile file makes torch.load raise beside UnpicklingError and OSError.
UNREADABLE = (EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


class MoreThanTensorsError(ValueError):
    """The file is whole, and holds objects of classes, which would need code to run."""


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
        raise MoreThanTensorsError(
            f"it holds more than tensors, numbers, text and lists{_asked_for(str(error))}: code in a file is never run"
        ) from error
    except (*UNREADABLE, AssertionError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(f"it cannot be read ({reason or type(error).__name__})") from error


def _asked_for(words: str) -> str:
    """What a pickle wanted, where torch says it."""
    named = re.search(r"GLOBAL (\S+) ", words) or re.search(r"(Unsupported operand \d+)", words)
    return f" ({named[1].lower() if named[1].startswith('Unsupported') else named[1]})" if named else ""


class StandIn:
    """Holds what a pickle gives to an object of a class that is not imported; it does nothing else.

    Args:
        arguments: Ignored: what the class, or a function in its place, would be called with.
    """

    held: dict[Any, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> "StandIn":
        """Make one, whatever the arguments."""
        made = super().__new__(cls)
        made.held = {}
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.held = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[key] = value


def read_module_file(path: Path) -> StandIn | dict[Any, Any] | None:
    """Read a file of torch.save that has objects of classes in it, each of these as a `StandIn`.

    torch's reader of weights knows each name in the file, of class or function, only as a stand-in: nothing that the
    file names is imported or called.

    Args:
        path: The file.

    Returns:
        Its content; None where it cannot be read so, as one of the format before torch 1.6.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        known: list[Any] = [(type("StandIn", (StandIn,), {}), name) for name in names]
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *UNREADABLE, AssertionError, OSError):
        return None
    return content if isinstance(content, StandIn | dict) else None
