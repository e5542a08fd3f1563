"""Settings reach torch's optimizers, and decay reaches matrices only."""

import pytest
import torch

from samout_train import build_model
from samout_train.training.optimizers.adam import adam
from samout_train.training.optimizers.adamw import adamw


def test_adam_is_torchs_with_its_defaults() -> None:
    model = build_model("v8", vocab_size=9, hidden_size=12, num_heads=2, num_layers=1)
    got, torchs = adam(model, lr=1e-3, betas=(0.9, 0.999), eps=1e-8), torch.optim.Adam(model.parameters(), lr=1e-3)
    keys = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    assert all(got.param_groups[0][key] == torchs.param_groups[0][key] for key in keys)


@pytest.mark.parametrize("betas", [(0, 0.999), (0, 0), (0.9, 0)])
def test_a_whole_number_is_a_decay_like_any_other(betas: tuple[float, float]) -> None:
    model = build_model("v8", vocab_size=9, hidden_size=12, num_heads=2, num_layers=1)
    made = [adam(model, lr=1e-3, betas=betas, eps=1e-8), adamw(model, lr=1e-3, betas=betas, eps=1e-8, weight_decay=0)]
    assert [optimizer.param_groups[0]["betas"] for optimizer in made] == [betas, betas]


def test_adamw_decays_matrices_and_nothing_else() -> None:
    model = build_model("v1", vocab_size=9, hidden_size=12, num_heads=2, num_layers=2, init="published")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, lr=0.5, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        wanted = before[name] * (1 - 0.5 * 0.1) if parameter.ndim == 2 else before[name]
        torch.testing.assert_close(parameter.detach(), wanted)
