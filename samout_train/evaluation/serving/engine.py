"""Generate for several requests concurrently: prompts are read in pieces, and all answers advance by a token together.

All sequences form one batch, even if their keys and values differ in length. They are decoded in turn only if their
states cannot be joined, for example if a mixer keeps a growing tensor without recording where a sequence begins in it.
"""

# B sequences that are answered, V vocabulary

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from samout_train.data import SPECIAL_TOKENS
from samout_train.evaluation.conversation import NEVER_DRAWN, Sampling, penalise
from samout_train.evaluation.generate import PREFILL_TOKENS
from samout_train.evaluation.serving.prefixes import PrefixStates
from samout_train.models import evaluating, join_states, take_sequences
from samout_train.runtime import float64_place

Ending = Literal["stop", "length", "error"]
# Called in the engine's thread: with an id and None, or at the end with None and how it ended.
Deliver = Callable[[int | None, Ending | None], None]
log = logging.getLogger(__name__)


class Generation:
    """Hold a request in progress.

    Args:
        ids: The prompt; at least one id.
        sampling: How tokens are drawn.
        ends_at_special: Whether a special token ends it; otherwise special tokens are never drawn.
        deliver: Called with each token, and at the end with how it ended.

    Attributes:
        ids: The prompt and the tokens drawn.
        fed: Number of them that the model has read.
        reused: Number of them that were not read, because a kept state covers them.
    """

    def __init__(self, ids: Sequence[int], sampling: Sampling, *, ends_at_special: bool, deliver: Deliver) -> None:
        self.ids, self.sampling, self.deliver = list(ids), sampling, deliver
        self.banned = NEVER_DRAWN if ends_at_special else list(range(len(SPECIAL_TOKENS)))
        self.num_prompt = len(self.ids)
        self.fed = self.reused = 0
        self.is_cancelled = False
        self.state: Any = None
        self.random = torch.Generator().manual_seed(sampling.seed)

    def cancel(self) -> None:
        """Free the request's place at the next token; nothing more is delivered."""
        self.is_cancelled = True


class Engine:
    """Generate in a thread of its own.

    Args:
        model: Called as `logits, state = model(ids, state)`.
        max_batch: Limit of requests answered concurrently.
        max_waiting: Limit of further requests that wait.
        cache_bytes: Memory for kept states.
    """

    def __init__(self, model: nn.Module, *, max_batch: int, max_waiting: int, cache_bytes: int) -> None:
        self.model = model
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.prefixes = PrefixStates(cache_bytes)
        self._device = next(model.parameters()).device
        self._waiting: deque[Generation] = deque()
        self._reading: deque[Generation] = deque()
        self._answering: list[Generation] = []
        self._batched: Any = None  # the state of all in `_answering`; None if it cannot be one batch
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation) -> bool:
        """Accept a request; return whether there was room for it."""
        with self._changed:
            if self._is_closing or len(self._waiting) >= self.max_waiting:
                return False
            self._waiting.append(generation)
            self._changed.notify()
        return True

    def places(self) -> dict[str, int]:
        """Return the number of requests that wait, are read and are answered."""
        with self._changed:
            return {
                "waiting": len(self._waiting),
                "reading": len(self._reading),
                "answering": len(self._answering),
            }

    def close(self) -> None:
        """End the thread; requests in progress end as an error."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with evaluating(self.model):
            while self._take():
                try:
                    if self._reading:
                        self._read()
                    if self._answering:
                        self._advance()
                except Exception:  # such as out of memory; other and later requests must not fail with it
                    log.exception("serve       a step failed; the requests in it end as errors")
                    self._fail()
        self._fail()

    def _take(self) -> bool:
        """Wait for work, and accept requests while there are places; return whether to continue."""
        with self._changed:
            while not (self._waiting or self._reading or self._answering or self._is_closing):
                self._changed.wait()
            self._waiting = deque(one for one in self._waiting if not one.is_cancelled)
            self._reading = deque(one for one in self._reading if not one.is_cancelled)
            while self._waiting and len(self._reading) + len(self._answering) < self.max_batch:
                generation = self._waiting.popleft()
                generation.fed, generation.state = self.prefixes.longest(generation.ids)
                generation.reused = generation.fed
                self._reading.append(generation)
            return not self._is_closing

    def _fail(self) -> None:
        with self._changed:
            failed = [*self._answering, *self._reading]
            if self._is_closing:
                failed += self._waiting
                self._waiting.clear()
            self._answering, self._batched = [], None
            self._reading.clear()
        for generation in failed:
            generation.deliver(None, "error")

    def _read(self) -> None:
        """Read a piece of the first prompt; at its end, draw the first token."""
        generation = self._reading[0]
        piece = generation.ids[generation.fed : generation.fed + PREFILL_TOKENS]
        logits_1TV, generation.state = self.model(torch.tensor([piece], device=self._device), generation.state)
        generation.fed += len(piece)
        if generation.fed < len(generation.ids):
            return
        self.prefixes.keep(generation.ids, generation.state)
        stays = self._deliver([generation], logits_1TV[:, -1])[0]
        others = self._answering
        with self._changed:  # before joining the states, so that a failure ends this request too
            self._reading.popleft()
            if stays:
                self._answering = [*others, generation]
        if stays and not others:
            self._batched = generation.state
        elif stays and self._batched is not None:
            self._join(others, generation)

    def _join(self, others: Sequence[Generation], generation: Generation) -> None:
        """Add a sequence to the batch; if it does not fit, dissolve the batch until all in it have ended."""
        try:
            self._batched = join_states([self._batched, generation.state])
        except ValueError:
            for number, one in enumerate(others):
                one.state = take_sequences(self._batched, [number])
            self._batched = None

    def _advance(self) -> None:
        """Read the last token of each answer, and draw the next ones."""
        going = self._answering
        last_B1 = torch.tensor([one.ids[-1:] for one in going], device=self._device)
        if self._batched is not None:
            logits_BTV, self._batched = self.model(last_B1, self._batched)
            logits_BV = logits_BTV[:, -1]
        else:
            rows = []
            for generation, last_1 in zip(going, last_B1, strict=True):
                logits_1TV, generation.state = self.model(last_1[None], generation.state)
                rows.append(logits_1TV[:, -1])
            logits_BV = torch.cat(rows)
        for generation in going:
            generation.fed += 1
        stay = self._deliver(going, logits_BV)
        if all(stay):
            return
        for number, generation in enumerate(going):
            if stay[number] or generation.is_cancelled:
                continue
            if self._batched is not None:
                generation.state = take_sequences(self._batched, [number])
            self.prefixes.keep(generation.ids[: generation.fed], generation.state)
        kept = [number for number, stays in enumerate(stay) if stays]
        if self._batched is not None:
            self._batched = take_sequences(self._batched, kept) if kept else None
        with self._changed:
            self._answering = [going[number] for number in kept]

    def _deliver(self, generations: list[Generation], logits_BV: Tensor) -> list[bool]:
        """Draw and deliver a token of each; return whether each of them continues."""
        room = getattr(self.model, "max_seq_len", None)
        goes_on = []
        for generation, index in zip(generations, draw(generations, logits_BV), strict=True):
            if generation.is_cancelled:
                goes_on.append(False)
                continue
            if index < len(SPECIAL_TOKENS):
                generation.deliver(None, "stop")
                goes_on.append(False)
                continue
            generation.ids.append(index)
            generation.deliver(index, None)
            made = len(generation.ids) - generation.num_prompt
            is_full = made >= generation.sampling.max_new_tokens or len(generation.ids) == room
            if is_full:
                generation.deliver(None, "length")
            goes_on.append(not is_full)
        return goes_on


def draw(generations: Sequence[Generation], logits_BV: Tensor) -> list[int]:
    """Draw a token of each sequence by its own settings and random numbers, in one batch."""
    logits_BV = logits_BV.to(float64_place(logits_BV.device)).to(torch.float64, copy=True)
    settings = [one.sampling for one in generations]
    for row, (generation, sampling) in enumerate(zip(generations, settings, strict=True)):
        logits_BV[row, generation.banned] = -torch.inf
        recent = [i for i in generation.ids[-sampling.penalty_window :] if i >= len(SPECIAL_TOKENS)]
        if sampling.repetition_penalty != 1 and recent:
            penalise(logits_BV[row], recent, sampling.repetition_penalty)
    best_B = logits_BV.argmax(1)
    if all(sampling.temperature == 0 for sampling in settings):
        return [int(index) for index in best_B.tolist()]
    place, vocab_size = logits_BV.device, logits_BV.shape[1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=place)[:, None]

    # Subtract the largest first: a temperature near 0 would otherwise make every logit infinite.
    heat_B1 = column([sampling.temperature or 1.0 for sampling in settings])
    share_BV = ((logits_BV - logits_BV.amax(1, keepdim=True)) / heat_B1).softmax(1)
    sorted_BV, order_BV = share_BV.sort(dim=1, descending=True)
    before_BV = sorted_BV.cumsum(1) - sorted_BV
    rank_V = torch.arange(vocab_size, device=place)
    # Keep the k most probable tokens; of these, like `choose`, only those preceded by a total of less than p.
    within_BV = rank_V < column([float(sampling.top_k or vocab_size) for sampling in settings])
    total_B1 = (sorted_BV * within_BV).sum(1, keepdim=True)
    within_BV &= before_BV < total_B1 * column([sampling.top_p or 2.0 for sampling in settings])
    sums_BV = (sorted_BV * within_BV).cumsum(1)
    drawn = [float(torch.rand((), dtype=torch.float64, generator=one.random)) for one in generations]
    rank_B1 = torch.searchsorted(sums_BV, column(drawn) * sums_BV[:, -1:], right=True)
    last_B1 = within_BV.sum(1, keepdim=True) - 1
    drawn_B = order_BV.gather(1, torch.minimum(rank_B1, last_B1))[:, 0].tolist()
    found = []
    for row, sampling in enumerate(settings):
        index = drawn_B[row] if sampling.temperature else best_B[row]
        found.append(int(index))
    return found
