"""Check all rows of a source before the first step: ids in range, and at least one counted target."""

# R rows, T time

import numpy as np
from numpy.typing import NDArray

from samout_train.data.batches import Batches
from samout_train.data.source import Rows, Source

IDS_TOGETHER = 1 << 18


def row_problems(source: Source) -> list[str]:
    """Return the problems of a source: ids and labels out of range, and splits without a counted target."""
    return _problems("training", source.train, source) + _problems("validation", source.validation, source)


def overfit_problem(batches: Batches, overfit_batches: int, ignore_index: int) -> str | None:
    """Return the problem of a run that repeats batches without a counted target, or None.

    Args:
        overfit_batches: Number of repeated batches; 0 for all.
        ignore_index: Targets of this value are not counted.
    """
    if not overfit_batches or any(batches.num_targets(step) for step in range(overfit_batches)):
        return None
    return (
        f"trainer.overfit_batches={overfit_batches}: every target of these batches is {ignore_index}, which is ignored "
        "(data.ignore_index), so there is nothing to learn: set it higher, or set another seed"
    )


def _problems(name: str, rows: Rows, source: Source) -> list[str]:
    largest = _largest_id(rows, source)
    if largest is not None and largest >= source.vocab_size:
        return [f"data: token id {largest} in the {name} split is out of range 0 to {source.vocab_size - 1}"]
    if rows.num_rows < 1 or rows.num_windows < 1:
        return [f"data: there are 0 {name} rows: at least 1 is needed"]
    found: list[str] = []
    counted = 0
    together = max(1, IDS_TOGETHER // rows.seq_len)
    for start in range(0, rows.num_windows, together):
        inputs_RT, targets_RT = rows.split(rows.windows(start, start + together))
        is_counted_RT = targets_RT != source.ignore_index
        counted += int(is_counted_RT.sum())
        if counted and largest is not None:  # the largest id is in range, so all are
            break
        if found:
            continue
        for what, ids_RT, asked_RT in (("id", inputs_RT, None), ("target", targets_RT, is_counted_RT)):
            wrong_RT = (ids_RT < 0) | (ids_RT >= source.vocab_size)
            if asked_RT is not None:
                wrong_RT &= asked_RT
            if not found and wrong_RT.any():
                row, place = wrong_RT.nonzero()[0].tolist()
                found.append(
                    f"data: {what} {int(ids_RT[row, place])} in {name} row {start + row}, place {place}, is out of "
                    f"range 0 to {source.vocab_size - 1}: correct the rows, or the number of ids"
                )
    if not counted:
        purpose = {"training": "learn", "validation": "evaluate"}[name]
        fix = "use rows with other targets"
        if source.vocabulary:
            fix += ", or a vocabulary with the characters of this text"
        found.append(
            f"data: in {rows.num_windows} {name} rows every target is {source.ignore_index}, which is ignored "
            f"(data.ignore_index), so there is nothing to {purpose}: {fix}"
        )
    return found


def _largest_id(rows: Rows, source: Source) -> int | None:
    """Return the largest id of rows cut from a text, -1 if known to be in range; None for rows to read one by one."""
    recorded: int | None = getattr(rows, "largest_id", None)  # recorded by `tokenize` for shards
    tokens = getattr(rows, "tokens", None)
    if recorded is not None or tokens is None:
        return recorded
    if source.vocabulary is not None:  # ids from the token cache, which verifies their digest
        return -1
    return _largest(tokens)


def _largest(tokens: NDArray[np.integer]) -> int:
    """Return the largest id, or -1 without ids. Read in blocks, so that memory never holds a whole memory map."""
    starts = range(0, len(tokens), IDS_TOGETHER)
    return max((int(tokens[start : start + IDS_TOGETHER].max()) for start in starts), default=-1)
