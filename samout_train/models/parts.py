"""Which part of a model a parameter belongs to, as reports show it, and what the model's matrices cost."""

from torch import nn

PARTS = {
    ".mixer.": "mixer",
    ".attention.": "mixer",
    ".convolution.": "convolution",
    ".feed_forward.": "feed-forward",
    ".embedding.": "embedding",
    ".positions.": "embedding",
    ".head.": "head",
}


def part_of(name: str) -> str:
    """The part of the parameter of this name: that of the module which it lies in; elsewhere it is a norm's."""
    return next((word for module, word in PARTS.items() if module in f".{name}"), "norm")


def matrix_flops(model: nn.Module) -> int:
    """Floating-point operations of the matrix products for one token: two for each element of a matrix.

    An embedding is looked up, which is no product; what a mixer does along time comes on top.
    """
    return 2 * sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and part_of(name) != "embedding")
