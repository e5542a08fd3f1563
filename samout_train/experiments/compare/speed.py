"""How fast each model trains at several lengths, measured in one process, models in turns, medians.

A pass is the loss of random tokens, forward and backward, without the optimizer, which takes as long at any length.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samout_train.config import build
from samout_train.experiments.compare.plan import Candidate
from samout_train.models import choose_products, next_token_nats, product_of, sees_future
from samout_train.ops import use_kernels, use_products
from samout_train.runtime import (
    Bar,
    PrecisionName,
    autocast,
    choose_device,
    choose_precision,
    is_out_of_memory,
    keep_freed_memory,
    read_figures,
    use_threads,
    wait_for,
    write_figures,
)
from samout_train.training import source_from

TIMES = (1, 4, 16, 64)  # of the training length
MOST_ROUNDS = 5
SECONDS_A_CELL = 3.0  # of one model at one length: no further round is begun after it
NO_IGNORED = -100
FILE = "speed.json"


def measured_speeds(candidates: Sequence[Candidate], folder: Path) -> dict[str, dict[int, float]]:
    """Return tokens a second of the models of a comparison; measured once, and kept in its directory.

    Args:
        candidates: The models, in the settings of the first one's data.
        folder: Of the comparison.
    """
    config = candidates[0].config
    of = {one.label: dict(one.config["model"]) for one in candidates}
    of |= {"settings": {key: config[key] for key in ("device", "precision", "kernels", "data")}}
    if read_figures(folder / FILE).get("of") == json.loads(json.dumps(of)):
        return read_speeds(folder)
    device = choose_device(config["device"])
    use_kernels(config["kernels"])
    use_threads(config.get("threads"))
    if device.type == "cpu":
        keep_freed_memory()
    source = source_from(config)

    def built(one: Candidate) -> nn.Module:
        model: nn.Module = build(one.config["model"], vocab_size=source.vocab_size, pad_id=source.pad_id)
        return model

    models = {one.label: built(one) for one in candidates}
    precision, seq_len = choose_precision(config["precision"], device), source.train.seq_len
    batch_size = config["data"]["batch_size"]
    product = product_of(next(iter(models.values())), batch_size * seq_len)
    use_products(choose_products(product, device=device, precision=precision, decodes=False))  # as the runs did
    with Bar(desc="speed by length", total=len(TIMES) * len(candidates), leave=False) as bar:
        found = tokens_per_second(
            models,
            vocab_size=source.vocab_size,
            seq_len=seq_len,
            batch_size=batch_size,
            device=device,
            precision=precision,
            told=bar.update,
        )
    write_figures(folder / FILE, {"of": of, "tokens_per_second": found})
    return found


def read_speeds(folder: Path) -> dict[str, dict[int, float]]:
    """Return what was measured in the directory of a comparison; nothing where there is none."""
    try:
        by_label = read_figures(folder / FILE)["tokens_per_second"]
        return {label: {int(length): float(speed) for length, speed in of.items()} for label, of in by_label.items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def tokens_per_second(
    models: Mapping[str, nn.Module],
    *,
    vocab_size: int,
    seq_len: int,
    batch_size: int,
    device: torch.device,
    precision: PrecisionName,
    told: Callable[[], None] = lambda: None,
) -> dict[str, dict[int, float]]:
    """By label and length, tokens a second of a forward and a backward pass, over as many tokens at each length.

    Args:
        models: By label. One whose positions see later tokens is left out.
        vocab_size: Number of token ids.
        seq_len: The training length; the others are multiples of it.
        batch_size: Rows of a step at that length. A pass has as many tokens as a step, or as the longest row.
        device: Where to measure.
        precision: Of the passes.
        told: Called after each length of each model.

    Returns:
        Lengths that a model, or the memory, has no room for are left out.
    """
    measured = {label: model.to(device).train() for label, model in models.items() if not sees_future(model)}
    found: dict[str, dict[int, float]] = {label: {} for label in measured}
    lengths = [times * seq_len for times in TIMES]
    num_tokens = max(seq_len * batch_size, lengths[-1])
    for length in lengths:
        ids_RT = torch.randint(vocab_size, (num_tokens // length, length + 1)).to(device)
        fitting = {label: model for label, model in measured.items() if _has_room(model, length)}
        seconds = _in_turns([_pass(model, ids_RT, device, precision) for model in fitting.values()], told)
        for label, taken in ((label, taken) for label, taken in zip(fitting, seconds, strict=True) if taken):
            found[label][length] = (ids_RT.numel() - len(ids_RT)) / statistics.median(taken)
    return found


def _in_turns(passes: Sequence[Callable[[], None]], told: Callable[[], None]) -> list[list[float]]:
    """Seconds of each pass, in rounds; the first one, which compiles and warms up, does not count. None that does not
    fit into memory has any."""
    fits = [_fits(run) for run in passes]
    seconds: list[list[float]] = [[] for _ in passes]
    for _ in range(MOST_ROUNDS):
        for run, taken, does in zip(passes, seconds, fits, strict=True):
            if does and sum(taken) < SECONDS_A_CELL:
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
    for _ in passes:
        told()
    return seconds


def _fits(run: Callable[[], None]) -> bool:
    try:
        run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _pass(model: nn.Module, ids_RT: torch.Tensor, device: torch.device, precision: PrecisionName) -> Callable[[], None]:
    def run() -> None:
        with autocast(precision, device):
            nats = next_token_nats(model, ids_RT[:, :-1], ids_RT[:, 1:], NO_IGNORED)
        nats.backward()
        model.zero_grad(set_to_none=True)
        nats.detach().item()  # waits for the device
        wait_for(device)

    return run


def _has_room(model: Any, length: int) -> bool:
    most = getattr(model, "max_seq_len", None)
    return most is None or length <= most
