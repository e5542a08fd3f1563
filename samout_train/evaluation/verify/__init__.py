"""Verify by measurement that a model is causal, that its state works, and that its gradients are right.

checks.py lists the checks in order, each with its bound; causality.py, sequence.py, packing.py and training.py measure;
subject.py builds the models to verify, and result.py has the result of a check.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
