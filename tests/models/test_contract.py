"""What every model of conf/model keeps: causality, a real state, and the figures that it reports."""

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from samout_train import build_model
from samout_train.config import CONF, compose_config
from samout_train.evaluation.verify import ModelUnderTest, distance, verify
from samout_train.models import held_bytes, map_state, num_parameters, parameters_by_part, repeat_state, state_bytes
from samout_train.models.state import compact_state, state_to
from tests.support.marks import mostly_nightly

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
USUAL = {"v8", "maxplus", "transformer", "lstm", "gated_deltanet"}
KINDS = mostly_nightly(NAMES, USUAL)  # one of each kind of state
OF_PRE_NORM = {
    path.stem for path in (CONF / "model").glob("*.yaml") if "prenorm.PreNormModel" in path.read_text("utf-8")
}
VOCAB_SIZE = 37
# Those of models that are not here have at least an embedding and a mixer.
PARTS = {
    "v1": {"embedding (also head)", "mixer", "feed-forward", "norm and alpha"},
    "v8": {"embedding", "mixer", "feed-forward", "norm and alpha", "head"},
    "maxplus": {"embedding", "convolution", "mixer", "feed-forward", "norm", "head"},
    "transformer": {"embedding", "mixer", "feed-forward", "norm", "head"},
    "mingru": {"embedding", "mixer", "feed-forward", "norm", "head"},
    "rnn": {"embedding", "mixer", "head"},
    "lstm": {"embedding", "mixer", "head"},
    "gru": {"embedding", "mixer", "head"},
    "lstm_attention": {"embedding", "mixer", "head"},
}


def settings_of(name: str, **settings: Any) -> dict[str, Any]:
    """Small sizes, as far as this model has them."""
    known = compose_config([f"model={name}"]).config["model"]
    sizes: dict[str, Any] = {"hidden_size": 24, "num_heads": 4, "num_layers": 3, "dropout": 0.0}
    return {key: value for key, value in sizes.items() if key in known} | settings


def tiny(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, vocab_size=VOCAB_SIZE, **settings_of(name, **settings))


def some_ids(rows: int, time: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (rows, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(NAMES, {"v8"}))
def test_every_check_of_verify_holds(name: str) -> None:
    subject = ModelUnderTest(lambda: tiny(name), VOCAB_SIZE, 3, most_tokens=110)
    smaller = ModelUnderTest(lambda: tiny(name, hidden_size=16, num_layers=2), VOCAB_SIZE, 3)
    rows = list(verify(subject, smaller, device=torch.device("cpu"), compiles=False))
    assert len(rows) == 32 and not any(row.skipped for row in rows)
    assert [row for row in rows if not row.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(NAMES, {"maxplus"}))
def test_step_by_step_is_the_whole_over_4096_tokens(name: str) -> None:
    model, ids = tiny(name).eval(), some_ids(1, 4096)
    with torch.inference_mode():
        whole, _ = model(ids)
        state, pieces = None, []
        for token in ids.split(1, dim=1):
            logits, state = model(token, state)
            pieces.append(logits)
    assert distance(torch.cat(pieces, dim=1), whole) <= 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_a_state_can_be_saved_repeated_and_continued_twice(name: str) -> None:
    model, ids = tiny(name).eval(), some_ids(2, 30)
    with torch.inference_mode():
        whole, _ = model(ids)
        _, state = model(ids[:, :7])
        _, state = model(ids[:, 7:10], state)
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        restored = torch.load(file, weights_only=True)
        repeated = repeat_state(state, 3)
        first, later = model(ids[:, 10:11], state)
        model(ids[:, 11:12].flip(0), state)  # another call goes on from the same state, with another token
        second, _ = model(ids[:, 11:], later)
        assert distance(torch.cat([first, second], dim=1), whole[:, 10:]) < 1e-5
        assert distance(model(ids[:, 10:], restored)[0], whole[:, 10:]) < 1e-5
        assert distance(model(ids[:, 10:].repeat_interleave(3, 0), repeated)[0][::3], whole[:, 10:]) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_a_state_and_its_copy_on_a_device_go_on_by_themselves(name: str) -> None:
    model, ids = tiny(name).eval(), some_ids(2, 30)
    other = ids.clone()
    other[:, 10:] = (other[:, 10:] + 1) % VOCAB_SIZE
    with torch.inference_mode():
        _, state = model(ids[:, :7])
        _, state = model(ids[:, 7:10], state)
        moved = state_to(state, "cpu")
        logits = {"state": [], "moved": []}
        for t in range(10, 30):  # by turns, each with tokens of its own
            one, state = model(ids[:, t : t + 1], state)
            two, moved = model(other[:, t : t + 1], moved)
            logits["state"].append(one)
            logits["moved"].append(two)
        for key, given in (("state", ids), ("moved", other)):
            assert distance(torch.cat(logits[key], dim=1), model(given)[0][:, 10:]) < 1e-5
    assert all(part.is_meta for part in tensors(state_to(state, "meta")))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_state_of_inference_mode_goes_on_without_it(name: str) -> None:
    model, ids = tiny(name).eval(), some_ids(2, 12)
    with torch.inference_mode():
        whole, _ = model(ids)
        _, state = model(ids[:, :7])
        _, state = model(ids[:, 7:8], state)
    with torch.no_grad():
        first, state = model(ids[:, 8:9], state)
        second, _ = model(ids[:, 9:], state)
    assert distance(torch.cat([first, second], dim=1), whole[:, 8:]) < 1e-5


def tensors(state: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda part: found.append(part) or part, state)  # type: ignore[func-returns-value]
    return found


class Loop(nn.Module):
    """A fused module's layers as loops over one step, into which torch's counter sees."""

    def __init__(self, fused: nn.RNNBase) -> None:
        super().__init__()
        self.fused, self.hidden_size = fused, fused.hidden_size
        self.step = {"RNN_TANH": torch.rnn_tanh_cell, "LSTM": torch.lstm_cell, "GRU": torch.gru_cell}[fused.mode]

    def forward(self, x: Tensor, given: None) -> tuple[Tensor, Any]:
        for layer in range(self.fused.num_layers):
            weights = [getattr(self.fused, f"{part}_l{layer}") for part in ("weight_ih", "weight_hh")]
            zeros, outputs = x.new_zeros(len(x), self.hidden_size, requires_grad=True), []
            state: Any = (zeros, zeros) if self.fused.mode == "LSTM" else zeros
            for t in range(x.shape[1]):
                state = self.step(x[:, t], state, *weights)
                outputs.append(state[0] if self.fused.mode == "LSTM" else state)
            x = torch.stack(outputs, 1)
        states = zeros.expand(self.fused.num_layers, *zeros.shape)
        return x, (states, states) if self.fused.mode == "LSTM" else states


def flops_of_solving(a_shape: Any, b_shape: Any, *_: Any, **__: Any) -> int:
    """Of a triangular system, which torch does not count: as the dense product of its shape."""
    *batch, size, columns = b_shape
    return 2 * math.prod(batch) * size * size * columns


SOLVING = {torch.ops.aten.linalg_solve_triangular: flops_of_solving}


@pytest.mark.parametrize("name", KINDS)
def test_flops_a_token_are_those_that_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("linear_attention", "delta_rule"):  # torch counts no operations inside of a kernel
        monkeypatch.setattr(f"samout_train.ops.{package}.has_head_kernels", lambda tensor: False)
    model, ids = tiny(name, hidden_size=48), some_ids(2, 16)
    reported: Any = model.forward_flops_per_token(16)
    if isinstance(model.mixer if hasattr(model, "mixer") else None, nn.RNNBase):
        model.mixer = Loop(model.mixer)  # type: ignore[arg-type]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=SOLVING) as forward:
        logits, state = model(ids)
    total = logits.sum() + sum(part.sum() for part in tensors(state) if part.requires_grad)
    with FlopCounterMode(display=False, custom_mapping=SOLVING) as backward:
        total.backward()
    assert reported == pytest.approx(forward.get_total_flops() / ids.numel(), rel=0.01)
    assert 2 * reported == pytest.approx(backward.get_total_flops() / ids.numel(), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_parts_hold_every_parameter_once(name: str) -> None:
    model = tiny(name)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == num_parameters(model)
    assert set(parts) == PARTS[name] if name in PARTS else set(parts) >= {"embedding", "mixer"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_state_bytes_are_those_that_count_of_a_state(name: str) -> None:
    model, ids = tiny(name).eval(), some_ids(1, 12)
    reported: Any = model.state_bytes(12)
    with torch.inference_mode():
        _, state = model(ids[:, :11])
        _, state = model(ids[:, 11:], state)
    compact = compact_state(state)
    assert reported == state_bytes(state) == state_bytes(compact) == held_bytes(compact)
    file = io.BytesIO()
    torch.save(compact, file)
    assert file.tell() < reported + 8192, "what is saved has no room behind it"


@pytest.mark.slow
def test_a_cache_that_goes_on_holds_its_room() -> None:
    model, ids = tiny("transformer", max_seq_len=64).eval(), some_ids(1, 12)
    with torch.inference_mode():
        _, state = model(ids[:, :11])
        _, state = model(ids[:, 11:], state)
    keys_and_values = 2 * 4 * 24 * 3  # a token's, in float32, of 3 layers of width 24
    assert state_bytes(state) == 12 * keys_and_values and held_bytes(state) == 64 * keys_and_values
    assert held_bytes(repeat_state(state, 5)) == 5 * 12 * keys_and_values


def test_published_v8_has_its_published_size() -> None:
    assert num_parameters(build_model("v8", vocab_size=128)) == 6_302_982


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("v1", 0.5), ("v8", 1.0)])
def test_inner_width_is_as_published_or_as_set(name: str, share: float) -> None:
    assert tiny(name).get_parameter("layers.0.feed_forward.up.weight").shape == (int(24 * share), 24)
    assert tiny(name, ffn_size=7).get_parameter("layers.0.feed_forward.up.weight").shape == (7, 24)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_state_of_another_model_is_refused() -> None:
    model = tiny("v8")
    _, state = model(some_ids(2, 5))
    with pytest.raises(ValueError, match="state has 2 layers, the model 3"):
        model(some_ids(2, 5), state[:2])
    with pytest.raises(ValueError, match=r"state_BD \(2, 24\) must be \(1, 24\)"):
        model(some_ids(1, 5), state)
