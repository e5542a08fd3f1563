"""Which products of float32 on a CPU are not torch's own; decided for the whole process, torch everywhere at first."""

from dataclasses import dataclass

import torch

MANY, FEW = ("torch", "onednn"), ("torch", "numba")


@dataclass(frozen=True)
class Products:
    """The libraries that multiply.

    Args:
        many: Large products of many rows: `torch` (MKL, mostly) or `onednn`.
        few: Products of a few rows with large matrices, without gradients: `torch` or `numba`.
    """

    many: str = "torch"
    few: str = "torch"

    @classmethod
    def of(cls, text: str) -> "Products":
        """Return what `str` made text of.

        Raises:
            ValueError: if it is something else.
        """
        many, _, few = text.partition(",")
        if many not in MANY or few not in FEW:
            raise ValueError("must be torch or onednn, a comma, and torch or numba, such as torch,torch")
        return cls(many, few)

    def __str__(self) -> str:
        return f"{self.many},{self.few}"


_chosen: Products | None = None


def use_products(products: Products | None) -> None:
    """Decide for the whole process; None to take that back."""
    global _chosen
    _chosen = products


def chosen_products() -> Products:
    """Return what was decided; torch's own where nothing was."""
    return _chosen or Products()


def is_decided() -> bool:
    """Return whether something was decided."""
    return _chosen is not None


def has_onednn() -> bool:
    """Return whether torch has oneDNN, and would multiply by something else."""
    return bool(torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())
