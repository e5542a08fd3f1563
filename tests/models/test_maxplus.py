"""The maximum that forgets: V8 where nothing is forgotten, its recurrence by hand, and the convolution before it."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train import build_model
from samout_train.evaluation import added_nats
from samout_train.evaluation.ablation import mixed_by
from samout_train.evaluation.verify import ModelUnderTest, verify
from samout_train.models import SamOut
from samout_train.models.layers import CausalConvolution
from samout_train.models.maxplus import Decay, MaxPlus
from samout_train.models.samout import MaxStateSuper

DECAYS = list(get_args(Decay))
PLAIN = {"norm": "published", "convolution_size": 0}


def mixer(decay: str, *, width: int = 6, start: float = 0.3) -> MaxPlus:
    torch.manual_seed(0)
    return MaxPlus(hidden_size=width, num_heads=2, decay=decay, decay_at_start=start).double()  # type: ignore[arg-type]


def sizes(**settings: Any) -> dict[str, Any]:
    return {"vocab_size": 37, "hidden_size": 24, "num_heads": 4, "num_layers": 3, "dropout": 0.0} | settings


def maxplus_with(mixer_settings: dict[str, Any], **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    given = {"decay": "token", "decay_at_start": 0.14} | mixer_settings
    node = {"_target_": "samout_train.models.maxplus.MaxPlus", "_partial_": True} | given
    return build_model("maxplus", mixer=node, **sizes(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("decay", DECAYS)
def test_without_decay_and_convolution_it_is_v8_to_the_bit(decay: str) -> None:
    torch.manual_seed(0)
    v8 = build_model("v8", **sizes())
    maxplus = maxplus_with({"decay": decay}, **PLAIN)
    own = {name for name in maxplus.state_dict() if ".decay_" in name}
    assert [name for name in maxplus.state_dict() if name not in own] == list(v8.state_dict())
    maxplus.load_state_dict(v8.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in maxplus.named_parameters():
            if name in own:  # where there is a decay, it is softplus(-inf), which is zero
                parameter.fill_(0.0 if name.endswith("weight") else -torch.inf)
    weights = [dict(model.named_parameters()) for model in (v8, maxplus)]
    ids = torch.randint(37, (2, 70), generator=torch.Generator().manual_seed(1))
    for pieces in ([70], [1, 40, 29]):
        found: list[list[Tensor]] = []
        for model, named in zip((v8, maxplus), weights, strict=True):
            state, logits = None, []
            for piece in ids.split(pieces, dim=1):
                out, state = model(piece, state)
                logits.append(out)
            whole = torch.cat(logits, dim=1)
            gradients = torch.autograd.grad(whole.square().mean(), [named[name] for name in weights[0]])
            found.append([whole, *state, *gradients])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("decay", DECAYS)
def test_a_sequence_is_the_recurrence_one_token_after_the_other(decay: str) -> None:
    layer, x = mixer(decay), torch.randn(2, 9, 6, dtype=torch.float64)
    state = torch.randn(2, 6, dtype=torch.float64)
    a, b, c, d = layer.projection(x).chunk(4, dim=-1)
    if decay == "token":
        f = F.softplus(x @ layer.decay_projection.weight.T + layer.decay_projection.bias)
    elif decay == "none":
        f = torch.zeros_like(x)
    else:
        f = F.softplus(layer.decay_D).expand_as(x)
    m, wanted = state.clone(), []
    for t in range(9):
        m = torch.maximum(m - f[:, t], d[:, t])
        wanted.append(((a[:, t] + b[:, t]) * m + c[:, t]) * m)
    got, last = layer(x, state)
    torch.testing.assert_close(got, torch.stack(wanted, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, m, rtol=1e-12, atol=1e-12)
    # Unrolled: the largest of d_s minus all that was forgotten since, the state being what lies before the first.
    since = f.sum(1, keepdim=True) - f.cumsum(1)
    unrolled = torch.cat([(state - f.sum(1))[:, None], d - since], dim=1).amax(1)
    torch.testing.assert_close(last, unrolled, rtol=1e-12, atol=1e-12)
    # and with the streams side by side, as the report of the branches takes it
    torch.testing.assert_close(layer.mix(layer.project(x), state)[0], got, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_matrix_for_b_it_is_the_mixer_whose_b_is_zero(dtype: torch.dtype) -> None:
    small = maxplus_with({"b_projection": False})
    whole = maxplus_with({})
    weights = small.state_dict()
    for name, weight in whole.state_dict().items():
        if name.endswith("mixer.projection.weight"):
            a, c, d = weights[name].chunk(3)
            weights[name] = torch.cat([a, torch.zeros_like(a), c, d])
        assert weights[name].shape == weight.shape
    whole.load_state_dict(weights)
    sizes_of = [sum(parameter.numel() for parameter in model.parameters()) for model in (small, whole)]
    assert sizes_of[1] - sizes_of[0] == 3 * 24 * 24  # a matrix in each layer
    ids = torch.randint(37, (2, 70), generator=torch.Generator().manual_seed(1))
    for pieces in ([70], [1, 40, 29]):
        logits: list[list[Tensor]] = [[], []]
        for model, outputs in zip((small, whole), logits, strict=True):
            state = None
            for piece in ids.split(pieces, dim=1):
                with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    out, state = model(piece, state)
                outputs.append(out)
        assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))


def test_what_was_large_comes_down_by_f_until_something_larger_comes() -> None:
    layer = mixer("learned", width=1, start=1.5)
    with torch.no_grad():
        layer.projection.weight.copy_(torch.tensor([[0.0], [0.0], [0.0], [1.0]]))  # d is x, the output is 0
    seen, state = [], None
    for x in (5.0, 0.0, 0.0, 0.0, 0.0, -1.0, -9.0, 3.0):
        _, state = layer(torch.full((1, 1, 1), x, dtype=torch.float64), state)
        seen.append(state.item())
    assert seen == pytest.approx([5.0, 3.5, 2.0, 0.5, 0.0, -1.0, -2.5, 3.0], abs=1e-6)


@pytest.mark.parametrize("start", [1e-4, 0.14, 40.0])
@pytest.mark.parametrize("decay", ["learned", "token"])
def test_decays_begin_where_they_are_told_to(decay: str, start: float) -> None:
    layer = mixer(decay, width=3, start=start)
    begun = -layer._added(torch.zeros(1, 1, 3, dtype=torch.float64))  # type: ignore[operator]
    assert begun.flatten().tolist() == pytest.approx([start] * 3, rel=1e-3)


def test_the_state_does_not_grow_with_the_sequence_where_v8s_does() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4096, 64)
    for layer, low, high in (
        (MaxStateSuper(hidden_size=64, num_heads=1), 1.3, 2.0),
        (MaxPlus(hidden_size=64, num_heads=1, decay="token", decay_at_start=0.14), 0.9, 1.1),
    ):
        with torch.no_grad():
            early = layer(x[:, :64], None)[1]
            late = layer(x, None)[1]
        assert low < float(late.norm() / early.norm()) < high


def test_the_state_by_layer_is_the_maximum_without_the_tokens() -> None:
    model = maxplus_with({}, num_layers=2)
    _, state = model(torch.zeros(3, 1, dtype=torch.int64))
    named = model.state_by_layer(state)
    assert list(named) == ["layer_1", "layer_2"]
    assert all(torch.equal(part, of.mixer) for part, of in zip(named.values(), state, strict=True))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_convolution_is_torchs_and_the_same_in_pieces(size: int) -> None:
    torch.manual_seed(0)
    layer, x = CausalConvolution(hidden_size=5, size=size).double(), torch.randn(2, 11, 5, dtype=torch.float64)
    padded = F.pad(x.transpose(1, 2), (size - 1, 0))
    wanted = F.silu(F.conv1d(padded, layer.weight, layer.bias, groups=5)).transpose(1, 2)
    whole, last = layer(x)
    torch.testing.assert_close(whole, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(last, torch.cat([torch.zeros(2, 4, 5, dtype=torch.float64), x], 1)[:, 16 - size :])
    tokens, pieces = None, []
    for piece in x.split([1, 2, 1, 7], dim=1):
        y, tokens = layer(piece, tokens)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(tokens, last) and tokens.numel() * 4 // 2 == layer.state_bytes()


def test_a_convolution_says_which_tokens_it_wants() -> None:
    with pytest.raises(ValueError, match=r"tokens_BKD \(3, 3, 5\) must be \(2, 3, 5\) for an input \(2, 7, 5\)"):
        CausalConvolution(hidden_size=5, size=4)(torch.zeros(2, 7, 5), torch.zeros(3, 3, 5))


def test_a_transformer_with_a_convolution_does_not_see_padding() -> None:
    torch.manual_seed(0)
    model = build_model("transformer", **sizes(), convolution_size=4).eval()
    ids, padding = torch.randint(4, 37, (1, 9)), torch.full((1, 5), 3)
    with torch.no_grad():
        # Rotary positions are relative, so padding in front changes nothing but what the first tokens could see.
        alone, _ = model(ids)
        mask = torch.cat([padding, ids], 1) == 3
        behind, _ = model(torch.cat([padding, ids], 1), padding_mask_BS=mask)
    torch.testing.assert_close(behind[:, 5:], alone, rtol=1e-4, atol=1e-5)


def test_the_report_says_what_forgetting_is_worth() -> None:
    model = maxplus_with({})
    with torch.no_grad():
        found = added_nats(model, lambda: float(model(torch.arange(36)[None])[0].square().mean()), each_layer=False)
    assert list(found["all_layers"]) == ["a+b", "c", "decay", "past", "mixer"]
    assert all(type(layer.mixer) is MaxPlus for layer in mixed_by(model).values())
    assert found["all_layers"]["decay"] != 0.0


CASES = [({"decay": "none"}, {}), ({"decay": "learned"}, {"norm": "published"}), ({}, {"convolution_size": 0})]


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_check_of_verify_holds_for_what_can_be_set(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    mixer_settings, settings = case
    subject = ModelUnderTest(lambda: maxplus_with(mixer_settings, **settings), 37, 3, most_tokens=110)
    smaller = ModelUnderTest(lambda: maxplus_with(mixer_settings, **settings, hidden_size=16, num_layers=2), 37, 3)
    rows = list(verify(subject, smaller, device=torch.device("cpu"), compiles=False))
    assert [row for row in rows if not row.passed] == []


@pytest.mark.nightly
def test_verify_holds_for_the_published_mixers_and_attention_behind_a_convolution() -> None:
    for name in ("v1", "v8", "transformer"):
        subject, smaller = (
            ModelUnderTest(lambda s=s, name=name: built(name, **s), 37, 3, most_tokens=110)
            for s in ({}, {"hidden_size": 16, "num_layers": 2})
        )
        rows = list(verify(subject, smaller, device=torch.device("cpu"), compiles=False))
        assert [row for row in rows if not row.passed] == [], name


def built(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, **sizes(**settings), convolution_size=4)


def test_the_published_mixer_is_not_taken_for_published_behind_a_convolution() -> None:
    from samout_train.models import published_state

    model = built("v8")
    assert isinstance(model, SamOut) and type(model.layers[0].mixer) is MaxStateSuper
    with pytest.raises(ValueError, match="were published, and this is a SamOut of MaxStateSuper, own head, with other"):
        published_state(model)
