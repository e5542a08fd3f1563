"""Measuring a model on rows that are given: the loss, the accuracy, the loss by length, the state, and samples.

The `Evaluator` reads, dropout off, and leaves the model as it was. What it found and how that is written down is in
the files beside this one.
"""

# R rows, T time, N answers, B batch

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from samout_train.data import SPECIAL_TOKENS, Rows, Source
from samout_train.evaluation.ablation import mixed_by, said_by
from samout_train.evaluation.accuracy import Accuracy, most_probable
from samout_train.evaluation.batches import has_targets, in_order
from samout_train.evaluation.generate import generate_tokens
from samout_train.evaluation.lengths import Extrapolation, Reader, Stream
from samout_train.evaluation.state_health import (
    LayerHealth,
    health_of,
    layer_states,
    positions_of,
    shapes_of,
)
from samout_train.models import evaluating, nats_and_state, sees_future
from samout_train.runtime import Bar, PrecisionName, autocast, distributed, float64_place, is_terminal, to_device


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Args:
        nats: Sum over all counted targets.
        num_targets: How many these are.
        num_bytes: UTF-8 bytes that they stand for; 0 where ids are no text.
        num_characters: Characters that begin in them; 0 where ids are no text.
        empty_batches: Batches without a counted target, which were left out.
    """

    nats: float
    num_targets: int
    num_bytes: int
    num_characters: int = 0
    empty_batches: int = 0

    @property
    def loss_nats(self) -> float:
        """Return the mean nats per counted target."""
        return self.nats / self.num_targets

    @property
    def bits_per_byte(self) -> float | None:
        """Return the bits per UTF-8 byte; None where ids are no text."""
        if self.num_bytes == 0:
            return None
        return self.nats / math.log(2) / self.num_bytes

    @property
    def bits_per_character(self) -> float | None:
        """Return the bits per character (Unicode code point); None where ids are no text."""
        if self.num_characters == 0:
            return None
        return self.nats / math.log(2) / self.num_characters

    def word_perplexity(self, words: int) -> float:
        """Return the perplexity per word of the text, whatever its tokens are: exp of the sum of all nats by words.

        Args:
            words: Of the whole text, all of which was read and counted.
        """
        return math.exp(self.nats / words)


@dataclass(frozen=True)
class Evaluator:
    """Measures a model; its weights, its mode and the global random states are left as they were.

    Args:
        model: Called as `logits, state = model(ids, state)`; each row begins from a fresh state.
        source: Says which targets count and how many bytes each id stands for.
        device: Where the model is.
        precision: Of the forward pass.
        chunk_len: Targets of a row that are read at a time, with the state carried on; None for whole rows.
        check_stop: Called before each batch or chunk; what it raises ends the measurement.
    """

    model: nn.Module
    source: Source
    device: torch.device
    precision: PrecisionName
    chunk_len: int | None = None
    check_stop: Callable[[], None] = lambda: None

    @cached_property
    def _token_sizes(self) -> Tensor | None:
        """Return UTF-8 bytes and characters of each id, (V, 2); None where ids are no text."""
        vocabulary = self.source.vocabulary
        if vocabulary is None:
            return None
        return torch.from_numpy(np.stack([vocabulary.token_bytes(), vocabulary.token_characters()], axis=1))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the model in evaluation, without gradients, computing in the precision."""
        with evaluating(self.model), autocast(self.precision, self.device):
            yield

    def loss(self, batches: Iterable[Tensor], num_batches: int | None = None, together: bool = False) -> Evaluation:
        """Return the sums over all batches; the device is waited for once, at the end.

        Args:
            batches: Of the validation rows: (R, T + 1) ids each, in ordinary memory.
            num_batches: How many there are, for the progress bar that is shown from the second second on.
            together: Whether all processes of the run are here, each for its share of the rows.

        Raises:
            ValueError: if no target is counted.
        """
        rows, ignore_index = self.source.validation, self.source.ignore_index
        nats = torch.zeros((), dtype=torch.float64, device=float64_place(self.device))
        num_targets = num_bytes = num_characters = empty_batches = 0
        interval = 0.1 if is_terminal(sys.stderr) else 10.0
        bar = Bar(batches, desc="evaluating", total=num_batches, delay=2, leave=False, mininterval=interval)
        with self.reading(), bar:
            for ids_RT in bar:
                self.check_stop()
                if not has_targets(rows, ids_RT, ignore_index):
                    empty_batches += 1
                    continue
                if together:
                    ids_RT = ids_RT.tensor_split(distributed.count())[distributed.rank()]
                targets_RT = rows.split(ids_RT)[1]
                counted = targets_RT[targets_RT != ignore_index]
                num_targets += counted.numel()
                if self._token_sizes is not None:
                    of_text = self._token_sizes[counted].sum(0)
                    num_bytes, num_characters = num_bytes + int(of_text[0]), num_characters + int(of_text[1])
                nats += self._nats(*rows.split(to_device(ids_RT, self.device)), counted.numel())
        found = Evaluation(float(nats), num_targets, num_bytes, num_characters, empty_batches)
        if together and distributed.count() > 1:
            found = _of_all_processes(found)
        if found.num_targets == 0:
            raise ValueError(f"every target is {ignore_index}, which is ignored: there is nothing to evaluate")
        return found

    def accuracy(self, rows: Rows, rows_per_batch: int) -> Accuracy:
        """Count how often the most probable token is the target, of all counted targets.

        Args:
            rows: Such as one of the source's tests, of any length.
            rows_per_batch: Rows at a time.

        Raises:
            ValueError: if there are too few answers.
        """
        right, answers = torch.zeros((), dtype=torch.int64, device=self.device), 0
        with self.reading():
            for ids_RT in in_order(rows, rows_per_batch):
                self.check_stop()
                inputs_RT, targets_RT = rows.split(ids_RT)
                place_N = (targets_RT.flatten() != self.source.ignore_index).nonzero().squeeze(1)
                targets_N = targets_RT.flatten()[place_N]
                answers += len(place_N)
                said_N = most_probable(self.model, to_device(inputs_RT, self.device), to_device(place_N, self.device))
                right += (said_N == to_device(targets_N, self.device)).sum()
        return Accuracy(int(right), answers)

    def by_length(
        self, tokens: Stream, lengths: Sequence[int], most_tokens: int, *, trained_length: int
    ) -> Extrapolation:
        """Read the beginning of a text in windows of each length, with the state carried on from chunk to chunk.

        Args:
            tokens: Of the text, each a target that counts.
            lengths: Targets in a window, each above 0.
            most_tokens: Of the text so many are read for each length, or as many as the longest window needs.
            trained_length: Targets of a training row: what is read at a time.
        """
        return Reader(self, trained_length).text(tokens, lengths, most_tokens)

    def by_position(self, rows: Rows, most_tokens: int, *, trained_length: int) -> Extrapolation:
        """Read rows that do not follow each other, so that there are no longer ones: the first so many tokens.

        Args:
            rows: Of the validation split.
            most_tokens: At most so many of them are read, but one row at the least.
            trained_length: Targets of a training row: what is read at a time.
        """
        return Reader(self, trained_length).rows(rows, most_tokens)

    def state_health(self, ids_BT: Tensor) -> dict[str, LayerHealth]:
        """Measure each layer's state at the positions of `positions_of`.

        Which part of the state is which layer's, a model may say with a method `state_by_layer(state)`; else that is
        the place in the list.

        Args:
            ids_BT: Rows of token ids, on the device.

        Returns:
            By layer; empty where rows have a single token, the model cannot go on from a state, or its state grows.
        """
        length = ids_BT.shape[1]
        if length < 2 or sees_future(self.model):
            return {}
        maxima = set()
        for name, layer in mixed_by(self.model).items():
            if said_by(layer.mixer, "state_is_maximum"):
                maxima.add(name)
        positions = positions_of(length)
        ends = set(positions)
        if maxima:
            ends.update(position - 1 for position in positions[1:])
        cuts = sorted({0, *ends, *range(0, length, self.chunk_len or length)})
        states: dict[int, dict[str, Tensor]] = {}
        state = None
        with self.reading():
            for start, end in pairwise(cuts):
                state = self.model(ids_BT[:, start:end], state)[1]
                if end not in ends:
                    continue
                states[end] = layer_states(self.model, state)
                if start and shapes_of(states[end]) != shapes_of(states[min(ends)]):
                    return {}
            return health_of(states, positions, maxima)

    def sample(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float,
        top_k: int | None,
        seeds: Iterator[int],
    ) -> list[int]:
        """Return a prompt and what follows it, never further from where the state began than a training row is long.

        Args:
            prompt_ids: What comes before; at least one id.
            max_new_tokens: Tokens to make; special ones are never drawn.
            temperature: 0 takes the most probable token.
            top_k: Draw among this many most probable tokens; None for all.
            seeds: One for each piece: whenever a row is full, the state is made anew from its last half.
        """
        ids, length = list(prompt_ids), len(prompt_ids) + max_new_tokens
        half_row = max(1, self.source.validation.seq_len // 2)
        while len(ids) < length:
            ids += generate_tokens(
                self.model,
                ids[-half_row:],
                max_new_tokens=min(half_row, length - len(ids)),
                temperature=temperature,
                top_k=top_k,
                seed=next(seeds),
                banned_ids=range(len(SPECIAL_TOKENS)),
            )
        return ids

    def _nats(self, inputs_RT: Tensor, targets_RT: Tensor, num_counted: int) -> Tensor:
        """Return the sum over the counted targets of some rows, read a chunk at a time."""
        nats, state = torch.zeros((), dtype=torch.float64, device=float64_place(self.device)), None
        num_rows, num_times = targets_RT.shape
        if num_rows == 0:  # the share of a process where there are fewer rows than processes
            return nats
        length = self.chunk_len or num_times
        for start in range(0, num_times, length):
            inputs, targets = inputs_RT[:, start : start + length], targets_RT[:, start : start + length]
            most = min(num_counted, targets.numel())
            chunk_nats, state = nats_and_state(self.model, inputs, targets, self.source.ignore_index, most, state)
            nats += chunk_nats.to(nats.device)
        return nats


def _of_all_processes(own: Evaluation) -> Evaluation:
    """Return the sums over the shares of all processes; each has seen the same empty batches."""
    sums = torch.tensor([own.nats, own.num_targets, own.num_bytes, own.num_characters], dtype=torch.float64)
    nats, num_targets, num_bytes, num_characters = distributed.summed(sums)
    return Evaluation(float(nats), int(num_targets), int(num_bytes), int(num_characters), own.empty_batches)
