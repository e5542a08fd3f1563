"""Draws from a model whose logits are known."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model, generate_text
from samout_train.config import CONF, compose_config
from samout_train.data import Bytes, Characters
from samout_train.evaluation import Timed, generate_samples, generate_tokens, text_of
from samout_train.evaluation.generate import PREFILL_TOKENS, choose
from tests.support.marks import mostly_nightly

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def tiny(name: str, **settings: int) -> nn.Module:
    """A model of conf/model that knows 37 ids; always the same weights."""
    known = compose_config([f"model={name}"]).config["model"]
    sizes = {"hidden_size": 24, "num_heads": 4, "num_layers": 2}
    torch.manual_seed(0)
    return build_model(name, vocab_size=37, **{key: size for key, size in sizes.items() if key in known}, **settings)


def greedy(model: nn.Module, prompt_ids: list[int], count: int) -> list[int]:
    return list(generate_tokens(model, prompt_ids, max_new_tokens=count, temperature=0, top_k=None, seed=0))


class Successor(nn.Module):
    """The next id is the last one plus one, with some probability for the one after; its state counts tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        assert (state is None) == (ids_BT.shape[1] > 1)
        logits = torch.full((*ids_BT.shape, 12), -9.0)
        logits.scatter_(2, ((ids_BT + 1) % 12)[..., None], 2.0)
        logits.scatter_(2, ((ids_BT + 2) % 12)[..., None], 1.0)
        return logits, (state or 0) + ids_BT.shape[1]


def draw(count: int = 6, *, temperature: float = 0.0, top_k: int | None = None, seed: int = 0) -> list[int]:
    made = generate_tokens(
        Successor(), [5, 6], max_new_tokens=count, temperature=temperature, top_k=top_k, seed=seed, banned_ids=[0, 1]
    )
    return list(made)


def test_greedy_takes_the_most_probable_that_is_not_banned() -> None:
    # After 11 come the banned 0 and 1; of the ten others, equal in probability, argmax takes the first.
    assert draw(7) == [7, 8, 9, 10, 11, 2, 3]
    assert not {0, 1} & set(draw(200))


def test_one_of_one_is_greedy_at_any_temperature() -> None:
    assert draw(5, temperature=3.0, top_k=1) == [7, 8, 9, 10, 11]


def test_top_k_keeps_no_more_tokens_where_many_are_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = set()
    for _ in range(50):
        logits_V = torch.zeros(10, dtype=torch.float64)
        drawn.add(int(choose(logits_V, generator, temperature=1.0, top_k=2, top_p=None, banned_ids=[])))
    assert len(drawn) == 2


def test_top_p_keeps_the_most_probable_that_make_it_up() -> None:
    made = generate_tokens(Successor(), [5, 6], max_new_tokens=300, temperature=1.0, top_k=None, top_p=0.7, seed=0)
    steps = {(b - a) % 12 for a, b in pairwise([6, *made])}
    # e^2 and e^1 of a sum of e^2 + e + 10 e^-9: 0.731 and 0.269, so the first alone makes up 0.7.
    assert steps == {1}
    made = generate_tokens(Successor(), [5, 6], max_new_tokens=300, temperature=1.0, top_k=None, top_p=0.75, seed=0)
    assert {(b - a) % 12 for a, b in pairwise([6, *made])} == {1, 2}


@pytest.mark.parametrize("name", mostly_nightly(NAMES, {"maxplus", "transformer"}))
def test_greedy_tokens_do_not_depend_on_how_a_prompt_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt_ids = tiny(name), torch.randint(37, (75,), generator=torch.Generator().manual_seed(1)).tolist()
    made = set()
    for piece in (1, 7, 64, 512):
        monkeypatch.setattr("samout_train.evaluation.generate.PREFILL_TOKENS", piece)
        made.add(tuple(greedy(model, prompt_ids, 30)))
    assert len(made) == 1


@pytest.mark.parametrize("name", mostly_nightly(NAMES, {"v8", "maxplus", "transformer", "lstm"}))
def test_samples_side_by_side_are_those_one_after_another(name: str) -> None:
    model, prompt_ids = tiny(name), torch.randint(37, (9,), generator=torch.Generator().manual_seed(1)).tolist()
    settings = {"max_new_tokens": 20, "temperature": 1.0, "top_k": None}
    rows = list(generate_samples(model, prompt_ids, num_samples=3, seed=7, **settings))
    apart = [list(generate_tokens(model, prompt_ids, seed=seed, **settings)) for seed in (7, 8, 9)]
    assert [list(column) for column in zip(*rows, strict=True)] == apart
    assert len({tuple(sample) for sample in apart}) == 3


@pytest.mark.slow
def test_memory_does_not_grow_with_a_prompt() -> None:
    class Watched(nn.Module):
        """Notes how much it is given at once."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.largest = tiny("v8"), 0

        def forward(self, ids_BT: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
            self.largest = max(self.largest, ids_BT.numel())
            result: tuple[Tensor, list[Tensor]] = self.model(ids_BT, state)
            return result

    for length in (PREFILL_TOKENS, 5 * PREFILL_TOKENS + 1):
        model = Watched()
        greedy(model, [5] * length, 3)
        assert model.largest == PREFILL_TOKENS


@pytest.mark.parametrize("name", ["transformer", "lstm_attention"])
def test_more_tokens_than_a_model_has_room_for_are_refused_before_the_first(name: str) -> None:
    model = tiny(name, max_seq_len=16)
    assert len(greedy(model, [5] * 10, 7)) == 7  # the last one is not given to the model
    assert len(greedy(model, [5] * 16, 1)) == 1
    with pytest.raises(ValueError, match=r"room for \(max_seq_len 16\): set max_new_tokens to 7 or less, or use a sho"):
        greedy(model, [5] * 10, 8)
    with pytest.raises(ValueError, match=r"a prompt of 17 tokens and .* \(max_seq_len 16\): use a shorter prompt"):
        greedy(model, [5] * 17, 1)


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e-320, 5e-324])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    assert draw(5, temperature=temperature) == draw(5)


@pytest.mark.slow
def test_the_largest_temperature_draws_all_alike() -> None:
    first = Counter(draw(1, temperature=1.7e308, seed=seed)[0] for seed in range(1000))
    assert set(first) == set(range(2, 12)) and all(60 < count < 140 for count in first.values())  # 100, deviation 9.5


def test_tokens_are_counted_as_they_are_made_and_the_prompt_apart() -> None:
    timed, ids = Timed(), Bytes().encode("aé€z").tolist()
    recited = generate_tokens(Recites(ids), [5], max_new_tokens=len(ids), temperature=0, top_k=None, seed=0)
    assert "".join(text_of(Bytes(), timed(recited), stop="z")) == "aé€"
    assert len(timed.first_seconds) == 1 and len(timed.later_seconds) == 6  # the one of stop, too
    assert all(seconds > 0 for seconds in timed.first_seconds + timed.later_seconds)


@pytest.mark.parametrize(("stop", "wanted"), [("é€", "a"), ("€", "aé"), ("zz", "aé€𝄞z"), ("a", "")])
def test_text_ends_before_stop_also_where_it_comes_in_pieces(stop: str, wanted: str) -> None:
    ids = Bytes().encode("aé€𝄞z").tolist()
    pieces = generate_text(Recites(ids), Bytes(), "x", max_new_tokens=len(ids), temperature=0, stop=stop)
    assert "".join(pieces) == wanted


@pytest.mark.slow
def test_draws_follow_the_probabilities() -> None:
    first = Counter(draw(1, temperature=1.0, top_k=2, seed=seed)[0] for seed in range(2000))
    wanted = 2000 / (1 + torch.exp(torch.tensor(-1.0)))  # 2 against 1 in logits: 1462, standard deviation 20
    assert set(first) == {7, 8} and abs(first[7] - wanted) < 100


def test_a_seed_repeats_and_leaves_other_random_numbers_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    assert draw(30, temperature=2.0, seed=1) == draw(30, temperature=2.0, seed=1) != draw(30, temperature=2.0, seed=2)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.slow
def test_text_from_carried_state_is_that_of_the_whole_prefix_each_time() -> None:
    vocabulary = Characters.of_text(["abcdefgh "])
    torch.manual_seed(0)
    model = build_model("v8", vocab_size=len(vocabulary), hidden_size=24, num_heads=4, num_layers=2).train()
    pieces = list(generate_text(model, vocabulary, "bad cafe", max_new_tokens=20, temperature=0))
    ids = vocabulary.encode("bad cafe").tolist()
    for _ in range(20):
        logits, _ = model.eval()(torch.tensor([ids]))
        logits[..., :5] = float("-inf")
        ids.append(int(logits[0, -1].argmax()))
    assert "bad cafe" + "".join(pieces) == vocabulary.decode(ids) and len(pieces) == 20


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        generate_text(Successor(), Characters.of_text(["a"]), "")


class Recites(nn.Module):
    """Says given ids one after another, whatever it is asked."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.ids = ids

    def forward(self, ids_BT: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        place = state or 0
        return nn.functional.one_hot(torch.tensor([[self.ids[place]]]), 261).float(), place + 1


def test_characters_of_several_bytes_come_whole() -> None:
    text = "aé€𝄞z"
    ids = Bytes().encode(text).tolist()
    pieces = generate_text(Recites(ids), Bytes(), "x", max_new_tokens=len(ids), temperature=0)
    assert list(pieces) == list(text)
    cut_short = generate_text(Recites(ids), Bytes(), "x", max_new_tokens=2, temperature=0)
    assert list(cut_short) == ["a", "\ufffd"]
    no_utf8 = [index + 5 for index in (0x80, 0x80, 0x80, 0x80, 0x41)]
    assert "".join(generate_text(Recites(no_utf8), Bytes(), "x", max_new_tokens=5, temperature=0)) == "\ufffd" * 4 + "A"
    mixed = [5 + byte for byte in bytes([0x80, 0x80, *"𝄞".encode()])]
    made = "".join(generate_text(Recites(mixed), Bytes(), "x", max_new_tokens=6, temperature=0))
    assert made == Bytes().decode(mixed) == "\ufffd\ufffd𝄞"
