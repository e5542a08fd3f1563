"""The measured rate of matrix products: a number for a device and a precision, and nothing else changes."""

import math

import pytest
import torch

from samout_train.runtime import PrecisionName, matmul_rate, matmul_rate as again
from samout_train.runtime.matmul import MOST_ROUNDS, _fastest_round


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_measured_once_and_draws_no_global_numbers(precision: PrecisionName) -> None:
    before = torch.get_rng_state()
    rate = matmul_rate(torch.device("cpu"), precision)
    assert math.isfinite(rate) and rate > 0 and again(torch.device("cpu"), precision) == rate
    assert torch.equal(torch.get_rng_state(), before)


def test_rounds_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samout_train.runtime.matmul.MOST_SECONDS", math.inf)
    counted = []

    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        counted.append(a)

    monkeypatch.setattr(torch, "mm", product)
    assert _fastest_round(torch.ones(2, 2), torch.ones(2, 2), 3, torch.device("cpu")) > 0
    assert len(counted) == 3 * (MOST_ROUNDS + 1)
