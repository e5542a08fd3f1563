"""Operations on tensors, with fused kernels where numba or triton is there. They know nothing of models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
