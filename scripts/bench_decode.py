"""Decode with V8 and a Transformer of equal size: time per token by place, and compared with running the prefix again.

    python scripts/bench_decode.py [--device cpu] [--out docs/img/decode.png]

Medians from one process in which the two models take turns. Prints tables, draws them, and writes the figures as JSON
next to the picture.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from samout_train import build_model
from samout_train.evaluation import LOOKS, Decoder
from samout_train.models import num_parameters
from samout_train.ops import use_kernels
from samout_train.runtime import keep_freed_memory

PLACES = (100, 250, 500, 1000, 2000, 4000, 8000, 16000)
TOKENS_A_PLACE = 24
PREFIX_TOKENS = 1000
BATCHES, PLACE_OF_BATCHES = (1, 4, 16, 64), 256
VOCAB_SIZE = 128


def models(device: torch.device) -> dict[str, nn.Module]:
    """Return V8 at its published size and a Transformer with as many parameters, to 2 %."""
    v8 = build_model("v8", vocab_size=VOCAB_SIZE, hidden_size=384, num_layers=6)
    transformer = build_model(
        "transformer",
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        num_heads=6,
        num_layers=6,
        ffn_size=575,
        max_seq_len=16384,
    )
    return {"v8": v8.to(device).eval(), "transformer": transformer.to(device).eval()}


@torch.inference_mode()
def by_place(model_of: dict[str, nn.Module], device: torch.device) -> dict[str, dict[int, float]]:
    """Return the seconds per token at each place, from a state carried to that place."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCAB_SIZE, (1, PLACES[-1] + TOKENS_A_PLACE), generator=generator).to(device)
    state: dict[str, Any] = dict.fromkeys(model_of)
    done, seconds = 0, {name: {} for name in model_of}
    for place in tqdm(PLACES, desc="places"):
        for start in range(done, place, 500):
            for name, model in model_of.items():
                _, state[name] = model(ids[:, start : min(start + 500, place)], state[name])
        decoders = {name: Decoder(model, state[name]) for name, model in model_of.items()}
        for name, value in interleaved(decoders, ids[:, place : place + TOKENS_A_PLACE], device).items():
            seconds[name][place] = value
        done = place
    return seconds


@torch.inference_mode()
def by_batch(model_of: dict[str, nn.Module], device: torch.device) -> dict[str, dict[int, float]]:
    """Return tokens per second over all sequences, by their number, after 256 tokens of each."""
    speeds: dict[str, dict[int, float]] = {name: {} for name in model_of}
    for batch in tqdm(BATCHES, desc="batches"):
        ids = torch.randint(4, VOCAB_SIZE, (batch, PLACE_OF_BATCHES + 1 + TOKENS_A_PLACE)).to(device)
        decoders = {name: Decoder(model, model(ids[:, :PLACE_OF_BATCHES])[1]) for name, model in model_of.items()}
        for name, value in interleaved(decoders, ids[:, PLACE_OF_BATCHES:], device).items():
            speeds[name][batch] = batch / value
    return speeds


def interleaved(steps: dict[str, Callable[[Tensor], object]], ids_BT: Tensor, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each model for a token of each sequence; the first token is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for ids_B1 in ids_BT.split(1, dim=1):
        for name, step in steps.items():
            started = _now(device)
            step(ids_B1)
            times[name].append(_now(device) - started)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@torch.inference_mode()
def against_eager(model: nn.Module, device: torch.device) -> float:
    """Return the speed-up per token over torch's own operations, each launched separately."""
    ids = torch.randint(4, VOCAB_SIZE, (1, PREFIX_TOKENS)).to(device)
    state = model(ids[:, :100])[1]

    def eager(ids_B1: Tensor) -> None:
        nonlocal state
        use_kernels("reference")
        state = model(ids_B1, state)[1]
        use_kernels("auto")

    seconds = interleaved({"eager": eager, "decoder": Decoder(model, state)}, ids[:, 100:300], device)
    return seconds["eager"] / seconds["decoder"]


@torch.inference_mode()
def against_the_prefix(model: nn.Module, device: torch.device) -> tuple[float, float]:
    """Return seconds for 1,000 tokens with a carried state, and with the prefix run again for each (every 20th is)."""
    ids = torch.randint(4, VOCAB_SIZE, (1, PREFIX_TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    model(ids[:, :50])
    started = _now(device)
    decoder = Decoder(model, model(ids[:, :1])[1])
    for ids_B1 in ids[:, 1:].split(1, dim=1):
        decoder(ids_B1)
    carried = _now(device) - started
    started = _now(device)
    for t in range(9, PREFIX_TOKENS, 20):
        model(ids[:, : t + 1])
    return carried, 20 * (_now(device) - started)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def draw(seconds: dict[str, dict[int, float]], speeds: dict[str, dict[int, float]], title: str, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in seconds.items():
        left.plot(
            list(values),
            [1000 * value for value in values.values()],
            color=LOOKS[name].color,
            marker=LOOKS[name].marker,
            label=name,
        )
    left.set(xlabel="position, tokens", ylabel="milliseconds per token", xscale="log", ylim=(0, None))
    for name, values in speeds.items():
        right.plot(list(values), list(values.values()), label=name, **LOOKS[name]._asdict())
    right.set(xlabel="sequences at once", ylabel="tokens per second, all together", xscale="log", yscale="log")
    right.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    right.set_yticks([200, 500, 1000, 2000, 4000])
    right.minorticks_off()
    right.yaxis.set_major_formatter("{x:,.0f}")
    left.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints, draws."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--out", type=Path, default=Path("docs/img/decode.png"))
    given = arguments.parse_args()
    device = torch.device(given.device)
    keep_freed_memory()
    model_of = models(device)
    for name, model in model_of.items():
        print(f"{name}: {num_parameters(model):,} parameters")
    seconds = by_place(model_of, device)
    print("token   " + "".join(f"{name:>14}" for name in model_of))
    for place in PLACES:
        print(f"{place:6}  " + "".join(f"{1000 * seconds[name][place]:11.3f} ms" for name in model_of))
    print(f"v8: token 16,000 takes {seconds['v8'][16000] / seconds['v8'][100]:.3f} of the time of token 100")
    faster = [place for place in PLACES if seconds["v8"][place] < seconds["transformer"][place]]
    print(f"v8 is the faster one from token {faster[0] if faster else 'none'} of those measured")
    again_of = {}
    for name, model in model_of.items():
        carried, again = against_the_prefix(model, device)
        print(
            f"{name}: 1,000 tokens in {carried:.2f} s carried, {again:.1f} s with the prefix each time: "
            f"{again / carried:.0f} times as fast"
        )
        again_of[name] = again / carried
    eager = against_eager(model_of["v8"], device)
    print(f"v8: a token {eager:.1f} times as fast as in torch's own operations one by one")
    speeds = by_batch(model_of, device)
    print("sequences at once, tokens a second:" + "".join(f"{batch:9}" for batch in BATCHES))
    for name, speed in speeds.items():
        print(f"{name:35}" + "".join(f"{value:9,.0f}" for value in speed.values()))
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    draw(seconds, speeds, f"decoding, 6.3 M parameters, {hardware}, torch {torch.__version__}", given.out)
    content = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware, "torch": torch.__version__}
    content |= {"seconds a token by place": seconds, "tokens a second by batch": speeds, "over the prefix": again_of}
    content |= {"v8 over torch's operations": eager}
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"drawn to {given.out}, figures in {given.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
