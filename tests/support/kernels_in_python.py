"""A pytest plugin that runs the CPU kernels in Python, where coverage and a debugger see their lines.

It is loaded with -p before anything else of the package. Kernels of heads are left out: they call machine code.
"""

import importlib

import numba

MODULES = ("block_scan.cpu", "cross_entropy.cpu", "linear.cpu", "max_scan.cpu", "samout_layer.cpu", "semiring_scan.cpu")

numba.config.DISABLE_JIT = 1
for name in ("numba_support", "samout_layer.cpu_step", *MODULES):
    importlib.import_module(f"samout_train.ops.{name}")
numba.config.DISABLE_JIT = 0  # otherwise torch's own operations run
