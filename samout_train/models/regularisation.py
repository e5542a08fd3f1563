"""Regularise the layers of a model: dropout at four sites, DropConnect, stochastic depth. Evaluation has none of them.

    x = embedding_dropout(embedding(ids))
    x = x + depth(mixer_dropout(mixer(norm(x))))
    x = x + depth(ffn_dropout(down(ffn_inner_dropout(inner(norm(x))))))

A layer in the published form of SamOut has one residual connection, so depth(...) occurs once there. torch's generator
for the device draws the random numbers of each forward pass, so every micro-step and every chunk of a row has its own.
A mixer whose output is dropped still carries its state on.

Source: Srivastava et al., Dropout (JMLR 15, 2014). DropConnect: Wan et al., Regularization of Neural Networks using
DropConnect (ICML 2013), here with one mask for all tokens of a pass, as in AWD-LSTM for its recurrent matrices (Merity
et al., arXiv 1708.02182). No matrix maps state to state here, so the mask applies to the matrix named `projection`.
A mixer builds its state from the streams of that matrix, so all tokens that meet in a state have the same noise.
Stochastic depth: Huang et al., Deep Networks with Stochastic Depth (arXiv 1603.09382), with the linear rule of section
3. Departures: each row draws independently, and kept branches are divided by their probability in training, so that
evaluation needs no factor.
"""

# B batch, T time, D width

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.models.layers import Linear
from samout_train.ops.elementwise import Stream, residual


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """Rates of a layer, each from 0 to below 1.

    Args:
        mixer_dropout: Share of the elements of the mixer's output that are dropped.
        ffn_inner_dropout: The same between the matrices of the feed-forward.
        ffn_dropout: The same for the feed-forward's output.
        drop_connect: Share of the weights of the mixer's projections that are dropped in a pass.
        stochastic_depth: Share of the rows whose residual branch is dropped.
    """

    mixer_dropout: float = 0.0
    ffn_inner_dropout: float = 0.0
    ffn_dropout: float = 0.0
    drop_connect: float = 0.0
    stochastic_depth: float = 0.0

    def of_layer(self, index: int, num_layers: int) -> "Regularisation":
        """Return the rates of one layer: stochastic depth rises linearly to that of the last layer.

        Args:
            index: The layer, from 0.
            num_layers: Layers of the model.
        """
        return replace(self, stochastic_depth=self.stochastic_depth * (index + 1) / num_layers)


def rate_of_site(rate: float | None, by_dropout: float = 0.0) -> float:
    """Return the dropout of a site.

    Args:
        rate: The setting of the site; None if `dropout` decides.
        by_dropout: The rate that the model's setting `dropout` gives to this site.
    """
    if rate is None:
        return by_dropout
    return rate


class StochasticDepth(nn.Dropout):
    """Drop the residual branch of some rows; in the others, divide it by its probability of being kept."""

    def forward(self, y_BTD: Tensor) -> Tensor:
        """Return the branch, with zeros in the rows that are dropped."""
        if not (self.training and self.p):
            return y_BTD
        return y_BTD * F.dropout(y_BTD.new_ones(len(y_BTD), 1, 1), self.p)


def joined(x_BTD: Tensor, branch_BTD: Tensor, dropout: nn.Dropout, depth: StochasticDepth) -> Stream:
    """Return x + depth(dropout(branch)), possibly as a deferred sum; see `residual`."""
    if depth.training and depth.p:
        return x_BTD + depth(dropout(branch_BTD))
    return residual(x_BTD, branch_BTD, dropout.p if dropout.training else 0.0)


def drops(module: nn.Module) -> bool:
    """Return whether a module drops anything in training."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())


def connect_by_chance(mixer: nn.Module, rate: float) -> None:
    """Let the projections of a mixer drop a share of their weights in each pass (DropConnect).

    Args:
        mixer: Has at least one `Linear` named `projection`, at any depth, unless the rate is 0.
        rate: The share.

    Raises:
        ValueError: if the mixer has no such layer.
    """
    if not rate:
        return
    found = [
        module
        for name, module in mixer.named_modules()
        if name.rpartition(".")[2] == "projection" and isinstance(module, Linear)
    ]
    if not found:
        raise ValueError(
            f"model.drop_connect={rate}: {type(mixer).__name__} has no samout_train.models.layers.Linear named "
            "projection. Set model.drop_connect=0, or name the layer so"
        )
    for projection in found:
        projection.drop_connect = nn.Dropout(rate)
