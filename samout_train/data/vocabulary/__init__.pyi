from .base import (
    PAD_ID as PAD_ID,
    SOS_ID as SOS_ID,
    SPECIAL_TOKENS as SPECIAL_TOKENS,
    SURROGATE as SURROGATE,
    Bytes as Bytes,
    Characters as Characters,
    UnknownCharacterError as UnknownCharacterError,
    Vocabulary as Vocabulary,
    characters_in as characters_in,
    dtype_for as dtype_for,
)
