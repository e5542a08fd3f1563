"""Measure how fast each model trains at several lengths: in one process, models in turns, medians.

A pass computes the loss of random tokens, forward and backward. It leaves out the optimizer, whose time does not depend
on the length.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samout_train.checkpoint import in_turn
from samout_train.config import build
from samout_train.experiments.compare.candidates import Candidate
from samout_train.models import choose_products, next_token_nats, product_of, sees_future
from samout_train.ops import use_kernels, use_products
from samout_train.runtime import (
    Bar,
    PrecisionName,
    autocast,
    choose_precision,
    is_out_of_memory,
    read_figures,
    use_device,
    wait_for,
    write_figures,
)
from samout_train.training import source_from

TIMES = (1, 4, 16, 64)  # of the training length
MOST_ROUNDS = 5
LONGEST_PASS = 300.0  # seconds; a length at which a pass could take longer is not measured
SECONDS_A_CELL = 3.0  # for one model at one length: no further round begins after this time
NO_IGNORED = -100
FILE = "speed.json"


def measured_speeds(candidates: Sequence[Candidate], folder: Path) -> dict[str, dict[int, float]]:
    """Return tokens per second of the models of a comparison; measured once, and kept in its directory.

    A model that cannot be built, moved to the device or run is left out, and a line says why. The next start tries it
    again, as it does a run that failed.

    Args:
        candidates: The models; device, precision, kernels and data are those of the first one.
        folder: Directory of the comparison.
    """
    config = candidates[0].config
    settings = {key: config[key] for key in ("device", "precision", "kernels", "data")}
    of = {one.label: dict(one.config["model"]) for one in candidates} | {"settings": settings}
    if read_figures(folder / FILE).get("of") == json.loads(json.dumps(of)):
        return read_speeds(folder)
    device = use_device(config["device"], config.get("threads"))
    use_kernels(config["kernels"])
    source = source_from(config)
    models: dict[str, nn.Module] = {}
    failed: dict[str, str] = {}
    for one in candidates:
        try:
            models[one.label] = build(one.config["model"], vocab_size=source.vocab_size, pad_id=source.pad_id)
        except Exception as error:  # of a user's model, any
            failed[one.label] = _reason(error)
    precision, seq_len = choose_precision(config["precision"], device), source.train.seq_len
    batch_size = config["data"]["batch_size"]
    for model in [*models.values()][:1]:
        product = product_of(model, batch_size * seq_len)
        use_products(choose_products(product, device=device, precision=precision, decodes=False))  # as the runs did
    with Bar(desc="speed by length", total=len(TIMES) * len(candidates), leave=False) as bar:
        found = tokens_per_second(
            models,
            vocab_size=source.vocab_size,
            seq_len=seq_len,
            batch_size=batch_size,
            device=device,
            precision=precision,
            after_each=bar.update,
            failed=failed,
        )
    for label, reason in failed.items():
        print(f"speed      of {label} is not measured: {reason}")
        del of[label]
    with in_turn(folder):
        write_figures(folder / FILE, {"of": of, "tokens_per_second": found})
    return found


def read_speeds(folder: Path) -> dict[str, dict[int, float]]:
    """Return the speeds that were measured for a comparison; empty if there are none."""
    speeds: dict[str, dict[int, float]] = {}
    try:
        for label, by_length in read_figures(folder / FILE)["tokens_per_second"].items():
            speeds[label] = {int(length): float(speed) for length, speed in by_length.items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}
    return speeds


def tokens_per_second(
    models: Mapping[str, nn.Module],
    *,
    vocab_size: int,
    seq_len: int,
    batch_size: int,
    device: torch.device,
    precision: PrecisionName,
    after_each: Callable[[], None] = lambda: None,
    failed: dict[str, str] | None = None,
) -> dict[str, dict[int, float]]:
    """Return tokens per second of a forward and a backward pass by label and length, over equally many tokens.

    Args:
        models: The models by label. A model whose positions see later tokens is left out.
        vocab_size: Number of token ids.
        seq_len: The training length; the others are multiples of it.
        batch_size: Rows of a step at that length. A pass has as many tokens as a step, or as the longest row.
        device: Where to measure.
        precision: Precision of the passes.
        after_each: Called after each length of each model.
        failed: Gets the reason, by label, why a model cannot be moved or run.

    Returns:
        The speeds, without lengths for which a model or the memory has no room or whose passes could take too long, as
        if their time grew with the square of the length; and without models that failed.
    """
    failed = {} if failed is None else failed
    measured: dict[str, nn.Module] = {}
    for label, model in models.items():
        try:
            if not sees_future(model):
                measured[label] = model.to(device).train()
        except Exception as error:  # of a user's model, any
            failed[label] = _reason(error)
    found: dict[str, dict[int, float]] = {label: {} for label in measured}
    lengths = [times * seq_len for times in TIMES]
    num_tokens = max(seq_len * batch_size, lengths[-1])
    last: dict[str, tuple[int, float]] = {}  # the longest measured length of each model, and the seconds of its pass
    for length in lengths:
        ids_RT = torch.randint(vocab_size, (num_tokens // length, length + 1)).to(device)
        passes = {}
        for label, model in measured.items():
            shorter, seconds_then = last.get(label, (length, 0.0))
            is_short = seconds_then * length / shorter <= LONGEST_PASS  # of equally many tokens
            if label not in failed and _has_room(model, length) and is_short:
                passes[label] = _pass(model, ids_RT, device, precision)
        for label, seconds in _in_turns(passes, failed).items():
            if seconds:
                last[label] = (length, statistics.median(seconds))
                found[label][length] = (ids_RT.numel() - len(ids_RT)) / last[label][1]
            after_each()
    return {label: by_length for label, by_length in found.items() if label not in failed}


def _in_turns(passes: Mapping[str, Callable[[], None]], failed: dict[str, str]) -> dict[str, list[float]]:
    """Return the seconds of each pass by round, by label; empty for a pass that does not fit into memory or fails.

    A first round compiles and warms up, and is not measured.
    """
    seconds: dict[str, list[float]] = {label: [] for label in passes}
    running = dict(passes)
    for number in range(1 + MOST_ROUNDS):
        for label, run in [*running.items()]:
            if sum(seconds[label]) >= SECONDS_A_CELL:
                continue
            start = time.perf_counter()
            try:
                run()
            except Exception as error:  # of a user's model, any
                if not is_out_of_memory(error):
                    failed[label] = _reason(error)
                del running[label]
                continue
            if number:
                seconds[label].append(time.perf_counter() - start)
    return seconds


def _reason(error: Exception) -> str:
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(": ")


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
