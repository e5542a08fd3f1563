"""Walk through the rows of max-plus blocks of two entries on the CPU, both entries of a block in one loop.

For two entries, log(e^(s_0 / tau) + e^(s_1 / tau)) is the larger s / tau + log(1 + e^(-|s_1 - s_0| / tau)), which takes
one exponential. The backward pass needs only the first entry's shares, in the sum of its row of L and in the state's
sum; the second entry has the rest. The shares are kept for ROWS rows with the states, so that gradients take no
exponential.

Arrays of one row have a line for each entry, with the blocks of a task. Loops over blocks are vectorised.
"""

from typing import Any

import numpy as np

from samout_train.ops.numba_support import compiled, narrow, vector_exp, widen

ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)


@compiled(error_model="numpy")
def larger(x: Any, best: Any) -> Any:
    """Return the larger of two; x if it is NaN."""
    return x if (x > best) or (x != x) else best


@compiled(error_model="numpy")
def _maxima(x_0: Any, x_1: Any, m_0: Any, m_1: Any) -> Any:
    """Return the maximum of a row of L, both sums of the state with the normalised row, and their maximum."""
    top = larger(x_1, x_0)
    s_0, s_1 = (x_0 - top) + m_0, (x_1 - top) + m_1
    return top, s_0, s_1, larger(s_1, s_0)


@compiled(error_model="numpy", fastmath={"contract"})
def _exponentials(x_0: Any, x_1: Any, s_0: Any, s_1: Any, temperature: Any) -> Any:
    """Return the ratio of the smaller term to the larger one, in the state's sum and in that of the row of L."""
    inverse = ONE / temperature
    return vector_exp(-abs(s_1 - s_0) * inverse), vector_exp(-abs(x_1 - x_0) * inverse)


@compiled(error_model="numpy", fastmath={"contract"})
def _log_of_ratio(z: Any) -> Any:
    """Return log(u / w) of z = (u - w) / (u + w), at most 1/3 in magnitude: 2 artanh(z)."""
    square = z * z
    series = np.float32(0.13999571) + square * np.float32(0.14012229)
    series = np.float32(0.2001085) + square * series
    series = np.float32(0.33333207) + square * series
    return np.float32(2) * (z + z * square * series)


@compiled(error_model="numpy")
def step_of_pairs(row: Any, start: int, blocks: int, temperature: Any, before: Any, after: Any) -> None:
    """Make one step of the recurrence; the logits of the task lie in `row` from `start` on, `blocks` apart."""
    count = before.shape[1]
    for i in range(2):
        at = start + 2 * i * blocks
        first, second = row[at : at + count], row[at + blocks : at + blocks + count]
        _advance(first, second, temperature, before, after[i])


@compiled(error_model="numpy")
def _advance(first: Any, second: Any, temperature: Any, m: Any, after: Any) -> None:
    m_0, m_1 = m[0], m[1]
    for g in range(len(after)):
        x_0, x_1 = widen(first[g]), widen(second[g])
        _, s_0, s_1, best = _maxima(x_0, x_1, m_0[g], m_1[g])
        if temperature is not None:
            e_state, e_row = _exponentials(x_0, x_1, s_0, s_1, temperature)
            best += temperature * _log_of_ratio((e_state - e_row) / (TWO + (e_state + e_row)))
        after[g] = best


@compiled(error_model="numpy")
def step_with_shares(
    row: Any, start: int, blocks: int, temperature: Any, before: Any, after: Any, of_state: Any, over_row: Any
) -> None:
    """Make one step as `step_of_pairs`, and keep the first entry's shares for the gradients.

    Args:
        of_state: Filled: the share in the state's sum, for each entry i of a block.
        over_row: Filled: the same minus the share in the sum of the row of L.
    """
    count = before.shape[1]
    for i in range(2):
        at = start + 2 * i * blocks
        first, second = row[at : at + count], row[at + blocks : at + blocks + count]
        _advance_with_shares(first, second, temperature, before, after[i], of_state[i], over_row[i])


@compiled(error_model="numpy")
def _advance_with_shares(
    first: Any, second: Any, temperature: Any, m: Any, after: Any, of_state: Any, over_row: Any
) -> None:
    m_0, m_1 = m[0], m[1]
    for g in range(len(after)):
        x_0, x_1 = widen(first[g]), widen(second[g])
        top, s_0, s_1, best = _maxima(x_0, x_1, m_0[g], m_1[g])
        if temperature is None:
            share = ONE if (s_0 == best) or (x_0 != x_0) else np.float32(0)
            row_share = ONE if (x_0 == top) or (x_0 != x_0) else np.float32(0)
        else:
            e_state, e_row = _exponentials(x_0, x_1, s_0, s_1, temperature)
            of_sum, of_row, both = ONE + e_state, ONE + e_row, TWO + (e_state + e_row)
            product = of_sum * of_row
            inverse = ONE / (product * both)  # one division in place of three
            best += temperature * _log_of_ratio((e_state - e_row) * product * inverse)
            share = (ONE if s_0 >= s_1 else e_state) * (of_row * both * inverse)
            row_share = (ONE if x_0 >= x_1 else e_row) * (of_sum * both * inverse)
        after[g] = best
        of_state[g] = share
        over_row[g] = share - row_share


@compiled(error_model="numpy")
def output_of_pairs(row: Any, low: int, blocks: int, m: Any, v: Any, y: Any) -> None:
    """Compute y = (e v + c) v, v = m minus the mean of its block; in `row`, e starts at `low` and c 2 `blocks` later.

    Args:
        v: A buffer of one line; overwritten.
    """
    count = m.shape[1]
    _less_mean(m, v)
    length = 2 * count if count == blocks else count  # both entries are one line if the task has all blocks
    for i in range(2 * count // length):
        at = low + i * blocks
        e, c = row[at : at + length], row[at + 2 * blocks : at + 2 * blocks + length]
        _output(e, c, v[i * length : (i + 1) * length], y[at : at + length])


@compiled(error_model="numpy")
def _less_mean(m: Any, v: Any) -> None:
    count = m.shape[1]
    m_0, m_1, v_0, v_1 = m[0], m[1], v[:count], v[count:]
    for g in range(count):
        half = (m_0[g] - m_1[g]) * HALF
        v_0[g] = half
        v_1[g] = -half


@compiled(error_model="numpy")
def _output(e: Any, c: Any, v: Any, y: Any) -> None:
    for g in range(len(y)):
        y[g] = narrow((widen(e[g]) * v[g] + widen(c[g])) * v[g], y)


@compiled(error_model="numpy")
def gradients_of_pairs(
    row: Any,
    grad_row: Any,
    grad_y: Any,
    low: int,
    blocks: int,
    m: Any,
    of_state: Any,
    over_row: Any,
    carry: Any,
    v: Any,
) -> None:
    """Compute the gradients of a row of the streams; turn `carry`, the state's gradient, from after it to before it.

    Args:
        v: A buffer of one line; overwritten.
    """
    count = carry.shape[1]
    _less_mean(m, v)
    length = 2 * count if count == blocks else count
    for i in range(2 * count // length):
        at = low + i * blocks
        e, c = row[at : at + length], row[at + 2 * blocks : at + 2 * blocks + length]
        grad_e, grad_c = grad_row[at : at + length], grad_row[at + 2 * blocks : at + 2 * blocks + length]
        _output_gradients(e, c, grad_y[at : at + length], v[i * length : (i + 1) * length], grad_e, grad_c)
    _to_carry(v, carry)
    for i in range(2):
        at = low + (4 + 2 * i) * blocks
        grad_0, grad_1 = grad_row[at : at + count], grad_row[at + blocks : at + blocks + count]
        _logit_gradients(carry[i], over_row[i], grad_0, grad_1)
    _carry_before(carry, of_state)


@compiled(error_model="numpy")
def _output_gradients(e: Any, c: Any, grad_y: Any, v: Any, grad_e: Any, grad_c: Any) -> None:
    """Write the gradients of e and c, and overwrite v with its gradient."""
    for g in range(len(v)):
        grad = widen(grad_y[g]) * v[g]
        grad_e[g] = narrow(grad * v[g], grad_e)
        grad_c[g] = narrow(grad, grad_c)
        v[g] = TWO * grad * widen(e[g]) + widen(grad_y[g]) * widen(c[g])


@compiled(error_model="numpy")
def _to_carry(grad_v: Any, carry: Any) -> None:
    count = carry.shape[1]
    grad_0, grad_1, carry_0, carry_1 = grad_v[:count], grad_v[count:], carry[0], carry[1]
    for g in range(count):
        half = (grad_0[g] - grad_1[g]) * HALF
        carry_0[g] += half
        carry_1[g] -= half


@compiled(error_model="numpy")
def _logit_gradients(carry: Any, over_row: Any, grad_0: Any, grad_1: Any) -> None:
    for g in range(len(carry)):
        grad = carry[g] * over_row[g]
        grad_0[g] = narrow(grad, grad_0)
        grad_1[g] = narrow(-grad, grad_1)


@compiled(error_model="numpy")
def _carry_before(carry: Any, of_state: Any) -> None:
    carry_0, carry_1, share_0, share_1 = carry[0], carry[1], of_state[0], of_state[1]
    for g in range(len(carry_0)):
        of_first = carry_0[g] * share_0[g] + carry_1[g] * share_1[g]
        carry_1[g] = carry_0[g] * (ONE - share_0[g]) + carry_1[g] * (ONE - share_1[g])
        carry_0[g] = of_first
