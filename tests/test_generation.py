"""Draws from a model whose logits are known."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model, generate_text
from samout_train.data.vocabulary import Bytes, Characters
from samout_train.generation import generate_tokens


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


def test_top_p_keeps_the_most_probable_that_make_it_up() -> None:
    made = generate_tokens(Successor(), [5, 6], max_new_tokens=300, temperature=1.0, top_k=None, top_p=0.7, seed=0)
    steps = {(b - a) % 12 for a, b in pairwise([6, *made])}
    # e^2 and e^1 of a sum of e^2 + e + 10 e^-9: 0.731 and 0.269, so the first alone makes up 0.7.
    assert steps == {1}
    made = generate_tokens(Successor(), [5, 6], max_new_tokens=300, temperature=1.0, top_k=None, top_p=0.75, seed=0)
    assert {(b - a) % 12 for a, b in pairwise([6, *made])} == {1, 2}


def test_a_long_prompt_is_taken_in_pieces_and_greedy_text_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Characters.of_text(["abcdefgh "])
    torch.manual_seed(0)
    model = build_model("v8", vocab_size=len(vocabulary), hidden_size=24, num_heads=4, num_layers=2)
    texts = set()
    for piece in (1, 7, 512):
        monkeypatch.setattr("samout_train.generation.PREFILL_TOKENS", piece)
        texts.add("".join(generate_text(model, vocabulary, "bad cafe " * 9, max_new_tokens=30, temperature=0)))
    assert len(texts) == 1


@pytest.mark.parametrize(("stop", "wanted"), [("é€", "a"), ("€", "aé"), ("zz", "aé€𝄞z"), ("a", "")])
def test_text_ends_before_stop_also_where_it_comes_in_pieces(stop: str, wanted: str) -> None:
    ids = Bytes().encode("aé€𝄞z").tolist()
    pieces = generate_text(Recites(ids), Bytes(), "x", max_new_tokens=len(ids), temperature=0, stop=stop)
    assert "".join(pieces) == wanted


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
