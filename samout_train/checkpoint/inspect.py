"""What lies at a path, whether it is whole, and what it needs; looks only: nothing is renamed, and no code is run.

The Python that configurations name is not even imported.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samout_train.checkpoint import files as checkpoints
from samout_train.checkpoint.export import CONFIG, MANIFEST, VOCABULARY, WEIGHTS, export_damage, read_manifest
from samout_train.checkpoint.files import CORRUPT, FORMAT, CheckpointError, damage, read_checkpoint
from samout_train.config import ConfigError, saved_node
from samout_train.data import Characters, read_published_vocabulary, vocabulary_from
from samout_train.models import (
    DamagedError,
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
    refuse_special,
    shell_word,
    shown_path,
    text_setting,
    typed_line,
)

SIZES = ("hidden_size", "num_layers", "num_heads", "ffn_size", "max_seq_len")
CHECKPOINT = re.compile(rf"step_\d{{8}}\.pt({re.escape(CORRUPT)})?")
SAVED_CONFIG = Path(".hydra", "config.yaml")
WHAT_IS_KNOWN = "give a run directory, a checkpoint, an export, a published .pth or a pickled vocabulary"


@dataclass
class Found:
    """What was found.

    Args:
        what: In a few words.
        known: Whether this program, or a published script, writes such things.
        damaged: Whether something in it is not whole.
        rows: Names and values to show.
    """

    what: str
    known: bool = True
    damaged: bool = False
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, value: str, *, damaged: bool = False) -> None:
        """Adds a row; `damaged` says that it tells of damage."""
        self.rows.append((name, value))
        self.damaged = self.damaged or damaged


def inspect_path(path: str | Path) -> Found:
    """Says what lies at a path.

    Raises:
        OSError: if it cannot be read.
    """
    if not str(path):
        return _unknown(f"path=: is empty: {WHAT_IS_KNOWN}")
    path = home_path(path)
    if not path.exists():
        return _unknown(f"{path} is not there: {WHAT_IS_KNOWN}")
    try:
        refuse_special(path)
    except ValueError as error:
        return _unknown(f"{path} {error}")
    if path.is_dir():
        return _folder(path.parent if path.name == "checkpoints" and not (path / "checkpoints").exists() else path)
    if CHECKPOINT.fullmatch(path.name) or (path.suffix == ".pt" and path.with_suffix(".json").is_file()):
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
    reasons = {file: damage(file) for file in sorted(folder.glob("step_*.pt"))}
    whole = [file for file, reason in reasons.items() if reason is None]
    set_aside = sorted(file.name for file in folder.glob(f"step_*.pt{CORRUPT}"))
    for file, reason in reasons.items():
        found.add("checkpoint", f"{file.name}: {reason or 'whole'}", damaged=bool(reason))
    for name in set_aside:
        found.add("set aside", name)
    if whole:
        found.add("resume=auto", f"takes {whole[-1].name}")
    elif reasons or set_aside:
        found.add("resume=auto", "would stop: no checkpoint is whole", damaged=True)
    else:
        found.add("resume=auto", "starts at step 0: there is no checkpoint yet")
    found.add("finished", "yes" if (path / "summary.json").is_file() else "no: there is no summary.json")
    _needs(found, whole[-1] if whole else None, path, f"{shell_word(text_setting('run_dir', path))} resume=auto")
    found.damaged = found.damaged or not (path / SAVED_CONFIG).is_file()  # a row says so
    return found


def _checkpoint(path: Path) -> Found:
    found, reason = Found("a checkpoint"), damage(path)
    if path.name.endswith(CORRUPT):
        found.add("set aside", "yes: resume=auto found it damaged", damaged=True)
    found.add("whole", f"no: {reason}" if reason else "yes, it agrees with its manifest", damaged=bool(reason))
    if reason is None:
        _needs(found, path, path.parent.parent, f"{shell_word(text_setting('resume', path))} and a run_dir of its own")
    return found


def _needs(found: Found, checkpoint: Path | None, run_dir: Path, resume: str) -> None:
    """What a checkpoint holds, and what it takes to go on with it."""
    try:
        content = {} if checkpoint is None else read_checkpoint(checkpoint)
    except (CheckpointError, ValueError) as error:
        found.add("content", str(error).removeprefix(f"{checkpoint} "), damaged=True)
        return
    model, data = (_node(found, run_dir / SAVED_CONFIG, name) for name in ("model", "data"))
    found.add("model", _model(model, content.get("model")))
    found.add("data", _data(data))
    if checkpoint is None:
        return
    prompt = _add_vocabulary(found, content.get("vocabulary"), content.get("vocab_size"))
    written = f"{FORMAT}, by torch {checkpoints.read_manifest(checkpoint).get('torch')} (here {torch.__version__})"
    found.add("format", f"{written}, step {content.get('step')}")
    if model and data:
        found.add("to continue", f"the same command and data, with {resume}")
        if prompt is None:
            found.add("to generate", "not possible: its ids are no text")
        else:
            run = text_setting("run", shown_path(checkpoint))
            found.add("to generate", typed_line([*program(), "generate", run, f"prompt={prompt}"]))


def _node(found: Found, config: Path, name: str) -> dict[str, Any]:
    """A node of a saved configuration; what speaks against it becomes a row."""
    try:
        return saved_node(config, name)
    except ConfigError as error:
        found.add("configuration", str(error), damaged=config.is_file())
        return {}


def _model(node: dict[str, Any], weights: Any) -> str:
    mixer = node.get("mixer")
    parts = [_short(node) + (f" of {_short(mixer)}" if isinstance(mixer, dict) else "")] if node else []
    parts += [f"{key} {node[key]}" for key in SIZES if node.get(key) is not None]
    parts += [f"{_count(weights):,} parameters"] if isinstance(weights, dict) else []
    return ", ".join(parts) or "not known"


def _data(node: dict[str, Any]) -> str:
    path = node.get("path")
    if not isinstance(path, str):
        return _short(node) if node else "not known"
    is_there = home_path(path).exists()
    return f"{_short(node)}, {path}{'' if is_there else ' (which is not there, seen from this folder)'}"


def _add_vocabulary(found: Found, state: Any, vocab_size: Any) -> str | None:
    """Add its row; return a prompt that it has, or None if ids are not text."""
    if state is None:
        found.add("vocabulary", f"none: {vocab_size} ids that are no text")
        return None
    try:
        vocabulary = vocabulary_from(state)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found.add("vocabulary", f"cannot be used ({error!r:.100})", damaged=True)
        return None
    found.add("vocabulary", f"{vocabulary.name}, {len(vocabulary)} ids")
    characters = state["tokens"] if vocabulary.name == Characters.name else ["a"]
    return next((token for token in characters if len(token) == 1 and token.isalnum()), "PROMPT")


def _export(path: Path) -> Found:
    found, reason = Found("an export"), export_damage(path)
    found.add("whole", f"no: {reason}" if reason else f"yes, each file agrees with {MANIFEST}", damaged=bool(reason))
    if reason:
        return found
    note = read_manifest(path)
    found.add("files", ", ".join(note["files"]))
    found.add("model", f"{_model(_node(found, path / CONFIG, 'model'), None)}, {note['parameters']} parameters")
    state = json.loads((path / VOCABULARY).read_text(encoding="utf-8")) if VOCABULARY in note["files"] else None
    _add_vocabulary(found, state, note["vocab_size"])
    found.add("format", f"{note['format']}, by torch {note['torch']} (here {torch.__version__}), step {note['step']}")
    return found


def _file(path: Path) -> Found:
    """A file that its name does not tell."""
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    try:
        return _vocabulary(path)
    except ValueError as error:
        reason = error.__cause__  # without the path
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
        manifest = ("whole", "not known: its manifest, step_*.json, is not beside it")
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
    except ValueError as error:
        return _unknown(f"{path} holds tensors that are nothing of this program: {error}")
    found = Found(f"weights of the published SamOut {'V8' if is_v8 else 'V1'}")
    try:
        model = load_published(weights, num_heads=1)
    except ValueError as error:
        found.add("whole", f"no: {' '.join(str(error).split())[:200]}", damaged=True)
        return found
    found.add("whole", "yes, names and shapes are complete")
    sizes = {"hidden_size": model.embedding.embedding_dim, "num_layers": len(model.layers)}
    found.add("model", f"{_model({'_target_': '.SamOut', **sizes}, weights)}, {model.embedding.num_embeddings} ids")
    heads = "" if is_v8 else ", num_heads=... (not in the file, and V1 scales by it)"
    found.add("to use", f"load_published({str(path)!r}{heads}), and the vocabulary that belongs to it")
    return found


def _count(weights: dict[str, Any]) -> int:
    """Elements, a shared tensor once."""
    tensors = [tensor for tensor in weights.values() if isinstance(tensor, Tensor)]
    return sum({(t.data_ptr() or number, t.shape): t.numel() for number, t in enumerate(tensors)}.values())


def _short(node: dict[str, Any]) -> str:
    """`SamOut` of its `_target_`."""
    return str(node.get("_target_")).rpartition(".")[2]


def _unknown(words: str) -> Found:
    return Found(words, known=False)
