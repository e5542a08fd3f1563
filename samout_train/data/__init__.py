"""Data: what becomes rows of token ids, one file a source."""
