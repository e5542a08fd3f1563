"""Declare the error of an unusable checkpoint. This module does without torch, since every verb catches the error."""

from collections.abc import Mapping
from pathlib import Path


class CheckpointError(Exception):
    """No checkpoint could be used or written; the message names the files and the reasons.

    Args:
        message: The message.
        reasons: The reason for each unusable file; empty if writing failed.
    """

    def __init__(self, message: str, reasons: Mapping[Path, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})

    @classmethod
    def of_file(cls, path: Path, reason: object) -> "CheckpointError":
        """Return the error of one unusable file."""
        return cls(f"{path} cannot be used: {reason}", {path: str(reason)})
