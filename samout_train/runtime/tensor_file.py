"""Files that `torch.save` wrote, read without running what is in them."""

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
SMALLEST = 4  # bytes, of the mark that a file of torch.save begins with
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of files of torch.save before torch 1.6
# What a damaged or hostile file makes torch.load raise beside UnpicklingError and OSError.
UNREADABLE = (EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


class MoreThanTensorsError(ValueError):
    """The file is whole, and holds objects of classes, which would need code to run."""


def read_tensor_file(path: Path | IO[bytes], *, is_verified: bool = False) -> Any:
    """Return the content of a file of tensors, numbers, text, lists and dictionaries, on the CPU.

    Args:
        path: The file, or its content.
        is_verified: Whether a digest of the whole file agreed; else the zip archive's own digests are looked at.

    Raises:
        ValueError: if it holds anything else, or is damaged; the message is the reason, without the path.
        OSError: if it cannot be opened.
    """
    if isinstance(path, Path):
        with path.open("rb"):
            pass  # from here on, an OSError is one of a damaged content
        if not is_verified and (changed := _changed_record(path)) is not None:
            raise ValueError(f"its record {changed} is not what was written: it is damaged, copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch does not write
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
    """Yield what torch.load is given: a path that ends with .safetensors is opened, since it goes by the name."""
    if isinstance(path, Path) and path.suffix == ".safetensors":
        with path.open("rb") as file:
            yield file
    else:
        yield path


def _reason(path: Path | IO[bytes], error: Exception) -> str:
    """Why torch.load could not read a file, by what the file begins with: its own words name no cause."""
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
    """Return the first record of a zip archive whose CRC-32 differs, which torch.load does not check, or None."""
    if not _start(path).startswith(ZIP) or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        records = [each for each in archive.infolist() if each.compress_type == zipfile.ZIP_STORED]
        changed = [each.filename for each in records if not _agrees(archive, each)]
    # torch.serialization.set_crc32_options(False) saves none, and then no record has the right one.
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
    """Return what a file is that is not of torch.save, by its first bytes."""
    if len(start) < SMALLEST:
        return f"it has {len(start)} byte{'s' * (len(start) > 1)}, too few for weights: copy or download it again"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "it is a pickle that torch.save did not write: load it where it was made, and save it with torch.save"
    text = start.decode("utf-8", errors="replace").rstrip("\ufffd")  # of a character that goes on behind them
    if all(each.isprintable() or each.isspace() for each in text):
        kind = "text"
        if text.lstrip().startswith(("{", "[")):
            kind = "JSON or other text"
        return f"it is {kind}, and no file of torch.save: give the file of the weights"
    return "it is no file of torch.save: give the file of the weights, or copy or download it again"


def _is_torch_script(path: Path | IO[bytes]) -> bool:
    """Return whether it is a whole zip archive of torch.jit.save."""
    if not _start(path).startswith(ZIP) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _asked_for(words: str) -> str:
    """Return what a pickle wanted, where torch says it."""
    if named := re.search(r"GLOBAL (\S+) ", words):
        return f" ({named[1]})"
    if operand := re.search(r"Unsupported (operand \d+)", words):
        return f" (unsupported {operand[1]})"
    return ""


class StandIn:
    """Hold what a pickle gives to an object of a class that is not imported, and do nothing else.

    Args:
        arguments: Ignored: what the class, or a function in its place, would be called with.
    """

    held: dict[Any, Any]
    origin = ""  # the full name of the class

    def __new__(cls, *arguments: Any, **named: Any) -> "StandIn":
        """Make one, whatever the arguments."""
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
    """Read a file of torch.save that has objects of classes in it, each of these as a `StandIn`.

    torch's reader of weights knows each name in the file, of class or function, only as a stand-in: nothing that the
    file names is imported or called.

    Args:
        path: The file.

    Returns:
        Its content; None where it cannot be read so, as one of the format before torch 1.6.
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
