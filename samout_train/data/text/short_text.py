"""The message for a text that is too short for a row, in numbers that need no explanation."""

from collections.abc import Sequence
from pathlib import Path

from samout_train.data.text.text_kind import printable


def place_of(root: Path, files: Sequence[Path]) -> str:
    """Return how a message calls the files of a text."""
    return printable(files[0]) if len(files) == 1 else f"{len(files)} files in {printable(root)}"


def too_short(where: str, *, seq_len: int, num_tokens: int, num_part: int, part: str, num_bytes: int) -> str | None:
    """Return what is wrong if a part of a text is shorter than a row, and what would fit.

    Args:
        where: Its file or folder.
        seq_len: Targets in a row; a row has one token more, which is only read.
        num_tokens: Of the whole text.
        num_part: Of the part.
        part: Such as `to validate on`.
        num_bytes: Of the whole text in UTF-8, which its tokens stand for.
    """
    wanted = seq_len + 1
    if num_part >= wanted:
        return None
    enough = max(1, -(-wanted * num_bytes // max(1, num_part)))
    fits = f"set data.seq_len to {num_part - 1} or less, or give" if num_part > 1 else "give"
    return (
        f"data.seq_len={seq_len}: a row takes {wanted:,} tokens, and {where} has {num_tokens:,} ({num_bytes:,} bytes), "
        f"{num_part:,} of them {part}: {fits} a text of about {enough:,} bytes or more"
    )
