"""Choose the library for matrix products by measurement: once per machine and shape, with the result in the cache.

Measurements vary with the load of the machine, and libraries differ in the last bits. The first cached measurement
therefore holds for all later runs, and a resumed run keeps the choice in its checkpoint.
"""

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.ops import Products, has_onednn, is_decided, is_fused, many_rows, only_torch, use_products
from samout_train.ops.linear import LEAST_PRODUCTS, LEAST_WEIGHTS, MOST_ROWS
from samout_train.runtime import cache_path, distributed, read_json

FIXED = "SAMOUT_TRAIN_PRODUCTS"  # environment variable that sets the choice without a measurement
MOST_FLOPS = 5e8  # of a measured product: a few milliseconds
PROMPT_TOKENS = 512  # tokens in a pass, assumed for a loaded model of unknown use
ROUNDS, MOST_SECONDS = 5, 0.3
FEW_CALLS = 20
CLEARLY_LESS = 0.85  # share of torch's time below which another library is chosen
WORTH_SAYING = 0.8
# Variables that change the speed of products.
OF_THE_LIBRARIES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
Shape = tuple[int, int, int]


def product_of(model: nn.Module, rows: int) -> Shape | None:
    """Return the rows, outputs and inputs of the product that dominates a pass; None for a model without matrices.

    The matrix shape with the most elements in total counts; embeddings do not.

    Args:
        rows: Tokens in a pass.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    elements: Counter[tuple[int, int]] = Counter()
    for parameter in model.parameters():
        if parameter.ndim == 2 and id(parameter) not in embeddings:
            elements[parameter.shape[0], parameter.shape[1]] += parameter.numel()
    if not elements:
        return None
    (outputs, inputs), _ = max(elements.items(), key=lambda item: (item[1], item[0]))
    return rows, outputs, inputs


def tokens_of(batch_rows: int, seq_len: int, chunk_len: int | None) -> int:
    """Return the number of tokens in one training pass."""
    return batch_rows * min(seq_len, chunk_len or seq_len)


def choose_products(shape: Shape | None, *, device: torch.device, precision: str, decodes: bool) -> Products:
    """Return the fastest libraries on this machine; the first of several processes decides.

    Args:
        shape: Shape of the dominant product; None if the model has none.
        device: The model's device.
        precision: Precision of its passes; only fp32 has a choice.
        decodes: Whether the model also decodes, a few rows at a time.

    Raises:
        ValueError: if the environment variable has an unknown value.
    """
    if fixed := os.environ.get(FIXED):
        try:
            return Products.of(fixed)
        except ValueError as error:
            raise ValueError(f"{FIXED}={fixed}: {error}") from None
    if shape is None or device.type != "cpu" or precision != "fp32" or only_torch():
        return Products()
    chosen = None
    if distributed.is_first():
        chosen = str(_measured_products(shape, decodes))
    return Products.of(distributed.from_first(chosen))


def resume_with(recorded: object) -> None:
    """Use the libraries recorded in a checkpoint, if they exist here and the environment does not set others."""
    if not isinstance(recorded, str) or os.environ.get(FIXED):  # earlier checkpoints lack the record
        return
    try:
        products = Products.of(recorded)
    except ValueError:
        return
    if (products.many == "torch" or has_onednn()) and (products.few == "torch" or is_fused("cpu", torch.float32)):
        use_products(products)


def choose_once(model: nn.Module) -> None:
    """Choose the libraries for a loaded model, unless this process has chosen already."""
    if not is_decided():
        shape = product_of(model, PROMPT_TOKENS)
        use_products(choose_products(shape, device=torch.device("cpu"), precision="fp32", decodes=True))


@contextmanager
def decided(products: str | None) -> Iterator[None]:
    """Set the choice for programs started inside, unless the environment sets it already.

    Args:
        products: The record of a checkpoint; None to set nothing.
    """
    if products is None or FIXED in os.environ:
        yield
        return
    os.environ[FIXED] = products
    try:
        yield
    finally:
        del os.environ[FIXED]


def bfloat16_share(shape: Shape) -> float | None:
    """Return the time of a forward and backward pass in bfloat16 over that in float32; None for small products."""
    if shape[0] * shape[1] * shape[2] < LEAST_PRODUCTS:
        return None
    found = kept("bfloat16", shape, ("fp32", "bf16"), lambda: _both_passes(shape))
    return found["bf16"] / found["fp32"]


def _measured_products(shape: Shape, decodes: bool) -> Products:
    rows, outputs, inputs = shape
    many = few = "torch"
    if rows * outputs * inputs >= LEAST_PRODUCTS and has_onednn():
        many = _clearly_faster(kept("many rows", shape, ("torch", "onednn"), lambda: _many_rows(shape)))
    if decodes and outputs * inputs >= LEAST_WEIGHTS and is_fused("cpu", torch.float32):
        of_few = (MOST_ROWS, outputs, inputs)
        few = _clearly_faster(kept("few rows", of_few, ("torch", "numba"), lambda: _few_rows(outputs, inputs)))
    return Products(many, few)


def _clearly_faster(seconds: Mapping[str, float]) -> str:
    (other,) = seconds.keys() - {"torch"}
    if seconds[other] < CLEARLY_LESS * seconds["torch"]:
        return other
    return "torch"


def kept(what: str, shape: Shape, names: Collection[str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the seconds by name of the first measurement on this machine; without a cache, measure now.

    Args:
        what: Name of the measurement, part of the cache key.
        shape: Shape of the product.
        names: Names of the libraries or types; a file with other names counts as damaged.
        measure: Runs the measurement.
    """
    try:
        path = cache_path("measured", what, shape, machine(), ending=".measured.json")
    except (ValueError, OSError, RuntimeError):  # there is no folder for a cache
        return measure()
    found = _seconds(read_json(path), names)
    if found is not None:
        return found
    found = measure()
    try:
        _keep_first(path, {"what": what, "shape": shape, "machine": machine(), "seconds": found}, names)
    except OSError:
        return found
    return _seconds(read_json(path), names) or found


def machine() -> dict[str, object]:
    """Return everything that affects the speed of a product, except its shape and the machine's load."""
    said: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        processors = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")
        for line in processors[0].splitlines():
            key, _, value = line.partition(":")
            said[key.strip()] = value.strip()
    return {
        "cpu": [said.get(key) for key in ("vendor_id", "cpu family", "model", "model name", "CPU part")],
        "flags": sorted((said.get("flags") or said.get("Features") or "").split()),
        "platform": [platform.system(), platform.machine(), platform.processor()],
        "torch": [torch.__version__, torch.backends.cpu.get_cpu_capability()],
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name) for name in OF_THE_LIBRARIES},
    }


def _seconds(note: Mapping[str, Any] | None, names: Collection[str]) -> dict[str, float] | None:
    found = (note or {}).get("seconds")
    if not isinstance(found, dict) or found.keys() != set(names):
        return None
    for value in found.values():
        if not isinstance(value, float) or not 0 < value < math.inf:
            return None
    return found


def _keep_first(path: Path, content: Mapping[str, object], names: Collection[str]) -> None:
    """Write a file atomically, unless another process wrote a readable one first."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(json.dumps(content).encode())
        try:
            os.link(temporary, path)
        except FileExistsError:
            if _seconds(read_json(path), names) is None:  # damaged
                temporary.replace(path)
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _many_rows(shape: Shape) -> dict[str, float]:
    x_MK, weight_NK, grad_MN = _tensors(shape)

    def by_torch() -> None:
        F.linear(x_MK, weight_NK)
        grad_MN @ weight_NK

    def by_onednn() -> None:
        many_rows(x_MK, weight_NK, None)
        many_rows(grad_MN, weight_NK.t(), None)

    with torch.no_grad():
        return _fastest({"torch": by_torch, "onednn": by_onednn})


def _few_rows(outputs: int, inputs: int) -> dict[str, float]:
    from samout_train.ops import few_rows

    _, weight_NK, _ = _tensors((1, outputs, inputs))
    some = [_tensors((1, outputs, inputs))[0], _tensors((MOST_ROWS, outputs, inputs))[0]]

    def calls(multiply: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def make() -> None:
            for x_RK in some * FEW_CALLS:
                multiply(x_RK)

        return make

    with torch.no_grad():
        return _fastest(
            {
                "torch": calls(lambda x_RK: F.linear(x_RK, weight_NK)),
                "numba": calls(lambda x_RK: few_rows(x_RK, weight_NK, None)),
            }
        )


def _both_passes(shape: Shape) -> dict[str, float]:
    x_MK, weight_NK, grad_MN = _tensors(shape)
    x_MK.requires_grad_(), weight_NK.requires_grad_()

    def in_float32() -> None:
        F.linear(x_MK, weight_NK).backward(grad_MN)

    def in_bfloat16() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y_MN = F.linear(x_MK, weight_NK)
        y_MN.backward(grad_MN.bfloat16())

    return _fastest({"fp32": in_float32, "bf16": in_bfloat16})


def _tensors(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, weights and a gradient of the output, with fewer rows if the product would take long."""
    rows, outputs, inputs = shape
    rows = min(rows, max(1, int(MOST_FLOPS / (2 * outputs * inputs))))
    draw = torch.Generator().manual_seed(0)  # leaves the run's random state alone
    x_MK = torch.randn(rows, inputs, generator=draw)
    weight_NK = torch.randn(outputs, inputs, generator=draw)
    grad_MN = torch.randn(rows, outputs, generator=draw)
    return x_MK, weight_NK, grad_MN


def _fastest(ways: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Return the shortest time of each, in seconds. They take turns, so that a disturbance affects all of them."""
    least = dict.fromkeys(ways, float("inf"))
    for way in ways.values():
        way()
    began = time.perf_counter()
    for number in range(ROUNDS):
        if number and time.perf_counter() - began > MOST_SECONDS:
            break
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            least[name] = min(least[name], max(time.perf_counter() - started, 1e-9))
    return least
