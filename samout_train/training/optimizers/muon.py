"""Build one optimizer: Muon for the hidden matrices, AdamW for all other parameters.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix (Newton-Schulz), so that all its directions are
learned at the same rate. It applies to matrices that map hidden states to hidden states: the weights of linear and of
recurrent layers. AdamW updates embeddings, the head, convolutions, norms, scalars, biases and tables of parameters.

A weight that stacks several matrices, such as the packed projections of a mixer (`parts` of
`samout_train.models.layers.Linear`) or the gates of a recurrent layer, is orthogonalised matrix by matrix.

Source: Jordan et al., Muon (2024); the step size of each matrix, 0.2 sqrt(max(rows, columns)), gives its update the
root mean square of one of AdamW, so that AdamW's rate and decay can be kept: Liu et al., Muon is Scalable for LLM
Training (arXiv 2502.16982).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from samout_train.config import ConfigError, NonNegative, Positive, Probability, Problem, Range, validated
from samout_train.training.weight_decay import decayed_group

GATES = {"LSTM": 4, "GRU": 3}  # matrices that a weight of torch's recurrent layers stacks; a plain RNN has one

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
    """Build torch.optim.Muon over the hidden matrices and torch.optim.AdamW over the rest, as one optimizer.

    Args:
        model: The model whose parameters are updated.
        lr: Base learning rate of all parameters.
        betas: AdamW's decay rates of the first and second moment.
        eps: Added to AdamW's denominator.
        weight_decay: Decay of parameters with two dimensions or more, the embedding included.
        momentum: Muon's decay rate of the momentum, which is Nesterov's.
        ns_steps: Newton-Schulz steps that make a matrix nearly orthogonal.
        weight_decay_end: Decay of the same parameters at the last step, as in `decayed_group`.

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
    by_muon = torch.optim.Muon(
        [decayed_group(hidden, weight_decay, weight_decay_end)],
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        ns_steps=ns_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    groups = [decayed_group(matrices, weight_decay, weight_decay_end), {"params": vectors, "weight_decay": 0.0}]
    by_adamw = torch.optim.AdamW(groups, lr=lr, betas=(float(betas[0]), float(betas[1])), eps=eps, fused=True)
    return MuonWithAdamW(by_muon, by_adamw, rows_of)


muon.sharding_problem = NOT_SHARDED  # type: ignore[attr-defined]  # reported before anything is built


def hidden_matrices(model: nn.Module) -> dict[Tensor, list[int]]:
    """Return the parameters that map hidden states to hidden states, each with the rows of the matrices it stacks.

    They are the weights of linear and of torch's recurrent layers, without the head and the embedding, also where a
    layer shares them.
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


class MuonWithAdamW(torch.optim.Optimizer):
    """Combine two optimizers: groups, state and steps are those of both.

    Args:
        by_muon: Muon over the hidden matrices, in one group.
        by_adamw: AdamW over all other parameters.
        rows_of: Each hidden matrix with the rows of the matrices it stacks.
    """

    def __init__(
        self, by_muon: torch.optim.Muon, by_adamw: torch.optim.AdamW, rows_of: Mapping[Tensor, list[int]]
    ) -> None:
        super().__init__([*by_muon.param_groups, *by_adamw.param_groups], {})
        self._by_muon = by_muon
        self._by_adamw = by_adamw
        self._rows_of = rows_of

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # load_state_dict replaces the groups and the state of this optimizer, so they are handed on at each step.
        with_muon, *with_adamw = self.param_groups
        self._step_matrices(with_muon)
        self._by_adamw.param_groups = with_adamw
        self._by_adamw.state = self.state
        self._by_adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Update the hidden matrices of a group; each part of a stacked weight is a parameter of its own for Muon."""
        parts: list[Tensor] = []
        momenta: dict[Tensor, dict[str, Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            rows = self._rows_of[weight]
            views = zip(
                weight.detach().split(rows),
                weight.grad.split(rows),
                state["momentum_buffer"].split(rows),
                strict=True,
            )
            for part, gradient, momentum in views:
                part.grad = gradient
                momenta[part] = {"momentum_buffer": momentum}
                parts.append(part)
        self._by_muon.param_groups = [{**group, "params": parts}]
        self._by_muon.state = defaultdict(dict, momenta)
        self._by_muon.step()
