"""Record a run's data in its checkpoints: on resume, data is compared by content, not by path."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samout_train.checkpoint.file_names import MANIFEST, step_files
from samout_train.runtime import read_figures

if TYPE_CHECKING:
    from samout_train.data import Source

MOST_FILES = 100
FACTS = ("sha256", "tokens", "documents")
RESUMED = "use the data that the run was begun with, or begin another run with its own run_dir"


def data_record(source: "Source") -> dict[str, Any]:
    """Return the record that identifies the content of a source; empty for a source without a digest."""
    description = source.description
    if "sha256" not in description:
        return {}
    record: dict[str, Any] = {}
    for name in FACTS:
        if name in description:
            record[name] = description[name]
    files = description.get("files")
    if isinstance(files, list):
        record |= {"num_files": len(files), "bytes": sum(int(file["bytes"]) for file in files)}
        if len(files) <= MOST_FILES:
            record["files"] = files
    return record


def require_same_data(
    now: Mapping[str, Any], then: Mapping[str, Any] | None, data: Mapping[str, Any], *, fix: str = RESUMED
) -> None:
    """Raise ValueError if a run would resume on other data, or be evaluated on it.

    Args:
        now: The record of the current data.
        then: The record in the checkpoint; None from an earlier version.
        data: The `data` node of the configuration, for the message.
        fix: What to do, for the message.

    Raises:
        ValueError: if the content differs.
    """
    if then is not None and (difference := _difference(now, then, data)):
        raise ValueError(f"{difference}\n{fix}")


def _difference(now: Mapping[str, Any], then: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    if all(now.get(name) == then.get(name) for name in FACTS):
        return None
    where = "data"
    for key in ("paths", "path"):
        if data.get(key) is not None:
            where = f"data.{key}={data[key]}"
    message = f"{where}: is other data than the run learns from:"
    if lines := _other_files(now, then):
        return "\n  ".join([message, *lines])
    return f"{message} {_described(now)}; the run has {_described(then)}"


def recorded_data(run_dir: Path) -> dict[str, Any]:
    """Return the record of the data in a run's newest checkpoint; empty if there is none."""
    manifests = step_files(run_dir / "checkpoints", MANIFEST)
    if not manifests:
        return {}
    return read_figures(manifests[-1]).get("data") or {}


class DataNow:
    """Compare the current data with that of runs, and read each source once.

    Args:
        read: Returns the data source of a configuration.
    """

    def __init__(self, read: Callable[[Mapping[str, Any]], "Source"]) -> None:
        self._read = read
        self._records: dict[str, dict[str, Any]] = {}

    def other_than(self, run_dir: Path, config: Mapping[str, Any]) -> str | None:
        """Return how the current data differs from a run's; None if it does not, or the run has no record.

        Args:
            run_dir: The directory of a run with the same data settings as the configuration.
            config: The configuration as plain dictionaries, resolved and checked.
        """
        if not (then := recorded_data(run_dir)):
            return None
        try:
            difference = _difference(self._record(config), then, config["data"])
        except ValueError as error:
            difference = str(error)
        except OSError:  # reported when the data is needed
            return None
        if difference is None:
            return None
        return f"{run_dir}: {difference}\nuse the data of the existing runs"

    def _record(self, config: Mapping[str, Any]) -> dict[str, Any]:
        key = json.dumps(config["data"])
        if key not in self._records:
            self._records[key] = data_record(self._read(config))
        return self._records[key]


def _other_files(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Return a line for each of the first files that differ."""
    here = {file["name"]: file for file in now.get("files", [])}
    there = {file["name"]: file for file in then.get("files", [])}
    if not here or not there or (len(here) == len(there) == 1):
        return []
    lines = []
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            lines.append(f"{name}: {_file(here.get(name))}; the run has {_file(there.get(name))}")
    if len(lines) > 5:
        lines[5:] = [f"and {len(lines) - 5} files more"]
    return lines


def _file(file: Mapping[str, Any] | None) -> str:
    if file is None:
        return "no such file"
    return f"{file['bytes']:,} bytes, sha256 {str(file['sha256'])[:12]}..."


def _described(record: Mapping[str, Any]) -> str:
    if not record:
        return "no digest"
    parts = []
    if record.get("num_files", 1) > 1:
        parts.append(f"{record['num_files']} files")
    for name in ("bytes", "documents", "tokens"):
        if name in record:
            parts.append(f"{record[name]:,} {name}")
    return ", ".join([*parts, f"sha256 {str(record['sha256'])[:12]}..."])
