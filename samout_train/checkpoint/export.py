"""Export a run's weights for other programs: as safetensors, or as a file for the published scripts.

An export is a folder with the weights, their configuration and vocabulary, and `export.json`, which has the size and
sha256 of each file. This file is written last and marks the folder as complete.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from samout_train.checkpoint.files import replace_json
from samout_train.checkpoint.load import LoadedRun, WeightsName, data_of, load_run, model_of
from samout_train.checkpoint.state import weights_sha256
from samout_train.config import ConfigError, Problem
from samout_train.data import Characters, Vocabulary, read_published_vocabulary, vocabulary_from
from samout_train.models import choose_once, load_published, num_parameters, published_state, rename_published
from samout_train.runtime import (
    home_path,
    in_words,
    install_line,
    place_problem,
    read_tensor_file,
    replace_file,
    require_regular_file,
    sha256_of,
)

Format = Literal["safetensors", "published"]
WEIGHTS = {"safetensors": "model.safetensors", "published": "model.pth"}
VOCABULARY, PICKLED = "vocabulary.json", "total_voc.pkl"
MANIFEST, CONFIG = "export.json", "config.yaml"
FORMAT = 1
COMPARED_IDS = 64


class ExportError(Exception):
    """An export could not be written completely, although the request is valid."""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Args:
        folder: Its folder.
        run: The exported run.
        files: Size of each file in bytes.
        tensors: Number of tensors in the file of weights; a shared tensor counts once.
        sha256: Digest of the weights, over sorted names, shapes, dtypes and bytes.
    """

    folder: Path
    run: LoadedRun
    files: dict[str, int]
    tensors: int
    sha256: str


def export_run(
    run: str | Path, *, format: Format, weights: WeightsName = "last", out: str | Path | None = None
) -> Exported:
    """Write the weights of a run's last checkpoint, or of a given one, and verify them by reading them back.

    Args:
        run: A run directory, or a checkpoint in one.
        format: `safetensors`, or `published` for V1 and V8.
        weights: `last`, or `ema` for their average, which a run with `trainer.ema` has.
        out: A new or empty folder; None for `export_<format>` in the run directory, or `export_<format>_ema` for `ema`.

    Raises:
        ValueError: if there is no such run, it cannot have this format, or `out` is not empty.
        CheckpointError: if the run's checkpoints are damaged.
        ExportError: if writing failed, or the files read back differ; nothing is left behind then.
    """
    if format == "safetensors":
        safetensors_library()  # if the package is missing, raise before anything is read
    folder = None
    if out is not None:
        folder = _folder(out)
    loaded = load_run(run, weights=weights)
    folder = folder or _default_folder(loaded, format, weights)
    state = loaded.model.state_dict()
    shared: dict[str, str] = {}
    if format == "published":
        tensors = published_state(loaded.model)
    else:
        tensors, shared = once(state)
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    contents: dict[str, Callable[[IO[bytes]], Any]] = {
        WEIGHTS[format]: lambda file: write_weights(file, tensors, shared, format),
        CONFIG: lambda file: file.write((loaded.checkpoint.parent.parent / ".hydra" / "config.yaml").read_bytes()),
        **vocabulary_files(loaded.vocabulary, format),
    }
    was_there = _make_empty_folder(folder)
    try:
        for name, write in contents.items():
            replace_file(folder / name, write)
        _compare(folder, format, loaded)
        files = {name: _measured(folder / name) for name in contents}
        sha256 = weights_sha256(state)
        note: dict[str, Any] = {"export": FORMAT, "format": format, "step": loaded.step, "torch": torch.__version__}
        note |= {"vocab_size": loaded.vocab_size, "pad_id": loaded.pad_id, "weights_sha256": sha256, "files": files}
        note |= {"parameters": num_parameters(loaded.model), "line_ends": loaded.line_ends}
        if weights == "ema":
            note["weights"] = weights
        replace_json(folder / MANIFEST, note)
    except BaseException as error:
        for name in contents:
            with suppress(OSError):  # the first error is the one to report
                (folder / name).unlink(missing_ok=True)
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ExportError(f"{in_words(error, place=folder)}; nothing is left there") from error
        raise
    return Exported(folder, loaded, {name: int(file["bytes"]) for name, file in files.items()}, len(tensors), sha256)


def load_exported(folder: str | Path) -> LoadedRun:
    """Load the model and the vocabulary of an export of either format, without running code from its files.

    Args:
        folder: A folder written by `export_run`.

    Raises:
        ValueError: if it is not an export, or is damaged.
    """
    folder = home_path(folder)
    if reason := export_damage(folder):
        raise ValueError(f"{folder} cannot be used: {reason}")
    note = read_manifest(folder)
    format, vocab_size, pad_id = note["format"], note["vocab_size"], note["pad_id"]
    path = folder / WEIGHTS[format]
    node, model = model_of(folder / CONFIG, path, read_weights(path, format), vocab_size=vocab_size, pad_id=pad_id)
    choose_once(model)
    return LoadedRun(
        path,
        note["step"],
        model,
        read_vocabulary(folder),
        vocab_size,
        pad_id,
        node,
        note.get("line_ends", "keep"),
        data_of(folder / CONFIG),
    )


def load_trained(path: str | Path, *, weights: WeightsName = "last") -> LoadedRun:
    """Load the model of a run, of a checkpoint or of an export.

    Args:
        path: A run directory, a checkpoint in one, or a folder written by `export_run`.
        weights: As for `load_run`; an export has only one of the two.

    Raises:
        ValueError: as in `load_run` and `load_exported`, and if an export has the other weights.
        CheckpointError: if the run's checkpoints are damaged.
    """
    folder = home_path(path)
    if not (folder / MANIFEST).is_file():
        return load_run(path, weights=weights)
    loaded = load_exported(folder)
    if weights == "ema" and read_manifest(folder).get("weights") != "ema":
        fix = "set weights=last, or export the run with weights=ema"
        raise ConfigError(Problem("weights", "ema", text=f"{folder} has no average of the weights", fix=fix))
    return loaded


def export_damage(folder: Path) -> str | None:
    """Return why an export is damaged; None if each file matches `export.json`."""
    try:
        note = read_manifest(folder)
    except ValueError as error:
        return str(error)
    for name, wanted in note["files"].items():
        path = folder / str(name)
        if Path(str(name)).name != name or not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != wanted["bytes"]:
            return f"{name} has {size} bytes, {MANIFEST} says {wanted['bytes']}"
        if _measured(path)["sha256"] != wanted["sha256"]:
            return f"the sha256 of {name} differs from that in {MANIFEST}"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of an export's `export.json`.

    Raises:
        ValueError: if it is missing, damaged or of another version.
    """
    try:
        require_regular_file(folder / MANIFEST)
        note = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted = {"format", "step", "vocab_size", "pad_id", "torch", "weights_sha256", "parameters", "files"}
        if note["export"] != FORMAT or not wanted <= note.keys() or note["format"] not in WEIGHTS:
            raise ValueError("of another version")
        for file in note["files"].values():
            if not {"bytes", "sha256"} <= file.keys():
                raise ValueError("without sizes")
    except OSError as error:
        raise ValueError(f"{MANIFEST} is missing, so the export was not completed") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} is damaged, or of another version of this program") from error
    return dict(note)


def once(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each tensor of a state once, and map each further name of a shared tensor to its first name.

    Raises:
        ValueError: if a value in the state is not a tensor.
    """
    first: dict[object, str] = {}
    tensors, shared = {}, {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} of the model's state is not a tensor, and safetensors holds only tensors")
        place: object = name
        if tensor.numel():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if place in first:
            shared[name] = first[place]
        else:
            first[place], tensors[name] = name, tensor
    return tensors, shared


def write_weights(file: IO[bytes], tensors: dict[str, Tensor], shared: dict[str, str], format: str) -> None:
    """Write the weights into an open file."""
    if format == "published":
        torch.save(tensors, file)
    else:  # the metadata maps shared names as the library's own save_model does
        file.write(safetensors_library().torch.save(tensors, metadata={"format": "pt", **shared}))


def read_weights(path: Path, format: str) -> dict[str, Tensor]:
    """Read the weights of a file, by the names of the model's state_dict, without running code from it.

    Raises:
        ValueError: if it cannot be read.
    """
    if format == "published":
        return rename_published(read_tensor_file(path))
    with safetensors_library().safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
        shared = file.metadata() or {}
    for name, kept in shared.items():
        if kept in tensors:
            tensors[name] = tensors[kept]
    return tensors


def vocabulary_files(vocabulary: Vocabulary | None, format: str) -> dict[str, Callable[[IO[bytes]], Any]]:
    """Return a function that writes each of a vocabulary's files, by file name."""
    if vocabulary is None:
        return {}
    files: dict[str, Callable[[IO[bytes]], Any]] = {
        VOCABULARY: lambda file: file.write(json.dumps(vocabulary.state_dict(), indent=1).encode())
    }
    if format == "published" and isinstance(vocabulary, Characters):
        spelled = {}
        for text, ids in vocabulary.spellings.items():
            spelled[text] = [vocabulary.tokens[index] for index in ids]
        files[PICKLED] = lambda file: pickle.dump({"voc": vocabulary.tokens, "voc0": spelled}, file, protocol=4)
    return files


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the vocabulary of an export; None if its ids are not text."""
    path = folder / VOCABULARY
    if not path.is_file():
        return None
    return vocabulary_from(json.loads(path.read_text(encoding="utf-8")))


def safetensors_library() -> Any:
    """Import the package, which is optional.

    Raises:
        ValueError: if it is not installed; the message has the command.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ValueError(f"format=safetensors: needs the package safetensors: {install_line('export')}") from error
    return safetensors


def _folder(out: str | Path) -> Path:
    if not str(out):
        raise ValueError("out=: is empty: set a new folder")
    if problem := place_problem(home_path(out)):
        raise ValueError(f"out={out}: {problem}")
    return home_path(out)


def _default_folder(loaded: LoadedRun, format: Format, weights: WeightsName) -> Path:
    name = f"export_{format}"
    if weights == "ema":
        name += "_ema"
    return loaded.checkpoint.parent.parent / name


def _make_empty_folder(folder: Path) -> bool:
    """Make the folder, and return whether it existed, empty.

    Raises:
        ValueError: if it is not empty, not a folder, or cannot be made.
    """
    was_there = folder.is_dir()
    if folder.exists() and (not was_there or any(folder.iterdir())):
        raise ValueError(f"out={folder}: exists already, and nothing is overwritten: set another folder as out=...")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={folder}: cannot be made ({error.strerror}): set another folder as out=...") from error
    return was_there


def _compare(folder: Path, format: str, loaded: LoadedRun) -> None:
    """Read the export back, and raise ExportError if it differs from the run."""
    found = []
    path, state = folder / WEIGHTS[format], loaded.model.state_dict()
    if weights_sha256(read_weights(path, format)) != weights_sha256(state):
        found.append(path.name)
    if format == "published":
        ids_BT = torch.arange(min(loaded.vocab_size, COMPARED_IDS))[None]
        published = load_published(path, num_heads=loaded.model_node["num_heads"])
        with torch.no_grad():
            logits = [model(ids_BT)[0].nan_to_num() for model in (published, loaded.model)]
        if not torch.equal(*logits):
            found.append(f"{path.name}, by its logits,")
    read = [read_vocabulary(folder)]
    if (folder / PICKLED).is_file():
        read.append(read_published_vocabulary(folder / PICKLED))
    if loaded.vocabulary is None:
        has_changed = any(read)
    else:
        wanted = loaded.vocabulary.state_dict()
        has_changed = any(vocabulary is None or vocabulary.state_dict() != wanted for vocabulary in read)
    if has_changed:
        found.append("the vocabulary")
    if found:
        raise ExportError(f"{folder}: {' and '.join(found)} read back is not what was written: nothing is left there")


def _measured(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
