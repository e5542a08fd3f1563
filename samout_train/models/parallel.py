"""A model whose gradients are those of several processes: copies of it (DDP) or shards of it (FSDP2).

Each process makes the nats of its own rows, and torch averages gradients over processes: so the loss is multiplied by
their number, and what is divided by is the number of counted targets of all of them. FSDP2 knows no parameter that is a
scalar: such ones are vectors of one element here, and scalars again in everything that is saved.

Here, too, since it is another way to fit a model into memory: activations of a layer computed again in the backward
pass, so that only its input is kept until then.

Source: Zhao et al., PyTorch FSDP (arXiv 2304.11277); fully_shard is its second form, one shard a parameter. Chen et
al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).
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
from samout_train.runtime import Launch, compiled, distributed

ParallelName = Literal["ddp", "fsdp"]


def parallel_problem(parallel: ParallelName, precision: str, compile: bool) -> str | None:
    """Return why a model cannot be shared out this way, and what to do; None where it can."""
    if parallel == "ddp":
        return None
    what = "trainer.parallel=fsdp:"
    if Launch.of_environment() is None:
        return f"{what} shards the model over processes, and there is one: start them with torchrun, or leave it out"
    if precision == "fp16":
        return f"{what} does not work with precision=fp16: take bf16 or fp32"
    if compile:
        return f"{what} does not work with trainer.compile=true: leave one of them out"
    return None


class ParallelModel:
    """A model, and how its gradients come from all processes.

    Args:
        model: On its device; with `fsdp`, its parameters become shards: its optimizer is to be built after that.
        parallel: `ddp` or `fsdp`; in one process `ddp` is the model itself.
        device: Where it is.
        compile: Whether torch compiles it.

    Raises:
        ValueError: if it cannot be shared out that way.
    """

    def __init__(self, model: nn.Module, *, parallel: ParallelName, device: torch.device, compile: bool) -> None:
        self.model = model
        self.is_sharded = parallel == "fsdp" and Launch.of_environment() is not None
        self.scalars: set[str] = set()  # names of parameters that are vectors of one element here
        if self.is_sharded:
            self.scalars = _scalars_as_vectors(model)
            # A model may return a state that is a view; nothing here writes into one.
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
        """Do as `samout_train.models.loss.nats_and_state`, of this process's rows."""
        return self._loss_sum(ids_BT, targets_BT, ignore_index, most_targets, state)

    def gradient_sync(self, syncs: bool) -> AbstractContextManager[Any]:
        """Return the context of a forward and backward pass.

        Args:
            syncs: Whether the gradients collected so far are averaged over the processes: true in a step's last
                backward pass.
        """
        if isinstance(self._loss_sum, DistributedDataParallel) and not syncs:
            return self._loss_sum.no_sync()
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(syncs)
        return nullcontext()

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Hold all weights in each process, so that one alone can call the model; all enter and leave together."""
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
        """Return the model's state, each tensor whole; all processes ask for it together."""
        weights = {}
        for name, tensor in self.model.state_dict().items():
            weights[name] = self._saved(name, whole_tensor(tensor))
        return weights

    def shapes(self) -> dict[str, Tensor]:
        """Return the tensors of `weights`, without content."""
        shapes = {}
        for name, tensor in self.model.state_dict().items():
            shapes[name] = self._saved(name, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        return shapes

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take whole tensors, as `weights` gave them."""
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
    """The loss inside the module that DDP wraps, so that each use of a weight is between its hooks."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model = forward

    def forward(self, *arguments: Any) -> tuple[Tensor, Any]:
        """Do as `nats_and_state`."""
        return nats_and_state(self.model, *arguments)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded, whole; all processes ask for it together."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def like(own: Tensor, whole: Tensor) -> Tensor:
    """Return a whole tensor that every process has, sharded as another one is.

    Args:
        own: Perhaps a shard.
        whole: Of the same elements.
    """
    if not isinstance(own, DTensor):
        return whole
    return distribute_tensor(whole.reshape(own.shape).to(own.device), own.device_mesh, own.placements)


def _scalars_as_vectors(model: nn.Module) -> set[str]:
    """Make each parameter that is a scalar a vector of one element; return their names."""
    scalars = {name for name, parameter in model.named_parameters() if parameter.ndim == 0}
    for name in scalars:
        owner, _, own_name = name.rpartition(".")
        vector = nn.Parameter(model.get_parameter(name).detach().reshape(1))
        setattr(model.get_submodule(owner), own_name, vector)
    return scalars


def checkpoint_activations(model: nn.Module) -> None:
    """Make each of a model's layers compute its activations again, wherever it trains with gradients.

    Names of weights stay, and so does every bit: the second time, dropout draws what it drew the first time.

    Args:
        model: Its layers are the ModuleList `layers`.

    Raises:
        ValueError: if it has none.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(no_layers(type(model).__name__))
    for layer in layers:
        # A method of this one layer, so that a copy of the model has its own.
        layer.forward = MethodType(_forward, layer)


def no_layers(name: str) -> str:
    """Return what to say where the model of this name has nothing to compute again."""
    return (
        f"trainer.activation_checkpointing=true: works layer by layer, and {name} has no ModuleList named layers: "
        "leave it out, or take model=v1, v8, maxplus, mingru or transformer"
    )


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(layer).forward
    if layer.training and torch.is_grad_enabled():
        return checkpoint(forward, layer, *args, use_reentrant=False, **kwargs)
    return forward(layer, *args, **kwargs)
