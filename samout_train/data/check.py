"""Find what is wrong with the rows of a source by reading all of them before the first step."""

# R rows, T time

import numpy as np
from numpy.typing import NDArray

from samout_train.data.batches import Batches
from samout_train.data.source import Rows, Source

IDS_TOGETHER = 1 << 18


def row_problems(source: Source) -> list[str]:
    """Return the ids and labels of a source that are out of range, and the splits in which nothing is counted."""
    return _problems("training", source.train, source) + _problems("validation", source.validation, source)


def overfit_problem(batches: Batches, overfit_batches: int, ignore_index: int) -> str | None:
    """Return the problem of a run that learns the same few batches again and again, none of which has a target.

    Args:
        batches: Of the run.
        overfit_batches: Number of those that are learned; 0 for all.
        ignore_index: Targets of this value are not counted.
    """
    if not overfit_batches or any(batches.num_targets(step) for step in range(overfit_batches)):
        return None
    return (
        f"trainer.overfit_batches={overfit_batches}: every target of these batches is {ignore_index}, which is ignored "
        "(data.ignore_index): there is nothing to learn; set it higher, or set another seed"
    )


def _problems(name: str, rows: Rows, source: Source) -> list[str]:
    largest = _largest_id(rows, source)
    if largest is not None and largest >= source.vocab_size:
        return [f"data: id {largest} in the {name} tokens is none: ids are from 0 to {source.vocab_size - 1}"]
    if rows.num_rows < 1 or rows.num_windows < 1:
        return [f"data: there are 0 {name} rows: at least 1 is needed"]
    found: list[str] = []
    counted = 0
    together = max(1, IDS_TOGETHER // rows.seq_len)
    for start in range(0, rows.num_windows, together):
        inputs_RT, targets_RT = rows.split(rows.windows(start, start + together))
        is_counted_RT = targets_RT != source.ignore_index
        counted += int(is_counted_RT.sum())
        if counted and largest is not None:  # the ids are known to be right
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
                    f"data: {what} {int(ids_RT[row, place])} in {name} row {start + row}, place {place}, is none: ids "
                    f"are from 0 to {source.vocab_size - 1}; mend the rows, or the number of ids"
                )
    if not counted:
        purpose = {"training": "learn", "validation": "evaluate"}[name]
        fix = "give rows with other targets"
        if source.vocabulary:
            fix += ", or a vocabulary that has the characters of this text"
        found.append(
            f"data: in {rows.num_windows} {name} rows every target is {source.ignore_index}, which is ignored "
            f"(data.ignore_index): there is nothing to {purpose}; {fix}"
        )
    return found


def _largest_id(rows: Rows, source: Source) -> int | None:
    """Return the largest id of rows that are a part of a text; None for those that have to be read one by one."""
    recorded: int | None = getattr(rows, "largest_id", None)  # of shards, by who wrote them
    tokens = getattr(rows, "tokens", None)
    if recorded is not None or tokens is None:
        return recorded
    if source.vocabulary is not None:  # its ids come from the token cache, which keeps their digest
        return -1
    return _largest(tokens)


def _largest(tokens: NDArray[np.integer]) -> int:
    """Return the largest id, -1 of none; reads a part at a time, so that a memory map is never whole in memory."""
    starts = range(0, len(tokens), IDS_TOGETHER)
    return max((int(tokens[start : start + IDS_TOGETHER].max()) for start in starts), default=-1)
