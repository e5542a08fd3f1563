"""What models of a comparison are called, and the settings that a label stands for."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from samout_train.config import TEXT_KEYS, ConfigError, shown
from samout_train.runtime import RESERVED, quoted

# Text that is read as nothing but text without quotes.
PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|nan|inf)$)[a-z_][\w.+/:-]*", re.IGNORECASE)
LONGEST_NAME = 120  # bytes, as of the jobs of a sweep
Models = str | Sequence[str | Mapping[str, Any]] | Mapping[str, Any]


def labelled(models: Models) -> dict[str, dict[str, Any]]:
    """By label, the settings that make a model.

    Args:
        models: A name or a list of names; in place of a name, or of the list, labels with settings:
            `{small: {model: v8, model.num_layers: 2}}`. Without `model`, the label is the name.

    Raises:
        ConfigError: if it says none, or a label twice.
    """
    if isinstance(models, Mapping):
        models = [{label: settings} for label, settings in models.items()]
    found: dict[str, dict[str, Any]] = {}
    for entry in [models] if isinstance(models, str) else models:
        if not isinstance(entry, str | Mapping):
            raise ConfigError(f"models: {shown(entry)}: must be a name, or a label with settings in braces")
        for label, settings in entry.items() if isinstance(entry, Mapping) else [(entry, {})]:
            if str(label) in found:
                raise ConfigError(f"models: {label} is there twice: write one as {{another name: {{model: {label}}}}}")
            if not isinstance(settings, Mapping | None):
                raise ConfigError(f"models: {label}: must be settings in braces, such as {{model.num_layers: 2}}")
            found[str(label)] = {"model": label, **(settings or {})}
    by_folder = {folder_name(label).casefold(): label for label in found}  # of which some file systems make one
    if alike := [label for label in found if by_folder[folder_name(label).casefold()] != label]:
        other = by_folder[folder_name(alike[0]).casefold()]
        raise ConfigError(f"models: {alike[0]}, {other}: are one directory: rename one")
    if not found:
        raise ConfigError("models: is empty: name at least one, such as models=[v8,transformer]")
    return found


def folder_name(label: str) -> str:
    """A label as the beginning of a directory's name, which is no option to a shell and no device to Windows."""
    name = re.sub(r"[^\w.+-]+", "_", label)
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(label.encode()).hexdigest()[:8]
        name = f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}"
    return f"model{name}" if name[:1] in ("", "-", ".") else f"model-{name}" if RESERVED.match(name) else name


def word_of(key: str, value: Any) -> str:
    """An override, as a person would type it."""
    if isinstance(value, str) and key not in TEXT_KEYS and not PLAIN.fullmatch(value):
        return f"{key}={quoted(value)}"
    if isinstance(value, str):
        return f"{key}={value}"
    return f"{key}={json.dumps(value)}"
