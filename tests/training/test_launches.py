"""What a training step on CUDA asks of the device, looked at without one: no wait, no shape from data, few launches."""

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

# Operations that launch a kernel. What makes them fewer lowers these; more is a step back.
MOST_LAUNCHES = {
    "published V8, fp32": 146,
    "published V8, bf16": 144,
    "V8 of 127 M, fp32": 315,
    "V8 of 127 M, bf16": 318,
    "two layers of maxplus, fp32": 138,
    "two layers of maxplus, bf16": 151,
    "two layers of transformer_modern, fp32": 171,
    "two layers of transformer_modern, bf16": 202,
}


SMALL = {"hidden_size": 32, "num_heads": 2, "num_layers": 2}
ACCUMULATED = {"precision": "bf16", "sizes": SMALL, "clip": 1.0, "accumulate": 2}
# Steps that a CUDA graph takes. Torch's recurrent modules are left out: they have no kernel without CUDA.
GRAPHS = {
    "v8": {"model": "v8", "precision": "bf16", "sizes": SMALL},
    "v8 in chunks": {"model": "v8", "precision": "fp32", "sizes": SMALL, "chunk_len": 5, "clip": 1.0},
    "maxplus": {"model": "maxplus", **ACCUMULATED},
    "transformer": {"model": "transformer", **ACCUMULATED},
}
NOTHING: dict[str, list[str]] = {"waits": [], "crossings": [], "differs": []}
OTHERS = (
    "v1",
    "counting",
    "mamba2",
    "gla",
    "retnet",
    "hgrn2",
    "mlstm",
    "gated_deltanet",
    "rglru",
    "hybrid",
    "transformer_modern",
)


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    """What scripts/count_launches.py finds in steps on fake CUDA tensors."""
    return counted("--json")


def counted(*options: str) -> dict[str, Any]:
    """Return the JSON that scripts/count_launches.py prints."""
    pytest.importorskip("triton")
    if shutil.which("g++") is None:
        pytest.skip("fake CUDA tensors need g++ for a guard of the device")
    command = [sys.executable, ROOT / "scripts" / "count_launches.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_step_never_waits_for_the_device_and_is_the_same_each_time(steps: dict[str, Any]) -> None:
    assert set(steps) == set(MOST_LAUNCHES)
    for name, step in steps.items():
        assert step["waits"] == [], name
        assert step["alike"], f"{name}: operations or shapes change from step to step"


@pytest.mark.slow
def test_a_step_launches_no_more_than_it_did(steps: dict[str, Any]) -> None:
    for name, most in MOST_LAUNCHES.items():
        assert 0 < steps[name]["launches"] <= most, (name, steps[name]["operations"])


@pytest.mark.slow
def test_the_fused_kernels_are_what_a_step_on_cuda_runs(steps: dict[str, Any]) -> None:
    fused = {"max_mix", "gated_halves", "blended", "max_mix_backward"}
    of_models = {
        "V8": fused,
        "maxplus": fused - {"blended"} | {"add_norm", "add_norm_backward", "convolve"},
        "transformer_modern": {"gated_halves", "add_norm", "add_norm_backward", "turn", "turn_backward"},
    }
    for name, step in steps.items():
        (wanted,) = (operations for model, operations in of_models.items() if model in name)
        assert wanted <= set(step["operations"]), name
    for precision in ("fp32", "bf16"):
        assert steps[f"V8 of 127 M, {precision}"]["operations"]["nats_and_errors"] == 13  # blocks of 10,672 rows


@pytest.mark.nightly
def test_what_a_graph_records_is_the_same_in_each_step_and_leaves_the_host_alone() -> None:
    assert counted("--contract", json.dumps(GRAPHS)) == dict.fromkeys(GRAPHS, NOTHING)


@pytest.mark.nightly
def test_a_graph_can_have_the_steps_of_other_models() -> None:
    steps = {name: {"model": name, **ACCUMULATED} for name in OTHERS}
    steps["mingru"] = {"model": "mingru", **ACCUMULATED, "sizes": {"hidden_size": 32, "num_layers": 2}}
    assert counted("--contract", json.dumps(steps)) == dict.fromkeys(steps, NOTHING)
