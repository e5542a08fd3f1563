"""What the files of an export hold: weights by name, and a vocabulary."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from samout_train.data import Characters, Vocabulary, vocabulary_from
from samout_train.models import rename_published
from samout_train.runtime import read_tensor_file

WEIGHTS = {"safetensors": "model.safetensors", "published": "model.pth"}
VOCABULARY, PICKLED = "vocabulary.json", "total_voc.pkl"


def once(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor of a state once, and for the names that share one the name that it is under.

    Raises:
        ValueError: if something in the state is no tensor.
    """
    first: dict[object, str] = {}
    tensors, shared = {}, {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} of the model's state is no tensor, and safetensors holds only those")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if place in first:
            shared[name] = first[place]
        else:
            first[place], tensors[name] = name, tensor
    return tensors, shared


def write_weights(file: IO[bytes], tensors: dict[str, Tensor], shared: dict[str, str], format: str) -> None:
    """Writes the weights into an open file."""
    if format == "published":
        torch.save(tensors, file)
    else:  # which name stands for which is said as the library's own save_model says it
        file.write(safetensors_library().torch.save(tensors, metadata={"format": "pt", **shared}))


def read_weights(path: Path, format: str) -> dict[str, Tensor]:
    """The weights in a file of a format, by the names that they have here; no code in it is run.

    Raises:
        ValueError: if it cannot be read.
    """
    if format == "published":
        return rename_published(read_tensor_file(path))
    with safetensors_library().safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        shared = {name: kept for name, kept in (file.metadata() or {}).items() if kept in tensors}
    return tensors | {name: tensors[kept] for name, kept in shared.items()}


def vocabulary_files(vocabulary: Vocabulary | None, format: str) -> dict[str, Callable[[IO[bytes]], Any]]:
    """What writes each file that a vocabulary is kept in, by name."""
    if vocabulary is None:
        return {}
    files: dict[str, Callable[[IO[bytes]], Any]] = {
        VOCABULARY: lambda file: file.write(json.dumps(vocabulary.state_dict(), indent=1).encode())
    }
    if format == "published" and isinstance(vocabulary, Characters):
        spelled = {text: [vocabulary.tokens[index] for index in ids] for text, ids in vocabulary.spellings.items()}
        files[PICKLED] = lambda file: pickle.dump({"voc": vocabulary.tokens, "voc0": spelled}, file, protocol=4)
    return files


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of an export; None where its ids are no text."""
    path = folder / VOCABULARY
    return vocabulary_from(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def safetensors_library() -> Any:
    """The package, which is optional.

    Raises:
        ValueError: if it is not there, with how to get it.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ValueError(
            "format=safetensors: needs the package safetensors: pip install 'samout_train[export]'"
        ) from error
    return safetensors
