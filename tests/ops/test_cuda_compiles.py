"""Triton's kernels are compiled for an H100 or H200 (sm_90) without a GPU, and looked at."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from samout_train.ops import num_streams
from samout_train.ops.block_scan import cuda as block_scan
from samout_train.ops.block_scan.operator import rows_a_carry
from samout_train.ops.block_scan.triton import (
    block_backward,
    block_forward,
    block_gradient_maps,
    block_gradient_starts,
    block_maps,
    block_starts,
)
from samout_train.ops.causal_convolution import cuda as convolution
from samout_train.ops.causal_convolution.triton import convolution_row_gradients, convolution_rows
from samout_train.ops.cross_entropy import cuda as cross_entropy
from samout_train.ops.cross_entropy.triton import cross_entropy_row
from samout_train.ops.elementwise import cuda as elementwise
from samout_train.ops.elementwise.triton import (
    add_norm_row,
    add_norm_row_gradients,
    minus_softplus_element_gradients,
    minus_softplus_elements,
    turn_row_gradients,
    turn_rows,
)
from samout_train.ops.max_scan import cuda
from samout_train.ops.max_scan.reference import CODES
from samout_train.ops.max_scan.triton import (
    add_later,
    backward_chunk,
    chunk_gradients,
    chunk_starts,
    chunk_totals,
    forward_chunk,
)
from samout_train.ops.samout_layer import cuda as layer
from samout_train.ops.samout_layer.triton import (
    blend_row,
    blend_row_gradients,
    gate_element_gradients,
    gate_elements,
)
from samout_train.ops.semiring_scan import cuda as semiring_scan
from samout_train.ops.semiring_scan.triton import (
    scan_backward,
    scan_forward,
    scan_gradient_totals,
    scan_starts,
    scan_totals,
)

WIDTH = 768
INTEGERS = {"time": "i32", "rows": "i32", "chunks": "i32", "V": "i32", "ignored": "i64", "count": "i32"}
INTEGERS |= {"positions": "i32", "threshold": "i64", "kept": "fp32", "eps": "fp32"}
STORED = {"packed", "decay", "y", "grad_y", "grad_packed", "grad_decay", "logits"}
INTEGERS |= {f"{which}_along_{way}": "i32" for which in "qk" for way in "bth"}
INTEGERS |= {"batch": "i32", "lead": "i32", "along_b": "i32", "along_t": "i32"}
STORED |= {
    "whole",
    "grad_whole",
    "branch",
    "grad_branch",
    "q",
    "k",
    "q_turned",
    "k_turned",
    "k_plain",
    "grad_q",
    "grad_k",
}
STORED |= {"grad_q_turned", "grad_k_turned", "grad_k_plain"}
STORED |= {
    "up",
    "gate",
    "grad_up",
    "grad_gate",
    "f",
    "grad_f",
    "copy",
    "grad_copy",
    "z",
    "grad_z",
}  # in the dtype of the input
WHOLE = {"news": "*i32", "targets": "*i64", "seed": "*i64"}
MOST_WAITS = 2  # for memory in a tile; left to itself, ptxas makes 19 in the backward pass
MOST_WAITS_OF_ALL = 6  # with the first tile, and that of the last rows
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def assembly(kernel: Any, dtype: str, options: dict[str, Any], path: Path, **constants: Any) -> str:
    """The instructions of a kernel for sm_90."""
    names = kernel.arg_names
    types = {}
    for name in names:
        types[name] = INTEGERS.get(name) or WHOLE.get(name) or "*fp32"
        if name in constants:
            types[name] = "constexpr"
        elif name in STORED:
            types[name] = f"*{dtype}"
    sixteens = [name for name, kind in types.items() if kind.startswith("*") or name in ("V", "count")]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in sixteens}
    source = ASTSource(kernel, types, {(names.index(name),): value for name, value in constants.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    path.write_bytes(compiled.asm["cubin"])
    return subprocess.run([TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout


def assert_in_registers(instructions: str) -> None:
    assert_nothing_spilled(instructions)
    assert not re.search(r"\b(STS|LDS)\b", instructions), "there is shared memory"


def main_loop(instructions: str) -> str:
    """The loop that loads most."""
    loops = []
    for back in re.finditer(r"BRA `\((\.L_x_\d+)\)", instructions):
        start = instructions.find(f"{back[1]}:")
        if 0 <= start < back.start():
            loops.append(instructions[start : back.end()])
    return max(loops, key=lambda loop: loop.count("LDG"))


def long_waits(instructions: str) -> int:
    """How often something that was loaded is used before later loads are under way, read from top to bottom."""
    waits, pending = 0, set[str]()
    for found in re.finditer(r"\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?);", instructions):
        operation, arguments = found.groups()
        registers = re.findall(r"\bR(\d+)\b", arguments)
        target = None
        if re.match(r"R\d+\b", arguments) and not operation.startswith("STG"):
            target = registers.pop(0)
        if pending & set(registers):
            waits += 1
            pending.clear()
        if target is not None:
            pending.discard(target)
            if operation.startswith("LDG"):
                pending.add(target)
    return waits


def assert_nothing_spilled(instructions: str) -> None:
    assert re.search(r"\bSTG\b", instructions), "no kernel stores nothing"
    assert not re.search(r"\b(STL|LDL)\b", instructions), "registers are spilled to local memory"


MOST_USED = [("v8", "bf16", True)]
OTHERS = [
    (form, dtype, decay)
    for form in CODES
    for dtype in ("bf16", "fp16", "fp32")
    for decay in (False, True)
    if (form, dtype, decay) not in MOST_USED
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "dtype", "has_decay"), MOST_USED + [pytest.param(*other, marks=pytest.mark.nightly) for other in OTHERS]
)
@pytest.mark.parametrize("width", [WIDTH, 100])  # 100 channels leave a block of 64 with masked ones
def test_nothing_leaves_the_registers(form: str, dtype: str, has_decay: bool, width: int, tmp_path: Path) -> None:
    sizes = {"D": width, "P": num_streams(form) * width, "BLOCK": cuda.BLOCK, "HAS_DECAY": has_decay, "ROWS": cuda.ROWS}
    path = tmp_path / "kernel.cubin"
    forward = assembly(forward_chunk, dtype, cuda.OPTIONS, path, HAS_STATE=True, FORM=CODES[form], **sizes)
    last = {"HAS_GRAD_LAST": False, "FORM": CODES[form]}
    backward = assembly(backward_chunk, dtype, cuda.BACKWARD_OPTIONS, path, **last, **sizes)
    for instructions in (forward, backward):
        assert_in_registers(instructions)
        loop = main_loop(instructions)
        assert long_waits(2 * loop) <= 2 * MOST_WAITS, "the loads of a tile are not under way together"
        # Outside of the loop there are the first tile and that of the last rows, if these are fewer.
        assert long_waits(instructions) <= MOST_WAITS_OF_ALL, "the loads of the last tile are not under way together"


@pytest.mark.nightly
@pytest.mark.parametrize("width", [pytest.param(WIDTH, marks=pytest.mark.nightly), 100])
def test_the_passes_over_chunks_stay_in_registers(width: int, tmp_path: Path) -> None:
    path, block = tmp_path / "kernel.cubin", {"D": width, "BLOCK": cuda.BLOCK}
    whole = {"P": 3 * width, "HAS_DECAY": True, **block}
    assert_in_registers(assembly(chunk_totals, "bf16", cuda.OPTIONS, path, ROWS=cuda.ROWS, **whole))
    assert_in_registers(assembly(add_later, "bf16", cuda.OPTIONS, path, **whole))
    assert_in_registers(assembly(chunk_starts, "bf16", cuda.OPTIONS, path, HAS_STATE=False, **block))
    assert_in_registers(assembly(chunk_gradients, "bf16", cuda.OPTIONS, path, **block))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.nightly)])
def test_the_loss_spills_nothing_and_reads_whole_vectors(dtype: str, tmp_path: Path) -> None:
    constants = {"BLOCK": cross_entropy.MOST_A_BLOCK, "LEARNS": True}
    instructions = assembly(cross_entropy_row, dtype, cross_entropy.OPTIONS, tmp_path / "kernel.cubin", **constants)
    assert_nothing_spilled(instructions)
    assert "LDG.E.128" in instructions and "STG.E.128" in instructions


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.nightly)])
def test_the_parts_of_a_layer_spill_nothing(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.cubin"
    for kernel in (gate_elements, gate_element_gradients):
        for halves, silu in ((False, False), (True, False), (True, True)):
            constants = {"F": WIDTH, "HALVES": halves, "SILU": silu, "BLOCK": layer.ELEMENTS}
            instructions = assembly(kernel, dtype, layer.OPTIONS, path, **constants)
            assert_nothing_spilled(instructions)
            assert "LDG.E.128" in instructions and "STG.E.128" in instructions, "vectors are cut"
    for kernel in (blend_row, blend_row_gradients):
        constants = {"DROPS": True, "COPIES": True, "D": WIDTH, "BLOCK": 1024}
        assert_nothing_spilled(assembly(kernel, dtype, layer.OPTIONS, path, **constants))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.nightly)])
def test_norms_convolutions_and_rotary_positions_spill_nothing(dtype: str, tmp_path: Path) -> None:
    path, row = tmp_path / "kernel.cubin", {"ADDS": True, "DROPS": True, "CENTRES": True, "D": WIDTH, "BLOCK": 1024}
    assert_nothing_spilled(assembly(add_norm_row, dtype, elementwise.OPTIONS, path, **row))
    row["HAS_GRAD_TOTAL"] = True
    assert_nothing_spilled(assembly(add_norm_row_gradients, dtype, elementwise.OPTIONS, path, **row))
    sizes = {"HAS_BIAS": True, "SILU": True, "K": 4, "D": WIDTH, "ROWS": convolution.ROWS, "BLOCK": convolution.BLOCK}
    assert_in_registers(assembly(convolution_rows, dtype, convolution.OPTIONS, path, **sizes))
    # A program's sums pass shared memory once, at its end, to be stored one after another.
    assert_nothing_spilled(assembly(convolution_row_gradients, dtype, convolution.OPTIONS, path, **sizes))
    heads = {"NORMS": True, "H": 12, "P": 32, "PAIRS": 32, "ROWS": elementwise.ELEMENTS // 32}
    assert_nothing_spilled(assembly(turn_rows, dtype, elementwise.OPTIONS, path, **heads))
    assert_nothing_spilled(assembly(turn_row_gradients, dtype, elementwise.OPTIONS, path, HAS_PLAIN=True, **heads))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.nightly)])
def test_decays_spill_nothing_and_read_whole_vectors(dtype: str, tmp_path: Path) -> None:
    for kernel in (minus_softplus_elements, minus_softplus_element_gradients):
        path = tmp_path / "kernel.cubin"
        instructions = assembly(kernel, dtype, elementwise.OPTIONS, path, BLOCK=elementwise.DECAYS)
        assert_in_registers(instructions)
        assert "LDG.E.128" in instructions and "STG.E.128" in instructions, "vectors are cut"


@pytest.mark.nightly
@pytest.mark.parametrize("max_min", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_the_scans_over_semirings_stay_in_registers(max_min: bool, tmp_path: Path) -> None:
    sizes = {"MAX_MIN": max_min, "D": WIDTH, "BLOCK": semiring_scan.BLOCK}
    for kernel in (scan_totals, scan_forward, scan_gradient_totals, scan_backward):
        path = tmp_path / "kernel.cubin"
        assert_in_registers(assembly(kernel, "fp32", semiring_scan.OPTIONS, path, ROWS=semiring_scan.ROWS, **sizes))
    assert_in_registers(assembly(scan_starts, "fp32", semiring_scan.OPTIONS, path, BACKWARD=True, **sizes))


BLOCKS = (block_forward, block_backward, block_maps, block_gradient_maps, block_starts, block_gradient_starts)


def assert_block_kernel_in_registers(kernel: Any, size: int, dtype: str, soft: bool, path: Path) -> None:
    sizes = {"SOFT": soft, "N": size, "G": WIDTH // size, "BLOCK": block_scan.BLOCK, "ROWS": rows_a_carry("cuda", size)}
    taken = {name: value for name, value in sizes.items() if name in kernel.arg_names}
    assert_in_registers(assembly(kernel, dtype, block_scan.OPTIONS, path, **taken))


@pytest.mark.slow
def test_the_backward_pass_of_blocks_of_two_stays_in_registers(tmp_path: Path) -> None:
    assert_block_kernel_in_registers(block_backward, 2, "bf16", True, tmp_path / "kernel.cubin")


@pytest.mark.nightly
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize(("dtype", "soft"), [("bf16", True), ("bf16", False), ("fp32", True)])
def test_the_kernels_of_max_plus_blocks_stay_in_registers(size: int, dtype: str, soft: bool, tmp_path: Path) -> None:
    for kernel in BLOCKS:
        assert_block_kernel_in_registers(kernel, size, dtype, soft, tmp_path / "kernel.cubin")
