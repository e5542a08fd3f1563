"""Models: one readable file a variant."""
