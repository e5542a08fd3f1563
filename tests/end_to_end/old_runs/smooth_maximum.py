# smooth_maximum.py
from typing import Annotated

import torch
from samout_train.ranges import Positive, validated
from torch import Tensor, nn


class SmoothMaximum(nn.Module):
    """V8 with a running log-sum-exp in place of the running maximum; the larger `sharpness`, the nearer they are."""

    @validated
    def __init__(self, *, hidden_size: int, num_heads: int, sharpness: Annotated[float, Positive]) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.sharpness = sharpness

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        a_BTD, b_BTD, c_BTD, d_BTD = self.projection(x_BTD).chunk(4, dim=-1)
        exact_BTD = d_BTD.to(torch.promote_types(d_BTD.dtype, torch.float32))  # bfloat16 is too coarse for a long sum
        sum_BTD = torch.logcumsumexp(self.sharpness * exact_BTD, dim=1)
        if state_BD is not None:
            sum_BTD = torch.logaddexp(sum_BTD, state_BD[:, None])
        m_BTD = (sum_BTD / self.sharpness).to(d_BTD.dtype)
        return ((a_BTD + b_BTD) * m_BTD + c_BTD) * m_BTD, sum_BTD[:, -1]

    def state_bytes(self, length: int) -> int:
        return 4 * self.projection.in_features
