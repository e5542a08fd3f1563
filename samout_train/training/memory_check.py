"""Check before building whether a model, the ids of its data and a step fit into memory."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from samout_train.config import build
from samout_train.models import estimate_memory_bytes
from samout_train.runtime import distributed, too_large

if TYPE_CHECKING:
    from samout_train.training.step import TrainingStep

MUCH_PER_TOKEN = 1 << 16  # bytes: a step that fits at this cost per token is not estimated
FEW_IDS = 8  # stands for the vocabulary size, which is not known yet
OF_EACH_WEIGHT = 2 * torch.float32.itemsize  # bytes: the weight and its gradient
SQUARES = 32  # a layer has fewer weights than this many times the square of its widest size
SIZES = ("hidden_size", "num_layers", "ffn_size", "ffn_share", "embedding_size", "convolution_size")


def model_too_large(node: Mapping[str, Any], device: torch.device) -> str | None:
    """Return why weights and gradients of a model cannot fit into memory, without building it; None if they may.

    Args:
        node: Its settings, each valid by itself. A model with a target outside this package is not checked.
        device: Where it is trained; it is built in main memory.
    """
    if not all(target.startswith("samout_train.") for target in _targets(node)):
        return None
    sizes = {key: node[key] for key in SIZES if node.get(key)}
    layers = sizes["num_layers"]
    widest = sizes.get("ffn_share", 1) * sizes["hidden_size"]
    for key, size in sizes.items():
        if key != "num_layers":
            widest = max(widest, size)
    if _lacks(int(layers * SQUARES * widest**2), device) is None:
        return None
    try:
        one = _elements({**node, "num_layers": 1})
        two = _elements({**node, "num_layers": 2})
    except ValueError:  # contradictory settings: building the model reports them
        return None
    lacks = _lacks(one + (layers - 1) * (two - one), device)
    if lacks is None:
        return None
    settings = ", ".join(f"model.{key}={size}" for key, size in sizes.items())
    return f"{settings}: the model {lacks}: choose smaller ones"


def ids_too_large(data: Mapping[str, Any], device: torch.device) -> list[str]:
    """Return the problems of data if the ids of a batch, or of a task's rows, do not fit into memory.

    Args:
        data: Its settings, each valid by itself.
        device: Where the batch goes; the rows stay in main memory.
    """
    cpu = torch.device("cpu")
    found: list[str] = []
    of_tests = ("seq_len", "test_lengths", "test_distances")
    for key, length_keys, place in (
        ("batch_size", ("seq_len",), device),
        ("num_sequences", ("seq_len",), cpu),
        ("num_test_sequences", of_tests, cpu),
    ):
        longest, longest_key = 0, ""
        for length_key in length_keys:
            length = max(_whole_numbers(data.get(length_key)), default=1)
            if length > longest:
                longest, longest_key = length, length_key
        for rows in _whole_numbers(data.get(key)):
            lacks = too_large(rows * longest * torch.int64.itemsize, place)
            if not lacks:
                continue
            name = key
            if rows < longest:
                name = longest_key
            problem = f"data.{name}={data[name]}: {lacks}: choose a smaller one"
            if problem not in found:
                found.append(problem)
    return found


def step_too_large(step: "TrainingStep", seq_len: int) -> str | None:
    """Return why a training step cannot fit into memory, from shapes alone; None if it may.

    Args:
        step: The step, before it is run.
        seq_len: Targets in a row.
    """
    batch, device = step.batches.batch_size, step.batches.device
    seq_len = min(seq_len, step.chunk_len or seq_len)
    rows = batch // step.accumulate // distributed.count()
    if step.shared.is_sharded or not too_large(rows * seq_len * MUCH_PER_TOKEN, device):
        return None
    try:
        needed = estimate_memory_bytes(
            step.model,
            rows=rows,
            seq_len=seq_len,
            accumulate=step.accumulate,
            precision=step.precision,
            device=device,
        )
    except RuntimeError:  # a user's model may call an operation without a shape function
        return None
    lacks = too_large(needed, device)
    if not lacks:
        return None
    return f"data.batch_size={batch}: {lacks}: choose a smaller one, or a larger trainer.accumulate"


def _lacks(elements: int, device: torch.device) -> str | None:
    needed = elements * OF_EACH_WEIGHT
    return too_large(needed, torch.device("cpu")) or too_large(needed, device)


def _elements(node: Mapping[str, Any]) -> int:
    """Return the elements of all weights, from their shapes alone."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model: nn.Module = build(dict(node), vocab_size=FEW_IDS, pad_id=None)
    return sum(parameter.numel() for parameter in model.parameters())


def _targets(node: Mapping[str, Any]) -> Iterator[str]:
    for key, value in node.items():
        if key == "_target_":
            yield str(value)
        elif isinstance(value, Mapping):
            yield from _targets(value)


def _whole_numbers(value: Any) -> list[int]:
    if not isinstance(value, list):
        value = [value]
    return [each for each in value if isinstance(each, int)]
