"""Generate text token by token, from the model's carried state.

The prompt is read in pieces (`prefill`), the following tokens are decoded one by one (`Decoder`), and each is drawn
from the logits of the one before (`choose`).

On CUDA, a model whose state has a fixed size decodes each token with one graph launch: launching its kernels one by one
would take longer than running them. For a CUDA graph (torch.cuda.graphs), ids, state and logits stay in the same
memory, and the graph writes the next state there.
"""

# B batch, T time, V vocabulary

import codecs
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from samout_train.config import NonNegative, Positive, Range, TopShare, validated
from samout_train.data import SPECIAL_TOKENS, Vocabulary
from samout_train.models import evaluating, repeat_state
from samout_train.runtime import float64_place

T = TypeVar("T")
GeneratorSeed = Range(0, 2**64 - 1)  # torch's range, which also covers a run's largest seed plus the number of a sample
PREFILL_TOKENS = 512
WARM_UP_CALLS = 3  # they compile kernels and allocate workspaces, which a capture must not do
log = logging.getLogger(__name__)


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
    """Yield new token ids, one by one. Invalid arguments raise at the call, not with the first token.

    Args:
        model: Called as `logits, state = model(ids, state)`.
        prompt_ids: The prompt, at least one id.
        max_new_tokens: Tokens to generate.
        temperature: 0 takes the most probable token; otherwise logits are divided by it before the draw.
        top_k: Draw among this many most probable tokens only; None for all.
        top_p: Draw among the most probable tokens that together have this probability; None for all.
        seed: Seed of the draws; the global random states stay unchanged.
        banned_ids: Ids that are never drawn.

    Raises:
        ValueError: if the prompt is empty, or prompt and new tokens exceed max_seq_len.
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
    """Yield the next tokens of several continuations of one prompt, which is read once; see `generate_tokens`.

    Args:
        num_samples: Number of continuations.
        max_new_tokens: Tokens to generate for each.
        temperature: 0 makes all continuations equal.
        seed: Seed of the first continuation; the others count up. Each draws as `generate_tokens` does with its seed.

    Raises:
        ValueError: if the prompt is empty, or prompt and new tokens exceed max_seq_len.
    """
    chosen = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, banned_ids=list(banned_ids))
    return _draw(model, prompt_ids, max_new_tokens, [*range(seed, seed + num_samples)], chosen)


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
    """Yield the text that follows a prompt, in pieces of whole characters; special tokens are never drawn.

    Args:
        model: A trained model.
        vocabulary: The vocabulary that it was trained with.
        prompt: At least one character of the vocabulary.
        max_new_tokens: Tokens to generate.
        temperature: 0 takes the most probable token.
        top_k: Draw among this many most probable tokens only; None for all.
        top_p: Draw among the most probable tokens that together have this probability; None for all.
        stop: The text ends before this string; None to generate all tokens.
        seed: Seed of the draws.

    Raises:
        ValueError: if the prompt is empty, has a character that the vocabulary lacks, or exceeds max_seq_len.
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
    """Yield the text of tokens as they come, in pieces of whole characters.

    Args:
        vocabulary: The vocabulary of the tokens.
        ids: The tokens.
        stop: The text ends before this string, and no further token is drawn; None to use all tokens.
    """
    return _until(_whole_characters(vocabulary, ids), stop)


class Timed:
    """Measures the time per token.

    Attributes:
        first_seconds: Seconds to the first token of each text, which includes reading the prompt.
        later_seconds: Seconds of every other token.
    """

    def __init__(self) -> None:
        self.first_seconds: list[float] = []
        self.later_seconds: list[float] = []

    def __call__(self, ids: Iterator[T]) -> Iterator[T]:
        """Yield the same tokens, or rows of tokens; the consumer's time between two tokens does not count."""
        started, seconds = time.perf_counter(), self.first_seconds
        for index in ids:
            seconds.append(time.perf_counter() - started)
            yield index
            started, seconds = time.perf_counter(), self.later_seconds


def choose(
    logits_V: Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    banned_ids: list[int],
) -> Tensor:
    """Draw the next token.

    Args:
        logits_V: float64; overwritten.
        generator: The random generator.
        temperature: 0 takes the most probable token; otherwise logits are divided by it before the draw.
        top_k: Draw among this many most probable tokens only; None for all.
        top_p: Draw among the most probable tokens that together have this probability; None for all.
        banned_ids: Ids that are never drawn.

    Returns:
        One id, int64, on the device of the logits.
    """
    logits_V[banned_ids] = float("-inf")
    if temperature == 0:
        return logits_V.argmax()
    if top_k is not None and top_k < len(logits_V):
        kept_K = logits_V.topk(top_k)  # by rank: no more than top_k, even of equal logits
        logits_V = torch.full_like(logits_V, float("-inf")).scatter(0, kept_K.indices, kept_K.values)
    # Subtract the largest first: a temperature near 0 would otherwise make every logit infinite.
    probabilities_V = ((logits_V - logits_V.max()) / temperature).softmax(0)
    if top_p is not None:
        sorted_V, order_V = probabilities_V.sort(descending=True)
        before_V = sorted_V.cumsum(0) - sorted_V
        probabilities_V[order_V[before_V >= top_p]] = 0  # the most probable token always stays: nothing is before it
    return torch.multinomial(probabilities_V, 1, generator=generator)


def prefill(model: nn.Module, prompt_ids: list[int], state: Any = None) -> tuple[Tensor, Any]:
    """Read a prompt in pieces, so that memory does not grow with its length.

    Args:
        model: Called as `logits, state = model(ids, state)`.
        prompt_ids: At least one id.
        state: State returned for the tokens before; None at the start of a sequence.

    Returns:
        (logits_BV, state): The logits for the next token and the state after the prompt, for a batch of one.
    """
    device = next(model.parameters()).device
    for start in range(0, len(prompt_ids), PREFILL_TOKENS):
        with torch.inference_mode():
            ids_BT = torch.tensor([prompt_ids[start : start + PREFILL_TOKENS]], device=device)
            logits_BTV, state = model(ids_BT, state)
    return logits_BTV[:, -1], state


class Decoder:
    """Continues sequences from a state, by one token each per call.

    Args:
        model: Called as `logits, state = model(ids, state)`, in evaluation mode.
        state: State that the model returned for the previous tokens; stays unchanged.
    """

    def __init__(self, model: nn.Module, state: Any) -> None:
        self._model, self._state = model, state
        self._replay: Callable[[], None] | None = None
        self._is_static: bool | None = None

    @property
    def state(self) -> Any:
        """Return the state after the tokens so far; the next call leaves it unchanged."""
        if self._replay is None:
            return self._state
        return tree_map_only(Tensor, torch.clone, self._state)

    def __call__(self, ids_B1: Tensor) -> Tensor:
        """Read one token of each sequence.

        Args:
            ids_B1: int64, on the model's device.

        Returns:
            Logits of the next token, (B, V), which the next call may overwrite.
        """
        with torch.inference_mode():
            if self._is_static is None:
                self._is_static = can_capture(ids_B1.device) and has_fixed_size(self._model, ids_B1, self._state)
                if self._is_static:
                    self._make_static(ids_B1)
            if self._replay is None:
                logits_BTV, self._state = self._model(ids_B1, self._state)
                return logits_BTV[:, -1]
            self._ids_B1.copy_(ids_B1)
            self._replay()
            return self._logits_BV

    def _make_static(self, ids_B1: Tensor) -> None:
        self._ids_B1 = ids_B1.clone()
        given, self._state = self._state, tree_map_only(Tensor, torch.clone, self._state)
        try:
            self._replay = captured(self._step, lambda: self._model(self._ids_B1, self._state))
        except RuntimeError as error:
            log.warning("decoding    without a CUDA graph: %s", error)
            self._state = given

    def _step(self) -> None:
        logits_BTV, state = self._model(self._ids_B1, self._state)
        self._logits_BV = logits_BTV[:, -1]
        # Clone first: a part of the next state may share memory with another part of the old one.
        for old, new in zip(tree_leaves(self._state), [leaf.clone() for leaf in tree_leaves(state)], strict=True):
            old.copy_(new)


def can_capture(device: torch.device) -> bool:
    """Return whether this device has graphs."""
    return device.type == "cuda"


def has_fixed_size(model: nn.Module, ids_B1: Tensor, state: Any) -> bool:
    """Return whether a state consists of tensors whose shapes do not change with another token."""
    before = tree_leaves(state)
    if not all(isinstance(leaf, Tensor) for leaf in before):  # a cache also has its length, a number
        return False
    after = tree_leaves(model(ids_B1, state)[1])
    return [leaf.shape for leaf in before] == [leaf.shape for leaf in after]


def captured(step: Callable[[], None], rehearse: Callable[[], object]) -> Callable[[], None]:
    """Return a step as one CUDA graph. Capturing it does not run the step.

    Args:
        step: Reads and writes the same memory on each call.
        rehearse: The same work without overwriting anything.

    Raises:
        RuntimeError: if the step does something that a graph cannot, such as waiting for the device.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP_CALLS):
            rehearse()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _no_room(max_seq_len: int | None, prompt_tokens: int, max_new_tokens: int) -> str | None:
    """Return the problem of a prompt and new tokens that exceed max_seq_len; None if they fit."""
    if max_seq_len is None:
        return None
    most = max_seq_len - prompt_tokens + 1  # the model does not read the last token
    if max(max_new_tokens, 1) <= most:
        return None
    fewer = "use"
    if most > 0:
        fewer = f"set max_new_tokens to {most} or less, or use"
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
    """Check the arguments now and draw tokens on demand."""
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
    with evaluating(model, inference=False):  # the consumer must not run in inference mode
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


def _until(pieces: Iterator[str], stop: str | None) -> Iterator[str]:
    """Yield text up to but not including `stop`, which may arrive in pieces."""
    held = ""
    for piece in pieces:
        if not stop:
            yield piece
            continue
        held += piece
        if stop in held:
            yield held.partition(stop)[0]
            return
        # Hold back text that could be the beginning of `stop`.
        waits = min(len(stop) - 1, len(held))
        while not held.endswith(stop[:waits]):
            waits -= 1
        if ready := held[: len(held) - waits]:
            yield ready
        held = held[len(held) - waits :]
    if held:
        yield held
