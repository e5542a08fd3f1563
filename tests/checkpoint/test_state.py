"""Checkpoints of other models and optimizers: what is told, and that nothing is loaded."""

import pytest
import torch

from samout_train.checkpoint.state import require_same_model
from tests.training.test_step import PROGRESS, model, step_of


def test_names_and_both_shapes_are_told() -> None:
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(4)}
    given = {"a": torch.zeros(2, 5), "c": torch.zeros(4), "d": torch.zeros(6)}
    with pytest.raises(ValueError, match="the checkpoint is of another model") as caught:
        require_same_model(wanted, given)
    assert str(caught.value).splitlines()[1:] == [
        "  b: missing in the checkpoint, a number in the model",
        "  d: 6 in the checkpoint, missing in the model",
        "  a: 2x5 in the checkpoint, 2x3 in the model",
    ]


@pytest.mark.parametrize(("count", "last"), [(8, "t7: missing"), (9, "and 2 more")])
def test_the_list_is_short(count: int, last: str) -> None:
    with pytest.raises(ValueError) as caught:
        require_same_model({f"t{number}": torch.zeros(1) for number in range(count)}, {})
    lines = str(caught.value).splitlines()
    assert len(lines) == 9 and lines[-1].strip().startswith(last)


@pytest.mark.slow
def test_another_shape_of_a_moment_is_refused_and_nothing_is_loaded() -> None:
    first, second = (step_of(model(), optimizer=lambda net: torch.optim.Adam(net.parameters())) for _ in range(2))
    first(PROGRESS)
    saved = first.state_dict()
    saved["optimizer"]["state"][0]["exp_avg_sq"] = torch.zeros(7)
    before = [parameter.clone() for parameter in second.parameters]
    name = next(name for name, _ in second.model.named_parameters())
    with pytest.raises(ValueError, match=f"exp_avg_sq of {name}: 7 in the checkpoint, 31x16 in the model"):
        second.load_state_dict(saved)
    assert all(torch.equal(one, other) for one, other in zip(before, second.parameters, strict=True))
    assert not second.optimizer.state


@pytest.mark.slow
def test_another_number_of_groups_is_refused() -> None:
    first = step_of(model())
    second = step_of(model(), optimizer=lambda net: torch.optim.SGD([{"params": [p]} for p in net.parameters()], lr=1))
    with pytest.raises(ValueError, match="parameters by group"):
        second.load_state_dict(first.state_dict())
