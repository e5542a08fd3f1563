"""The parts of a SamOut layer in torch's own operations: what the kernels must compute."""

# B batch, T time, D width, F inner width

from torch import Tensor
from torch.nn import functional as F


def gated(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    """See samout_train.ops.samout_layer."""
    return up_BTF * F.relu(gate_BTF)


def blended(
    f_BTD: Tensor, x_BTD: Tensor, alpha: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dropout: float
) -> Tensor:
    """See samout_train.ops.samout_layer."""
    z_BTD = alpha * F.dropout(f_BTD, dropout) + (1 - alpha) * x_BTD
    return F.layer_norm(z_BTD, weight_D.shape, weight_D, bias_D, eps) + x_BTD
