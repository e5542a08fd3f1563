"""One token through a layer in one kernel, against the layer's own operations."""

from collections.abc import Iterator

import pytest
import torch

from samout_train.models.regularisation import Regularisation
from samout_train.models.samout import MaxState, MaxStateSuper, SamOutLayer
from samout_train.ops import use_kernels
from samout_train.ops.samout_layer import MOST_ROWS, cpu_step


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    use_kernels("auto")


def layer_of(mixer: type[MaxState] | type[MaxStateSuper], width: int, dropout: float = 0.0) -> SamOutLayer:
    torch.manual_seed(0)
    layer = SamOutLayer(
        mixer=mixer(hidden_size=width, num_heads=1),
        hidden_size=width,
        ffn_size=width + 7,
        regularisation=Regularisation(ffn_dropout=dropout),
    )
    torch.nn.init.normal_(layer.norm.weight)
    torch.nn.init.normal_(layer.norm.bias)
    torch.nn.init.constant_(layer.alpha, 0.3)
    return layer


@pytest.mark.parametrize("mixer", [MaxState, MaxStateSuper])
@pytest.mark.parametrize(("batch", "width"), [(1, 5), (3, 67), (MOST_ROWS, 384)])
def test_a_step_is_what_the_layer_does(
    mixer: type[MaxState] | type[MaxStateSuper], batch: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    real = cpu_step.samout_step
    monkeypatch.setattr(cpu_step, "samout_step", lambda *given: called.append(1) or real(*given))
    layer, x_BTD = layer_of(mixer, width), torch.randn(batch, 3, width)
    use_kernels("reference")
    with torch.no_grad():
        want_BTD, last_BD = layer(x_BTD, None)
        use_kernels("auto")
        state_BD, steps = None, []
        for t in range(3):
            y_BTD, state_BD = layer(x_BTD[:, t : t + 1], state_BD)
            steps.append(y_BTD)
    assert len(called) == 3
    torch.testing.assert_close(torch.cat(steps, 1), want_BTD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state_BD, last_BD, rtol=1e-5, atol=1e-5)


def test_nan_stays_in_the_state_and_any_number_of_threads_has_the_same_bits() -> None:
    layer, x_BTD = layer_of(MaxStateSuper, 384), torch.randn(2, 1, 384)
    state_BD = torch.randn(2, 384)
    state_BD[1, 7] = float("nan")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append(layer(x_BTD, state_BD))
    finally:
        torch.set_num_threads(before)
    (y_BTD, next_BD), (other_BTD, other_BD) = results
    assert torch.equal(y_BTD[0], other_BTD[0]) and torch.equal(next_BD.nan_to_num(), other_BD.nan_to_num())
    assert next_BD[1, 7].isnan() and next_BD.isnan().sum() == 1 and y_BTD[1].isnan().all()


class Doubled(MaxStateSuper):
    """Another mixer."""

    def forward(self, x_BTD: torch.Tensor, state_BD: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        u_BTD, state_BD = super().forward(x_BTD, state_BD)
        return 2 * u_BTD, state_BD


def test_the_kernel_leaves_alone_what_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise AssertionError("the kernel ran")

    monkeypatch.setattr(cpu_step, "samout_step", refused)
    x_BTD = torch.randn(1, 1, 16)
    layer = layer_of(MaxStateSuper, 16)
    layer(x_BTD, None)  # with gradients
    with torch.no_grad():
        layer(x_BTD.expand(MOST_ROWS + 1, -1, -1), None)
        layer(x_BTD.expand(1, 2, -1), None)
        layer.double()(x_BTD.double(), None)
        layer_of(Doubled, 16)(x_BTD, None)
        layer_of(MaxStateSuper, 16, dropout=0.5)(x_BTD, None)
        with torch.autocast("cpu", torch.bfloat16):
            layer_of(MaxStateSuper, 16)(x_BTD, None)
        use_kernels("reference")
        layer_of(MaxStateSuper, 16)(x_BTD, None)
        use_kernels("auto")
        with pytest.raises(AssertionError, match="the kernel ran"):
            layer_of(MaxStateSuper, 16)(x_BTD, None)
