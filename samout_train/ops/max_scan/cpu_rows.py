"""One row of each form of the fused running maximum, as numba compiles it: forward and backward.

The arguments are some channels of one row: the streams of the form, the decay `a` or None, the maximum `m`, y. The
loops over channels run in vectors. "Is a new maximum" is the local test d_t == m_t or d_t is NaN.
"""

from typing import Any

import numpy as np

from samout_train.ops.numba_cache import compiled
from samout_train.ops.numba_values import narrow, widen


@compiled(error_model="numpy")
def _maximum(before: Any, d: Any, a: Any, j: int) -> Any:
    x = widen(d[j])
    faded = before if a is None else before + widen(a[j])
    return x if (x >= faded) or (x != x) else faded


@compiled(error_model="numpy")
def advance(before: Any, d: Any, a: Any, m: Any) -> None:
    """One step of the recurrence, from `before` to `m`."""
    for j in range(len(m)):
        m[j] = _maximum(before[j], d, a, j)


@compiled(error_model="numpy")
def write(values: Any, out: Any) -> None:
    """Float32 values in the precision of `out`."""
    for j in range(len(out)):
        out[j] = narrow(values[j], out)


@compiled(error_model="numpy")
def scan(d: Any, a: Any, m: Any, y: Any) -> None:
    """One step of the recurrence, in `m`, and y."""
    for j in range(len(m)):
        now = _maximum(m[j], d, a, j)
        m[j] = now
        y[j] = narrow(now, y)


@compiled(error_model="numpy")
def v8(e: Any, c: Any, d: Any, a: Any, m: Any, y: Any) -> None:
    """One step of the recurrence, in `m`, and y."""
    for j in range(len(m)):
        now = _maximum(m[j], d, a, j)
        m[j] = now
        y[j] = narrow((widen(e[j]) * now + widen(c[j])) * now, y)


@compiled(error_model="numpy")
def v1(b: Any, c: Any, d: Any, a: Any, m: Any, y: Any) -> None:
    """One step of the recurrence, in `m`, and y."""
    for j in range(len(m)):
        now = _maximum(m[j], d, a, j)
        m[j] = now
        y[j] = narrow((now + widen(c[j])) * now + widen(b[j]), y)


@compiled(error_model="numpy")
def scan_gradients(d: Any, m: Any, g: Any, carry: Any, grad_d: Any) -> None:
    """Gradients from that of y, `g`, and that of the maximum from later rows, `carry`, which goes on in place."""
    for j in range(len(m)):
        x, r = widen(d[j]), carry[j] + widen(g[j])
        is_new = (x == m[j]) or (x != x)
        grad_d[j] = narrow(r if is_new else np.float32(0), grad_d)
        carry[j] = np.float32(0) if is_new else r


@compiled(error_model="numpy")
def v8_gradients(e: Any, c: Any, d: Any, m: Any, g: Any, carry: Any, grad_e: Any, grad_c: Any, grad_d: Any) -> None:
    """As `scan_gradients`."""
    for j in range(len(m)):
        x, grad = widen(d[j]), widen(g[j]) * m[j]
        r = carry[j] + (np.float32(2) * grad * widen(e[j]) + widen(g[j]) * widen(c[j]))
        is_new = (x == m[j]) or (x != x)
        grad_d[j] = narrow(r if is_new else np.float32(0), grad_d)
        carry[j] = np.float32(0) if is_new else r
        grad_e[j] = narrow(grad * m[j], grad_e)
        grad_c[j] = narrow(grad, grad_c)


@compiled(error_model="numpy")
def v1_gradients(c: Any, d: Any, m: Any, g: Any, carry: Any, grad_b: Any, grad_c: Any, grad_d: Any) -> None:
    """As `scan_gradients`."""
    for j in range(len(m)):
        x, r = widen(d[j]), carry[j] + widen(g[j]) * (np.float32(2) * m[j] + widen(c[j]))
        is_new = (x == m[j]) or (x != x)
        grad_d[j] = narrow(r if is_new else np.float32(0), grad_d)
        carry[j] = np.float32(0) if is_new else r
        grad_b[j] = g[j]
        grad_c[j] = narrow(widen(g[j]) * m[j], grad_c)
