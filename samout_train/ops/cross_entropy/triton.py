"""Compute the nats of a row of logits and their gradients in Triton's language. cuda.py calls it."""

# V vocabulary

import triton
import triton.language as tl


@triton.jit
def cross_entropy_row(logits, targets, nats, ignored, V, BLOCK: tl.constexpr, LEARNS: tl.constexpr):
    """Read a row for each lane's maximum and sum, then again, from the second-level cache, for the gradients."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    pointers, columns = logits + row * V, tl.arange(0, BLOCK)
    if target == ignored:
        tl.store(nats + row, 0.0)
        if LEARNS:
            for start in range(0, V, BLOCK):
                nothing = tl.zeros((BLOCK,), tl.float32).to(logits.dtype.element_ty)
                tl.store(pointers + start + columns, nothing, mask=start + columns < V)
    else:
        # An invalid target has no logit: the nats are then NaN, and the step is reported.
        chosen = tl.load(pointers + target, mask=(target >= 0) & (target < V), other=float("nan")).to(tl.float32)
        largest, total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            x = tl.load(pointers + start + columns, mask=start + columns < V, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(largest, x)
            base = tl.where(higher == float("-inf"), 0.0, higher)  # minus infinity minus itself would be NaN
            total = total * tl.exp(largest - base) + tl.exp(x - base)
            largest = higher
        top = tl.max(largest, 0)
        total_of_row = tl.sum(total * tl.exp(largest - tl.where(top == float("-inf"), 0.0, top)), 0)
        tl.store(nats + row, tl.log(total_of_row) + top - chosen)
        if LEARNS:
            factor = 1 / total_of_row
            for start in range(0, V, BLOCK):
                inside = start + columns < V
                x = tl.load(pointers + start + columns, mask=inside, other=0.0).to(tl.float32)
                error = tl.exp(x - top) * factor - tl.where(start + columns == target, 1.0, 0.0)
                tl.store(pointers + start + columns, error.to(logits.dtype.element_ty), mask=inside)
