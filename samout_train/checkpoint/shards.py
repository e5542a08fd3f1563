"""The sharded part of a checkpoint: a folder of tensors in torch's distributed format, written by all processes.

torch reads the folder's `.metadata` with an unrestricted pickle. Here, the manifest of the checkpoint has the digests
of all files, and they are compared before any file is opened. The pickle in `.metadata` may only name the few classes
that it needs. The tensors themselves are read with `weights_only=True`, as torch does.
"""

import logging
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from samout_train.runtime import distributed, sha256_of

METADATA = ".metadata"
# Names that `.metadata` may use, by module.
OF_METADATA = {
    "torch": ("Size", "bool", "float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8"),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata"),
        *("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
}


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write tensors into a new folder, each process its shards. A collective call.

    Args:
        folder: The folder, replaced if it exists.
        tensors: Tensors by name, the same names in all processes.

    Returns:
        The sha256 of each file as read back, by name.

    Raises:
        OSError: in all processes if one of them cannot write.
    """
    if distributed.is_first():
        shutil.rmtree(folder, ignore_errors=True)
        problem = _made(folder)
    else:
        problem = None
    if problem := distributed.from_first(problem):
        raise problem
    try:
        with _quiet():
            save(dict(tensors), storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        causes: list[BaseException] = []
        number = None
        for failure in error.failures.values():
            cause: Any = failure
            if isinstance(failure, tuple):
                cause = failure[0]
            if not isinstance(cause, OSError | RuntimeError):
                raise
            if number is None and isinstance(cause, OSError):
                number = cause.errno
            causes.append(cause)
        raise OSError(number, str(causes[0])) from error
    files = sorted(path.name for path in folder.iterdir())
    mine = files[distributed.rank() :: distributed.count()]
    digests: dict[str, str] = {}
    for part in distributed.gathered({name: sha256_of(folder / name) for name in mine}):
        digests |= part
    return digests


def damaged_shards(folder: Path, digests: Mapping[str, str]) -> str | None:
    """Return why a folder is damaged; None if its files match their digests.

    Args:
        folder: A folder written by `write_shards`.
        digests: The digests that it returned.
    """
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"its shard {folder.name}/{name} is missing"
        if sha256_of(path) != digest:
            return f"its shard {folder.name}/{name} is damaged: its sha256 differs from the manifest's"
    return None


def shapes_of_shards(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder by name, whole and without data, on the device `meta`.

    Raises:
        ValueError: if it holds anything but tensors.
    """
    with _readable():
        entries = _Reader(folder).read_metadata().state_dict_metadata
    shapes = {}
    for name, entry in entries.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"it holds more than tensors ({name})")
        shapes[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return shapes


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, whole or shards of this process, from a folder by name.

    Raises:
        ValueError: if the folder cannot be read or holds other tensors.
    """
    with _readable(), _quiet():
        load(tensors, storage_reader=_Reader(folder), no_dist=True)


def split_shards(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the part of a sharded state for the checkpoint file, and the tensors for the folder by name.

    Args:
        state: A state with `vectors`, from `samout_train.checkpoint.state.saved_weights`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    rest: dict[int, dict[str, Any]] = {}
    for index, parts in state["optimizer"]["state"].items():
        rest[index] = {}
        for name, part in parts.items():
            if isinstance(part, Tensor):
                tensors[f"optimizer.{index}.{name}"] = part
            else:
                rest[index][name] = part
    return state | {"model": {}, "optimizer": state["optimizer"] | {"state": rest}}, tensors


def join_shards(content: dict[str, Any], folder: Path, *, whole: bool) -> None:
    """Put the tensors that `split_shards` took out of a state back into it.

    Args:
        content: The state; gets a key `shards` if the tensors are not read.
        folder: A folder written by `write_shards`.
        whole: Whether to read the tensors; otherwise they are on the device `meta`, without data.

    Raises:
        ValueError: if the folder lacks tensors or cannot be read.
    """
    tensors = shapes_of_shards(folder)
    if whole:
        tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors.items()}
        read_shards(folder, tensors)
    else:
        content["shards"] = str(folder)
    for name in content.pop("vectors"):
        tensors[name] = tensors[name].reshape(())
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            content["model"][rest] = tensor
        else:
            index, _, key = rest.partition(".")
            content["optimizer"]["state"].setdefault(int(index), {})[key] = tensor


class _Reader(FileSystemReader):
    """torch's reader with a restricted unpickler for `.metadata`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the description of the folder's tensors."""
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise ValueError("it is not a description of shards")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    """An unpickler that allows only the classes that describe shards."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class; raise ValueError for any other name."""
        if name not in OF_METADATA.get(module, ()):
            raise ValueError(f"it asks for {module}.{name}: code in a file is never run")
        return super().find_class(module, name)


@contextmanager
def _readable() -> Iterator[None]:
    """Raise the errors of a damaged or hostile folder as ValueError."""
    try:
        yield
    except (CheckpointException, pickle.UnpicklingError, OSError) as error:
        raise ValueError(f"its shards cannot be read ({' '.join(str(error).split())[:200]})") from error
    except (EOFError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"its shards cannot be read ({error!r:.200})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warning that a single process saves or loads, which is intended here."""
    logger = logging.getLogger("torch.distributed")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _made(folder: Path) -> OSError | None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        return error
    return None
