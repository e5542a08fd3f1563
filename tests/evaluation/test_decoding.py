"""The decoder against the model called token by token: also where state and logits stay in the same memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model
from samout_train.config import compose_config
from samout_train.evaluation import Decoder, generate
from samout_train.evaluation.generate import has_fixed_size, prefill
from tests.support.marks import mostly_nightly
from tests.support.models import NAMES, STATE_GROWS

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)


def tiny(name: str) -> nn.Module:
    known = compose_config([f"model={name}"]).config["model"]
    sizes = {"hidden_size": 24, "num_heads": 4, "num_layers": 2}
    torch.manual_seed(0)
    return build_model(name, vocab_size=37, **{key: size for key, size in sizes.items() if key in known}).eval()


def some_ids(batch: int, time: int) -> Tensor:
    return torch.randint(37, (batch, time), generator=torch.Generator().manual_seed(1))


def replayed(step: Callable[[], None], rehearse: Callable[[], object]) -> Callable[[], None]:
    """What a graph does, without one."""
    rehearse()
    return step


@pytest.mark.parametrize("device", ["cpu", "cpu, static", CUDA])
@pytest.mark.parametrize("name", mostly_nightly(NAMES, {"v8", "transformer", "mlstm"}))
def test_a_decoder_gives_the_logits_of_the_whole(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, is_static = device.split(",")[0], device != "cpu"
    if "static" in device:
        monkeypatch.setattr(generate, "can_capture", lambda device: True)
        monkeypatch.setattr(generate, "captured", replayed)
    model, ids = tiny(name).to(place), some_ids(3, 12).to(place)
    with torch.inference_mode():
        whole, _ = model(ids)
        _, state = model(ids[:, :5])
        decoder, again = Decoder(model, state), Decoder(model, state)
        made = [decoder(ids[:, t : t + 1]).clone() for t in range(5, 12)]
        torch.testing.assert_close(torch.stack(made, dim=1), whole[:, 5:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again(ids[:, 5:6]), whole[:, 5], rtol=1e-4, atol=1e-5)
    assert (decoder._replay is not None) == (is_static and name not in STATE_GROWS)


def test_parts_of_a_state_that_change_places_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remembers(nn.Module):
        """Logits are the last token and the two before it."""

        def forward(self, ids_BT: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            before_B1, last_B1 = state
            return torch.stack([ids_BT, last_B1, before_B1], dim=2).float(), (last_B1, ids_BT)

    monkeypatch.setattr(generate, "can_capture", lambda device: True)
    monkeypatch.setattr(generate, "captured", replayed)
    decoder = Decoder(Remembers(), (torch.tensor([[1]]), torch.tensor([[2]])))
    made = [decoder(torch.tensor([[token]]))[0].tolist() for token in (3, 4, 5)]
    assert made == [[3, 2, 1], [4, 3, 2], [5, 4, 3]]


@pytest.mark.slow
def test_what_no_graph_can_hold_is_decoded_without_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(step: Callable[[], None], rehearse: Callable[[], object]) -> Callable[[], None]:
        rehearse()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(generate, "can_capture", lambda device: True)
    monkeypatch.setattr(generate, "captured", refuses)
    model, ids = tiny("v8"), some_ids(1, 8)
    logits, state = prefill(model, ids[0, :6].tolist())
    with torch.inference_mode():
        whole, _ = model(ids)
    decoder = Decoder(model, state)
    made = torch.stack([logits, decoder(ids[:, 6:7]), decoder(ids[:, 7:])], dim=1)
    torch.testing.assert_close(made, whole[:, 5:], rtol=1e-4, atol=1e-5)
    assert caplog.text.count("without a CUDA graph: operation not permitted") == 1


@pytest.mark.slow
def test_a_state_that_grows_is_known_without_calling_the_model() -> None:
    model = tiny("transformer")
    _, state = prefill(model, [5, 6, 7])
    assert not has_fixed_size(nn.Identity(), torch.tensor([[5]]), state)
