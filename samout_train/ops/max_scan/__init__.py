"""The running maximum, the one operation that every SamOut mixer is built on."""

from samout_train.ops.max_scan.reference import max_scan

__all__ = ["max_scan"]
