"""The code that changes weights."""
