"""Report what a path holds, whether it is undamaged, and what it needs, without changing it or running its code.

Python modules that are named in its configurations are not imported either.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samout_train.checkpoint import files as checkpoints
from samout_train.checkpoint.error import CheckpointError
from samout_train.checkpoint.export import CONFIG, MANIFEST, VOCABULARY, WEIGHTS, export_damage, read_manifest
from samout_train.checkpoint.file_names import CHECKPOINT, CORRUPT, step_files, step_of
from samout_train.checkpoint.files import FORMAT, OTHER_FORMAT, damage, has_manifest, read_checkpoint
from samout_train.config import ConfigError, saved_node
from samout_train.data import (
    Characters,
    VocabularyFileError,
    read_published_vocabulary,
    rows_of_jsonl,
    vocabulary_from,
)
from samout_train.models import (
    DamagedError,
    OtherV1Error,
    is_published_v8,
    is_safetensors,
    load_published,
    no_weights,
    read_published,
)
from samout_train.runtime import (
    HEAD_BYTES,
    LEGACY,
    ZIP,
    MoreThanTensorsError,
    home_path,
    program,
    read_tensor_file,
    require_regular_file,
    shell_word,
    shown_path,
    text_setting,
    typed_line,
)

SIZES = ("hidden_size", "num_layers", "num_heads", "ffn_size", "max_seq_len")
SAVED_CONFIG = Path(".hydra", "config.yaml")
WHAT_IS_KNOWN = "give a run directory, a checkpoint, an export, a published .pth, a pickled vocabulary or a .jsonl"


@dataclass
class Found:
    """The findings of an inspection.

    Args:
        what: A short description.
        known: Whether this program or a published script writes such files.
        damaged: Whether a part of it is damaged.
        rows: Names and values to show.
    """

    what: str
    known: bool = True
    damaged: bool = False
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, value: str, *, damaged: bool = False) -> None:
        """Add a row; `damaged` marks a row about damage."""
        self.rows.append((name, value))
        self.damaged = self.damaged or damaged


def inspect_path(path: str | Path) -> Found:
    """Return what a path holds.

    Raises:
        OSError: if it cannot be read.
    """
    if not str(path):
        return _unknown(f"path=: is empty: {WHAT_IS_KNOWN}")
    path = home_path(path)
    if not path.exists():
        return _unknown(f"{path} is not there: {WHAT_IS_KNOWN}")
    try:
        require_regular_file(path)
    except ValueError as error:
        return _unknown(f"{path} {error}")
    if path.is_dir():
        if path.name == "checkpoints" and not (path / "checkpoints").exists():
            path = path.parent
        return _folder(path)
    if step_of(path.name.removesuffix(CORRUPT)) is not None or (path.suffix == ".pt" and has_manifest(path)):
        return _checkpoint(path)
    if path.name in (MANIFEST, CONFIG, VOCABULARY, WEIGHTS["safetensors"]) and (path.parent / MANIFEST).is_file():
        return _export(path.parent)
    return _file(path)


def _folder(path: Path) -> Found:
    if any((path / name).exists() for name in ("checkpoints", "metrics.jsonl", SAVED_CONFIG)):
        return _run(path)
    if any((path / name).is_file() for name in (MANIFEST, *WEIGHTS.values())):
        return _export(path)
    runs = sorted(child.name for child in path.iterdir() if (child / "checkpoints").is_dir())
    if runs:
        return _unknown(f"{path} holds {len(runs)} run directories, such as {runs[0]}: give one of them")
    return _unknown(f"{path} is nothing of this program: {WHAT_IS_KNOWN}")


def _run(path: Path) -> Found:
    found, folder = Found("a run directory"), path / "checkpoints"
    newest, has_any = None, False
    for file in step_files(folder):
        reason, has_any = damage(file), True
        if reason is None:
            newest = file
        found.add("checkpoint", f"{file.name}: {reason or 'whole'}", damaged=bool(reason))
    for file in step_files(folder, CHECKPOINT + CORRUPT):
        has_any = True
        found.add("set aside", file.name)
    if newest is not None:
        found.add("resume=auto", f"takes {newest.name}")
    elif has_any:
        found.add("resume=auto", "would stop: no checkpoint is whole", damaged=True)
    else:
        found.add("resume=auto", "starts at step 0: there is no checkpoint yet")
    is_finished = "no: there is no summary.json"
    if (path / "summary.json").is_file():
        is_finished = "yes"
    found.add("finished", is_finished)
    _needs(found, newest, path, f"{shell_word(text_setting('run_dir', path))} resume=auto")
    found.damaged = found.damaged or not (path / SAVED_CONFIG).is_file()  # a row reports it
    return found


def _checkpoint(path: Path) -> Found:
    found, reason = Found("a checkpoint"), damage(path)
    if path.name.endswith(CORRUPT):
        found.add("set aside", "yes: resume=auto found it damaged", damaged=True)
    _add_whole(found, reason, "it agrees with its manifest")
    if reason is None:
        _needs(found, path, path.parent.parent, f"{shell_word(text_setting('resume', path))} and a run_dir of its own")
    return found


def _add_whole(found: Found, reason: str | None, agrees: str) -> None:
    whole = f"yes, {agrees}"
    if reason:
        whole = f"no: {reason}"
    found.add("whole", whole, damaged=bool(reason))


def _needs(found: Found, checkpoint: Path | None, run_dir: Path, resume: str) -> None:
    """Add rows for what a checkpoint holds and what resuming from it needs."""
    content = {}
    if checkpoint is not None:
        try:
            content = read_checkpoint(checkpoint)
        except CheckpointError as error:
            found.add("content", f"cannot be used: {error.reasons[checkpoint]}", damaged=True)
            return
        except ValueError:
            found.add("content", OTHER_FORMAT, damaged=True)
            return
    model = _node(found, run_dir / SAVED_CONFIG, "model")
    data = _node(found, run_dir / SAVED_CONFIG, "data")
    found.add("model", _model(model, content.get("model")))
    found.add("data", _data(data))
    if checkpoint is None:
        return
    prompt = _add_vocabulary(found, content.get("vocabulary"), content.get("vocab_size"))
    begun = content.get("init_from")
    if isinstance(begun, dict) and begun:
        found.add("begun with", f"the weights of {begun.get('path')} (sha256 {str(begun.get('sha256'))[:16]}...)")
    written = f"{FORMAT}, by torch {checkpoints.read_manifest(checkpoint).get('torch')} (here {torch.__version__})"
    found.add("format", f"{written}, step {content.get('step')}")
    if model and data:
        found.add("to continue", f"the same command and data, with {resume}")
        if prompt is None:
            found.add("to generate", "not possible: its ids are not text")
        else:
            run = text_setting("run", shown_path(checkpoint))
            found.add("to generate", typed_line([*program(), "generate", run, f"prompt={prompt}"]))


def _node(found: Found, config: Path, name: str) -> dict[str, Any]:
    """Return a node of a saved configuration; a problem with it becomes a row."""
    try:
        return saved_node(config, name)
    except ConfigError as error:
        found.add("configuration", str(error), damaged=config.is_file())
        return {}


def _model(node: dict[str, Any], weights: Any) -> str:
    mixer, parts = node.get("mixer"), []
    if isinstance(mixer, dict):
        parts.append(f"{_short(node)} of {_short(mixer)}")
    elif node:
        parts.append(_short(node))
    parts += [f"{key} {node[key]}" for key in SIZES if node.get(key) is not None]
    if isinstance(weights, dict):
        parts.append(f"{_count(weights):,} parameters")
    return ", ".join(parts) or "not known"


def _data(node: dict[str, Any]) -> str:
    if not node:
        return "not known"
    described = _short(node)
    paths = node.get("path") or node.get("paths") or []
    if isinstance(paths, str):
        paths = [paths]
    for path in paths:
        described += f", {path}"
        if not home_path(path).exists():
            described += " (not found from this folder)"
    return described


def _add_vocabulary(found: Found, state: Any, vocab_size: Any) -> str | None:
    """Add the vocabulary's row; return a prompt that it can encode, or None if ids are not text."""
    if state is None:
        found.add("vocabulary", f"none: {vocab_size} ids that are not text")
        return None
    try:
        vocabulary = vocabulary_from(state)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found.add("vocabulary", f"cannot be used ({error!r:.100})", damaged=True)
        return None
    found.add("vocabulary", f"{vocabulary.name}, {len(vocabulary)} ids")
    if vocabulary.name != Characters.name:
        return "a"
    for token in state["tokens"]:
        if len(token) == 1 and token.isalnum():
            return str(token)
    return "PROMPT"


def _export(path: Path) -> Found:
    found, reason = Found("an export"), export_damage(path)
    _add_whole(found, reason, f"each file agrees with {MANIFEST}")
    if reason:
        return found
    note = read_manifest(path)
    found.add("files", ", ".join(note["files"]))
    found.add("model", f"{_model(_node(found, path / CONFIG, 'model'), None)}, {note['parameters']} parameters")
    state = None
    if VOCABULARY in note["files"]:
        state = json.loads((path / VOCABULARY).read_text(encoding="utf-8"))
    _add_vocabulary(found, state, note["vocab_size"])
    found.add("format", f"{note['format']}, by torch {note['torch']} (here {torch.__version__}), step {note['step']}")
    return found


def _file(path: Path) -> Found:
    """Inspect a file whose name does not show its kind, or JSON Lines."""
    if ".jsonl" in path.suffixes:
        try:
            return Found("JSON Lines", rows=rows_of_jsonl(path))
        except ValueError as error:
            return Found("JSON Lines", damaged=True, rows=[("whole", f"no: {error}")])
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    try:
        return _vocabulary(path)
    except VocabularyFileError as error:
        reason = error.reason
    if is_safetensors(start):
        content = None
    elif problem := no_weights(start, path):
        return _unknown(f"{path} holds nothing of this program: {problem}")
    else:
        try:
            content = read_tensor_file(path)
        except ValueError as error:
            content = None
            if not start.startswith((ZIP, LEGACY)):
                return _unknown(f"{path} is nothing of this program ({reason}): {WHAT_IS_KNOWN}")
            if not isinstance(error, MoreThanTensorsError):
                return Found("a file of torch.save, or another zip", damaged=True, rows=[("whole", f"no: {error}")])
    if isinstance(content, dict) and content.get("format") == FORMAT:
        manifest = ("whole", "unknown: its manifest, step_*.json, is not beside it")
        return Found("a checkpoint under another name", damaged=True, rows=[manifest])
    try:
        return _published(path, read_published(path))
    except DamagedError as error:
        return Found("a safetensors file", damaged=True, rows=[("whole", f"no: {error}")])
    except ValueError as error:
        return _unknown(f"{path} holds nothing of this program: {error}")


def _vocabulary(path: Path) -> Found:
    vocabulary = read_published_vocabulary(path)
    size = f"{vocabulary.name}, {len(vocabulary)} ids, {len(vocabulary.spellings)} more spelled"
    rows = [("whole", "yes"), ("vocabulary", size), ("to use", shell_word(f"data.vocabulary_path={path}"))]
    return Found("a pickled vocabulary of the published scripts", rows=rows)


def _published(path: Path, weights: dict[str, Tensor]) -> Found:
    try:
        is_v8 = is_published_v8(weights)
    except OtherV1Error as error:
        rows = [("whole", "unknown: this program cannot compute it"), ("to use", str(error))]
        return Found("weights of the V1 of the public repository", rows=rows)
    except ValueError as error:
        return _unknown(f"{path} holds tensors that are nothing of this program: {error}")
    version, heads = "V1", ", num_heads=... (not in the file, and V1 scales by it)"
    if is_v8:
        version, heads = "V8", ""
    found = Found(f"weights of the published SamOut {version}")
    try:
        model = load_published(weights, num_heads=1)
    except ValueError as error:
        found.add("whole", f"no: {' '.join(str(error).split())[:200]}", damaged=True)
        return found
    found.add("whole", "yes, names and shapes are complete")
    sizes = {"hidden_size": model.embedding.embedding_dim, "num_layers": len(model.layers)}
    found.add("model", f"{_model({'_target_': '.SamOut', **sizes}, weights)}, {model.embedding.num_embeddings} ids")
    found.add("to use", f"load_published({str(path)!r}{heads}), and the vocabulary that belongs to it")
    return found


def _count(weights: dict[str, Any]) -> int:
    """Return the number of elements; a shared tensor counts once."""
    counts = {}
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor):
            counts[tensor.data_ptr() or name, tensor.shape] = tensor.numel()
    return sum(counts.values())


def _short(node: dict[str, Any]) -> str:
    """Return the last part of the `_target_`, such as `SamOut`."""
    return str(node.get("_target_")).rpartition(".")[2]


def _unknown(words: str) -> Found:
    return Found(words, known=False)
