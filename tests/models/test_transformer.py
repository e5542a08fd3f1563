"""The Transformer against its formulas, and its cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from samout_train.models.transformer import Transformer

SETTINGS: dict[str, Any] = {
    "vocab_size": 19,
    "pad_id": 3,
    "hidden_size": 16,
    "num_heads": 2,
    "num_layers": 2,
    "max_seq_len": 32,
    "ffn_size": None,
    "dropout": 0.0,
    "norm": "pre",
    "positions": "rotary",
    "activation": "relu",
    "causal": True,
}
IDS = torch.randint(4, 19, (2, 12), generator=torch.Generator().manual_seed(0))


def model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**(SETTINGS | changes)).eval()


@pytest.mark.parametrize("changes", [{}, {"norm": "post"}, {"positions": "learned"}, {"causal": False}])
def test_weights_of_the_unfused_path_sum_to_one_and_give_the_same_logits(changes: dict[str, Any]) -> None:
    transformer = model(**changes)
    logits, _ = transformer(IDS)
    unfused, _, weights = transformer(IDS, return_attention=True)
    torch.testing.assert_close(unfused, logits, rtol=1e-5, atol=1e-5)
    assert [layer.shape for layer in weights] == [(2, 2, 12, 12)] * 2
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 2, 12))
    above = weights[0].triu(1)
    assert bool((above == 0).all()) == transformer.layers[0].attention.causal  # type: ignore[union-attr]


def test_blocks_are_those_of_the_formulas() -> None:
    for norm in ("pre", "post"):
        transformer = model(norm=norm, positions="learned", num_layers=1)
        (block,) = transformer.layers
        x = transformer.embedding(IDS) + transformer.positions.weight[:12]  # type: ignore[union-attr]

        def attend(u: Tensor, block: Any = block) -> Tensor:
            parts = (block.attention.query(u), block.attention.key(u), block.attention.value(u))
            q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in parts)
            scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(12, 12).triu(1).bool(), float("-inf"))
            return block.attention.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

        def feed(u: Tensor, block: Any = block) -> Tensor:
            return block.feed_forward.down(torch.relu(block.feed_forward.up(u)))

        first, second = block.attention_norm, block.feed_forward_norm
        if norm == "pre":
            x = x + attend(first(x))
            x = transformer.norm(x + feed(second(x)))
        else:
            x = second(first(x + attend(x)) + feed(first(x + attend(x))))
        torch.testing.assert_close(transformer(IDS)[0], transformer.head(x), rtol=1e-5, atol=1e-5)


def test_rotary_positions_make_scores_depend_on_distance_only() -> None:
    transformer = model(num_layers=1)
    same = torch.full((1, 12), 7)
    _, _, (weights,) = transformer(same, return_attention=True)
    # Of equal tokens, the weights of the last row depend on how far away they are; so do those of the row before.
    ratios = weights[0, :, -1, 1:] / weights[0, :, -1, :-1]
    before = weights[0, :, -2, 1:11] / weights[0, :, -2, :10]
    torch.testing.assert_close(ratios[:, 1:], before, rtol=1e-4, atol=1e-4)


def test_tokens_of_the_padding_mask_are_not_attended_to() -> None:
    for causal in (True, False):
        transformer = model(causal=causal)
        mask = torch.zeros(2, 12, dtype=torch.bool)
        mask[:, 4:6] = True
        changed = IDS.clone()
        changed[:, 4:6] = 5
        logits, _ = transformer(IDS, padding_mask_BS=mask)
        after, _ = transformer(changed, padding_mask_BS=mask)
        assert torch.equal(logits[:, 6:], after[:, 6:]) and logits.isfinite().all()
        _, _, weights = transformer(IDS, padding_mask_BS=mask, return_attention=True)
        assert (weights[1][:, :, 6:, 4:6] == 0).all()


def test_an_encoder_sees_the_whole_sequence() -> None:
    transformer = model(causal=False)
    changed = IDS.clone()
    changed[:, -1] = 4 + (changed[:, -1] - 3) % 15
    assert not torch.equal(transformer(IDS)[0][:, 0], transformer(changed)[0][:, 0])


def test_past_its_end_it_says_so() -> None:
    transformer = model(max_seq_len=14)
    _, state = transformer(IDS)
    with pytest.raises(ValueError, match=r"15 tokens are more than max_seq_len \(14\): set model.max_seq_len to 15"):
        transformer(IDS[:, :3], state)
    with pytest.raises(ValueError, match="cannot continue from a state"):
        encoder = model(causal=False)
        encoder(IDS, encoder(IDS)[1])


def test_a_cache_that_goes_on_has_room_and_is_not_made_again() -> None:
    transformer = model()
    with torch.inference_mode():
        _, state = transformer(IDS)
        _, first = transformer(IDS[:, :1], state)
        _, second = transformer(IDS[:, :1], first)
    assert first[0].keys_BHSK.shape[2] == 32
    assert first[0].keys_BHSK.data_ptr() == second[0].keys_BHSK.data_ptr()


@pytest.mark.slow
def test_the_room_of_a_cache_doubles_up_to_the_end() -> None:
    transformer, rooms = model(max_seq_len=1000), []
    with torch.inference_mode():
        _, state = transformer(IDS[:1, :1])
        for _ in range(999):
            _, state = transformer(IDS[:1, :1], state)
            rooms.append(state[0].keys_BHSK.shape[2])
    assert sorted(set(rooms)) == [256, 514, 1000]  # 2 x 257, and then not 2 x 515


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"\(16\) must be divisible by model.num_heads \(3\)"),
        ({"hidden_size": 6}, "a head is 3 wide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**changes)
