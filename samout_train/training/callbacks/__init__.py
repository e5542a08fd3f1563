"""Callbacks: parts that watch a run."""
