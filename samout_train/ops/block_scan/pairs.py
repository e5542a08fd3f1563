"""Walk through the rows of max-plus blocks of two entries on the CPU, both entries of a block in one loop.

Of two, log(e^(s_0 / tau) + e^(s_1 / tau)) is the larger s / tau + log(1 + e^(-|s_1 - s_0| / tau)), one exponential. The
backward pass needs the shares of the first entry alone, in the sum of its row of L and in the state's; the second has
the rest. They are kept for ROWS rows with the states, so that gradients take no exponential.

Arrays of one row have a line for each entry, of the blocks of a task. Loops over blocks are vectorised.
"""

from typing import Any

import numpy as np

from samout_train.ops.numba_support import compiled, narrow, vector_exp, vector_log, widen

ONE, HALF = np.float32(1), np.float32(0.5)


@compiled(error_model="numpy")
def larger(x: Any, best: Any) -> Any:
    """Return the larger of two; x where it is NaN."""
    return x if (x > best) or (x != x) else best


@compiled(error_model="numpy")
def _maxima(x_0: Any, x_1: Any, m_0: Any, m_1: Any) -> Any:
    """Return the maximum of a row of L, both sums of the state with the normalised row, and their maximum."""
    top = larger(x_1, x_0)
    s_0, s_1 = (x_0 - top) + m_0, (x_1 - top) + m_1
    return top, s_0, s_1, larger(s_1, s_0)


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
            inverse = ONE / temperature
            of_state = ONE + vector_exp(-abs(s_1 - s_0) * inverse)
            of_row = ONE + vector_exp(-abs(x_1 - x_0) * inverse)
            best += temperature * vector_log(of_state / of_row)
        after[g] = best


@compiled(error_model="numpy")
def step_with_shares(
    row: Any, start: int, blocks: int, temperature: Any, before: Any, after: Any, of_state: Any, over_row: Any
) -> None:
    """Make one step as `step_of_pairs`, and keep the first entry's shares for the gradients.

    Args:
        of_state: Filled: the share in the state's sum, for each entry i of a block.
        over_row: Filled: the same less the share in the sum of the row of L.
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
            inverse = ONE / temperature
            e_state, e_row = vector_exp(-abs(s_1 - s_0) * inverse), vector_exp(-abs(x_1 - x_0) * inverse)
            best += temperature * vector_log((ONE + e_state) / (ONE + e_row))
            share = (ONE if s_0 >= s_1 else e_state) / (ONE + e_state)
            row_share = (ONE if x_0 >= x_1 else e_row) / (ONE + e_row)
        after[g] = best
        of_state[g] = share
        over_row[g] = share - row_share


@compiled(error_model="numpy")
def output_of_pairs(row: Any, low: int, blocks: int, m: Any, y: Any) -> None:
    """Compute y = (e v + c) v, v = m less the mean of its block; e lies in `row` from `low` on, c two blocks later."""
    count = m.shape[1]
    e_0, e_1 = row[low : low + count], row[low + blocks : low + blocks + count]
    c_0, c_1 = row[low + 2 * blocks : low + 2 * blocks + count], row[low + 3 * blocks : low + 3 * blocks + count]
    y_0, y_1 = y[low : low + count], y[low + blocks : low + blocks + count]
    m_0, m_1 = m[0], m[1]
    for g in range(count):
        mean = (m_0[g] + m_1[g]) * HALF
        v_0, v_1 = m_0[g] - mean, m_1[g] - mean
        y_0[g] = narrow((widen(e_0[g]) * v_0 + widen(c_0[g])) * v_0, y)
        y_1[g] = narrow((widen(e_1[g]) * v_1 + widen(c_1[g])) * v_1, y)


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
    grad_v: Any,
) -> None:
    """Compute the gradients of a row of the streams, and update `carry`, that of the state, from after to before it.

    Args:
        grad_v: Overwritten.
    """
    count = carry.shape[1]
    for i in range(2):
        at = low + i * blocks
        e, c = row[at : at + count], row[at + 2 * blocks : at + 2 * blocks + count]
        grad_e, grad_c = grad_row[at : at + count], grad_row[at + 2 * blocks : at + 2 * blocks + count]
        _output_gradients(e, c, grad_y[at : at + count], m[i], m, grad_e, grad_c, grad_v[i])
    _to_carry(grad_v, carry)
    for i in range(2):
        at = low + (4 + 2 * i) * blocks
        grad_0, grad_1 = grad_row[at : at + count], grad_row[at + blocks : at + blocks + count]
        _logit_gradients(carry[i], over_row[i], grad_0, grad_1)
    _carry_before(carry, of_state)


@compiled(error_model="numpy")
def _output_gradients(e: Any, c: Any, grad_y: Any, own: Any, m: Any, grad_e: Any, grad_c: Any, grad_v: Any) -> None:
    m_0, m_1 = m[0], m[1]
    for g in range(len(own)):
        v = own[g] - (m_0[g] + m_1[g]) * HALF
        grad = widen(grad_y[g]) * v
        grad_v[g] = np.float32(2) * grad * widen(e[g]) + widen(grad_y[g]) * widen(c[g])
        grad_e[g] = narrow(grad * v, grad_e)
        grad_c[g] = narrow(grad, grad_c)


@compiled(error_model="numpy")
def _to_carry(grad_v: Any, carry: Any) -> None:
    grad_0, grad_1, carry_0, carry_1 = grad_v[0], grad_v[1], carry[0], carry[1]
    for g in range(len(carry_0)):
        mean = (grad_0[g] + grad_1[g]) * HALF
        carry_0[g] += grad_0[g] - mean
        carry_1[g] += grad_1[g] - mean


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
