"""Run recurrences over the matrix of a head on the CPU, in float32, forward and backward. Needs numba.

| file | holds |
|---|---|
| operator.py | the torch operator: choice of kernel, its outputs, autograd, torch.compile |
| walk.py | the loop of all kernels: head by head and chunk by chunk, with loads and stores |
| scalar_decay.py, channel_decay.py, delta_rule.py | the mathematics of one chunk |
| decays.py | one decay per token over the spans of a chunk |
| tiles.py | products, transposes and copies of small matrices |
| tile_code.py | their machine code, in the widest vectors that the processor has |
| layout.py | how tensors lie in memory |

The results are those of `by_chunks` in samout_train.ops.linear_attention and samout_train.ops.delta_rule.
"""

from samout_train.ops.head_kernels.operator import fused_chunks

__all__ = ["fused_chunks"]
