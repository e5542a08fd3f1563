"""Read Parquet and Arrow tables row by row, in memory that depends on the size of a batch, not of the file.

A place in a table is the number of a row. Only requested columns are read. pyarrow's pool keeps freed memory, and the
pages of a mapped file stay resident once they are read: both are released every few megabytes.
"""

import importlib.util
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

from samout_train.data.text.encoding import ARROW, ARROW_STREAM, PARQUET, printable
from samout_train.runtime import install_line

ROWS_TOGETHER = 64
BUFFER_BYTES = 1 << 20
RELEASED_TOGETHER = 1 << 22


@dataclass(frozen=True)
class TableRow:
    """Hold a row of a table.

    Args:
        end: Number of rows of the table up to and including it.
        bytes_done: Approximate bytes of the file that were read for it.
        values: Values by column, without nulls.
    """

    end: int
    bytes_done: int
    values: dict[str, Any]


def table_kind(path: Path) -> str | None:
    """Return `Parquet` or `Arrow` for a table, by its first bytes; None for another file or a missing one."""
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
        columns: Columns to read; columns that the table lacks are ignored.
        start: The first row.
        stop: The row after the last one; None for all.

    Raises:
        ValueError: if pyarrow is not installed, the table is damaged, or it has none of the columns.
    """
    with _named_errors(path) as kind:
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


def row_to_cut(path: Path, place: int, size: int) -> int:
    """Return the first row of the first group, or record batch, that begins at or after a share of the table.

    Args:
        path: A table.
        place: The share, in bytes of the file.
        size: Bytes of the whole file.

    Raises:
        ValueError: if pyarrow is not installed, or the table is damaged.
    """
    first_rows, shares = _groups(path)
    if place >= size:
        return first_rows[-1]
    return next(row for row, share in zip(first_rows, shares, strict=True) if share >= place / size)


@contextmanager
def _named_errors(path: Path) -> Iterator[str | None]:
    """Provide the kind of a table; errors in the block name the file."""
    kind = table_kind(path)
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{printable(path)} is a table ({kind}): reading it needs pyarrow: {install_line('parquet')}")
    import pyarrow

    try:
        yield kind
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{printable(path)} is a {kind} table that cannot be read ({error}): copy or download it again"
        ) from error


def _groups(path: Path) -> tuple[list[int], list[float]]:
    """Return the first row of each group and its share of the table; the end of the table comes last."""
    status = path.stat()
    return _groups_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _groups_of(path: Path, size: int, modified_ns: int) -> tuple[list[int], list[float]]:
    with _named_errors(path) as kind, path.open("rb") as file:
        if kind == "Parquet":
            from pyarrow import parquet

            metadata = parquet.ParquetFile(file).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            rows = [group.num_rows for group in groups]
            sizes = [group.total_byte_size for group in groups]
        else:
            table, rows = _ArrowTable(file), []
            for batch, _ in table.batches(0):
                rows.append(batch.num_rows)
                table.release()
            sizes = rows
    ends, total = [0, *accumulate(sizes)], max(1, sum(sizes))
    return [0, *accumulate(rows)], [*(end / total for end in ends[:-1]), 1.0]


def _parquet_batches(path: Path, columns: Sequence[str], start: int) -> Iterator[tuple[Any, int]]:
    """Yield batches from a row on, with the bytes read up to their end, estimated from their share of the rows."""
    import pyarrow
    from pyarrow import parquet

    size = path.stat().st_size
    # Read each column of a group through a buffer, not as a whole.
    with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        wanted = _present(path, file.schema_arrow.names, columns)
        row = unreleased = 0
        for number in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(number).num_rows
            if row + num_rows <= start:
                row += num_rows
                continue
            for batch in file.iter_batches(ROWS_TOGETHER, row_groups=[number], columns=wanted, use_threads=False):
                skipped = min(max(0, start - row), batch.num_rows)
                row += batch.num_rows
                yield batch.select(wanted).slice(skipped), size * row // file.metadata.num_rows
                unreleased += batch.nbytes
                if unreleased > RELEASED_TOGETHER:
                    pyarrow.default_memory_pool().release_unused()
                    unreleased = 0


def _arrow_batches(path: Path, columns: Sequence[str], start: int) -> Iterator[tuple[Any, int]]:
    """Yield batches from a row on, with the bytes of the file up to their end."""
    number = row = unreleased = 0
    if start:
        first_rows, _ = _groups(path)
        number = bisect_right(first_rows, start) - 1
        row = first_rows[number]
    with path.open("rb") as file:
        table = _ArrowTable(file)
        wanted = _present(path, table.names, columns)
        for whole, bytes_done in table.batches(number):
            for first in range(max(0, start - row), whole.num_rows, ROWS_TOGETHER):
                batch = whole.slice(first, ROWS_TOGETHER).select(wanted)
                yield batch, bytes_done
                unreleased += batch.nbytes
                if unreleased > RELEASED_TOGETHER:
                    table.release()
                    unreleased = 0
            row += whole.num_rows


class _ArrowTable:
    """Read the record batches of an open Arrow file or stream, which is mapped, not copied."""

    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow

        self._pool = pyarrow.default_memory_pool()
        self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._source = pyarrow.BufferReader(pyarrow.py_buffer(self._mapped))
        self._is_stream = self._mapped[: len(ARROW)] != ARROW
        opened = pyarrow.ipc.open_stream if self._is_stream else pyarrow.ipc.open_file
        self._reader = opened(self._source)
        self.names: list[str] = self._reader.schema.names

    def batches(self, number: int) -> Iterator[tuple[Any, int]]:
        """Yield the record batches from a number on, with the bytes of the file up to their end."""
        if self._is_stream:
            for batch in islice(self._reader, number, None):
                yield batch, self._source.tell()
            return
        total = self._reader.num_record_batches
        for place in range(number, total):
            yield self._reader.get_batch(place), len(self._mapped) * (place + 1) // total

    def release(self) -> None:
        """Release the memory of everything that was read; the system reads the file again if needed."""
        self._pool.release_unused()
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def _present(path: Path, there: Sequence[str], columns: Sequence[str]) -> list[str]:
    wanted = [name for name in columns if name in there]
    if not wanted:
        raise ValueError(
            f"{printable(path)} is a table without a column {' or '.join(columns)} (it has {', '.join(there)[:200]}): "
            "rename the one that holds the text"
        )
    return wanted
