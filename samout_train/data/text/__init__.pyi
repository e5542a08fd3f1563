from .base import (
    counts_of as counts_of,
    place_of as place_of,
    too_short as too_short,
)
from .text import Text as Text, look_at as look_at
