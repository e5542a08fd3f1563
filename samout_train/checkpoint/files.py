"""Checkpoint files: written so that a death at any moment leaves the old or the new, verified before they are believed.

Nothing else knows the format. `step_<8 digits>.pt` holds tensors, numbers, text and lists, so that
`torch.load(weights_only=True)` reads it. `step_<8 digits>.json`, its manifest, has its size and sha256, and what it was
made with; it is written once the tensors lie on disk and read back as they were meant, and only then do these get their
name. So a file of that name without its manifest, or that disagrees with it, is damaged. Where a model is sharded over
processes, the tensors of model and optimizer lie in `step_<8 digits>.shards/`, and the manifest has their digests.
"""

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from samout_train.checkpoint.shards import damaged_shards, join_shards
from samout_train.runtime import home_path, read_tensor_file, replace_file, require_regular_file, sha256_of, write_json

FORMAT = 3
CORRUPT = ".corrupt"
log = logging.getLogger(__name__)


# The reason, behind the path of a file.
OTHER_FORMAT = f"is no checkpoint of format {FORMAT}: another program wrote it, or another version of this one"


class CheckpointError(Exception):
    """No checkpoint could be used or written; the message says which file, and why.

    Args:
        message: For a person.
        reasons: Why each file cannot be used; empty where none was written.
    """

    def __init__(self, message: str, reasons: Mapping[Path, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})

    @classmethod
    def of_file(cls, path: Path, reason: object) -> "CheckpointError":
        """Return the error of one file that cannot be used."""
        return cls(f"{path} cannot be used: {reason}", {path: str(reason)})


def serialised(state: dict[str, Any]) -> memoryview:
    """The bytes of a checkpoint: a copy, so that training can go on while they are written.

    Args:
        state: Tensors, numbers, text, lists and dictionaries.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    return buffer.getbuffer()


def write_checkpoint(directory: Path, step: int, content: memoryview, about: dict[str, Any]) -> Path:
    """Writes one checkpoint, unless it is there already.

    Args:
        directory: A run's `checkpoints/`, which is there.
        step: Steps made so far.
        content: What `serialised` gave.
        about: What else the manifest says: text and numbers.

    Raises:
        OSError: if it cannot be written; what is left of it then is no checkpoint.
    """
    path = checkpoint_path(directory, step)
    if is_complete(path):
        return path
    digest = hashlib.sha256(content).hexdigest()

    def confirm(temporary: Path) -> None:
        if sha256_of(temporary) != digest:
            raise OSError(f"{path.name} reads back as something else than was written")
        write_manifest(path, {"step": step, "bytes": len(content), "sha256": digest, **about})

    replace_file(path, lambda file: file.write(content), confirm)
    return path


def checkpoint_path(directory: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return directory / f"step_{step:08d}.pt"


def shards_folder(path: Path) -> Path:
    """Return where a checkpoint has the tensors of model and optimizer if they are not in it: beside it."""
    return path.with_name(path.name.replace(".pt", ".shards"))


def is_complete(path: Path) -> bool:
    """Return whether a checkpoint is there, and can be believed."""
    return path.exists() and damage(path) is None


def delete_checkpoint(directory: Path, step: int) -> None:
    """Deletes one, its tensors first, so that at no moment it looks like a damaged one."""
    path = checkpoint_path(directory, step)
    for part in (path, _manifest(path)):
        part.unlink(missing_ok=True)
    if shards_folder(path).exists():
        shutil.rmtree(shards_folder(path))


def saved_steps(directory: Path) -> list[int]:
    """The steps of which there are files, complete or not, in order."""
    return sorted(int(path.stem.removeprefix("step_")) for path in directory.glob("step_*.pt"))


def newest_checkpoint(run_dir: Path, *, set_aside: bool) -> Path | None:
    """The newest complete checkpoint of a run; damaged ones are passed over with a warning.

    Args:
        run_dir: The run directory.
        set_aside: Whether damaged ones are renamed to `.corrupt`: only in a run of one's own, since elsewhere a
            checkpoint that looks incomplete may just be being written.

    Returns:
        Its path; None where the run has no checkpoint at all.

    Raises:
        CheckpointError: if it has some and each is damaged.
    """
    folder = run_dir / "checkpoints"
    reasons: dict[Path, str] = {}
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        reason = damage(path)
        if reason is None:
            return path
        reasons[path] = reason
        log.warning("%s cannot be used: %s", path, reason)
        if set_aside:
            for part in (path, _manifest(path), shards_folder(path)):
                if part.exists():
                    with suppress(OSError):  # open elsewhere, on Windows; it is passed over all the same
                        part.replace(part.with_name(part.name + CORRUPT))
    for path in sorted(folder.glob(f"step_*.pt{CORRUPT}")):
        if path.with_name(path.name.removesuffix(CORRUPT)) not in reasons:  # set aside before now
            reasons[path] = damage(path) or "was set aside"
    if reasons:
        message = f"no checkpoint in {folder} can be used:"
        for path, reason in reasons.items():
            message += f"\n  {path.name}: {reason}"
        raise CheckpointError(message, reasons)
    return None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a user means by a run directory, its `checkpoints/`, or a file.

    Raises:
        ValueError: if there is nothing of the kind at the path.
        CheckpointError: if all that is there is damaged.
    """
    if not str(path):
        raise ValueError("the path of a run is empty: give a run directory or a checkpoint file")
    path = home_path(path)
    if path.is_file() and path.suffix != ".pt":
        raise ValueError(f"{path} is no checkpoint: give a run directory or a checkpoint file, step_*.pt")
    if path.is_file():
        reason = damage(path)
        if reason:
            raise CheckpointError.of_file(path, reason)
        return path
    if not path.exists():
        raise ValueError(f"{path} is not there: give a run directory or a checkpoint file")
    run_dir = path
    if path.name == "checkpoints":
        run_dir = path.parent
    found = newest_checkpoint(run_dir, set_aside=False)
    if found is None:
        raise ValueError(f"{path} holds no checkpoint: give a run directory that has checkpoints/step_*.pt")
    return found


def damage(path: Path) -> str | None:
    """Why a checkpoint file cannot be believed; None where it agrees with its manifest."""
    manifest_path = _manifest(path)
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        return f"{manifest_path.name}, which every complete checkpoint has beside it, is missing"
    except ValueError:
        return f"{manifest_path.name} is damaged"
    if path.stat().st_size != manifest["bytes"]:
        return f"it has {path.stat().st_size} bytes, the manifest says {manifest['bytes']}"
    if sha256_of(path) != manifest["sha256"]:
        return "its sha256 differs from the manifest's"
    return damaged_shards(shards_folder(path), manifest.get("shards", {}))


def write_manifest(path: Path, said: dict[str, Any]) -> None:
    """Writes what is said of a checkpoint beside it, with a digest of its own."""
    replace_json(_manifest(path), _signed(said))


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what is said of a checkpoint beside it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not, byte for byte, what was written.
    """
    require_regular_file(_manifest(path))
    text = _manifest(path).read_bytes()
    manifest = json.loads(text)
    unsigned = dict(manifest)
    unsigned.pop("manifest_sha256", None)
    if _json(_signed(unsigned)) != text:
        raise ValueError(f"{_manifest(path)} is damaged")
    return unsigned


def read_checkpoint(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """The content of a verified checkpoint, on the CPU; no code in it is run.

    Args:
        path: Of the file.
        whole: Whether to read what lies in shards beside it; else such tensors are without content (on the device
            `meta`), and `shards` is where `samout_train.checkpoint.shards.read_shards` finds it.

    Raises:
        ValueError: if it is of another format.
        CheckpointError: if it agrees with its manifest and yet cannot be read, or asks for code.
    """
    try:
        content = read_tensor_file(path, is_verified=True)
    except (OSError, ValueError) as error:
        raise CheckpointError.of_file(path, error) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} {OTHER_FORMAT}")
    if "vectors" in content:
        try:
            join_shards(content, shards_folder(path), whole=whole)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError.of_file(path, error) from error
    return content


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a small JSON file, whole or not at all."""
    write_json(path, content, indent=1)


def _manifest(path: Path) -> Path:
    """`step_00000001.json` for `step_00000001.pt`; both may be set aside."""
    return path.with_name(path.name.replace(".pt", ".json"))


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest | {"manifest_sha256": hashlib.sha256(_json(manifest)).hexdigest()}
