"""Each row of the table of reliability, at its small count."""

from pathlib import Path

import pytest
from torture.row import SMALL, Case, Row
from torture.table import ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}_{row.what.replace(' ', '_')}")
def test_what_may_happen_to_a_run_loses_nothing(row: Row, tmp_path: Path) -> None:
    assert row.happen(Case(row.few, 0, tmp_path, SMALL))
