"""Compare the project's training step with the published program, and V8 with a Transformer of equal size, by length.

    python scripts/bench_train.py [--device cpu] [--out docs/img/train.png] [--rounds 3] [--vocabulary]

Medians of interleaved steps in one process. The published program is an eager float32 loop over the published
formulation of V8, written here in torch's operations, including its heads. Both begin with the same weights and
batches, and their losses after ten steps are printed. "Products" is the share of a step that the model's matrix
products (6 operations for each weight and token) would take at the rate of one product of the same precision, measured
in the same run. With a large vocabulary, the loss in pieces is compared with the loss of all logits; on a CPU with D
256, 4 layers and 4,096 tokens. Prints tables, draws them, and writes the figures as JSON next to the picture. With
--vocabulary, it measures and prints only the large vocabulary.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from samout_train import build_trainer
from samout_train.evaluation import LOOKS
from samout_train.models import SamOut, loss as losses, num_parameters
from samout_train.training import Trainer

PUBLISHED = ["experiment=published_v8"]
LENGTHS = {"cpu": (256, 512, 1024, 4096, 16_384), "cuda": (1024, 4096, 32_768, 131_072)}
TOKENS_A_STEP = {"cpu": 16_384, "cuda": 131_072}
# Equal parameters, to 1 %: a SamOut layer has 7 D^2, a Transformer layer 4 D^2 + 2 D F.
SIZES = {
    "cpu": ["model.hidden_size=256", "model.num_heads=4", "model.num_layers=2", "data.vocab_size=256"],
    "cuda": ["model.hidden_size=768", "model.num_heads=12", "model.num_layers=12", "data.vocab_size=50304"],
}
PRECISIONS = {"cpu": "precision=fp32", "cuda": "precision=bf16"}
MODELS = {
    "v8": ["model=v8", "model.dropout=0"],
    "transformer": ["model=transformer", "model.max_seq_len=1048576"],
}
MEMORY = """
import sys
from samout_train import build_trainer
from samout_train.models import loss as losses
from samout_train.runtime import peak_memory_bytes, reset_peak_memory
if sys.argv[1] == "all logits":
    losses.MOST_LOGITS = float("inf")
if sys.argv[1] == "published":
    from bench_train import PUBLISHED, published_loop
    trainer = build_trainer(PUBLISHED)
    step = published_loop(trainer)
else:
    trainer = build_trainer(sys.argv[2:])
    step = trainer.step
reset_peak_memory(trainer.device)
for _ in range(2):
    step()
print(peak_memory_bytes(trainer.device))
"""


class PublishedLayer(nn.Module):
    """A layer of V8 as published: one combined projection, heads, cummax, and torch's operations one by one."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(size, 4 * size, bias=False)
        self.up, self.gate, self.down = (nn.Linear(size, size) for _ in range(3))
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(size)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        batch, time_steps, size = x_BTD.shape
        streams = self.projection(x_BTD).chunk(4, dim=-1)
        a, b, c, d = (s.reshape(batch, time_steps, self.heads, -1).permute(0, 2, 1, 3) for s in streams)
        m = torch.cummax(d, dim=2).values
        u = (((a + b) * m + c) * m).permute(0, 2, 1, 3).reshape(batch, time_steps, size)
        f = self.dropout(self.down(self.up(u) * torch.relu(self.gate(u))))
        return self.norm(self.alpha * f + (1 - self.alpha) * x_BTD) + x_BTD


class PublishedV8(nn.Module):
    """The published V8 with the weights of a model of this project."""

    def __init__(self, model: SamOut, heads: int, dropout: float) -> None:
        super().__init__()
        vocab_size, size = model.embedding.weight.shape
        self.embedding = nn.Embedding(vocab_size, size, padding_idx=3)
        self.layers = nn.ModuleList(PublishedLayer(size, heads, dropout) for _ in model.layers)
        self.head = nn.Linear(size, vocab_size, bias=False)
        names = {
            name.replace("mixer.", "").replace("feed_forward.", ""): weight
            for name, weight in model.state_dict().items()
        }
        self.load_state_dict(names)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return logits (B, T, V)."""
        x_BTD = self.embedding(ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        logits_BTV: Tensor = self.head(x_BTD)
        return logits_BTV


def published_loop(trainer: Trainer) -> Callable[[], Tensor]:
    """Return a step of the published program: Adam, an eager model, and the batches of the trainer."""
    assert isinstance(trainer.model, SamOut)
    model = PublishedV8(trainer.model, heads=6, dropout=0.01).to(trainer.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches, steps = trainer.training_step.batches, 0

    def step() -> Tensor:
        nonlocal steps
        ids_RT = batches.get(steps).ids_RT
        steps += 1
        logits = model(ids_RT[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids_RT[:, 1:].flatten(), ignore_index=3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def interleaved(steps: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each step; the first call of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            started = _now(device)
            step()
            if turn:
                times[name].append(_now(device) - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return operations per second of 4,096 rows times a square matrix, with the library that torch chooses."""
    size = 1024 if device.type == "cpu" else 8192
    x, weight = (torch.randn(n, size, device=device, dtype=dtype) for n in (4096, size))
    seconds = interleaved({"product": lambda: F.linear(x, weight)}, 9, device)["product"]
    return 2 * 4096 * size * size / seconds


def against_the_published(device: torch.device) -> dict[str, dict[str, float]]:
    """Return seconds per step, tokens per second, share of products, peak bytes, and the loss after ten steps."""
    place = [f"device={device}"]
    trainers = {
        "project, fp32": build_trainer([*PUBLISHED, *place]),
        "project, bf16": build_trainer([*PUBLISHED, *place, "precision=bf16"]),
    }
    steps: dict[str, Callable[[], Tensor]] = {
        "published, fp32": published_loop(build_trainer([*PUBLISHED, *place])),
        **{name: trainer.step for name, trainer in trainers.items()},
    }
    losses: dict[str, list[Tensor]] = {name: [] for name in steps}

    def stepping(name: str) -> None:
        torch.manual_seed(len(losses[name]))  # the same dropout seed in each program
        losses[name].append(steps[name]())

    seconds = interleaved({name: partial(stepping, name) for name in steps}, 9, device)
    trainer = trainers["project, fp32"]
    tokens = 100 * 49
    operations = 3 * trainer.model.forward_flops_per_token(49) * tokens
    rates = {name: matmul_rate(dtype, device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    results = {}
    for name in tqdm(steps, desc="memory"):
        results[name] = {
            "seconds": seconds[name],
            "tokens a second": tokens / seconds[name],
            "times": seconds["published, fp32"] / seconds[name],
            "share of products": operations / seconds[name] / rates[name[-4:]],
            "peak bytes": peak_bytes(name.split(",")[0], [*PUBLISHED, *place, f"precision={name[-4:]}"]),
            "loss": float(losses[name][9]),
        }
    return results


def peak_bytes(program: str, overrides: list[str]) -> float:
    """Return the peak memory of two steps, run in a separate process."""
    words = [sys.executable, "-c", MEMORY, program, *overrides]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    return float(done.stdout)


def large_vocabulary(device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds per step and peak bytes with 50,304 ids: with all logits at once, and in pieces."""
    rows, layers = {"cpu": (4, 4), "cuda": (16, 12)}[device.type]
    data = ["data=random", f"data.num_sequences={rows}", f"data.batch_size={rows}", "data.seq_len=1024"]
    sizes = [*SIZES[device.type][:2], f"model.num_layers={layers}", "data.vocab_size=50304"]
    sizes += [PRECISIONS[device.type], f"device={device}"]
    overrides = [*MODELS["v8"], *data, *sizes]
    trainer, most_logits = build_trainer(overrides), losses.MOST_LOGITS

    def step(most_logits: float) -> None:
        losses.MOST_LOGITS = most_logits  # type: ignore[assignment]
        trainer.step()

    ways = {"all logits": partial(step, float("inf")), "in pieces": partial(step, most_logits)}
    seconds = interleaved(ways, rounds, device)
    losses.MOST_LOGITS = most_logits
    return {name: {"seconds": value, "peak bytes": peak_bytes(name, overrides)} for name, value in seconds.items()}


def by_length(device: torch.device, rounds: int) -> dict[str, dict[int, float]]:
    """Return tokens per second of V8 and a Transformer of equal size by row length, at equal tokens per step."""
    total, sizes = TOKENS_A_STEP[device.type], SIZES[device.type]
    width = int(sizes[0].split("=")[1])
    results: dict[str, dict[int, float]] = {name: {} for name in MODELS}
    for length in tqdm(LENGTHS[device.type], desc="lengths"):
        rows = max(1, total // length)
        data = [f"data.seq_len={length}", f"data.num_sequences={rows}", f"data.batch_size={rows}"]
        trainers = {
            name: build_trainer(
                [*model, *sizes, "data=random", *data, PRECISIONS[device.type], f"device={device}"]
                + ([f"model.ffn_size={3 * width // 2}"] if name == "transformer" else [])
            )
            for name, model in MODELS.items()
        }
        counts = {name: num_parameters(trainer.model) for name, trainer in trainers.items()}
        assert abs(counts["v8"] / counts["transformer"] - 1) < 0.01, counts
        seconds = interleaved({name: trainer.step for name, trainer in trainers.items()}, rounds, device)
        for name, value in seconds.items():
            results[name][length] = rows * length / value
    return results


def print_vocabulary(vocabulary: dict[str, dict[str, float]]) -> None:
    """Print a line for each way to compute the loss, and the speed-up by pieces."""
    print("50,304 ids               ms   peak MB")
    for name, step in vocabulary.items():
        print(f"{name:18} {1000 * step['seconds']:8.0f} {step['peak bytes'] / 1e6:9,.0f}")
    times = vocabulary["all logits"]["seconds"] / vocabulary["in pieces"]["seconds"]
    print(f"in pieces: {times:.2f} times as fast as all logits at once")


def draw(steps: dict[str, dict[str, float]], speeds: dict[str, dict[int, float]], title: str, path: Path) -> None:
    """Draw milliseconds per step as bars, and tokens per second by length as lines."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = ["lightgrey", LOOKS["v8"].color, LOOKS["v8"].color]
    bars = left.bar(list(steps), [1000 * step["seconds"] for step in steps.values()], color=colours)
    left.bar_label(bars, [f"{step['times']:.2f} x" for step in steps.values()])
    left.margins(y=0.1)
    left.set(ylabel="milliseconds per step", title="published V8, 100 x 49 tokens")
    for name, speed in speeds.items():
        right.plot(list(speed), list(speed.values()), label=name, **LOOKS[name]._asdict())
    right.set(
        xscale="log",
        xlabel="sequence length, tokens",
        ylabel="tokens per second",
        ylim=(0, None),
        title="equal parameters",
    )
    right.xaxis.set_major_formatter("{x:,.0f}")
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.grid(alpha=0.3)
    right.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints, draws, writes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--out", type=Path, default=Path("docs/img/train.png"))
    arguments.add_argument("--rounds", type=int, default=3, help="of the large vocabulary and of each length")
    arguments.add_argument("--vocabulary", action="store_true", help="measure the large vocabulary alone")
    given = arguments.parse_args()
    device = torch.device(given.device)
    if given.vocabulary:
        print_vocabulary(large_vocabulary(device, given.rounds))
        return
    steps = against_the_published(device)
    vocabulary = large_vocabulary(device, given.rounds)
    speeds = by_length(device, given.rounds)
    print(f"{'a step of 4,900 tokens':18}       ms   times  tokens/s  products  peak MB  loss after ten")
    for name, step in steps.items():
        print(
            f"{name:18} {1000 * step['seconds']:12.0f} {step['times']:7.2f} {step['tokens a second']:9,.0f} "
            f"{step['share of products']:9.0%} {step['peak bytes'] / 1e6:8,.0f} {step['loss']:15.4f}"
        )
    print_vocabulary(vocabulary)
    print("tokens a second by length  " + "".join(f"{length:>10,}" for length in speeds["v8"]))
    for name, speed in speeds.items():
        print(f"{name:27}" + "".join(f"{value:10,.0f}" for value in speed.values()))
    ratios = [speeds["v8"][length] / speeds["transformer"][length] for length in speeds["v8"]]
    print(f"{'v8 over transformer':27}" + "".join(f"{ratio:10.2f}" for ratio in ratios))
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    draw(steps, speeds, f"training, {hardware}, torch {torch.__version__}", given.out)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    content = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware, "versions": versions}
    text = json.dumps(content | {"steps": steps, "50,304 ids": vocabulary, "tokens a second": speeds}, indent=1) + "\n"
    given.out.with_suffix(".json").write_text(text, encoding="utf-8")
    print(f"{hardware}, {versions}; drawn to {given.out}, figures in {given.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
