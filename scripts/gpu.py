"""Everything to check on a GPU, in thirty minutes: correctness first, then speed, each part with a time limit.

    make gpu        or: python scripts/gpu.py [--out outputs/gpu] [--again] [--small] [PART ...]

Parts, the most important first: tests, steps, large, kernels, decode, resume, shakespeare, transformer, profile. Each
is a separate process. Its figures are written to OUT/result.json and OUT/result.md when it ends, so an interrupted call
loses at most one part. The next call runs the parts that are missing or failed. Kernels are timed by events on the
device around replays of a graph. Steps are timed by the host, in blocks, waiting once at the end of a block. --small is
for a machine without a GPU: small sizes, and the host's clock everywhere.
"""

import argparse
import gc
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_train import MODELS, PUBLISHED, SIZES, matmul_rate, published_loop
from torch import Tensor, nn

from samout_train import build_trainer
from samout_train.ops import nats_and_errors
from samout_train.ops.block_scan import block_mix
from samout_train.ops.causal_convolution import convolved
from samout_train.ops.elementwise import add_norm, minus_softplus, residual, turned_heads
from samout_train.ops.max_scan import max_mix
from samout_train.ops.samout_layer import blended, gated, gated_halves
from samout_train.ops.semiring_scan import linear_scan
from samout_train.runtime import peak_memory_bytes, reset_peak_memory, wait_for
from samout_train.training import Trainer

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMITS = {  # seconds
    "tests": 300,
    "steps": 180,
    "large": 420,
    "kernels": 240,
    "decode": 180,
    "resume": 240,
    "shakespeare": 210,
    "transformer": 210,
    "profile": 120,
}
SMALL = ["model.hidden_size=32", "model.num_heads=2", "model.num_layers=2", "data.vocab_size=64", "data.seq_len=16"]
Figures = dict[str, Any]


def block_ms(steps: dict[str, Callable[[], object]], *, rounds: int, calls: int) -> dict[str, float]:
    """Return the median milliseconds of each step. Blocks of steps take turns; the host waits at the end of a block."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            wait_for(DEVICE)
            started = time.perf_counter()
            for _ in range(calls):
                step()
            wait_for(DEVICE)
            if turn:  # the first block compiles, captures and warms up
                times[name].append(1000 * (time.perf_counter() - started) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def device_us(calls: Sequence[Callable[[], object]], *, repeats: int = 20, replays: int = 10) -> float:
    """Return the microseconds of a call, timed by device events around a graph of many calls on different memory."""
    if DEVICE.type != "cuda":
        return 1000 * block_ms({"call": calls[0]}, rounds=1, calls=1)["call"]
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for call in (*calls, *calls):
            call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=beside):
        for number in range(repeats):
            calls[number % len(calls)]()
    times = []
    for _ in range(replays + 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(1000 * start.elapsed_time(stop) / repeats)
    return statistics.median(times[1:])


def steps(small: bool) -> Figures:
    """Measure a step of the published V8: by its own program, and by ours without a graph, as a graph, and compiled."""
    extra = [f"device={DEVICE}", *(["data.batch_size=4", *SMALL[:3]] if small else [])]
    made = partial(_trainer, [*PUBLISHED, *extra])
    ways: dict[str, Callable[[], object]] = {} if small else {"published program, fp32": published_loop(made())}
    graphs: dict[str, Trainer] = {}
    for precision in ("fp32",) if small else ("fp32", "bf16"):
        ways[f"{precision}, launched one by one"] = made(f"precision={precision}", "trainer.cuda_graph=false").step
        if not small:
            graphs[precision] = made(f"precision={precision}", "trainer.cuda_graph=true")
            ways[f"{precision}, as a graph"] = graphs[precision].step
    if not small:
        ways["bf16, compiled"] = made("precision=bf16", "trainer.compile=true").step
    times = block_ms(ways, rounds=1 if small else 9, calls=1 if small else 10)
    captured = {f"{name}: captured": _is_captured(trainer) for name, trainer in graphs.items()}
    return {f"{name}, ms": ms for name, ms in times.items()} | captured


def _is_captured(trainer: Trainer) -> bool:
    graph = trainer.training_step.graph
    return graph is not None and graph.count > 0 and not graph.failed


def _trainer(overrides: Sequence[str], *more: str) -> Trainer:
    return build_trainer([*overrides, *more])


def large(small: bool) -> Figures:
    """Measure 127 M parameters at 131,072 tokens a step in bf16: speed, share of the matmul rate, memory."""
    found: Figures = {"matmul rate, TFLOP/s": matmul_rate(torch.float32 if small else torch.bfloat16, DEVICE) / 1e12}
    tokens = 64 if small else 131_072
    for length in (16,) if small else (1024, 4096, 32_768, 131_072):
        for name, choice in {**MODELS, "maxplus": ["model=maxplus", "model.dropout=0"]}.items():
            for graph in ("false",) if small else ("false", "auto"):
                found |= _large(name, choice, length, tokens, graph, small)
    return found


def _large(name: str, choice: Sequence[str], length: int, tokens: int, graph: str, small: bool) -> Figures:
    sizes = SMALL[:4] if small else SIZES["cuda"]
    if name == "transformer":  # equal parameters, to 1 %
        width = int(sizes[0].partition("=")[2])
        choice = [*choice, f"model.ffn_size={3 * width // 2}"]
    rows = tokens // length
    data = ["data=random", f"data.seq_len={length}", f"data.num_sequences={rows}", f"data.batch_size={rows}"]
    precision = "precision=fp32" if small else "precision=bf16"
    gc.collect()  # a step and its graph refer to each other
    reset_peak_memory(DEVICE)
    trainer = build_trainer([*choice, *data, *sizes, precision, f"device={DEVICE}", f"trainer.cuda_graph={graph}"])
    ms = block_ms({name: trainer.step}, rounds=1 if small else 3, calls=1 if small else 4)[name]
    flops = 3 * trainer.model.forward_flops_per_token(length) * tokens  # type: ignore[operator]
    what = f"{name}, rows of {length}" + (", as a graph" if graph == "auto" else "")
    captured = {f"{what}: captured": _is_captured(trainer)} if graph == "auto" else {}
    return captured | {
        f"{what}: tokens/s": tokens / ms * 1000,
        f"{what}: TFLOP/s of the products": flops / ms / 1e9,
        f"{what}: peak GB": peak_memory_bytes(DEVICE) / 1e9,
    }


def kernels(small: bool) -> Figures:
    """Measure mixers, parts of layers and the loss on the device, compared with a copy of as many bytes."""
    found: Figures = {}
    shapes = [(2, 16, 32)] if small else [(32, 1024, 768), (1, 1_000_000, 768)]
    for B, T, D in shapes:
        dtype = torch.float32 if small else torch.bfloat16
        sets, repeats = (1, 4) if T > 10_000 or small else (3, 20)
        draw = partial(torch.randn, device=DEVICE, dtype=dtype)
        for form, streams in (("v8", 3), ("v1", 3)):
            packed = [draw(B, T, streams * D) for _ in range(sets)]
            upstream = draw(B, T, D)
            forward = [partial(_without_gradient, max_mix, p, form=form) for p in packed]
            both = [partial(_with_gradient, partial(max_mix, form=form), upstream, p) for p in packed]
            name = f"mixer {form}, {B} x {T} x {D}"
            found |= _shares(name, forward, both, (4, 7), packed[0].nbytes // 3, repeats)
        if T > 10_000:
            continue
        for temperature in (None, torch.full((), 0.7, device=DEVICE)):
            packed = [draw(B, T, 4 * D) for _ in range(sets)]
            mix = partial(block_mix, state_BNG=torch.randn(B, 2, D // 2, device=DEVICE), temperature=temperature)
            upstream = draw(B, T, D)
            forward = [partial(_without_gradient, mix, p) for p in packed]
            both = [partial(_with_gradient, mix, upstream, p) for p in packed]
            name = f"blocks of two, {'hard' if temperature is None else 'soft'}, {B} x {T} x {D}"
            found |= _shares(name, forward, both, (5, 9), packed[0].nbytes // 4, repeats)
        norm, alpha = nn.LayerNorm(D).to(DEVICE), torch.full((), 0.5, device=DEVICE)
        pairs = [(draw(B, T, D), draw(B, T, D)) for _ in range(sets)]
        gates = [partial(_without_gradient, gated, up, gate) for up, gate in pairs]
        blends = [partial(_without_gradient, blended, f, x.float(), alpha, norm, 0.0) for f, x in pairs]
        for part, (call, inputs, moved) in _parts_of_layers(B, T, D, draw).items():
            leaves = [inputs() for _ in range(sets)]
            if call(leaves[0])[0] is None:  # no kernel for this device
                continue
            upstream = torch.randn_like(call(leaves[0])[0])
            forward = [partial(_without_gradient, call, leaf) for leaf in leaves]
            both = [partial(_with_gradient, call, upstream, leaf) for leaf in leaves]
            found |= _shares(f"{part}, {B} x {T} x {D}", forward, both, moved, draw(B, T, D).nbytes, repeats)
        found[f"gate, {B} x {T} x {D}: forward us"] = device_us(gates, repeats=repeats)
        found[f"blend, {B} x {T} x {D}: forward us"] = device_us(blends, repeats=repeats)
    rows, vocabulary = (8, 64) if small else (8192, 50_304)
    logits = torch.randn(rows, vocabulary, device=DEVICE, dtype=torch.float32 if small else torch.bfloat16)
    targets, nats = torch.zeros(rows, dtype=torch.int64, device=DEVICE), torch.empty(rows, device=DEVICE)
    found["loss and its gradient in place: us"] = device_us([lambda: nats_and_errors(logits, targets, nats, -1)])
    found["copy of these logits: us"] = device_us([partial(torch.empty_like(logits).copy_, logits)])
    return found


def _parts_of_layers(B: int, T: int, D: int, draw: Callable[..., Tensor]) -> dict[str, Any]:
    """Return, by name, an operator, a function that draws its input, and the streams (B, T, D) that each pass moves.

    A float32 stream counts as two.
    """
    norm, weight_DK = nn.RMSNorm(D).to(DEVICE), torch.randn(D, 4, device=DEVICE)
    x_BTD = torch.randn(B, T, D, device=DEVICE)  # the residual stream is float32
    a_BTD, heads = torch.rand(B, T, D, device=DEVICE), (B, max(1, D // 64), T, min(64, D))
    q_norm, k_norm = nn.RMSNorm(heads[-1]).to(DEVICE), nn.RMSNorm(heads[-1]).to(DEVICE)

    def normed(branch_BTD: Tensor) -> tuple[Tensor]:
        return (add_norm(residual(x_BTD, branch_BTD), norm)[1],)

    def filtered(z_BTD: Tensor) -> tuple[Tensor | None]:
        return (convolved(z_BTD, None, weight_DK, None, silu=True, feeds_products=False),)

    def turned(k_BHTK: Tensor) -> tuple[Tensor] | tuple[None]:
        made = turned_heads(k_BHTK, k_BHTK, q_norm, k_norm)
        return (None,) if made is None else (made[1],)

    float32 = partial(torch.randn, B, T, D, device=DEVICE)
    return {
        "norm with residual": (normed, partial(draw, B, T, D), (6, 8)),
        "SwiGLU": (lambda p: (gated_halves(p, silu=True),), partial(draw, B, T, 2 * D), (3, 5)),
        "convolution": (filtered, partial(draw, B, T, D), (3, 5)),
        "rotary positions and their norms": (turned, partial(draw, *heads), (4, 6)),
        "decay": (lambda z: (minus_softplus(z),), partial(draw, B, T, D), (2, 3)),
        "linear scan": (partial(linear_scan, a_BTD), float32, (6, 10)),
    }


def _without_gradient(call: Callable[..., Any], *inputs: Any, **named: Any) -> None:
    with torch.no_grad():
        call(*inputs, **named)


def _with_gradient(call: Callable[..., Any], upstream: Tensor, packed: Tensor) -> None:
    leaf = packed.detach().requires_grad_()
    torch.autograd.grad(call(leaf)[0], leaf, upstream)


def _shares(
    name: str,
    forward: Sequence[Callable[[], object]],
    both: Sequence[Callable[[], object]],
    streams: tuple[int, int],
    stream_bytes: int,
    repeats: int,
) -> Figures:
    """Return times of both passes, and their speed as a share of the rate of a copy.

    Args:
        streams: Number of streams that the forward and the backward pass must read or write.
        stream_bytes: Bytes of a stream.
    """
    source = torch.empty(2 * stream_bytes, dtype=torch.uint8, device=DEVICE)
    copy = (
        device_us([partial(torch.empty_like(source).copy_, source)], repeats=repeats) / 4
    )  # a stream, read or written
    first = device_us(forward, repeats=repeats)
    second = device_us(both, repeats=repeats) - first
    return {
        f"{name}: forward us": first,
        f"{name}: backward us": second,
        f"{name}: forward share of a copy's rate": streams[0] * copy / first,
        f"{name}: backward share of a copy's rate": streams[1] * copy / second if second > 0 else None,
    }


def program(name: str, out: Path) -> list[str]:
    """Return the command for a part that another program measures."""
    run = [sys.executable, "-m", "samout_train"]
    on_device = f"device={DEVICE}"
    commands = {
        "tests": [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "tests"],
        "decode": [
            sys.executable,
            "scripts/bench_decode.py",
            "--device",
            str(DEVICE),
            "--out",
            str(out / "decode.png"),
        ],
        "resume": [*run, "prove_resume", "model=v8", "data=random", on_device, "steps=20", "kills=2"],
        "shakespeare": [*run, "experiment=maxplus_shakespeare_gpu", on_device, f"run_dir={out / 'shakespeare'}"],
        "transformer": [*run, "experiment=transformer_shakespeare_gpu", on_device, f"run_dir={out / 'transformer'}"],
        "profile": [
            *(*run, *MODELS["v8"], *SIZES["cuda"], "data=random", "data.seq_len=1024", "data.num_sequences=128"),
            *("data.batch_size=128", "trainer.max_steps=11", "trainer.profile=true", on_device, "precision=bf16"),
            *(f"run_dir={out / 'profile'}", "trainer.final_eval_batches=1", "trainer.eval_batches=1"),
        ],
    }
    return commands[name]


def measured(name: str, out: Path, small: bool) -> Figures:
    """Run a part in a separate process; return its figures, its seconds, and the error if it failed."""
    command = [sys.executable, __file__, "--out", str(out), "--measure", name, *(["--small"] if small else [])]
    if name not in MEASURED:
        command = program(name, out)
    started = time.monotonic()
    result: Figures = {"date": time.strftime("%Y-%m-%d %H:%M"), "figures": {}}
    log = out / f"{name}.log"
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, timeout=LIMITS[name]).returncode
        except subprocess.TimeoutExpired:
            result["error"] = f"stopped after {LIMITS[name]} s"
        else:
            if code:
                result["error"] = f"exit code {code}: see {log.name}"
    text = log.read_text("utf-8", errors="replace")
    if name in MEASURED and "error" not in result:
        result["figures"] = json.loads(text.splitlines()[-1])
    elif name not in MEASURED:
        result["figures"] = figures_of(name, text, out)
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def figures_of(name: str, text: str, out: Path) -> Figures:
    """Return the figures of a part that another program measured, from what it printed or wrote."""
    if name == "tests":
        return {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", text)}
    if name == "decode" and (out / "decode.json").exists():
        return {"decode": json.loads((out / "decode.json").read_text("utf-8"))}
    summary = out / name / "summary.json"
    if summary.exists():
        content = json.loads(summary.read_text("utf-8"))
        kept = (
            "best_val_loss_nats",
            "best_val_step",
            "val_loss_nats",
            "train_seconds",
            "tokens_per_second",
            "weights_sha256",
        )
        return {key: content[key] for key in kept if key in content}
    return {"last line": text.strip().splitlines()[-1][:200]} if text.strip() else {}


def machine() -> Figures:
    """Return a description of the machine and the software."""
    found: Figures = {"torch": torch.__version__, "python": platform.python_version(), "device": platform.processor()}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if DEVICE.type == "cuda":
        found["device"] = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        found["driver and clocks"] = done.stdout.strip()
    return found


def as_markdown(result: Figures) -> str:
    """Return a result as a table, a row for each figure."""
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value)
    lines = [f"Measured on {where}.", "", "| part | figure | value |", "|---|---|---|"]
    for name, part in result["parts"].items():
        for key, value in part["figures"].items():
            if isinstance(value, float):
                value = f"{value:.4g}"
            lines.append(f"| {name} | {key} | {value} |")
        if "error" in part:
            lines.append(f"| {name} | failed | {part['error']} |")
    return "\n".join(lines) + "\n"


MEASURED: dict[str, Callable[[bool], Figures]] = {"steps": steps, "large": large, "kernels": kernels}


def main() -> None:
    """Run the parts that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(LIMITS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--again", action="store_true", help="also parts that have figures")
    parser.add_argument("--small", action="store_true", help="small sizes, also without a GPU")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURED[arguments.measure](arguments.small)))
        return
    if unknown := set(arguments.parts) - set(LIMITS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}. Choose of {', '.join(LIMITS)}")
    if DEVICE.type != "cuda" and not arguments.small:
        parser.error("torch sees no CUDA device here. Rent one (docs/results/gpu.md), or try --small")
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "result.json"
    result: Figures = {"machine": machine(), "small": arguments.small, "parts": {}}
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        if (before["machine"], before["small"]) != (result["machine"], result["small"]):
            parser.error(f"{path} is of another machine or size: give another --out")
        result = before
    for name in arguments.parts or LIMITS:
        done = result["parts"].get(name)
        if done and "error" not in done and not arguments.again:
            print(f"{name:12} has figures of {done['date']}", flush=True)
            continue
        print(f"{name:12} at most {LIMITS[name]} s ...", flush=True)
        result["parts"][name] = part = measured(name, out, arguments.small)
        print(f"{'':12} {part.get('error', 'done')} after {part['seconds']} s", flush=True)
        path.write_text(json.dumps(result, indent=1), "utf-8")
        path.with_suffix(".md").write_text(as_markdown(result), "utf-8")


if __name__ == "__main__":
    main()
