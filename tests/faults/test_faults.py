"""Each row of the table of reliability, at its small count."""

from pathlib import Path

import pytest

from tests.faults.row import SMALL, Case, Row
from tests.faults.table import ROWS

LONGER = {8, 9, 10, 11, 13, 15, 19, 20, 21}  # two seconds and more; `make test-slow` has them


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.slow) if row.number in LONGER else row for row in ROWS],
    ids=lambda row: f"{row.number}_{row.what.replace(' ', '_')}",
)
def test_what_may_happen_to_a_run_loses_nothing(row: Row, tmp_path: Path) -> None:
    assert row.happen(Case(row.few, 0, tmp_path, SMALL))
