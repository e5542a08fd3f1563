"""Build one optimizer: Muon for the hidden matrices, AdamW for all other parameters.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix (Newton-Schulz), so that all its directions are
learned at the same rate. It applies to matrices that map hidden states to hidden states: the weights of linear and of
recurrent layers. AdamW updates embeddings, the head, convolutions, norms, scalars, biases and tables of parameters.

A weight that stacks several matrices, such as the packed projections of a mixer (`parts` of
`samout_train.models.layers.Linear`) or the gates of a recurrent layer, is orthogonalised matrix by matrix.

Source: Jordan et al., Muon (2024). The step size of each matrix, 0.2 sqrt(max(rows, columns)), gives its update the
root mean square of an AdamW update, so that AdamW's rate and decay can be kept: Liu et al., Muon is Scalable for LLM
Training (arXiv 2502.16982).
"""

# N matrices, R rows, C columns

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from samout_train.config import ConfigError, NonNegative, Positive, Probability, Problem, Range, validated
from samout_train.training.weight_decay import decayed_group

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of a X + b X X' X + c X X' X X' X: Jordan (2024)
SMALLEST_NORM = 1e-7
LARGEST_BATCH = 2**23  # elements of matrices multiplied together; each takes at most about 16 bytes of memory
GATES = {"LSTM": 4, "GRU": 3}  # matrices stacked in a weight of torch's recurrent layers; a plain RNN has one

NOT_SHARDED = Problem(
    "optimizer",
    "muon",
    text="makes whole matrices orthogonal, and trainer.parallel=fsdp gives each process a shard of them",
    fix="set trainer.parallel=ddp, or optimizer=adamw",
)


@validated
def muon(
    model: nn.Module,
    *,
    lr: Annotated[float, Positive],
    betas: tuple[Annotated[float, Probability], Annotated[float, Probability]],
    eps: Annotated[float, Positive],
    weight_decay: Annotated[float, NonNegative],
    momentum: Annotated[float, Probability],
    ns_steps: Annotated[int, Range(1, 99)],
    weight_decay_end: Annotated[float, NonNegative] | None = None,
) -> torch.optim.Optimizer:
    """Build Muon over the hidden matrices and torch.optim.AdamW over the rest, as one optimizer.

    A step equals one of torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`. torch updates one matrix at a time;
    here matrices of the same shape are multiplied together.

    Args:
        model: The model whose parameters are updated.
        lr: Base learning rate of all parameters.
        betas: AdamW's decay rates of the first and second moment.
        eps: Added to AdamW's denominator.
        weight_decay: Decay of parameters with two dimensions or more, the embedding included.
        momentum: Decay rate of Muon's Nesterov momentum.
        ns_steps: Newton-Schulz steps that make a matrix nearly orthogonal.
        weight_decay_end: Decay of the same parameters at the last step; see `decayed_group`.

    Raises:
        ConfigError: if the parameters are sharded.
    """
    parameters = list(model.parameters())
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        raise ConfigError(NOT_SHARDED)
    rows_of = hidden_matrices(model)
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        if parameter in rows_of:
            hidden.append(parameter)
        elif parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    by_muon = {
        **decayed_group(hidden, weight_decay, weight_decay_end),
        "lr": lr,
        "momentum": momentum,
        "ns_steps": ns_steps,
    }
    groups = [decayed_group(matrices, weight_decay, weight_decay_end), {"params": vectors, "weight_decay": 0.0}]
    by_adamw = torch.optim.AdamW(groups, lr=lr, betas=(float(betas[0]), float(betas[1])), eps=eps, fused=True)
    return MuonWithAdamW(by_muon, by_adamw, rows_of)


muon.sharding_problem = NOT_SHARDED  # type: ignore[attr-defined]  # reported before anything is built


def hidden_matrices(model: nn.Module) -> dict[Tensor, list[int]]:
    """Return the parameters that map hidden states to hidden states, each with the rows of the matrices it stacks.

    They are the weights of linear layers and of torch's recurrent layers. The head and the embedding are left out, even
    if a layer shares their weights.
    """
    others = {id(getattr(model, "head_weight", None))}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name.rpartition(".")[2] == "head":
            others |= {id(parameter) for parameter in module.parameters()}
    found: dict[Tensor, list[int]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in others and parameter.ndim == 2 and (rows := _stacked_rows(module, name, parameter)):
                found[parameter] = rows
    return found


def _stacked_rows(module: nn.Module, name: str, weight: Tensor) -> list[int]:
    """Return the rows of each matrix that a weight stacks; empty if it is not a hidden matrix."""
    if isinstance(module, nn.Linear) and name == "weight":
        return list(getattr(module, "parts", ())) or [len(weight)]
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and name.startswith(("weight_ih", "weight_hh")):
        gates = GATES.get(type(module).__name__.removesuffix("Cell"), 1)
        return [len(weight) // gates] * gates
    if isinstance(module, nn.RNNBase) and name.startswith("weight_hr"):
        return [len(weight)]
    return []


@dataclass(frozen=True)
class Matrix:
    """A matrix that is updated as a whole: views of a weight, its gradient and its momentum, with R <= C."""

    weight_RC: Tensor
    gradient_RC: Tensor
    momentum_RC: Tensor


class MuonWithAdamW(torch.optim.Optimizer):
    """Combine Muon and AdamW in one optimizer that has the groups and the state of both.

    Args:
        by_muon: The group of the hidden matrices.
        by_adamw: AdamW over all other parameters.
        rows_of: Each hidden matrix with the rows of the matrices it stacks.
    """

    def __init__(
        self, by_muon: dict[str, Any], by_adamw: torch.optim.AdamW, rows_of: Mapping[Tensor, list[int]]
    ) -> None:
        super().__init__([by_muon, *by_adamw.param_groups], {})
        self._by_adamw = by_adamw
        self._rows_of = rows_of

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # load_state_dict replaces the groups and the state of this optimizer, so they are passed to AdamW at each step.
        with_muon, *with_adamw = self.param_groups
        for matrices in self._batches(with_muon["params"]):
            update_matrices(
                matrices,
                lr=with_muon["lr"],
                weight_decay=with_muon["weight_decay"],
                momentum=with_muon["momentum"],
                ns_steps=with_muon["ns_steps"],
            )
        self._by_adamw.param_groups = with_adamw
        self._by_adamw.state = self.state
        self._by_adamw.step()
        return loss

    def _batches(self, weights: list[Tensor]) -> Iterator[list[Matrix]]:
        """Yield the matrices that have a gradient, in batches of one shape, device and type."""
        found: dict[tuple[Any, ...], list[Matrix]] = defaultdict(list)
        for weight in weights:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            rows = self._rows_of[weight]
            stacked = (weight.detach(), weight.grad, state["momentum_buffer"])
            for views in zip(*(tensor.split(rows) for tensor in stacked), strict=True):
                if views[0].shape[0] > views[0].shape[1]:
                    views = tuple(view.mT for view in views)
                found[(views[0].shape, weight.device, weight.dtype)].append(Matrix(*views))
        for matrices in found.values():
            at_once = max(1, LARGEST_BATCH // matrices[0].weight_RC.numel())
            for first in range(0, len(matrices), at_once):
                yield matrices[first : first + at_once]


def update_matrices(matrices: list[Matrix], *, lr: float, weight_decay: float, momentum: float, ns_steps: int) -> None:
    """Make one step of Muon with Nesterov's momentum, in place.

    Args:
        matrices: Of one shape, device and type.
        lr: Learning rate.
        weight_decay: Decay, which is multiplied by the learning rate.
        momentum: Decay rate of the momentum.
        ns_steps: Newton-Schulz steps.
    """
    weights = [matrix.weight_RC for matrix in matrices]
    gradients = [matrix.gradient_RC for matrix in matrices]
    momenta = [matrix.momentum_RC for matrix in matrices]
    torch._foreach_lerp_(momenta, gradients, 1 - momentum)
    along_NRC = torch.stack(torch._foreach_lerp(gradients, momenta, momentum))
    update_NRC = nearest_orthogonal(along_NRC, ns_steps).to(along_NRC.dtype)
    torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_add_(weights, update_NRC.unbind(), alpha=-lr * 0.2 * math.sqrt(max(along_NRC.shape[1:])))


def nearest_orthogonal(matrices_NRC: Tensor, ns_steps: int) -> Tensor:
    """Return for each matrix approximately the nearest orthogonal matrix (Newton-Schulz).

    With five steps, the singular values of the result are 0.5 to 1.5 instead of 1: faster, and as good here (Jordan).

    Args:
        matrices_NRC: Matrices with R <= C.
        ns_steps: Number of steps.
    """
    a, b, c = NEWTON_SCHULZ
    x_NRC = matrices_NRC.to(product_dtype(matrices_NRC.device))
    x_NRC = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ns_steps):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC


@cache
def product_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it, else float32.

    Older versions of torch do not report what a processor supports. A processor without bfloat16 instructions takes up
    to 25 times as long as in float32 (an AMD EPYC restricted to AVX2, 2026-11-30).
    """
    has_bf16 = True
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        has_bf16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    elif device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if has_bf16:
        return torch.bfloat16
    return torch.float32
