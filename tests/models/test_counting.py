"""The counting maximum: its temperature, its share in maxplus, and parity at lengths that it was not trained on."""

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model, build_trainer
from samout_train.models.counting import CountingMaximum
from samout_train.models.maxplus import MaxPlus, PartlyCounted
from samout_train.ops import use_kernels


def counting(**settings: float) -> CountingMaximum:
    torch.manual_seed(0)
    return CountingMaximum(hidden_size=12, num_heads=2, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "temperature"), [(0.0, 2.0), (0.5, 2.0), (0.6, 1.5), (0.8, 0.5), (0.9, 0.0), (1.0, 0.0)]
)
def test_the_temperature_is_held_and_then_falls_in_a_line(share: float, temperature: float) -> None:
    mixer = counting(temperature=2.0, temperature_held=0.5, temperature_zero=0.9)
    assert mixer.anneal(share) == pytest.approx(temperature)
    assert float(mixer.temperature) == pytest.approx(temperature)


def test_evaluation_is_hard_at_any_temperature() -> None:
    use_kernels("reference")  # others take seconds to compile
    mixer, x_BTD = counting(temperature=1.0), torch.randn(2, 9, 12)
    soft, hard = mixer(x_BTD, None)[0], mixer.eval()(x_BTD, None)[0]
    mixer.anneal(1.0)
    assert torch.equal(mixer.train()(x_BTD, None)[0], hard)
    assert (soft - hard).abs().max() > 1e-3


def test_a_trainer_sets_the_temperature_before_each_step() -> None:
    words = [
        *("model=counting", "data=parity", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
        *("model.mixer.temperature_held=0.25", "model.mixer.temperature_zero=0.75"),
        *("data.batch_size=4", "data.num_sequences=40", "data.num_test_sequences=100"),
        "kernels=reference",  # others take seconds to compile
    ]
    trainer = build_trainer([*words, "trainer.max_steps=4"])
    temperatures = []
    for _ in range(4):
        trainer.step()
        temperatures.append(trainer.training_step.temperature)
    assert temperatures == [1.0, 0.5, 0.0, 0.0]
    longer = build_trainer([*words, "trainer.max_steps=8"])
    longer.load_state_dict(trainer.state_dict())
    assert longer.training_step.temperature == 0.0, "a checkpoint has the temperature of its last step"
    assert longer.temperature(5) == pytest.approx(0.25), "and more steps make the maximum soft again"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"entries": 5}, "entries"),
        ({"temperature_held": 0.9, "temperature_zero": 0.5}, "temperature_zero"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        counting(**settings)


def test_a_share_of_maxplus_counts() -> None:
    torch.manual_seed(0)
    settings = {"decay": "token", "decay_at_start": 0.14, "entries": 2}
    mixer = MaxPlus(hidden_size=24, num_heads=2, counters=0.3, **settings)  # type: ignore[arg-type]
    assert mixer.counting is not None and mixer.counting.channels == 8  # 7.2 channels are four blocks
    x_BTD = torch.randn(2, 7, 24)
    y_BTD, state = mixer.eval()(x_BTD, None)
    assert isinstance(state, PartlyCounted) and state.maximum_BD.shape == (2, 16) and state.counting_BC.shape == (2, 8)
    assert torch.equal(y_BTD[..., 16:], mixer.counting(x_BTD, None)[0])
    first_BTD, state = mixer(x_BTD[:, :3], None)
    second_BTD, _ = mixer(x_BTD[:, 3:], state)
    assert torch.allclose(torch.cat([first_BTD, second_BTD], dim=1), y_BTD, atol=1e-6)


def test_without_counters_maxplus_has_the_parameters_that_it_had() -> None:
    names = set(dict(build_model("maxplus", vocab_size=9, hidden_size=24, num_heads=4).named_parameters()))
    assert not [name for name in names if "counting" in name]
    with pytest.raises(ValueError, match="model=counting"):
        MaxPlus(hidden_size=4, num_heads=1, decay="none", decay_at_start=0.1, counters=0.95)


@pytest.mark.nightly
def test_parity_is_exact_far_beyond_the_length_of_training() -> None:
    trainer = build_trainer(
        [
            *("model=counting", "data=parity", "model.hidden_size=32", "model.num_heads=4", "model.num_layers=1"),
            *("model.convolution_size=0", "model.mixer.temperature=0", "optimizer.lr=1e-2", "trainer.max_steps=120"),
            *("data.num_test_sequences=100",),
        ]
    )
    while not trainer.finished():
        trainer.step()
    bits_BT = torch.randint(2, (8, 16_384), generator=torch.Generator().manual_seed(0))
    model = trainer.model.eval()
    with torch.inference_mode():
        assert torch.equal(model(bits_BT)[0].argmax(-1), bits_BT.cumsum(1) % 2)
        assert torch.equal(in_parts(model, bits_BT), bits_BT.cumsum(1) % 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(in_parts(model, bits_BT), bits_BT.cumsum(1) % 2)
        assert torch.equal(in_parts(model.to(torch.bfloat16), bits_BT), bits_BT.cumsum(1) % 2)


def in_parts(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Return the most probable ids, with the state carried from each 256 tokens to the next."""
    answers, state = [], None
    for part_BT in ids_BT.split(256, dim=1):
        logits_BTV, state = model(part_BT, state)
        answers.append(logits_BTV.argmax(-1))
    return torch.cat(answers, dim=1)
