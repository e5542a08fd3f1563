"""Layers computed again in the backward pass: less is kept, and not a bit is another."""

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from samout_train import build_trainer
from samout_train.config import CONF, ConfigError
from samout_train.models import checkpoint_activations, estimate_memory_bytes
from samout_train.training import Trainer
from tests.support.marks import mostly_nightly, spread

WITH_LAYERS = [
    *("v1", "v8", "maxplus", "counting", "mingru", "transformer", "transformer_modern", "retnet", "gla", "mamba2"),
    *("hgrn2", "mlstm", "deltanet", "gated_deltanet", "rglru", "hybrid"),
]
SIZES = ["data=random", "device=cpu", "data.batch_size=8", "model.hidden_size=32", "model.num_layers=3"]
ON = "trainer.activation_checkpointing=true"


def trainer(name: str, *overrides: str) -> Trainer:
    heads = [] if name == "mingru" else ["model.num_heads=4"]
    return build_trainer([f"model={name}", *SIZES, *heads, "model.dropout=0.2", *overrides])


def kept_bytes(made: Trainer) -> int:
    """Bytes that a step keeps for its backward pass, weights included."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        made.step()
    return kept


def gradients(made: Trainer) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in made.model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("extra", spread([[], ["trainer.accumulate=2", "precision=bf16"]], 2), ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", mostly_nightly(WITH_LAYERS, {"maxplus"}))
def test_gradients_have_the_same_bits_and_less_is_kept(name: str, extra: list[str]) -> None:
    plain = trainer(name, *extra)
    plain_bytes, state = kept_bytes(plain), torch.get_rng_state()
    again = trainer(name, *extra, ON)
    assert kept_bytes(again) < plain_bytes / 2
    assert torch.equal(torch.get_rng_state(), state), "the next step's dropout is the same, too"
    wanted = gradients(plain)
    for parameter, gradient in gradients(again).items():
        assert gradient is not None and torch.equal(gradient, wanted[parameter]), parameter


@pytest.mark.nightly
def test_every_model_with_layers_takes_it_and_the_others_say_why_not() -> None:
    for name in sorted(path.stem for path in (CONF / "model").glob("*.yaml")):
        sizes = [f"model={name}", "data=random", "device=cpu", "model.hidden_size=24"]
        if hasattr(build_trainer(sizes).model, "layers"):
            assert build_trainer([*sizes, ON]).step().isfinite()
        else:
            with pytest.raises(ConfigError, match=r"activation_checkpointing=true: works layer by layer"):
                build_trainer([*sizes, ON])


def test_a_model_that_has_no_layers_and_does_not_say_so_is_refused_where_it_is_built() -> None:
    with pytest.raises(ValueError, match="activation_checkpointing=true: works layer by layer, and Linear has no Mod"):
        checkpoint_activations(torch.nn.Linear(3, 3))


@pytest.mark.slow
def test_weights_keep_their_names_and_evaluation_and_generation_their_bits() -> None:
    plain, again = trainer("v8"), trainer("v8", ON)
    assert plain.model.state_dict().keys() == again.model.state_dict().keys()
    ids_BT = torch.randint(4, 99, (2, 9))
    for made in (plain, again):
        made.model.eval()
    with torch.no_grad():
        assert torch.equal(again.model(ids_BT)[0], plain.model(ids_BT)[0])
    kept = []
    for made in (plain, again):
        with saved_tensors_hooks(lambda tensor: kept[-1].append(tensor.shape) or tensor, lambda tensor: tensor):
            kept.append([])
            made.model(ids_BT)
    assert kept[0] == kept[1], "in evaluation, a gradient goes the plain way"


def test_a_copy_of_the_model_computes_its_own_layers_again() -> None:
    made = trainer("v8", ON)
    other = copy.deepcopy(made.model)
    with torch.no_grad():
        other.layers[0].alpha.zero_()
    ids_BT = torch.randint(4, 99, (2, 9))
    torch.manual_seed(0)
    first_BTV, _ = made.model(ids_BT)
    torch.manual_seed(0)
    assert not torch.equal(other(ids_BT)[0], first_BTV)


@pytest.mark.slow
def test_the_estimate_of_memory_knows_that_less_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # The memory that this process already holds depends on the tests before.
    monkeypatch.setattr("samout_train.models.cost.current_memory_bytes", lambda: 0)
    sizes = ("model.num_layers=8", "model.hidden_size=64")
    plain, again = (
        estimate_memory_bytes(
            made.model, rows=64, seq_len=512, accumulate=1, precision="fp32", device=torch.device("cpu")
        )
        for made in (trainer("v8", *sizes), trainer("v8", ON, *sizes))
    )
    assert again < 0.7 * plain


@pytest.mark.slow
def test_recomputing_composes_with_micro_steps_chunks_and_an_average() -> None:
    others = ("trainer.accumulate=2", "trainer.chunk_len=16", "trainer.ema=500", "data.seq_len=32", "precision=fp32")
    ends = []
    for extra in ([], [ON]):
        torch.manual_seed(3)
        made = trainer("v8", *others, *extra)
        for _ in range(4):
            made.step()
        assert made.training_step.average is not None
        ends.append([*made.model.state_dict().values(), *made.training_step.average.state_dict()["weights"].values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
