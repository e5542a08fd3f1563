"""What every model of conf/model keeps: causality, a real state, and the figures that it reports."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samout_train import build_model
from samout_train.config import CONF
from samout_train.metrics import num_parameters, parameters_by_part

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
VOCAB_SIZE = 37


def tiny(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 24, "num_heads": 4, "num_layers": 3, "dropout": 0.0} | settings
    return build_model(name, vocab_size=VOCAB_SIZE, **sizes)


def some_ids(rows: int, time: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (rows, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_output_does_not_depend_on_later_tokens(name: str) -> None:
    model, ids = tiny(name), some_ids(2, 20)
    logits, _ = model(ids)
    for t in (1, 7, 19):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % VOCAB_SIZE
        after, _ = model(changed)
        assert torch.equal(after[:, :t], logits[:, :t])
        assert not torch.equal(after[:, t:], logits[:, t:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 7, 20])
def test_chunks_with_carried_state_give_the_logits_of_the_whole(name: str, size: int) -> None:
    model, ids = tiny(name).eval(), some_ids(3, 40)
    whole, _ = model(ids)
    pieces, state = [], None
    for chunk in ids.split(size, dim=1):
        logits, state = model(chunk, state)
        pieces.append(logits)
    got = torch.cat(pieces, dim=1)
    # Products of other shapes may round otherwise; a few units in the last place of float32.
    assert float((got - whole).detach().norm() / whole.detach().norm()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(name: str) -> None:
    model, ids = tiny(name), some_ids(4, 12)
    logits, _ = model(ids)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_flops_a_token_are_those_that_torch_counts(name: str) -> None:
    model, ids = tiny(name, hidden_size=48), some_ids(2, 16)
    with FlopCounterMode(display=False) as forward:
        logits, _ = model(ids)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    reported: Any = model.forward_flops_per_token(16)
    assert reported == pytest.approx(forward.get_total_flops() / ids.numel(), rel=0.01)
    assert 2 * reported == pytest.approx(backward.get_total_flops() / ids.numel(), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_parts_hold_every_parameter_once(name: str) -> None:
    model = tiny(name)
    assert sum(parameters_by_part(model).values()) == num_parameters(model)
    assert {"mixer", "feed-forward"} <= parameters_by_part(model).keys()


@pytest.mark.parametrize("name", NAMES)
def test_state_bytes_are_those_of_the_state(name: str) -> None:
    model, ids = tiny(name), some_ids(1, 11)
    _, state = model(ids)
    reported: Any = model.state_bytes(11)
    assert reported == sum(tensor.numel() * tensor.element_size() for tensor in state)


def test_published_v8_has_its_published_size() -> None:
    assert num_parameters(build_model("v8", vocab_size=128)) == 6_302_982


@pytest.mark.parametrize("name", ["v1", "v8"])
def test_initialisations_differ_in_the_embedding_only(name: str) -> None:
    small, published = tiny(name, hidden_size=96, init="small"), tiny(name, hidden_size=96, init="published")
    for model, std in ((small, 0.02), (published, 1.0)):
        embedding = model.get_parameter("embedding.weight").detach()
        assert embedding[3].abs().sum() == 0
        assert float(embedding[4:].std()) == pytest.approx(std, rel=0.05)
        # torch's default for a linear layer is uniform within 1 / sqrt(fan in), so of std 1 / sqrt(3 fan in).
        projection = model.get_parameter("layers.0.mixer.projection.weight").detach()
        assert float(projection.std()) == pytest.approx((3 * 96) ** -0.5, rel=0.05)


@pytest.mark.parametrize(("name", "share"), [("v1", 0.5), ("v8", 1.0)])
def test_inner_width_is_as_published_or_as_set(name: str, share: float) -> None:
    assert tiny(name).get_parameter("layers.0.feed_forward.up.weight").shape == (int(24 * share), 24)
    assert tiny(name, ffn_size=7).get_parameter("layers.0.feed_forward.up.weight").shape == (7, 24)


def test_v1_ties_its_head_and_trains_the_padding_row_through_it() -> None:
    model = tiny("v1")
    model(some_ids(2, 9))[0].logsumexp(-1).sum().backward()
    gradient = model.get_parameter("embedding.weight").grad
    assert gradient is not None and model.head is None and gradient[3].abs().sum() > 0
    model.zero_grad()
    model(torch.full((1, 4), 3))[0][..., :3].sum().backward()  # logits of others than padding: no way to its row
    gradient = model.get_parameter("embedding.weight").grad
    assert gradient is not None and gradient[3].abs().sum() == 0


def test_a_width_that_heads_do_not_divide_is_refused_with_one_that_they_do() -> None:
    with pytest.raises(ValueError, match=r"hidden_size \(100\) must be divisible by .*num_heads \(6\): try 96 or 102"):
        build_model("v8", vocab_size=9, hidden_size=100, num_heads=6)


def test_a_state_of_another_model_is_refused() -> None:
    model = tiny("v8")
    _, state = model(some_ids(2, 5))
    with pytest.raises(ValueError, match="state has 2 layers, the model 3"):
        model(some_ids(2, 5), state[:2])
    with pytest.raises(ValueError, match=r"state_BD \(2, 24\) must be \(1, 24\)"):
        model(some_ids(1, 5), state)
