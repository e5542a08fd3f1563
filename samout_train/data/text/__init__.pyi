from .text import (
    counts_of as counts_of,
    file_problems as file_problems,
    look_at as look_at,
    place_of as place_of,
    stream_source as stream_source,
    text_problems as text_problems,
    too_short as too_short,
    vocabulary_of as vocabulary_of,
)
