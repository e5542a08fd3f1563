"""Train one model in several processes, as copies (DDP) or shards (FSDP2); recompute activations to save memory.

Each process computes the nats of its own rows, and torch averages gradients over the processes. The caller therefore
multiplies the loss by their number and divides by the counted targets of all of them. FSDP2 does not support scalar
parameters: they become vectors of one element here, and scalars again in everything that is saved.

Activation checkpointing keeps only a layer's input and recomputes its activations in the backward pass.

Source: Zhao et al., PyTorch FSDP (arXiv 2304.11277); fully_shard is its second version, which shards each parameter
separately. Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).
"""

# B batch, T time

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from samout_train.models.loss import nats_and_state
from samout_train.ops.linear import WeightCopies, copies_weights, weight_copies
from samout_train.runtime import Launch, compiled, distributed

ParallelName = Literal["ddp", "fsdp"]


def parallel_problem(parallel: ParallelName, precision: str, compile: bool) -> str | None:
    """Return why these settings exclude each other, and what to do; None if they do not."""
    if parallel == "ddp":
        return None
    what = "trainer.parallel=fsdp:"
    if Launch.of_environment() is None:
        return f"{what} shards the model over processes, and there is one: start with torchrun, or leave it out"
    if precision == "fp16":
        return f"{what} does not work with precision=fp16: set bf16 or fp32"
    if compile:
        return f"{what} does not work with trainer.compile=true: leave one of them out"
    return None


class ParallelModel:
    """A model whose gradients are averaged over all processes.

    Args:
        model: A model on its device. With `fsdp` its parameters become shards, so build the optimizer afterwards.
        parallel: `ddp` or `fsdp`. In one process, `ddp` is the model itself.
        device: The model's device.
        compile: Whether torch compiles it.
    """

    def __init__(self, model: nn.Module, *, parallel: ParallelName, device: torch.device, compile: bool) -> None:
        self.model = model
        self._compiles = compile
        self._copies: WeightCopies | None = None
        self.is_sharded = parallel == "fsdp" and Launch.of_environment() is not None
        self.scalars: set[str] = set()  # names of parameters that are vectors of one element here
        if self.is_sharded:
            self.scalars = _scalars_as_vectors(model)
            # A model may return a state that is a view; no caller writes into one.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            mesh = init_device_mesh(device.type, (distributed.count(),))
            layers = getattr(model, "layers", None)
            if isinstance(layers, nn.ModuleList):
                for layer in layers:
                    fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        forward: Callable[..., Any] = model
        if compile:
            forward = compiled(model)
        self._loss_sum: Callable[..., Any] = _LossSum(forward)
        if not self.is_sharded and distributed.count() > 1:
            devices = None
            if device.type != "cpu":
                devices = [device]
            self._loss_sum = DistributedDataParallel(self._loss_sum, device_ids=devices, gradient_as_bucket_view=True)

    def loss_sum(
        self, ids_BT: Tensor, targets_BT: Tensor, ignore_index: int, most_targets: int, state: Any
    ) -> tuple[Tensor, Any]:
        """Return `samout_train.models.loss.nats_and_state` of this process's rows."""
        return self._loss_sum(ids_BT, targets_BT, ignore_index, most_targets, state)

    def gradient_sync(self, syncs: bool) -> AbstractContextManager[Any]:
        """Return the context of a forward and backward pass.

        Args:
            syncs: Whether to average the accumulated gradients over the processes; true in a step's last backward
                pass.
        """
        if isinstance(self._loss_sum, DistributedDataParallel) and not syncs:
            return self._loss_sum.no_sync()
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(syncs)
        return nullcontext()

    def weight_copies(self, products: torch.dtype) -> AbstractContextManager[Any]:
        """Return the context of a step, which copies the weights once for all of its products.

        Args:
            products: Precision of the products.
        """
        device, dtype = next(((p.device.type, p.dtype) for p in self.model.parameters()), ("", None))
        if not copies_weights(device) or dtype != torch.float32 or self.is_sharded or self._compiles:
            return nullcontext()
        if self._copies is None or self._copies.dtype != products:
            self._copies = WeightCopies(self.model, products)
        return weight_copies(self._copies)

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gather all weights in each process, so that one process can call the model alone. A collective call."""
        if not self.is_sharded:
            yield
            return
        parts = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(part is not self.model, recurse=False)
                part.reshard()

    def weights(self) -> dict[str, Tensor]:
        """Return the model's state dict with whole tensors. A collective call."""
        weights = {}
        for name, tensor in self.model.state_dict().items():
            weights[name] = self._saved(name, whole_tensor(tensor))
        return weights

    def shapes(self) -> dict[str, Tensor]:
        """Return the tensors of `weights` on the meta device, without data."""
        shapes = {}
        for name, tensor in self.model.state_dict().items():
            shapes[name] = self._saved(name, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        return shapes

    def load(self, weights: dict[str, Tensor]) -> None:
        """Load whole tensors, as returned by `weights`."""
        if not self.is_sharded:
            self.model.load_state_dict(weights)
            return
        own = self.model.state_dict()
        for name, tensor in weights.items():
            own[name].copy_(like(own[name], tensor))

    def _saved(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.scalars:
            return tensor.reshape(())
        return tensor


SharedModel = ParallelModel  # its earlier name


class _LossSum(nn.Module):
    """The loss inside the module that DDP wraps, so that every use of a weight falls between its hooks."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model = forward

    def forward(self, *arguments: Any) -> tuple[Tensor, Any]:
        """Return `nats_and_state` of the wrapped model."""
        return nats_and_state(self.model, *arguments)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor whole, even if it is sharded. A collective call."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def like(own: Tensor, whole: Tensor) -> Tensor:
    """Return a tensor that every process holds whole, sharded like `own` if that is sharded.

    Args:
        whole: A tensor with as many elements as `own`.
    """
    if not isinstance(own, DTensor):
        return whole
    return distribute_tensor(whole.reshape(own.shape).to(own.device), own.device_mesh, own.placements)


def _scalars_as_vectors(model: nn.Module) -> set[str]:
    """Turn each scalar parameter into a vector of one element; return their names."""
    scalars = {name for name, parameter in model.named_parameters() if parameter.ndim == 0}
    for name in scalars:
        owner, _, own_name = name.rpartition(".")
        vector = nn.Parameter(model.get_parameter(name).detach().reshape(1))
        setattr(model.get_submodule(owner), own_name, vector)
    return scalars


def checkpoint_activations(model: nn.Module) -> None:
    """Make each layer of the ModuleList `model.layers` recompute its activations in the backward pass.

    Names and results stay the same, bit for bit: recomputation draws the same dropout masks.

    Raises:
        ValueError: if the model has no such ModuleList.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(no_layers(type(model).__name__))
    for layer in layers:
        # Bound to this layer alone, so that a copy of the model has its own method.
        layer.forward = MethodType(_forward, layer)


def no_layers(name: str) -> str:
    """Return the problem of a model class without a ModuleList of layers."""
    return (
        f"trainer.activation_checkpointing=true: works layer by layer, and {name} has no ModuleList named layers: "
        "leave it out, or set another model than rnn, gru, lstm and lstm_attention"
    )


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(layer).forward
    if layer.training and torch.is_grad_enabled():
        return checkpoint(forward, layer, *args, use_reentrant=False, **kwargs)
    return forward(layer, *args, **kwargs)
