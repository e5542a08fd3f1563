"""Optimizers: one function from a model to its optimizer a file, and one YAML each in conf/optimizer/."""
