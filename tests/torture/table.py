"""All rows."""

from torture.row import Row

ROWS: list[Row] = []
