"""Evaluate a model on given rows: loss, accuracy, loss by length, state health, and samples.

The `Evaluator` runs the model with dropout off and leaves it unchanged. The types and tables of its results are in the
other files of this package.
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

from samout_train.data import SPECIAL_TOKENS, Part, Rows, Source, parts_of
from samout_train.evaluation.ablation import mixed_by, said_by
from samout_train.evaluation.accuracy import Accuracy, most_probable
from samout_train.evaluation.batches import has_targets, in_order
from samout_train.evaluation.generate import generate_tokens
from samout_train.evaluation.lengths import Extrapolation, Reader, Stream
from samout_train.evaluation.state_health import (
    LayerHealth,
    health_of,
    keep_states,
    layer_states,
    positions_of,
)
from samout_train.models import evaluating, nats_and_state, sees_future
from samout_train.runtime import Bar, PrecisionName, autocast, distributed, float64_place, is_terminal, to_device


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Args:
        nats: Sum over all counted targets.
        num_targets: Number of counted targets.
        num_bytes: Their UTF-8 bytes; 0 if ids are not text.
        num_characters: Characters that begin in these targets; 0 if ids are not text.
        empty_batches: Number of skipped batches without a counted target.
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
        """Return the bits per UTF-8 byte; None if ids are not text."""
        if self.num_bytes == 0:
            return None
        return self.nats / math.log(2) / self.num_bytes

    @property
    def bits_per_character(self) -> float | None:
        """Return the bits per character (Unicode code point); None if ids are not text."""
        if self.num_characters == 0:
            return None
        return self.nats / math.log(2) / self.num_characters

    def word_perplexity(self, words: int) -> float:
        """Return the perplexity per word, which does not depend on the tokens: exp(sum of all nats / words).

        Args:
            words: Number of words of the text, all of which must have been evaluated.
        """
        return math.exp(self.nats / words)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model; its weights, its mode and the global random states stay unchanged.

    Args:
        model: Called as `logits, state = model(ids, state)`; each row begins without a state.
        source: The data, with the targets to count and the bytes of each id.
        device: The model's device.
        precision: Precision of the forward pass.
        chunk_len: Targets of a row per call, with the state carried over; None for whole rows.
        check_stop: Called before each batch or chunk; an exception from it ends the evaluation.
    """

    model: nn.Module
    source: Source
    device: torch.device
    precision: PrecisionName
    chunk_len: int | None = None
    check_stop: Callable[[], None] = lambda: None

    @cached_property
    def _token_sizes(self) -> Tensor | None:
        """Return UTF-8 bytes and characters of each id, (V, 2); None if ids are not text."""
        vocabulary = self.source.vocabulary
        if vocabulary is None:
            return None
        return torch.from_numpy(np.stack([vocabulary.token_bytes(), vocabulary.token_characters()], axis=1))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Put the model into evaluation mode, without gradients and in the evaluator's precision."""
        with evaluating(self.model), autocast(self.precision, self.device):
            yield

    def loss(self, batches: Iterable[Tensor], num_batches: int | None = None, together: bool = False) -> Evaluation:
        """Return the sums over all batches; waits for the device once, at the end.

        Args:
            batches: Batches of the validation rows, (R, T + 1) ids each, on the CPU.
            num_batches: Number of batches, for the progress bar, which appears after two seconds.
            together: Whether all processes make this call, each evaluating its share of the rows.

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
                for part in self._parts(*rows.split(ids_RT)):
                    nats += self._nats(*part, counted.numel())
        found = Evaluation(float(nats), num_targets, num_bytes, num_characters, empty_batches)
        if together and distributed.count() > 1:
            found = _of_all_processes(found)
        if found.num_targets == 0:
            raise ValueError(f"every target is {ignore_index}, which is ignored: there is nothing to evaluate")
        return found

    def accuracy(self, rows: Rows, rows_per_batch: int) -> Accuracy:
        """Return the share of counted targets that are the most probable token.

        Args:
            rows: Rows of any length, such as one of the source's tests.
            rows_per_batch: Rows per call of the model.

        Raises:
            ValueError: if there are too few answers.
        """
        right, answers = torch.zeros((), dtype=torch.int64, device=self.device), 0
        with self.reading():
            for ids_RT in in_order(rows, rows_per_batch):
                self.check_stop()
                for inputs_RT, targets_RT in parts_of(
                    *rows.split(ids_RT), document_id=self.source.document_id, ignore_index=self.source.ignore_index
                ):
                    place_N = (targets_RT.flatten() != self.source.ignore_index).nonzero().squeeze(1)
                    targets_N = targets_RT.flatten()[place_N]
                    answers += len(place_N)
                    said_N = most_probable(
                        self.model, to_device(inputs_RT, self.device), to_device(place_N, self.device)
                    )
                    right += (said_N == to_device(targets_N, self.device)).sum()
        return Accuracy(int(right), answers)

    def by_length(
        self, tokens: Stream, lengths: Sequence[int], most_tokens: int, *, trained_length: int
    ) -> Extrapolation:
        """Evaluate the start of a text in windows of each length, with the state carried from chunk to chunk.

        Args:
            tokens: Tokens of the text, each a counted target.
            lengths: Targets in a window, each above 0.
            most_tokens: Tokens of the text to read for each length; more if the longest window needs them.
            trained_length: Targets of a training row, the most per call of the model.
        """
        return Reader(self, trained_length).text(tokens, lengths, most_tokens)

    def by_position(self, rows: Rows, most_tokens: int, *, trained_length: int) -> Extrapolation:
        """Evaluate the first rows of a split whose rows do not form one text, so that there are no longer windows.

        Args:
            rows: Rows of the validation split.
            most_tokens: The most tokens to read, but at least one row.
            trained_length: Targets of a training row, the most per call of the model.
        """
        return Reader(self, trained_length).rows(rows, most_tokens)

    def state_health(self, ids_BT: Tensor) -> dict[str, LayerHealth]:
        """Measure each layer's state at the positions of `positions_of`.

        A model may map its state to layers in a method `state_by_layer(state)`. By default, the parts of its state are
        its layers in order.

        Args:
            ids_BT: Rows of token ids, on the device.

        Returns:
            Results by layer, without layers whose state grows. Empty if no layer is left, rows
            have a single token, or the model sees the whole sequence.
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
        states: dict[str, dict[int, Tensor]] = {}
        state = None
        with self.reading():
            for start, end in pairwise(cuts):
                state = self.model(ids_BT[:, start:end], state)[1]
                if end in ends:
                    keep_states(states, end, layer_states(self.model, state))
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
        """Return a prompt with its continuation; the state never covers more tokens than a training row has.

        Args:
            prompt_ids: The prompt, at least one id.
            max_new_tokens: Tokens to generate; special ones are never drawn.
            temperature: 0 takes the most probable token.
            top_k: Draw among this many most probable tokens; None for all.
            seeds: A seed for each piece of half a row; each piece starts a new state from the last half row.
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

    def _parts(self, inputs_RT: Tensor, targets_RT: Tensor) -> list[Part]:
        """Return rows on the device, split where documents begin if the source requires it."""
        parts = parts_of(
            inputs_RT,
            targets_RT,
            document_id=self.source.document_id,
            ignore_index=self.source.ignore_index,
            chunk_len=self.chunk_len,
        )
        return [Part(*(to_device(tensor, self.device) for tensor in part)) for part in parts]

    def _nats(self, inputs_RT: Tensor, targets_RT: Tensor, num_counted: int) -> Tensor:
        """Return the sum of nats over the counted targets of rows, which are read chunk by chunk."""
        nats, state = torch.zeros((), dtype=torch.float64, device=float64_place(self.device)), None
        num_rows, num_times = targets_RT.shape
        if num_rows == 0:  # this process's share, if there are fewer rows than processes
            return nats
        length = self.chunk_len or num_times
        for start in range(0, num_times, length):
            inputs, targets = inputs_RT[:, start : start + length], targets_RT[:, start : start + length]
            most = min(num_counted, targets.numel())
            chunk_nats, state = nats_and_state(self.model, inputs, targets, self.source.ignore_index, most, state)
            nats += chunk_nats.to(nats.device)
        return nats


def _of_all_processes(own: Evaluation) -> Evaluation:
    """Return the sums over all processes; each has evaluated its share and skipped the same empty batches."""
    sums = torch.tensor([own.nats, own.num_targets, own.num_bytes, own.num_characters], dtype=torch.float64)
    nats, num_targets, num_bytes, num_characters = distributed.summed(sums)
    return Evaluation(float(nats), int(num_targets), int(num_bytes), int(num_characters), own.empty_batches)
