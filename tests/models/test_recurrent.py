"""RNN, LSTM, GRU, minGRU and LSTM with attention against loops over their formulas."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model
from samout_train.models.mingru import MinGRUMixer, positive
from samout_train.models.recurrent import Recurrent

CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
IDS = torch.randint(4, 19, (2, 9), generator=torch.Generator().manual_seed(0))
Cell = Literal["rnn", "lstm", "gru"]


def recurrent(cell: Cell, **changes: Any) -> Recurrent:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 19,
        "pad_id": 3,
        "hidden_size": 8,
        "num_layers": 2,
        "dropout": 0.0,
        "embedding": "learned",
        "embedding_size": 5,
        "bidirectional": False,
        "head": "linear",
    }
    return Recurrent(cell=cell, **(settings | changes)).eval()


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_fused_modules_are_loops_over_cells(name: Cell) -> None:
    model = recurrent(name)
    cells = []
    for layer in range(2):
        cell = CELLS[name](5 if layer == 0 else 8, 8)
        cell.load_state_dict(
            {
                part: getattr(model.mixer, f"{part}_l{layer}")
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
        )
        cells.append(cell)
    states: list[Any] = [None, None]
    outputs = []
    for t in range(IDS.shape[1]):
        x: Tensor = model.embedding(IDS[:, t])
        for layer, cell in enumerate(cells):
            states[layer] = cell(x, states[layer])
            x = states[layer][0] if name == "lstm" else states[layer]
        outputs.append(x)
    torch.testing.assert_close(model(IDS)[0], model.head(torch.stack(outputs, 1)), rtol=1e-5, atol=1e-6)  # type: ignore[misc]


def test_two_directions_see_the_future_and_keep_no_state() -> None:
    model = recurrent("gru", bidirectional=True)
    changed = IDS.clone()
    changed[:, -1] = 4 + (changed[:, -1] - 3) % 15
    logits, state = model(IDS)
    assert not torch.equal(logits[:, 0], model(changed)[0][:, 0]) and model.sees_future
    with pytest.raises(ValueError, match="cannot continue from a state"):
        model(IDS, state)


def test_one_hot_inputs_are_the_identity_and_are_not_trained() -> None:
    model = recurrent("rnn", embedding="one_hot", hidden_size=19, num_layers=1, head="none")
    assert torch.equal(model.embedding(IDS), torch.eye(19)[IDS])
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"mixer"}
    assert model(IDS)[0].shape == (2, 9, 19)
    assert model.double()(IDS)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "set model.hidden_size to 19, or model.head=linear"),
        (
            {"bidirectional": True, "vocab_size": 20},
            "width 2 x 8 .* 20 ids: set model.hidden_size to 10, or model.head",
        ),
        ({"bidirectional": True}, "width 2 x 8 does not fit 19 ids: set model.head=linear$"),
    ],
)
def test_without_a_head_the_hidden_state_must_be_as_wide_as_there_are_ids(changes: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValueError, match=rf"head=none .*{advice}"):
        recurrent("rnn", head="none", **changes)


@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 200])
def test_mingru_in_log_space_is_its_recurrence(time: int) -> None:
    torch.manual_seed(0)
    mixer = MinGRUMixer(hidden_size=6).double()
    x, state = 3 * torch.randn(2, time, 6, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64)
    for given in (None, state):
        h = torch.zeros(2, 6, dtype=torch.float64) if given is None else given
        wanted = []
        for t in range(time):
            z = mixer.gate(x[:, t]).sigmoid()
            h = (1 - z) * h + z * positive(mixer.candidate(x[:, t]))
            wanted.append(h)
        got, last = mixer(x, given)
        torch.testing.assert_close(got, torch.stack(wanted, 1), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(last, h, rtol=1e-10, atol=1e-12)


def test_mingru_keeps_the_gradients_of_its_gates_in_float32() -> None:
    torch.manual_seed(0)
    mixer, x = MinGRUMixer(hidden_size=48), torch.randn(2, 150, 48)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        y, _ = mixer.to(dtype)(x.to(dtype), None)
        gradients.append(torch.autograd.grad(y.square().sum(), mixer.gate.weight)[0].double())
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 2e-6


def test_a_mingru_state_that_is_zero_at_the_border_of_a_chunk_has_finite_gradients() -> None:
    mixer, x = MinGRUMixer(hidden_size=3), torch.zeros(1, 65, 3)
    with torch.no_grad():
        mixer.gate.weight.copy_(torch.eye(3) * 105)  # takes all of the candidate, whose sigmoid(-105) is 0
        mixer.candidate.weight.copy_(torch.eye(3) * -105)
    x[:, :64] = 1
    y, _ = mixer(x.requires_grad_(), None)
    assert float(y[0, 63].detach().max()) < 1e-38
    gradients = torch.autograd.grad(y.sum(), [x, mixer.gate.weight, mixer.candidate.weight])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_mingru_candidates_are_continuous_and_positive() -> None:
    got = positive(torch.tensor([-2.0, -1e-6, 0.0, 2.0]))
    torch.testing.assert_close(got, torch.tensor([0.1192029, 0.5, 0.5, 2.5]), rtol=1e-5, atol=1e-5)


def test_lstm_attention_is_its_formula() -> None:
    torch.manual_seed(0)
    model: Any = build_model("lstm_attention", vocab_size=19, hidden_size=8, num_layers=1).eval()
    h, _ = model.mixer(model.embedding(IDS))
    contexts = []
    for t in range(IDS.shape[1]):
        weights = (h[:, : t + 1] @ h[:, t, :, None] / 8**0.5).softmax(1)
        contexts.append((weights * h[:, : t + 1]).sum(1))
    wanted = model.head(torch.cat([h, torch.stack(contexts, 1)], dim=-1))
    torch.testing.assert_close(model(IDS)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_under_autocast_logits_and_gradients_are_those_of_float32(name: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without AVX-512 has no LSTM in bfloat16: it runs in float32 there, with a state from before, too."""
    monkeypatch.setattr("samout_train.models.recurrent.HAS_BF16_LSTM", False)
    model = recurrent(name)
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            first, state = model(IDS[:, :5])
            logits_BTV = torch.cat([first, model(IDS[:, 5:], state)[0]], dim=1)
        logits_BTV.float().square().sum().backward()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        found.append((logits_BTV.float(), torch.cat(gradients)))
    for wanted, got in zip(*found, strict=True):
        assert float((got - wanted).detach().norm() / wanted.detach().norm()) < 2e-2
