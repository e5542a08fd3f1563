"""Compare the fused mixers with the published formulation, each from its packed projections and in equal precision.

    python scripts/bench_scan.py [--device cpu] [--out docs/img/scan.png] [--rounds 7]

Checks that both have the same result forward, then times them in one process. Both take turns in blocks of a few
calls, so that each finds its own data in the caches; the first call of a block is not counted. The share of the
machine's bandwidth is the rate of unavoidable bytes (each stream read once, each result written once), divided by the
rate of a copy of 128 MB (on CUDA 1 GB) measured in the same run; small shapes in a cache can exceed 100 %. Prints a
table, draws it, and writes the figures as JSON next to the picture.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from samout_train.evaluation import LOOKS
from samout_train.ops import num_streams, use_kernels
from samout_train.ops.max_scan import Form, max_mix
from samout_train.runtime import keep_freed_memory

CALLS_A_TURN = 4
COPIED_BYTES = {"cpu": 2**27, "cuda": 2**30}
# Of the norm: the published formulation rounds to bfloat16 after each operation, the fused one only at the end.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """A shape, the mixer to compute on it, and the number of threads."""

    batch: int
    time: int
    width: int
    form: Form
    dtype: torch.dtype
    threads: int = 0

    @property
    def name(self) -> str:
        """Return the name in the table and the picture."""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]
        return f"{self.form} {precision} {self.batch} x {self.time:,} x {self.width}{threads}"


def cases(device: torch.device) -> list[Case]:
    """Return the cases to measure on this device."""
    if device.type == "cuda":
        return [
            Case(32, 1024, 768, "v8", torch.bfloat16),
            Case(32, 1024, 768, "v1", torch.bfloat16),
            Case(32, 1024, 768, "v8", torch.float32),
            Case(1, 1_000_000, 768, "v8", torch.bfloat16),
        ]
    small = [
        Case(16, 256, 384, form, dtype, threads)
        for threads in (1, 2)
        for form in ("v8", "v1")
        for dtype in (torch.float32, torch.bfloat16)
    ]
    long = [(128, 256), (2, 16_384), (1, 16_384)]
    return small + [Case(*shape, 384, "v8", dtype, 2) for dtype in (torch.float32, torch.bfloat16) for shape in long]


def published(form: Form, projections: Tensor) -> Tensor:
    """Compute the published formulas in torch's own operations, without reshaping to heads."""
    if form == "v8":
        a, b, c, d = projections.chunk(4, dim=-1)
        m = torch.cummax(d, dim=1).values
        return ((a + b) * m + c) * m
    a, b, c = projections.chunk(3, dim=-1)
    m = torch.cummax((a + b) / 8.0, dim=1).values  # sqrt(K) of heads of 64
    return (m + c) * m + b


def packed_of(form: Form, projections: Tensor) -> Tensor:
    """Return the input of the fused mixer, with a + b summed, because its projection sums the matrices instead."""
    if form == "v8":
        a, b, c, d = projections.chunk(4, dim=-1)
        return torch.cat([a + b, c, d], dim=-1)
    a, b, c = projections.chunk(3, dim=-1)
    return torch.cat([b, c, (a + b) / 8.0], dim=-1)


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, float]:
    """Return milliseconds, shares and ratios of both formulations, after a check that they agree."""
    if case.threads:
        torch.set_num_threads(case.threads)
    generator = torch.Generator(device).manual_seed(0)
    width = (4 if case.form == "v8" else 3) * case.width
    shape = (case.batch, case.time, width)
    projections = torch.randn(shape, generator=generator, device=device).to(case.dtype).requires_grad_()
    packed = packed_of(case.form, projections).detach().requires_grad_()
    grad_y = torch.randn(*shape[:2], case.width, generator=generator, device=device).to(case.dtype)
    want, got = published(case.form, projections), max_mix(packed, form=case.form)[0]
    error = float((got.double() - want.double()).norm().detach() / want.double().norm().detach())
    assert error <= TOLERANCE[case.dtype], f"{case.name}: the two differ by {error:.1e}"

    def published_both() -> None:
        torch.autograd.grad(published(case.form, projections), projections, grad_y)

    def fused_both() -> None:
        torch.autograd.grad(max_mix(packed, form=case.form)[0], packed, grad_y)

    source = torch.ones(COPIED_BYTES[device.type] // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleaved(
        {
            "published forward": torch.no_grad()(lambda: published(case.form, projections)),
            "fused forward": torch.no_grad()(lambda: max_mix(packed, form=case.form)),
            "published both": published_both,
            "fused both": fused_both,
            "copy": lambda: target.copy_(source),
        },
        device,
        rounds,
    )
    bytes_an_element = packed.element_size() * (num_streams(case.form) + 1)
    elements = grad_y.numel()
    bandwidth = COPIED_BYTES[device.type] / times["copy"]
    backward = times["fused both"] - times["fused forward"]
    return times | {
        "forward share": bytes_an_element * elements / times["fused forward"] / bandwidth,
        "backward share": (2 * bytes_an_element - packed.element_size()) * elements / backward / bandwidth,
        "forward ratio": times["published forward"] / times["fused forward"],
        "both ratio": times["published both"] / times["fused both"],
        "nanoseconds an element": 1e6 * times["fused both"] / elements,
    }


def interleaved(functions: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each function; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            function()
            for _ in range(CALLS_A_TURN if turn else 1):
                started = _now(device)
                function()
                times[name].append(1000 * (_now(device) - started))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def draw(results: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Draw ratios as bars, with a dashed line at 1."""
    figure = Figure(figsize=(9, 0.45 * len(results) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    colours = [LOOKS[name.split()[0]].color for name in results]
    for offset, key in enumerate(("forward ratio", "both ratio")):
        values = [result[key] for result in results.values()]
        rows = [place + 0.4 * offset for place in places]
        bars = axes.barh(rows, values, height=0.38, color=colours, alpha=1 - 0.55 * offset)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks([place + 0.2 for place in places], list(results))
    axes.invert_yaxis()
    axes.axvline(1, color="black", linestyle="--", linewidth=0.8)
    x = "times as fast as the published formulation\ndark: forward pass; pale: forward and backward pass"
    axes.set(xscale="log", xlabel=x, title=title)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints, draws, writes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--out", type=Path, default=Path("docs/img/scan.png"))
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    device = torch.device(given.device)
    use_kernels("fused")
    keep_freed_memory()
    results = {}
    for case in tqdm(cases(device), desc="cases"):
        results[case.name] = measure(case, device, given.rounds)
    columns = ("forward", "", "times", "share", "both", "", "times", "share")
    print(f"{'milliseconds: published, fused':38}" + "".join(f"{column:>9}" for column in columns))
    for name, result in results.items():
        print(
            f"{name:38}"
            f"{result['published forward']:9.3f}{result['fused forward']:9.3f}{result['forward ratio']:9.1f}"
            f"{result['forward share']:9.0%}{result['published both']:9.3f}{result['fused both']:9.3f}"
            f"{result['both ratio']:9.1f}{result['backward share']:9.0%}"
        )
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    draw(results, f"running-maximum mixers, {hardware}, torch {torch.__version__}", given.out)
    content = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware, "versions": versions, "results": results}
    content["cases"] = [{key: str(value) for key, value in asdict(case).items()} for case in cases(device)]
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{hardware}, {versions}; drawn to {given.out}, figures in {given.out.with_suffix('.json')}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
