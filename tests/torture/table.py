"""All rows."""

from torture import input
from torture.row import Row

ROWS: list[Row] = [*input.ROWS]
