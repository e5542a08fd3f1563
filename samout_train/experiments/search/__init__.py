"""Searching for settings: Optuna proposes, each trial is a run in a process of its own, and bad ones end early."""
