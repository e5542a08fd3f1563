"""What comes from outside and is not what it should be: hostile files, damaged configurations, bad data."""

from tests.faults.bad_data import BAD_DATA, bad_data
from tests.faults.damaged_yaml import MUTATIONS, TYPED, damaged_configurations
from tests.faults.hostile_files import hostile_files
from tests.faults.row import Row

ROWS = [
    Row(16, "a malicious checkpoint", 12, 10**6, hostile_files),
    Row(18, "a damaged configuration", 8, len(MUTATIONS) + len(TYPED), damaged_configurations),
    Row(19, "bad data", 4, len(BAD_DATA), bad_data),
]
