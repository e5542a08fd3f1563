"""Published weights as people keep them: wrapped, below a key, beside an optimizer, or as a pickled module.

No code in a file is run: of a pickled module the classes are replaced by ones that only hold what they are given.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from samout_train.tensor_file import StandIn, read_module_file, read_tensor_file

EMBEDDING = "em.weight"
WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and DataParallel, and of torch.compile
USUAL_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "weights", "net", "module")
DEEPEST = 4
HOW_TO_SAVE = "save them with torch.save(net.state_dict(), path)"


def read_published(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published file by their published names.

    Args:
        path: A file of torch.save in any of its formats, or a safetensors file.

    Raises:
        ValueError: if it is damaged, or holds no such tensors; with what to do, without the path.
        OSError: if it cannot be opened.
    """
    if path.suffix == ".safetensors":
        return published_tensors(_safetensors(path))
    try:
        content = read_tensor_file(path)
    except ValueError as error:
        content = read_module_file(path)
        if content is None:
            raise ValueError(
                f"{error}. Copy the file again; where it holds more than weights, {HOW_TO_SAVE}"
            ) from error
    return published_tensors(content)


def published_tensors(content: Any) -> dict[str, Tensor]:
    """Find the published weights in what a file holds, and give them the names without wrappers.

    Args:
        content: A state_dict, alone or below a key, wrapped or not; or a module of stand-ins.

    Raises:
        ValueError: if there are none, or several of which none is under a usual key.
    """
    found = dict(_states(content, "", 0))
    usual = [key for name in USUAL_KEYS for key in found if key.rpartition(".")[2] == name]
    if len(found) > 1 and not usual:
        raise ValueError(f"it holds several state_dicts ({', '.join(found)}): {HOW_TO_SAVE} of the one to use")
    if not found and isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values()):
        return dict(content)  # of another model, or not whole: names will show it
    if not found:
        keys = ", ".join(map(str, content))[:200] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"it holds no state_dict of a published SamOut ({keys or 'nothing'}): {HOW_TO_SAVE}")
    tensors = _without_wrappers(found[usual[0] if usual else next(iter(found))])
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}: give weights as float32, float16, bfloat16 or float64")
    return tensors


def _states(content: Any, key: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each state_dict with an embedding, and the key that it is below."""
    if isinstance(content, StandIn):
        content = _state_of(content)
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    if any(_plain(name).endswith(EMBEDDING) and isinstance(value, Tensor) for name, value in content.items()):
        yield key, content
        return
    for name, part in content.items():
        yield from _states(part, f"{key}.{name}" if key else str(name), depth + 1)


def _plain(name: object) -> str:
    """A name without the parts that wrappers add, wherever they stand."""
    return ".".join(part for part in str(name).split(".") if part not in WRAPPERS)


def _without_wrappers(state: Mapping[str, Any]) -> dict[str, Tensor]:
    plain = {name: _plain(name) for name, value in state.items() if isinstance(value, Tensor)}
    # Of a trainer's own module, such as `net.em.weight`.
    prefix = next(name for name in plain.values() if name.endswith(EMBEDDING)).removesuffix(EMBEDDING)
    tensors: dict[str, Tensor] = {}
    for name, wanted in plain.items():
        wanted = wanted.removeprefix(prefix)
        if wanted in tensors:
            raise ValueError(f"it holds {wanted} twice, with wrappers and without: {HOW_TO_SAVE}")
        tensors[wanted] = state[name]
    return tensors


def _state_of(module: StandIn) -> dict[str, Tensor]:
    """Collect the tensors that `state_dict()` of a module would give, without running its code."""
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
        waiting += [(f"{prefix}{name}.", child) for name, child in _items(part.held.get("_modules"))]
    return tensors


def _items(group: Any) -> list[tuple[Any, Any]]:
    return list(group.items()) if isinstance(group, Mapping) else []


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError("it needs the package safetensors: pip install 'samout_train[export]'") from error
    with path.open("rb"):
        pass
    try:
        return dict(load_file(path))
    except Exception as error:  # the library raises classes of its own
        raise ValueError(f"it cannot be read ({str(error)[:200]}): copy the file again") from error
