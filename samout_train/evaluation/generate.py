"""Text from a model, token by token, from its carried state: each token costs the same."""

# B batch, V vocabulary

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, TypeVar

import torch
from torch import Tensor, nn

from samout_train.config import NonNegative, Positive, Range, TopShare, validated
from samout_train.data import SPECIAL_TOKENS, Vocabulary
from samout_train.evaluation.decoding import Decoder, prefill
from samout_train.evaluation.sampling import choose
from samout_train.models import repeat_state
from samout_train.runtime import float64_place

T = TypeVar("T")
GeneratorSeed = Range(0, 2**64 - 1)  # what torch takes: also the largest seed of a run with samples counted up from it


@validated
def generate_tokens(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: Annotated[int, NonNegative],
    temperature: Annotated[float, NonNegative],
    top_k: Annotated[int, Positive] | None,
    top_p: Annotated[float, TopShare] | None = None,
    seed: Annotated[int, GeneratorSeed],
    banned_ids: Sequence[int] = (),
) -> Iterator[int]:
    """New token ids, one after another. Wrong arguments are told at once, not with the first token.

    Args:
        model: Called as `logits, state = model(ids, state)`.
        prompt_ids: What comes before; at least one id.
        max_new_tokens: How many to make.
        temperature: 0 takes the most probable token; otherwise logits are divided by it before the draw.
        top_k: Draw among this many most probable tokens only; None for all.
        top_p: Draw among the most probable tokens that together have this probability; None for all.
        seed: Decides the draws; the global random states are left alone.
        banned_ids: Ids that are never drawn.

    Raises:
        ValueError: if the prompt is empty, or the model has no room for it and the new tokens.
    """
    chosen = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, banned_ids=list(banned_ids))
    rows = _draw(model, prompt_ids, max_new_tokens, [seed], chosen)
    return (ids[0] for ids in rows)


@validated
def generate_samples(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    num_samples: Annotated[int, Positive],
    max_new_tokens: Annotated[int, NonNegative],
    temperature: Annotated[float, NonNegative],
    top_k: Annotated[int, Positive] | None,
    top_p: Annotated[float, TopShare] | None = None,
    seed: Annotated[int, GeneratorSeed],
    banned_ids: Sequence[int] = (),
) -> Iterator[list[int]]:
    """The next token of several continuations of one prompt, again and again: read once, drawn side by side.

    Args:
        model: As for `generate_tokens`, and so are all that are not explained here.
        prompt_ids: What comes before all of them.
        num_samples: How many.
        max_new_tokens: How many tokens to make of each.
        temperature: 0 makes all of them alike.
        top_k: Of each draw.
        top_p: Of each draw.
        seed: Of the first; each further one has the next, and the draws that `generate_tokens` would make of it.
        banned_ids: Ids that are never drawn.

    Raises:
        ValueError: if the prompt is empty, or the model has no room for it and the new tokens.
    """
    chosen = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, banned_ids=list(banned_ids))
    return _draw(model, prompt_ids, max_new_tokens, [seed + number for number in range(num_samples)], chosen)


def generate_text(
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    max_new_tokens: int = 300,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
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
        top_p: Draw among the most probable tokens that together have this probability; None for all.
        stop: The text ends before this; None to make all tokens.
        seed: Decides the draws.

    Raises:
        ValueError: if the prompt is empty or has what the vocabulary has not, or the model has no room for the tokens.
    """
    ids = generate_tokens(
        model,
        vocabulary.encode(prompt).tolist(),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        banned_ids=range(len(SPECIAL_TOKENS)),
    )
    return text_of(vocabulary, ids, stop=stop)


def text_of(vocabulary: Vocabulary, ids: Iterator[int], *, stop: str | None) -> Iterator[str]:
    """The text of tokens as they come, in pieces of whole characters.

    Args:
        vocabulary: What the tokens stand for.
        ids: The tokens.
        stop: The text ends before this, and no further token is asked for; None to take all.
    """
    return _until(_whole_characters(vocabulary, ids), stop)


class Timed:
    """Measures how long tokens take to come; the first of a text needs the prompt to be read.

    Attributes:
        first_seconds: Of the first token of each text.
        later_seconds: Of every other token.
    """

    def __init__(self) -> None:
        self.first_seconds: list[float] = []
        self.later_seconds: list[float] = []

    def __call__(self, ids: Iterator[T]) -> Iterator[T]:
        """The same tokens, or rows of tokens; what is done with one before the next is asked for does not count."""
        started, seconds = time.perf_counter(), self.first_seconds
        for index in ids:
            seconds.append(time.perf_counter() - started)
            yield index
            started, seconds = time.perf_counter(), self.later_seconds


def _no_room(max_seq_len: int | None, prompt_tokens: int, max_new_tokens: int) -> str | None:
    """What is wrong where a model with positions or a cache cannot make so many tokens."""
    most = None if max_seq_len is None else max_seq_len - prompt_tokens + 1  # the last one is not given to the model
    if most is None or max(max_new_tokens, 1) <= most:
        return None
    fewer = f"set max_new_tokens to {most} or less, or give" if most > 0 else "give"
    return (
        f"a prompt of {prompt_tokens} tokens and max_new_tokens ({max_new_tokens}) are more than this model has room "
        f"for (max_seq_len {max_seq_len}): {fewer} a shorter prompt"
    )


def _whole_characters(vocabulary: Vocabulary, ids: Iterator[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for index in ids:
        if text := decoder.decode(vocabulary.to_bytes([index])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def _draw(
    model: nn.Module,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    seeds: list[int],
    chosen: Callable[[Tensor, torch.Generator], Tensor],
) -> Iterator[list[int]]:
    """Checks at once; tokens are made as they are asked for."""
    if not len(prompt_ids):
        raise ValueError("the prompt is empty: give at least one token to continue")
    if problem := _no_room(getattr(model, "max_seq_len", None), len(prompt_ids), max_new_tokens):
        raise ValueError(problem)
    return _drawn(model, list(prompt_ids), max_new_tokens, seeds, chosen)


def _drawn(
    model: nn.Module,
    prompt_ids: list[int],
    max_new_tokens: int,
    seeds: list[int],
    chosen: Callable[[Tensor, torch.Generator], Tensor],
) -> Iterator[list[int]]:
    device = next(model.parameters()).device
    place = float64_place(device)
    generators = [torch.Generator(place).manual_seed(seed) for seed in seeds]
    was_training = model.training
    model.eval()
    try:
        logits_BV, state = prefill(model, prompt_ids)
        if len(seeds) > 1:
            logits_BV, state = logits_BV.expand(len(seeds), -1), repeat_state(state, len(seeds))
        decoder = Decoder(model, state)
        for made in range(1, max_new_tokens + 1):
            with torch.inference_mode():
                rows = zip(logits_BV.to(place).to(torch.float64, copy=True), generators, strict=True)
                ids_B1 = torch.stack([chosen(logits_V, generator).view(1) for logits_V, generator in rows])
            yield ids_B1[:, 0].tolist()
            if made < max_new_tokens:
                logits_BV = decoder(ids_B1.to(device))
    finally:
        model.train(was_training)


def _until(pieces: Iterator[str], stop: str | None) -> Iterator[str]:
    """Text up to and without `stop`, which may come in pieces."""
    held = ""
    for piece in pieces:
        if not stop:
            yield piece
            continue
        held += piece
        if stop in held:
            yield held.partition(stop)[0]
            return
        # What could be the beginning of `stop` waits for what comes next.
        waits = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if held.endswith(stop[:n])), 0)
        if ready := held[: len(held) - waits]:
            yield ready
        held = held[len(held) - waits :]
    if held:
        yield held
