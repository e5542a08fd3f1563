"""Tasks whose answers are counted."""
