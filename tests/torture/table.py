"""All rows."""

from torture import numbers
from torture.row import Row

ROWS: list[Row] = [*numbers.ROWS]
