"""Each row of the table of reliability, at its small count."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.row import SMALL, Case, Row
from tests.faults.table import ROWS

SLOW = {11}  # a run that is killed
NIGHTLY = {8, 9, 10, 13, 15, 19, 20, 21}  # two seconds and more


def marked(row: Row) -> Any:
    """A row with the tier that has it."""
    tiers = ((pytest.mark.slow, SLOW), (pytest.mark.nightly, NIGHTLY))
    return pytest.param(row, marks=[mark for mark, numbers in tiers if row.number in numbers])


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [marked(row) for row in ROWS],
    ids=lambda row: f"{row.number}_{row.what.replace(' ', '_')}",
)
def test_what_may_happen_to_a_run_loses_nothing(row: Row, tmp_path: Path) -> None:
    assert row.happen(Case(row.few, 0, tmp_path, SMALL))
