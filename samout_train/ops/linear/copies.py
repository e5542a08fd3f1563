"""Copy weights once for the products of one step: summed, side by side, in the precision of the products.

A step makes them with `weight_copies`; in that context, `linear` and `stacked_linear` use them in each micro-step and
chunk. At most three launches fill all copies. Gradients reach the parameters in float32: the product itself writes them
in that precision, so that nothing is cast.
"""

# M rows, N outputs, K inputs

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

DEVICES = {"cuda"}  # on other devices a launch costs little, and runs keep their bits


@dataclass(frozen=True)
class Stack:
    """Describe weights that share one product: blocks of outputs, each a part of a parameter or the sum of two.

    Args:
        parameters: All parameters.
        blocks: For each block, one or two pairs: the number of a parameter, and the number of its part.
        parts: Number of parts of each parameter, all of the same height.
        scale: A factor on each sum.
        biases: Biases of the blocks; empty for none.
    """

    parameters: Sequence[Tensor]
    blocks: Sequence[Sequence[tuple[int, int]]]
    parts: int = 1
    scale: float = 1.0
    biases: Sequence[Tensor] = ()

    def terms(self) -> list[list[Tensor]]:
        """Return, for each block, the weights that it sums."""
        parts = [parameter.detach().chunk(self.parts) for parameter in self.parameters]
        return [[parts[which][part] for which, part in block] for block in self.blocks]


@dataclass
class Copy:
    """Hold a stack and its copies."""

    stack: Stack
    weight_NK: Tensor
    bias_N: Tensor | None


class WeightCopies:
    """Hold the copies of a model's weights for products in one precision.

    Args:
        model: The model. A module's `weight_stack` counts only if its own class defines it, because a derived class may
            compute something else. Every other nn.Linear is a stack of its own if its weights are cast.
        dtype: Precision of the products.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.copies: dict[int, Copy] = {}  # by the identity of a stack's first parameter
        stacked: set[int] = set()
        for module in model.modules():
            if "weight_stack" in vars(type(module)):
                stack: Stack = module.weight_stack()  # type: ignore[operator]
                self._add(stack)
                stacked |= {id(parameter) for parameter in stack.parameters}
        for module in model.modules():
            if isinstance(module, nn.Linear) and id(module.weight) not in stacked and module.weight.dtype != dtype:
                biases = [] if module.bias is None else [module.bias]
                self._add(Stack([module.weight], [[(0, 0)]], biases=biases))

    def _add(self, stack: Stack) -> None:
        terms = stack.terms()
        first, bias_N = terms[0][0], None
        outputs = sum(len(each[0]) for each in terms)
        if stack.biases:
            bias_N = first.new_empty(outputs, dtype=self.dtype)
        self.copies[id(stack.parameters[0])] = Copy(
            stack, first.new_empty(outputs, first.shape[1], dtype=self.dtype), bias_N
        )

    @torch.no_grad()
    def fill(self) -> None:
        """Copy all weights as they are now."""
        targets, sources = list[Tensor](), list[Tensor]()
        sums: dict[float, tuple[list[Tensor], list[Tensor], list[int]]] = {}
        for copy in self.copies.values():
            terms = copy.stack.terms()
            for target, block in zip(copy.weight_NK.split([len(each[0]) for each in terms]), terms, strict=True):
                if len(block) > 1:
                    left, right, places = sums.setdefault(copy.stack.scale, ([], [], []))
                    left.append(block[0])
                    right.append(block[1])
                    places.append(len(sources))
                targets.append(target)
                sources.append(block[0])
            if copy.bias_N is not None:
                targets += copy.bias_N.split([len(bias) for bias in copy.stack.biases])
                sources += copy.stack.biases
        for scale, (left, right, places) in sums.items():
            added = torch._foreach_add(left, right)
            if scale != 1:
                torch._foreach_mul_(added, scale)
            for place, total in zip(places, added, strict=True):
                sources[place] = total
        if targets:
            torch._foreach_copy_(targets, sources)


def copies_weights(device_type: str) -> bool:
    """Return whether a step on this device makes copies."""
    return device_type in DEVICES


_current: WeightCopies | None = None  # one for the process: on CUDA the backward pass runs in a thread of its own


@contextmanager
def weight_copies(copies: WeightCopies) -> Iterator[None]:
    """Multiply with copies of the weights as they are now, until the end of the context."""
    global _current
    copies.fill()
    _current = copies
    try:
        yield
    finally:
        _current = None


def copy_of(weight: Tensor, dtype: torch.dtype) -> Copy | None:
    """Return the copy of the stack that begins with this weight, for products in this precision; None without one."""
    if _current is None or _current.dtype != dtype:
        return None
    return _current.copies.get(id(weight))


def found_copy(x: Tensor, weight: Tensor, *, blocks: int = 1) -> Copy | None:
    """Return the copy for a product of x in autocast's precision, if gradients are recorded and `blocks` fits.

    Args:
        x: The input.
        weight: The first weight of the stack.
        blocks: Number of blocks of outputs that the caller expects.
    """
    if _current is None or not torch.is_grad_enabled():
        return None
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    copy = copy_of(weight, dtype)
    if copy is None or len(copy.stack.blocks) != blocks:
        return None
    return copy


def stacked_linear(x: Tensor, copy: Copy) -> Tensor:
    """Return the products of x with all blocks of a stack, side by side, (..., N). There is no second derivative."""
    y: Tensor = _StackedLinear.apply(x, copy, *copy.stack.parameters, *copy.stack.biases)
    return y


class _StackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, copy: Copy, *parameters: Tensor) -> Tensor:
        """Return x W^T + b."""
        with torch.autocast(x.device.type, enabled=False):
            x_MK = x.reshape(-1, x.shape[-1]).to(copy.weight_NK.dtype)
            if copy.bias_N is None:
                y_MN = torch.mm(x_MK, copy.weight_NK.t())
            else:
                y_MN = torch.addmm(copy.bias_N, x_MK, copy.weight_NK.t())
        ctx.save_for_backward(x_MK)
        ctx.copy, ctx.shape, ctx.x_dtype = copy, x.shape, x.dtype
        return y_MN.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        """Return the gradients of x and of all parameters."""
        (x_MK,) = ctx.saved_tensors
        copy, stack = ctx.copy, ctx.copy.stack
        grad_MN = upstream[0].reshape(-1, len(copy.weight_NK))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad_MN, copy.weight_NK, ctx.x_dtype).view(ctx.shape)
        dtype = stack.parameters[0].dtype
        grads = _spread(_product(grad_MN.t(), x_MK, dtype), stack)
        for_biases: Sequence[Tensor] = ()
        if stack.biases:
            for_biases = grad_MN.sum(0, dtype=dtype).split([len(bias) for bias in stack.biases])
        return grad_x, None, *grads, *for_biases


def _spread(grad_NK: Tensor, stack: Stack) -> list[Tensor]:
    """Return the gradients of a stack's parameters, given the gradient of its blocks."""
    sizes = [len(block[0]) for block in stack.terms()]
    blocks = list(grad_NK.split(sizes))
    if stack.parts == 1:
        return blocks
    if stack.scale != 1:
        blocks = [each * stack.scale if len(of) > 1 else each for each, of in zip(blocks, stack.blocks, strict=True)]
    grads = [torch.empty_like(parameter) for parameter in stack.parameters]
    parts = [grad.chunk(stack.parts) for grad in grads]
    copied: dict[tuple[int, int], Tensor] = {}
    targets, sources = [], []  # gradients of parts that also occur in another block
    for each, of in zip(blocks, stack.blocks, strict=True):
        for which, part in of:
            if (which, part) in copied:
                targets.append(parts[which][part])
                sources.append(each)
            copied.setdefault((which, part), each)
    torch._foreach_copy_([parts[which][part] for which, part in copied], list(copied.values()))
    if targets:
        torch._foreach_add_(targets, sources)
    return grads


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the product of matrices in this precision."""
    if left.dtype == dtype:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)
