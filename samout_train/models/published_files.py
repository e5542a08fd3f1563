"""Find published weights in files as people keep them: wrapped, below a key, with an optimizer, or as a pickled module.

No code from a file runs: the classes of a pickled module are replaced by stand-ins that only hold their state.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samout_train.runtime import (
    HEAD_BYTES,
    LEGACY,
    ZIP,
    MoreThanTensorsError,
    StandIn,
    install_line,
    kept_otherwise,
    read_module_file,
    read_tensor_file,
    require_regular_file,
)

EMBEDDING = "em.weight"
LAYERS = "decoder_layers."
WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and DataParallel, and of torch.compile
HOW_TO_SAVE = "save them with torch.save(net.state_dict(), path)"
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
NAMED = 3


class DamagedError(ValueError):
    """A safetensors file is cut short or damaged."""


@dataclass(frozen=True)
class _State:
    """The tensors of one model.

    Args:
        key: Its place in the file, such as `ema.model`.
        expression: The Python expression for it, where `loaded` is the content of the file.
        prefix: The prefix that its names share.
        tensors: By name, without wrappers and prefix.
        others: Names in the same mapping without the prefix.
    """

    key: str
    expression: str
    prefix: str
    tensors: dict[str, Tensor]
    others: list[str]

    @property
    def is_whole(self) -> bool:
        """Return whether there is a layer; an embedding alone is not a model."""
        return any(name.startswith(LAYERS) for name in self.tensors)

    def equals(self, other: "_State") -> bool:
        """Return whether both have the same names and values."""
        if self.tensors.keys() != other.tensors.keys():
            return False
        return all(_equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items())


def read_published(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published file by their published names.

    Args:
        path: A file of torch.save in any of its formats, or a safetensors file, under any name.

    Raises:
        ValueError: if it is damaged or holds no such tensors. The message has a remedy but not the path.
        OSError: if it cannot be opened.
    """
    return published_tensors(read_content(path))


def read_content(path: Path) -> Any:
    """Return the content of a file of weights; a pickled module becomes a `StandIn`.

    Args:
        path: A file of torch.save in any of its formats, or a safetensors file, under any name.

    Raises:
        ValueError: if it is damaged or another kind of file. The message has a remedy but not the path.
        OSError: if it cannot be opened.
    """
    try:
        require_regular_file(path)
    except ValueError as error:
        raise ValueError(f"it {error}") from error
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if is_safetensors(head):
        return _safetensors(path)
    if problem := no_weights(head, path):
        raise ValueError(problem)
    try:
        return read_tensor_file(path)
    except MoreThanTensorsError as error:
        content = read_module_file(path)
        if content is None:
            raise ValueError(f"{error}. If it holds more than weights, {HOW_TO_SAVE}") from error
        return content


def tensors_by_place(content: Any) -> dict[str, dict[str, Tensor]]:
    """Return every group of named tensors in a file by its place, with names without wrappers.

    Args:
        content: The result of `read_content`: state_dicts, alone or below keys, wrapped or not, and modules.
    """
    found: dict[str, dict[str, Tensor]] = {}
    waiting, seen = deque([("", content)]), set()
    while waiting:
        place, part = waiting.popleft()
        if not isinstance(part, StandIn | Mapping | list | tuple) or id(part) in seen:
            continue
        seen.add(id(part))
        children: Iterable[tuple[Any, Any]] = []
        tensors: dict[str, Tensor] = {}
        if isinstance(part, StandIn):
            tensors = _state_of(part)
        elif isinstance(part, Mapping):
            children = part.items()
            tensors = dict(filter(_is_tensor, children))
        else:
            children = enumerate(part)
        if tensors:
            found[place or "the top"] = {_plain(name): tensor for name, tensor in tensors.items()}
        for name, child in children:
            waiting.append((f"{place}.{name}".removeprefix("."), child))
    return found


def is_safetensors(head: bytes) -> bool:
    """Return whether a file begins like a safetensors file: with the length of a JSON header, then the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_HEADER


def no_weights(head: bytes, path: Path) -> str | None:
    """Return what a file is and what to do, if its first bytes show that it is not a file of weights.

    Args:
        head: Its first `HEAD_BYTES` bytes.
    """
    if head.startswith((ZIP, LEGACY)):
        return None
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page and not the file itself: download it again, by the link to the file"
    problem = kept_otherwise(head, path, wanted="weights")
    if not problem:
        return None
    return f"it {problem}"


def published_tensors(content: Any) -> dict[str, Tensor]:
    """Find the published weights in the content of a file, and return them by their names without wrappers.

    Args:
        content: A state_dict, alone or below a key, wrapped or not; or a module of stand-ins.

    Raises:
        ValueError: if it lacks such weights, or holds several different models.
    """
    found = list(_states(content))
    states: list[_State] = []
    for state in [each for each in found if each.is_whole] or found:
        if not any(state.equals(other) for other in states):
            states.append(state)
    if len(states) > 1:
        raise ValueError(_several(states))
    if not states:
        return _without_embedding(content)
    state = states[0]
    if state.others:
        listed = ", ".join(state.others[:NAMED])
        if len(state.others) > NAMED:
            listed += f" and {len(state.others) - NAMED} more"
        raise ValueError(
            f"it holds {listed} beside {state.prefix}{EMBEDDING}, which are not parameters of the published SamOut V1 "
            "or V8. Remove them from the state_dict"
        )
    return state.tensors


def _several(states: list[_State]) -> str:
    """Return the message for a file with several models: their keys, and how to save one of them."""
    keys = ", ".join(state.key for state in states)
    inside = [state.expression for state in states if state.expression != "loaded"]
    shortest = min(inside, key=len)
    return f"it holds several state_dicts: {keys}. Save one of them, such as torch.save({shortest}, path)"


def _without_embedding(content: Any) -> dict[str, Tensor]:
    """Return the tensors of another or an incomplete model; the check of their names will report them.

    Raises:
        ValueError: if the content is not a mapping of tensors.
    """
    if isinstance(content, Mapping) and content and all(map(_is_tensor, content.items())):
        return dict(content)
    if problem := _other_values(content):
        raise ValueError(problem)
    held = type(content).__name__
    if isinstance(content, Mapping):
        held = ", ".join(map(str, content))[:200] or "nothing"
    raise ValueError(f"it holds no state_dict of a published SamOut ({held}): {HOW_TO_SAVE}")


def _other_values(content: Any) -> str | None:
    """Return the problem and the remedy for known content other than weights; None for anything else."""
    if isinstance(content, StandIn) and content.origin.startswith("samout_train."):
        return (
            f"it is a {type(content).__name__} of this program, not a published one: export its run with "
            "`export run=DIR format=published`"
        )
    if not isinstance(content, Mapping):
        return None
    for part in (content, *content.values()):
        for name, value in _items(part):
            if isinstance(value, np.ndarray) or (isinstance(value, StandIn) and value.origin.startswith("numpy")):
                return (
                    f"{name} is a NumPy array, not a tensor: save tensors, with "
                    "torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)"
                )
    return None


def _states(content: Any) -> Iterator[_State]:
    """Yield each state_dict with an embedding, breadth first; each object is visited once."""
    waiting, seen = deque([("", "loaded", content)]), set()
    while waiting:
        key, expression, part = waiting.popleft()
        if not isinstance(part, StandIn | Mapping | list | tuple) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, StandIn):
            yield from _in_one(key, f"{expression}.state_dict()", _state_of(part))
            continue
        children: Iterable[tuple[Any, Any]]
        if isinstance(part, Mapping):
            yield from _in_one(key, expression, part)
            children = part.items()
        else:
            children = enumerate(part)
        for name, child in children:
            place = str(name)
            if key:
                place = f"{key}.{name}"
            waiting.append((place, f"{expression}[{name!r}]", child))


def _in_one(key: str, expression: str, mapping: Mapping[Any, Any]) -> Iterator[_State]:
    """Yield each state_dict in one mapping; they differ by the prefix of `em.weight`."""
    plain_names: dict[str, str] = {}
    starts: dict[str, str] = {}  # prefix in the file, by the prefix without wrappers
    for item in mapping.items():
        if not _is_tensor(item):
            continue
        name = item[0]
        plain = plain_names[name] = _plain(name)
        if plain == EMBEDDING or plain.endswith(f".{EMBEDDING}"):
            starts[plain.removesuffix(EMBEDDING)] = name.removesuffix(EMBEDDING)
    prefixes = sorted(starts, key=len, reverse=True)
    prefix_of = {name: _first(prefixes, plain) for name, plain in plain_names.items()}
    for prefix in reversed(prefixes):
        tensors: dict[str, Tensor] = {}
        others: list[str] = []
        for name, plain in plain_names.items():
            if prefix != prefix_of[name]:
                others.append(name)
                continue
            wanted = plain.removeprefix(prefix)
            if wanted in tensors:
                raise ValueError(f"it holds {wanted} twice, with and without a wrapper's prefix: {HOW_TO_SAVE}")
            tensors[wanted] = mapping[name]
        if len(prefixes) == 1:
            yield _State(key or "the top", expression, prefix, tensors, others)
            continue
        start = starts[prefix]
        own = f"{{n.removeprefix({start!r}): t for n, t in {expression}.items() if n.startswith({start!r})}}"
        place = prefix.removesuffix(".")
        if key and place:
            place = f"{key}.{place}"
        yield _State(place or key or "the top", own, prefix, tensors, others)


def _first(prefixes: list[str], name: str) -> str | None:
    """Return the first prefix that a name begins with, or None."""
    return next((prefix for prefix in prefixes if name.startswith(prefix)), None)


def _is_tensor(item: tuple[Any, Any]) -> bool:
    """Return whether a name and its value could be an entry of a state_dict."""
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same values; NaN equals NaN. Sparse tensors are equal only to themselves."""
    if one is other:
        return True
    if (
        one.is_meta
        or other.is_meta
        or one.dtype != other.dtype
        or one.shape != other.shape
        or {one.layout, other.layout} != {torch.strided}
    ):
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _plain(name: str) -> str:
    """Return a name without the parts that wrappers add, at any place in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _state_of(module: StandIn) -> dict[str, Tensor]:
    """Return the tensors that `state_dict()` of a module would return, without running its code."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        prefix, part = waiting.pop(0)
        if not isinstance(part, StandIn) or id(part) in seen:
            continue
        seen.add(id(part))
        passing = part.held.get("_non_persistent_buffers_set") or ()
        for group in ("_parameters", "_buffers"):
            for name, tensor in _items(part.held.get(group)):
                if isinstance(tensor, Tensor) and name not in passing:
                    tensors[f"{prefix}{name}"] = tensor.detach()
        for name, child in _items(part.held.get("_modules")):
            waiting.append((f"{prefix}{name}.", child))
    return tensors


def _items(group: Any) -> list[tuple[Any, Any]]:
    if isinstance(group, Mapping):
        return list(group.items())
    return []


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"it needs the package safetensors: {install_line('export')}") from error
    try:
        return dict(load_file(path))
    except Exception as error:  # the library has its own exception classes
        raise DamagedError(
            f"it is a safetensors file that is cut short or damaged ({str(error)[:200]}): copy or download it again"
        ) from error
