"""Read files of `torch.save` without running code from them."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from samout_train.runtime.memory import is_out_of_memory

HEAD_BYTES = 64
SMALLEST = 4  # bytes: length of the mark at the start of a file of torch.save
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of files of torch.save before torch 1.6
# Raised by torch.load for damaged or hostile files, in addition to UnpicklingError and OSError.
UNREADABLE = (EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


class MoreThanTensorsError(ValueError):
    """The file is intact, but holds objects whose classes would run code."""


def read_tensor_file(path: Path | IO[bytes], *, is_verified: bool = False) -> Any:
    """Return the content of a file of tensors, numbers, text, lists and dictionaries, on the CPU.

    Args:
        path: The file, or its content.
        is_verified: Whether a digest of the whole file was verified; else the digests in the zip archive are checked.

    Raises:
        ValueError: if it holds anything else, or is damaged; the message lacks the path.
        OSError: if it cannot be opened.
    """
    if isinstance(path, Path):
        with path.open("rb"):
            pass  # from here on, an OSError means damaged content
        if not is_verified and (changed := _changed_record(path)) is not None:
            raise ValueError(f"its record {changed} is not what was written: it is damaged, copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles not written by torch
            with _given(path) as given:
                return torch.load(given, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _start(path).startswith((ZIP, LEGACY)):
            raise ValueError(_reason(path, error)) from error
        raise MoreThanTensorsError(
            f"it holds more than tensors, numbers, text and lists{_asked_for(str(error))}: code in a file is never run"
        ) from error
    except (*UNREADABLE, AssertionError, OSError) as error:
        if _is_torch_script(path):
            raise MoreThanTensorsError(
                "it is TorchScript, whose code is never run: load it with net = torch.jit.load(path)"
            ) from error
        raise ValueError(_reason(path, error)) from error


@contextmanager
def _given(path: Path | IO[bytes]) -> Iterator[Path | IO[bytes]]:
    """Yield the argument of torch.load. It judges a path by its ending, so a .safetensors file is opened here."""
    if isinstance(path, Path) and path.suffix == ".safetensors":
        with path.open("rb") as file:
            yield file
    else:
        yield path


def _reason(path: Path | IO[bytes], error: Exception) -> str:
    """Return why torch.load could not read a file, by its first bytes, since torch's messages name no cause."""
    if is_out_of_memory(error):
        return "it asks for more memory than there is: it is damaged, or made to do so"
    start = _start(path)
    if not start:
        return "it is empty: copy or download it again"
    if not start.startswith((ZIP, LEGACY)):
        return _other_content(start)
    if start.startswith(ZIP) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            return f"it is a zip archive and no file of torch.save ({', '.join(names)[:100]}): unpack it"
    return "it is cut short or damaged: copy or download it again"


def _changed_record(path: Path) -> str | None:
    """Return the first record of a zip archive with a wrong CRC-32, which torch.load does not check, or None."""
    if not _start(path).startswith(ZIP) or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        records = [each for each in archive.infolist() if each.compress_type == zipfile.ZIP_STORED]
        changed = [each.filename for each in records if not _agrees(archive, each)]
    # With torch.serialization.set_crc32_options(False), no record has a correct CRC-32.
    if not changed or len(changed) == len(records):
        return None
    return changed[0]


def _agrees(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as file:
            while file.read(1 << 20):
                pass
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError):
        return False
    return True


def _start(path: Path | IO[bytes]) -> bytes:
    """Return the first bytes of a file."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    path.seek(0)
    start = path.read(HEAD_BYTES)
    path.seek(0)
    return start


def _other_content(start: bytes) -> str:
    """Return why a file was not written by torch.save, judged by its first bytes."""
    if len(start) < SMALLEST:
        return f"it has {len(start)} byte{'s' * (len(start) > 1)}, too few for weights: copy or download it again"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "it is a pickle that torch.save did not write: load it where it was made, and save it with torch.save"
    text = start.decode("utf-8", errors="replace").rstrip("\ufffd")  # left by a character that was cut
    if all(each.isprintable() or each.isspace() for each in text):
        kind = "text"
        if text.lstrip().startswith(("{", "[")):
            kind = "JSON or other text"
        return f"it is {kind}, and no file of torch.save: give the file of the weights"
    return "it is not a file of torch.save: give the file of the weights, or copy or download it again"


def _is_torch_script(path: Path | IO[bytes]) -> bool:
    """Return whether a file is an intact zip archive of torch.jit.save."""
    if not _start(path).startswith(ZIP) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _asked_for(words: str) -> str:
    """Return the name that a pickle asked for, if torch reports it."""
    if named := re.search(r"GLOBAL (\S+) ", words):
        return f" ({named[1]})"
    if operand := re.search(r"Unsupported (operand \d+)", words):
        return f" (unsupported {operand[1]})"
    return ""


class StandIn:
    """Holds the state that a pickle gives to an object whose class is not imported.

    Args:
        arguments: Ignored: the arguments of the class, or of a function in its place.
    """

    held: dict[Any, Any]
    origin = ""  # the full name of the class

    def __new__(cls, *arguments: Any, **named: Any) -> "StandIn":
        """Create a stand-in, whatever the arguments."""
        made = super().__new__(cls)
        made.held = {}
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.held = {}
        if isinstance(state, dict):
            self.held = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[key] = value


def read_module_file(path: Path) -> StandIn | dict[Any, Any] | list[Any] | tuple[Any, ...] | None:
    """Read a file of torch.save that holds objects of classes, each as a `StandIn`.

    torch's weights-only unpickler gets a stand-in for each class or function that the file names, so none of them is
    imported or called.

    Args:
        path: The file.

    Returns:
        Its content; None if it cannot be read this way, such as files from before torch 1.6.
    """
    try:
        with _given(path) as given:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(given)
        known: list[Any] = [(type(name.rpartition(".")[2], (StandIn,), {"origin": name}), name) for name in names]
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")
            with _given(path) as given:
                content = torch.load(given, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *UNREADABLE, AssertionError, OSError):
        return None
    if not isinstance(content, StandIn | dict | list | tuple):
        return None
    return content
