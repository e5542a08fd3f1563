"""What regularisation drops: against a model written out with the same draws, and nothing of it in evaluation."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train import build_model, build_trainer
from samout_train.config import ConfigError, compose_config
from samout_train.evaluation.verify import models_under_test
from samout_train.models.regularisation import Regularisation, StochasticDepth, drops
from samout_train.models.samout import MaxStateSuper, SamOutLayer
from samout_train.ops import use_kernels
from samout_train.runtime.device import has_cpp_compiler
from tests.support.marks import mostly_nightly

SIZES = {"vocab_size": 11, "hidden_size": 12, "num_heads": 2, "num_layers": 2}
EMBEDDING, MIXER, INNER, FFN, CONNECT, DEPTH = 0.1, 0.2, 0.3, 0.4, 0.25, 0.5
ALL: dict[str, float] = {
    "embedding_dropout": EMBEDDING,
    "mixer_dropout": MIXER,
    "ffn_inner_dropout": INNER,
    "ffn_dropout": FFN,
    "drop_connect": CONNECT,
    "stochastic_depth": DEPTH,
}
IDS_BT = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(1))
KINDS = ["maxplus", "v8", "transformer_modern"]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    use_kernels("auto")


def made(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, **SIZES, **settings)


def mixed(layer: Any, y_BTD: Tensor) -> Tensor:
    """Return the mixer's output for projections with dropped weights, drawn before everything else of the layer."""
    plain = copy.deepcopy(layer.mixer)
    for name, projection in plain.named_modules():
        if name.rpartition(".")[2] == "projection":
            projection.drop_connect = None
            projection.weight = nn.Parameter(F.dropout(projection.weight.detach(), CONNECT))
    return F.dropout(plain(y_BTD, None)[0], MIXER)


def inner(feed_forward: Any, u_BTD: Tensor) -> Tensor:
    gate = F.silu if type(feed_forward).__name__ == "SwiGLU" else F.relu
    z_BTF = F.dropout(feed_forward.up(u_BTD) * gate(feed_forward.gate(u_BTD)), INNER)
    f_BTD: Tensor = F.dropout(feed_forward.down(z_BTF), FFN)
    return f_BTD


def by_rows(y_BTD: Tensor, rate: float) -> Tensor:
    return y_BTD * F.dropout(torch.ones(len(y_BTD), 1, 1, dtype=y_BTD.dtype), rate)


def written_out(model: Any, name: str) -> Tensor:
    """Return the logits of a model with ALL, by F.dropout in the order of the sites."""
    x = F.dropout(model.embedding(IDS_BT), EMBEDDING)
    for layer, depth in zip(model.layers, (DEPTH / 2, DEPTH), strict=True):
        if name == "v8":
            z = layer.alpha * inner(layer.feed_forward, mixed(layer, x)) + (1 - layer.alpha) * x
            x = x + by_rows(layer.norm(z), depth)
            continue
        y = (layer.norm if name == "maxplus" else layer.mixer_norm)(x)
        if layer.convolution is not None:
            y, _ = layer.convolution(y)
        x = x + by_rows(mixed(layer, y), depth)
        x = x + by_rows(inner(layer.feed_forward, layer.feed_forward_norm(x)), depth)
    logits: Tensor = model.head(model.norm(x))
    return logits


@pytest.mark.parametrize("name", KINDS)
def test_each_site_drops_its_share_where_the_docstring_has_it(name: str) -> None:
    use_kernels("reference")
    model = made(name, **ALL).double().train()
    torch.manual_seed(2)
    got = model(IDS_BT)[0]
    torch.manual_seed(2)
    torch.testing.assert_close(got, written_out(model, name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["v8", "transformer_modern"])
def test_evaluation_has_none_of_it_and_verify_measures_a_model_without(name: str) -> None:
    plain, model = made(name, dropout=0.0).eval(), made(name, **ALL).eval()
    assert torch.equal(model(IDS_BT)[0], plain(IDS_BT)[0])
    assert drops(model) and not drops(plain)
    node = build_node(name, **ALL)
    assert not any(drops(each.model(torch.device("cpu"))) for each in models_under_test(node))


def build_node(name: str, **settings: Any) -> dict[str, Any]:
    return compose_config([f"model={name}"]).config["model"] | {"hidden_size": 12, "num_heads": 2} | settings


@pytest.mark.parametrize(
    ("name", "by_sites"),
    [("v8", {"ffn_dropout": 0.3}), ("gla", {"mixer_dropout": 0.3, "ffn_dropout": 0.3})],
)
def test_dropout_is_what_it_was_and_a_site_overrules_it(name: str, by_sites: dict[str, float]) -> None:
    found = []
    for settings in ({"dropout": 0.3}, {"dropout": 0.7, **by_sites}):
        model = made(name, **settings).train()
        torch.manual_seed(2)
        found.append(model(IDS_BT)[0])
    assert torch.equal(*found)
    assert not drops(made(name, dropout=0.7, **dict.fromkeys(by_sites, 0.0)))


def test_stochastic_depth_drops_whole_rows_and_rises_linearly_to_the_last_layer() -> None:
    model: Any = build_model("gla", **SIZES | {"num_layers": 4}, stochastic_depth=0.4)
    assert [layer.stochastic_depth.p for layer in model.layers] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    dropped = StochasticDepth(0.25)(torch.full((4000, 2, 3), 3.0))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 4.0])
    assert bool((dropped == dropped[:, :1, :1]).all())
    share = float((dropped[:, 0, 0] == 0).float().mean())
    assert share == pytest.approx(0.25, abs=0.03)  # four standard deviations
    assert dropped.mean() == pytest.approx(3.0, abs=0.13)


def test_the_fused_layer_keeps_rows_whose_branch_is_dropped() -> None:
    """The published form adds x inside its kernel."""
    torch.manual_seed(0)
    layer = SamOutLayer(
        mixer=MaxStateSuper(hidden_size=8, num_heads=1),
        hidden_size=8,
        ffn_size=8,
        regularisation=Regularisation(stochastic_depth=0.5),
    )
    x_BTD = torch.randn(40, 3, 8)
    branch_BTD = layer.eval()(x_BTD, None)[0] - x_BTD
    got, state = layer.train()(x_BTD, None)
    is_dropped_B = (got == x_BTD).all(2).all(1)
    assert 8 <= int(is_dropped_B.sum()) <= 32
    torch.testing.assert_close(got[~is_dropped_B], (x_BTD + 2 * branch_BTD)[~is_dropped_B], rtol=1e-5, atol=1e-5)
    assert torch.equal(state, layer.eval()(x_BTD, None)[1]), "the state is carried on where the branch is dropped"


@pytest.mark.parametrize("name", mostly_nightly(["gated_deltanet", "counting"], {"counting"}))
def test_drop_connect_leaves_out_weights_of_the_projection_alone(name: str) -> None:
    model: Any = made(name, drop_connect=0.5, dropout=0.0).train()
    mixer = model.layers[0].mixer
    projections = [module for path, module in mixer.named_modules() if path.rpartition(".")[2] == "projection"]
    assert projections and [module for module in mixer.modules() if isinstance(module, nn.Dropout)] == [
        module.drop_connect for module in projections
    ]
    weight = projections[0].weight
    first, second = projections[0].weight_of_pass(), projections[0].weight_of_pass()
    assert not torch.equal(first, second)
    assert torch.equal(first[first != 0], 2 * weight[first != 0])
    model(IDS_BT)[0].square().sum().backward()
    assert 0.3 < float((weight.grad == 0).float().mean()) < 0.7, "a dropped weight takes no gradient"


class Shift(nn.Module):
    """A mixer without a projection."""

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x_BTD, state


def test_a_mixer_without_a_projection_refuses_drop_connect() -> None:
    own = f"model.mixer._target_={Shift.__module__}.{Shift.__name__}"
    words = ["model=v8", own, "data=random", "device=cpu", "model.drop_connect=0.1"]
    with pytest.raises((ConfigError, ValueError), match=r"drop_connect=0\.1: Shift has no"):
        build_trainer(words)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v8", "transformer_modern"])
def test_recomputed_layers_drop_the_same(name: str) -> None:
    words = [f"model={name}", "data=random", "device=cpu", "data.batch_size=8", "model.hidden_size=16"]
    words += ["model.num_heads=2", "model.num_layers=2", *(f"model.{key}={rate}" for key, rate in ALL.items())]
    gradients = []
    for more in ([], ["trainer.activation_checkpointing=true"]):
        trainer = build_trainer([*words, *more])
        trainer.step()
        gradients.append({key: parameter.grad for key, parameter in trainer.model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None and torch.equal(gradient, gradients[1][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(["transformer_modern", "maxplus"], {"maxplus"}))
def test_a_traced_model_drops_what_the_plain_one_drops(name: str) -> None:
    use_kernels("reference")
    model = made(name, **ALL).train()
    found = []
    for forward in (model, torch.compile(model, backend="aot_eager", dynamic=False)):
        model.zero_grad()
        torch.manual_seed(3)
        forward(IDS_BT)[0].square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, while it compiles
@pytest.mark.parametrize("name", mostly_nightly(["maxplus", "transformer_modern", "gated_deltanet"], ["maxplus"]))
def test_a_compiled_model_with_the_same_draws_has_the_same_loss_and_gradients(name: str) -> None:
    from torch._inductor import config

    model = made(name, **ALL).train()
    found = []
    try:
        with config.patch(fallback_random=True):  # without it, Inductor has random numbers of its own
            for function in (model, torch.compile(model)):
                torch.manual_seed(1)
                logits_BTV = function(IDS_BT)[0]
                gradients = torch.autograd.grad(logits_BTV.logsumexp(-1).mean(), list(model.parameters()))
                found.append(torch.cat([value.flatten() for value in (logits_BTV.detach(), *gradients)]))
    finally:
        torch._dynamo.reset()
    assert float((found[1] - found[0]).norm()) <= 1e-5 * float(found[0].norm())
