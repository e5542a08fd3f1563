"""Text from a model, token by token, from its carried state: each token costs the same."""

# B batch, T time, V vocabulary

import codecs
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from samout_train.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from samout_train.ranges import NonNegative, Positive, validated


@validated
def generate_tokens(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: Annotated[int, NonNegative],
    temperature: Annotated[float, NonNegative],
    top_k: Annotated[int, Positive] | None,
    seed: int,
    banned_ids: Sequence[int] = (),
) -> Iterator[int]:
    """New token ids, one after another.

    Args:
        model: Called as `logits, state = model(ids, state)`.
        prompt_ids: What comes before; at least one id.
        max_new_tokens: How many to make.
        temperature: 0 takes the most probable token; otherwise logits are divided by it before the draw.
        top_k: Draw among this many most probable tokens only; None for all.
        seed: Decides the draws; the global random states are left alone.
        banned_ids: Ids that are never drawn.

    Raises:
        ValueError: if the prompt is empty.
    """
    if not len(prompt_ids):
        raise ValueError("the prompt is empty: give at least one token to continue")
    return _draw(model, list(prompt_ids), max_new_tokens, temperature, top_k, seed, list(banned_ids))


def generate_text(
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    max_new_tokens: int = 300,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """The text that follows a prompt, in pieces of whole characters; special tokens are never drawn.

    Args:
        model: A trained model.
        vocabulary: The one it was trained with.
        prompt: What comes before; at least one character of the vocabulary.
        max_new_tokens: How many tokens to make.
        temperature: 0 takes the most probable token.
        top_k: Draw among this many most probable tokens only; None for all.
        seed: Decides the draws.

    Raises:
        ValueError: if the prompt is empty or has what the vocabulary has not.
    """
    ids = generate_tokens(
        model,
        vocabulary.encode(prompt).tolist(),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        banned_ids=range(len(SPECIAL_TOKENS)),
    )
    return _whole_characters(vocabulary, ids)


def _whole_characters(vocabulary: Vocabulary, ids: Iterator[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for index in ids:
        if text := decoder.decode(vocabulary.to_bytes([index])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def _draw(
    model: nn.Module,
    prompt_ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    banned_ids: list[int],
) -> Iterator[int]:
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        ids_BT = torch.tensor([prompt_ids], device=device)
        state: Any = None
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                logits_BTV, state = model(ids_BT, state)
                ids_BT = _choose(logits_BTV[0, -1].float(), temperature, top_k, generator, banned_ids).view(1, 1)
            yield int(ids_BT)
    finally:
        model.train(was_training)


def _choose(
    logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator, banned_ids: list[int]
) -> Tensor:
    logits_V[banned_ids] = float("-inf")
    if temperature == 0:
        return logits_V.argmax()
    if top_k is not None and top_k < len(logits_V):
        logits_V[logits_V < logits_V.topk(top_k).values[-1]] = float("-inf")
    return torch.multinomial((logits_V / temperature).softmax(0), 1, generator=generator)
