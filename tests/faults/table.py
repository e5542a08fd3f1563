"""All rows, in order."""

from tests.faults import damage, deaths, full_disk, input, numbers, stops
from tests.faults.row import Row

MODULES = (deaths, damage, full_disk, stops, input, numbers)
ROWS: list[Row] = sorted((row for module in MODULES for row in module.ROWS), key=lambda row: row.number)
