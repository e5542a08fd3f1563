"""Read Parquet and Arrow tables row by row, in memory that depends on the size of a batch and not on that of the file.

A place in a table is the number of a row. Columns that are not asked for are not read.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from samout_train.data.text.encoding import ARROW, ARROW_STREAM, PARQUET, printable

ROWS_TOGETHER = 64
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class TableRow:
    """Hold a row of a table.

    Args:
        end: Number of rows of the table up to and including it.
        bytes_done: Approximate bytes of the file that were read for it.
        values: By column; those that are null are left out.
    """

    end: int
    bytes_done: int
    values: dict[str, Any]


def table_kind(path: Path) -> str | None:
    """Return `Parquet` or `Arrow` for a table, by its first bytes; None for another or a missing file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(ARROW))
    except OSError:  # reported when the file is read
        return None
    if head.startswith(PARQUET):
        return "Parquet"
    if head.startswith((ARROW, ARROW_STREAM)):
        return "Arrow"
    return None


def table_rows(path: Path, columns: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[TableRow]:
    """Yield the rows of a table.

    Args:
        path: A file for which `table_kind` returns a kind.
        columns: Columns to read; those that the table lacks are left out.
        start: The first row.
        stop: The row after the last one; None for all.

    Raises:
        ValueError: if pyarrow is not installed, the table is damaged, or it has none of the columns.
    """
    kind = table_kind(path)
    try:
        pyarrow = _pyarrow()
        read = _parquet_batches if kind == "Parquet" else _arrow_batches
        row = start
        for batch, bytes_done in read(path, columns, start):
            names = batch.schema.names
            for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                if row == stop:
                    return
                row += 1
                present = {name: value for name, value in zip(names, values, strict=True) if value is not None}
                yield TableRow(row, bytes_done, present)
    except ImportError as error:
        raise ValueError(
            f"{printable(path)} is a table ({kind}): reading it needs pyarrow: pip install 'samout_train[parquet]'"
        ) from error
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{printable(path)} is a {kind} table that cannot be read ({error}): copy or download it again"
        ) from error


def row_to_cut(path: Path, place: int, size: int) -> int:
    """Return the first row of the group that begins at or after a share of the table; Arrow tables are not cut.

    Args:
        path: A table.
        place: Bytes of the file, which divided by its size are the share.
        size: Bytes of the whole file.
    """
    first_rows, shares = _groups(path)
    if place >= size:
        return first_rows[-1]
    return next(row for row, share in zip(first_rows, shares, strict=True) if share >= place / size)


def _pyarrow() -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError("pyarrow")
    import pyarrow

    return pyarrow


@lru_cache(maxsize=256)
def _groups(path: Path) -> tuple[list[int], list[float]]:
    """Return the first row of each group and its share of the table; the end of the table comes last."""
    if table_kind(path) != "Parquet":
        return [0, 1 << 62], [0.0, 1.0]
    _pyarrow()
    from pyarrow import parquet

    metadata = parquet.ParquetFile(path).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    total = sum(group.total_byte_size for group in groups)
    first_rows, shares = [], []
    row = size = 0
    for group in groups:
        first_rows.append(row)
        shares.append(size / max(1, total))
        row += group.num_rows
        size += group.total_byte_size
    return [*first_rows, row], [*shares, 1.0]


def _parquet_batches(path: Path, columns: Sequence[str], start: int) -> Iterator[tuple[Any, int]]:
    """Yield batches from a row on, with the bytes of the file that were read for it, by its share of the rows."""
    from pyarrow import parquet

    size = path.stat().st_size
    # A column of a group is read through a buffer, not as a whole.
    with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        wanted = _present(path, file.schema_arrow.names, columns)
        row = 0
        for number in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(number).num_rows
            if row + num_rows <= start:
                row += num_rows
                continue
            for batch in file.iter_batches(ROWS_TOGETHER, row_groups=[number], columns=wanted, use_threads=False):
                skipped = min(max(0, start - row), batch.num_rows)
                row += batch.num_rows
                yield batch.select(wanted).slice(skipped), size * row // file.metadata.num_rows


def _arrow_batches(path: Path, columns: Sequence[str], start: int) -> Iterator[tuple[Any, int]]:
    """Yield batches from a row on, with the bytes of the file up to their end; the file is mapped and not copied."""
    pyarrow = _pyarrow()
    size = path.stat().st_size
    with pyarrow.memory_map(str(path)) as source:
        if source.read(len(ARROW)) == ARROW:
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            source.seek(0)
            file = batches = pyarrow.ipc.open_stream(source)
        wanted = _present(path, file.schema.names, columns)
        row = 0
        for whole in batches:
            for first in range(0, whole.num_rows, ROWS_TOGETHER):
                batch = whole.slice(first, ROWS_TOGETHER).select(wanted)
                skipped = min(max(0, start - row), batch.num_rows)
                row += batch.num_rows
                yield batch.slice(skipped), min(size, source.tell())


def _present(path: Path, there: Sequence[str], columns: Sequence[str]) -> list[str]:
    wanted = [name for name in columns if name in there]
    if not wanted:
        raise ValueError(
            f"{printable(path)} is a table without a column {' or '.join(columns)} (it has {', '.join(there)[:200]}): "
            "rename the one that holds the text"
        )
    return wanted
