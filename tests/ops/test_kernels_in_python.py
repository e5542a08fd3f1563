"""The CPU kernels run in Python, where each index beyond an array is an error, pass their own tests."""

import importlib.util
import subprocess
import sys

import pytest

FILES = ("block_scan", "cross_entropy", "fused", "linear", "max_scan", "samout_layer", "samout_step", "semiring_scan")
LEFT_OUT = [
    *("1000", "384", "any_number", "anew", "hard_state", "a_model_learns", "float64[3-", "float64[5-", "0.05"),  # long
    *("interpreter", "compiled"),  # have nothing to do with it
    "4500",  # Python sums a row from its first to its last logit, which rounds more
]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs numba")
def test_the_kernels_pass_in_python() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.kernels_in_python", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "-q", "-W", "ignore::RuntimeWarning"]  # numpy's, of infinity times zero
    command += ["-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    command += [f"tests/ops/test_{name}.py" for name in FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
