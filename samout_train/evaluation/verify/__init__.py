"""Proofs by measurement that a model is what it says: causal, with a real state, with right gradients.

checks.py has the checks in their order, each with its bound; causality.py, sequence.py and training.py measure;
subject.py has the models that are verified, and result.py what a check came to.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
