"""Text from a model, token by token, from its carried state: each token costs the same."""

# B batch, T time, V vocabulary

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from samout_train.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from samout_train.ranges import NonNegative, Positive, Range, TopShare, validated

PREFILL_TOKENS = 512
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
    """New token ids, one after another.

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
    if not len(prompt_ids):
        raise ValueError("the prompt is empty: give at least one token to continue")
    if problem := _no_room(getattr(model, "max_seq_len", None), len(prompt_ids), max_new_tokens):
        raise ValueError(problem)
    choose = partial(_choose, temperature=temperature, top_k=top_k, top_p=top_p, banned_ids=list(banned_ids))
    return _draw(model, list(prompt_ids), max_new_tokens, seed, choose)


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

    def __call__(self, ids: Iterator[int]) -> Iterator[int]:
        """The same tokens; what is done with one before the next is asked for does not count."""
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
    model: nn.Module, prompt_ids: list[int], max_new_tokens: int, seed: int, choose: Callable[..., Tensor]
) -> Iterator[int]:
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        state: Any = None
        for start in range(0, len(prompt_ids), PREFILL_TOKENS):  # in pieces, so that memory does not grow with a prompt
            with torch.inference_mode():
                ids_BT = torch.tensor([prompt_ids[start : start + PREFILL_TOKENS]], device=device)
                logits_BTV, state = model(ids_BT, state)
        for made in range(max_new_tokens):
            with torch.inference_mode():
                if made:
                    logits_BTV, state = model(ids_BT, state)
                ids_BT = choose(logits_BTV[0, -1].double(), generator).view(1, 1)
            yield int(ids_BT)
    finally:
        model.train(was_training)


def _choose(
    logits_V: Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    banned_ids: list[int],
) -> Tensor:
    logits_V[banned_ids] = float("-inf")
    if temperature == 0:
        return logits_V.argmax()
    if top_k is not None and top_k < len(logits_V):
        logits_V[logits_V < logits_V.topk(top_k).values[-1]] = float("-inf")
    # Without the largest taken off first, a temperature near 0 would make all of them infinite.
    probabilities_V = ((logits_V - logits_V.max()) / temperature).softmax(0)
    if top_p is not None:
        sorted_V, order_V = probabilities_V.sort(descending=True)
        before_V = sorted_V.cumsum(0) - sorted_V
        probabilities_V[order_V[before_V >= top_p]] = 0  # the most probable one has nothing before it, so it stays
    return torch.multinomial(probabilities_V, 1, generator=generator)


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
