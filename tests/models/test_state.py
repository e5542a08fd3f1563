"""States are NamedTuples, recognised by their type; other containers go through the same walk."""

import io
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model
from samout_train.models import held_bytes, join_states, map_state, repeat_state, state_bytes, take_sequences
from samout_train.models.rotary_attention import RotaryAttention
from samout_train.models.samout import SamOut
from samout_train.models.state import KeyValueCache, LayerState, compact_state
from tests.support.marks import mostly_nightly

IDS = torch.randint(4, 40, (2, 12), generator=torch.Generator().manual_seed(1))


class Own(NamedTuple):
    """A state of somebody's own mixer."""

    sum_BD: Tensor
    count: int
    nothing: None


def test_every_container_keeps_its_type_and_fields() -> None:
    one, scalar = torch.arange(6.0).view(2, 3), torch.tensor(7)
    state = [
        one,
        (one, scalar),
        {"mixer": one, "tokens_BKD": None},
        Own(one, 5, None),
        LayerState(Own(one, 1, None), one),
    ]
    doubled = map_state(lambda part: 2 * part, state)
    assert isinstance(doubled, list) and type(doubled[1]) is tuple and type(doubled[3]) is Own
    assert type(doubled[4]) is LayerState and type(doubled[4].mixer) is Own
    for part in (doubled[0], doubled[1][0], doubled[2]["mixer"], doubled[3].sum_BD, doubled[4].mixer.sum_BD):
        assert torch.equal(part, 2 * one)
    assert doubled[1][1] == 7 and doubled[1][1] is not scalar
    assert doubled[2]["tokens_BKD"] is None and doubled[3].count == 5 and doubled[3].nothing is None
    assert state_bytes(state) == 6 * one.nbytes and held_bytes(state) == one.nbytes


def test_the_room_behind_a_cache_is_held_and_does_not_count() -> None:
    room = torch.zeros(2, 1, 8, 3)
    state = LayerState(KeyValueCache(room, room[..., :0], 5, torch.tensor(5)), None)
    assert state_bytes(state) == 2 * 5 * 3 * 4 and held_bytes(state) == room.nbytes
    repeated = repeat_state(state, 2).mixer
    assert type(repeated) is KeyValueCache and repeated.keys_BHSK.shape == (4, 1, 5, 3) and repeated.length == 5


def earlier(state: Any) -> Any:
    """The state as earlier versions made it: of dictionaries and plain tuples."""
    if isinstance(state, LayerState | KeyValueCache):
        return {name: earlier(part) for name, part in state._asdict().items()}
    if isinstance(state, list | tuple):
        parts = [earlier(part) for part in state]
        return parts if isinstance(state, list) else tuple(parts)
    return state


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("v8", {}),
        ("maxplus", {}),
        ("transformer", {}),
        ("transformer", {"convolution_size": 3}),
        ("rnn", {}),
        ("lstm", {}),
        ("lstm_attention", {}),
    ],
)
def test_a_state_that_an_earlier_version_saved_goes_on_to_the_bit(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(name, vocab_size=40, hidden_size=24, num_layers=2, dropout=0.0, **settings).eval()
    with torch.inference_mode():
        _, state = model(IDS[:, :5])
        file = io.BytesIO()
        torch.save(earlier(compact_state(state)), file)
        file.seek(0)
        restored = torch.load(file, weights_only=True)
        for start in range(5, 12, 3):
            logits, state = model(IDS[:, start : start + 3], state)
            again, restored = model(IDS[:, start : start + 3], restored)
            assert torch.equal(logits, again)


class Sums(nn.Module):
    """Somebody's own mixer, whose state is a dictionary with the names of LayerState's fields."""

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        sums_BTD = x_BTD.cumsum(1)
        if state is not None:
            sums_BTD = sums_BTD + state["mixer"][:, None]
        return sums_BTD, {"mixer": sums_BTD[:, -1], "tokens_BKD": x_BTD[:, -1:]}


@pytest.mark.parametrize("convolution_size", [0, 3])
def test_a_mixer_of_ones_own_may_name_its_state_as_it_likes(convolution_size: int) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "pad_id": 3, "hidden_size": 8, "num_heads": 2, "num_layers": 2, "ffn_size": 8}
    model = SamOut(
        **sizes,  # type: ignore[arg-type]
        ffn_share=1.0,
        dropout=0.0,
        tied_head=False,
        init="small",
        mixer=Sums,
        convolution_size=convolution_size,
    ).eval()
    whole, _ = model(IDS)
    first, state = model(IDS[:, :7])
    second, _ = model(IDS[:, 7:], map_state(Tensor.detach, state))
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-5)  # float32, in chunks
    mixers = [of_mixer.keys() for of_mixer in model.state_by_layer(state).values()]  # type: ignore[attr-defined]
    assert mixers == [{"mixer", "tokens_BKD"}] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(["maxplus", "transformer", "lstm"], {"maxplus"}))
def test_a_compiled_model_goes_on_from_its_state(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, vocab_size=40, hidden_size=24, num_layers=2, dropout=0.0).eval()
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        whole, _ = model(IDS)
        first, state = compiled(IDS[:, :6])
        second, later = compiled(IDS[:, 6:], state)
    assert type(state) is type(later)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-5)  # float32, in chunks


SIDE_BY_SIDE: list[tuple[str, dict[str, Any]]] = [
    ("transformer", {}),
    ("transformer", {"positions": "learned", "convolution_size": 3}),
    ("transformer_modern", {}),
    ("transformer_modern", {"window": 4}),
    ("hybrid", {"pattern": ["gla", "window_attention"], "window": 4}),
    ("lstm_attention", {}),
    ("mamba2", {}),
]


@pytest.mark.parametrize(("name", "settings"), SIDE_BY_SIDE)
@torch.inference_mode()
def test_sequences_of_several_lengths_are_one_batch(name: str, settings: dict[str, Any]) -> None:
    """Joined at different times, read by one or two tokens, and taken out again: the logits of each one alone.

    The tolerance is for sums in float64 of another order.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 2} | ({} if name == "lstm_attention" else {"num_heads": 2})
    settings = dict(settings)
    window = settings.pop("window", None)
    model = build_model(name, vocab_size=40, **sizes, **settings).eval().double()
    for module in model.modules():
        if window and isinstance(module, RotaryAttention):
            module.window = window
    ids_BT = torch.randint(5, 40, (4, 30))
    alone = [model(ids_BT[row : row + 1])[0] for row in range(4)]
    places, joined = [1, 9, 3, 0], None

    def read(rows: list[int], tokens: int) -> None:
        nonlocal joined
        step = torch.stack([ids_BT[row, places[row] : places[row] + tokens] for row in rows])
        logits, joined = model(step, joined)
        for row, found in zip(rows, logits, strict=True):
            wanted = alone[row][0, places[row] : places[row] + tokens]
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
            places[row] += tokens

    states = [model(ids_BT[row : row + 1, : places[row]])[1] for row in range(3)]
    joined = join_states(states[:2])
    read([0, 1], 1)
    read([0, 1], 2)
    joined = join_states([joined, states[2]])
    for _ in range(3):
        read([0, 1, 2], 1)
    kept = take_sequences(joined, [1])
    joined = take_sequences(joined, [2, 0])
    read([2, 0], 1)
    read([2, 0], 2)
    places[3] = 2
    joined = join_states([kept, joined, model(ids_BT[3:, :2])[1]])
    read([1, 2, 0, 3], 1)
    single = model(ids_BT[2:3, : places[2]])[1]
    assert state_bytes(take_sequences(joined, [1])) == state_bytes(single), "its padding has gone"


def test_states_that_do_not_fit_together_are_refused() -> None:
    class Own(NamedTuple):
        keys: Tensor
        length: int

    for one, other in [
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)),
        (torch.zeros(()), torch.zeros(())),
        (Own(torch.zeros(1, 2), 2), Own(torch.zeros(1, 2), 3)),
        ([torch.zeros(1, 2)], (torch.zeros(1, 2),)),
        ({"a": None}, {"a": torch.zeros(1)}),
    ]:
        with pytest.raises(ValueError, match="of these sequences"):
            join_states([one, other])
    together = join_states([Own(torch.zeros(1, 2), 2), Own(torch.ones(2, 2), 2)])
    assert together.length == 2 and together.keys.tolist() == [[0, 0], [1, 1], [1, 1]]
