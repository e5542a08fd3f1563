"""Optimizers. Each has a file with the function that builds it for a model, and a YAML in conf/optimizer/."""
