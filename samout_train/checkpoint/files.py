"""Write checkpoint files so that a crash at any moment leaves the old or the new one; verify them before loading.

Only this module knows the format. `step_<8 digits>.pt` holds tensors, numbers, text and lists, so that
`torch.load(weights_only=True)` reads it. Its manifest, `step_<8 digits>.json`, has its size and sha256 and the versions
that made it. To write a checkpoint, a temporary file is written, flushed to disk and read back. Then the manifest is
written, and last the file gets its final name. A file with that name but without a matching manifest is therefore
damaged. If a model is sharded over processes, the tensors of model and optimizer are in `step_<8 digits>.shards/`, and
the manifest has their digests.
"""

import hashlib
import io
import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from samout_train.checkpoint.error import CheckpointError
from samout_train.checkpoint.file_names import (
    CHECKPOINT,
    CORRUPT,
    checkpoint_path,
    manifest_path,
    shards_folder,
    step_files,
    step_of,
)
from samout_train.checkpoint.shards import damaged_shards, join_shards
from samout_train.runtime import (
    home_path,
    read_json,
    read_tensor_file,
    replace_file,
    require_regular_file,
    sha256_of,
    write_json,
)

FORMAT = 3
log = logging.getLogger(__name__)


# Messages put the path of the file before this.
OTHER_FORMAT = f"is not a checkpoint of format {FORMAT}: another program wrote it, or another version of this one"


def serialised(state: dict[str, Any]) -> memoryview:
    """Return the bytes of a checkpoint, a copy that is written while training continues.

    Args:
        state: Tensors, numbers, text, lists and dictionaries.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    return buffer.getbuffer()


def write_checkpoint(directory: Path, step: int, content: memoryview, about: dict[str, Any]) -> Path:
    """Write a checkpoint, unless it is complete already, and return its path.

    Args:
        directory: A run's existing `checkpoints/`.
        step: Steps made so far.
        content: The bytes from `serialised`.
        about: Further entries of the manifest, text and numbers.

    Raises:
        OSError: if it cannot be written; its remains do not count as a checkpoint.
    """
    path = checkpoint_path(directory, step)
    if is_complete(path):
        return path
    digest = hashlib.sha256(content).hexdigest()

    def confirm(temporary: Path) -> None:
        if sha256_of(temporary) != digest:
            raise OSError(f"{path.name} read back differs from what was written")
        write_manifest(path, {"step": step, "bytes": len(content), "sha256": digest, **about})

    replace_file(path, lambda file: file.write(content), confirm)
    return path


def is_complete(path: Path) -> bool:
    """Return whether a checkpoint exists and matches its manifest."""
    return path.exists() and damage(path) is None


def delete_checkpoint(directory: Path, step: int) -> None:
    """Delete a checkpoint, its tensors first, so that it never looks damaged."""
    path = checkpoint_path(directory, step)
    for part in (path, manifest_path(path)):
        part.unlink(missing_ok=True)
    if shards_folder(path).exists():
        shutil.rmtree(shards_folder(path))


def newest_checkpoint(run_dir: Path, *, set_aside: bool) -> Path | None:
    """Return the newest complete checkpoint of a run; None if it has none. Logs a warning for damaged ones.

    Args:
        run_dir: The run directory.
        set_aside: Whether to rename damaged ones to `.corrupt`. Use it only for the process's own run: another
            process may still be writing a checkpoint that looks incomplete.

    Raises:
        CheckpointError: if every checkpoint is damaged.
    """
    folder = run_dir / "checkpoints"
    reasons: dict[Path, str] = {}
    for path in reversed(step_files(folder)):
        reason = damage(path)
        if reason is None:
            return path
        reasons[path] = reason
        log.warning("%s cannot be used: %s", path, reason)
        if set_aside:
            for part in (path, manifest_path(path), shards_folder(path)):
                if part.exists():
                    with suppress(OSError):  # another program has it open on Windows; it is skipped anyway
                        part.replace(part.with_name(part.name + CORRUPT))
    for path in step_files(folder, CHECKPOINT + CORRUPT):
        if path.with_name(path.name.removesuffix(CORRUPT)) not in reasons:  # set aside earlier
            reasons[path] = damage(path) or "was set aside"
    if reasons:
        message = f"no checkpoint in {folder} can be used:"
        for path, reason in reasons.items():
            message += f"\n  {path.name}: {reason}"
        raise CheckpointError(message, reasons)
    return None


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint for a path that is a run directory, its `checkpoints/`, or a file.

    Raises:
        ValueError: if there is no checkpoint at the path.
        CheckpointError: if every checkpoint there is damaged.
    """
    if not str(path):
        raise ValueError("the path of a run is empty: give a run directory or a checkpoint file")
    path = home_path(path)
    if path.is_file() and path.suffix != ".pt":
        raise ValueError(f"{path} is not a checkpoint: give a run directory or a checkpoint file, step_*.pt")
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
    """Return why a checkpoint file is damaged; None if it matches its manifest."""
    name = manifest_path(path).name
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        return f"{name}, which every complete checkpoint has beside it, is missing"
    except ValueError:
        return f"{name} is damaged"
    if path.stat().st_size != manifest["bytes"]:
        return f"it has {path.stat().st_size} bytes, the manifest records {manifest['bytes']}"
    if sha256_of(path) != manifest["sha256"]:
        return "its sha256 differs from the manifest's"
    return damaged_shards(shards_folder(path), manifest.get("shards", {}))


def write_manifest(path: Path, entries: dict[str, Any]) -> None:
    """Write the manifest of a checkpoint, with its own digest."""
    replace_json(manifest_path(path), _signed(entries))


def has_manifest(path: Path) -> bool:
    """Return whether the JSON file beside a file is the manifest of a checkpoint, also of a renamed one."""
    manifest = manifest_path(path)
    if not manifest.is_file():
        return False
    is_named = step_of(path.name.removesuffix(CORRUPT)) is not None
    return is_named or "manifest_sha256" in (read_json(manifest) or {})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if any byte differs from what was written.
    """
    require_regular_file(manifest_path(path))
    text = manifest_path(path).read_bytes()
    manifest = json.loads(text)
    unsigned = dict(manifest)
    unsigned.pop("manifest_sha256", None)
    if _json(_signed(unsigned)) != text:
        raise ValueError(f"{manifest_path(path)} is damaged")
    return unsigned


def read_checkpoint(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Return the content of a verified checkpoint, on the CPU, without running code from it.

    Args:
        path: The file.
        whole: Whether to read sharded tensors too. Otherwise they are on the device `meta`, without data, and the entry
            `shards` is their folder, to be read by `samout_train.checkpoint.shards.read_shards`.

    Raises:
        ValueError: if it has another format.
        CheckpointError: if it matches its manifest but cannot be read, or would run code.
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
    """Write a small JSON file atomically."""
    write_json(path, content, indent=1)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest | {"manifest_sha256": hashlib.sha256(_json(manifest)).hexdigest()}
