"""Optimizers: a function a file, from a model and settings to a torch optimizer."""
