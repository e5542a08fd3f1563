"""All rows, in order."""

from torture import damage, deaths, full_disk, stops
from torture.row import Row

ROWS: list[Row] = sorted(deaths.ROWS + damage.ROWS + full_disk.ROWS + stops.ROWS, key=lambda row: row.number)
