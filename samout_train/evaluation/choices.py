"""Measure a model's accuracy on multiple-choice questions, and compare it with guessing.

A choice is scored by the log-likelihood of its tokens after the question, and by the same divided by the bytes of its
text, since longer choices are less probable. EleutherAI's evaluation harness calls these `acc` and `acc_norm`.
"""

# B batch, T time, V vocabulary

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.data import PAD_ID, SOS_ID, Question, Vocabulary
from samout_train.evaluation.accuracy import LEAST_ANSWERS, Accuracy
from samout_train.models import MOST_LOGITS, evaluating

MOST_ROWS = 64


@dataclass(frozen=True)
class ChoicesFound:
    """Hold the result on a file of questions.

    Args:
        likelihood: How often the right choice has the largest log-likelihood.
        normalised: How often it has the largest log-likelihood per byte.
        chance: Accuracy of guessing: the mean of 1 / (number of choices).
        unknown: Questions left out because a choice has a character that the vocabulary lacks.
        too_long: Questions left out because a choice has more tokens than the model has room for.
        shortened: Questions read without their beginning, because the model lacks room for all of it.
    """

    likelihood: Accuracy
    normalised: Accuracy
    chance: float
    unknown: int
    too_long: int
    shortened: int

    def figures(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "likelihood": self.likelihood.figures(),
            "normalised": self.normalised.figures(),
            "chance": self.chance,
            "left_out": {"unknown": self.unknown, "too_long": self.too_long},
            "shortened": self.shortened,
        }

    def lines(self) -> list[str]:
        """Return the lines to print."""
        lines = []
        for name, found in (("log-likelihood", self.likelihood), ("log-likelihood a byte", self.normalised)):
            low, high = found.interval
            lines.append(
                f"{f'accuracy by {name}':<36} {found.share:.3f} ({low:.3f} to {high:.3f}, of {found.answers:,} "
                f"questions): {against_guessing(found, self.chance)}"
            )
        lines.append(f"{'chance':<36} {self.chance:.3f}")
        if self.unknown:
            lines.append(f"{self.unknown:,} questions are left out: a choice has characters outside the vocabulary")
        if self.too_long:
            lines.append(f"{self.too_long:,} questions are left out: a choice is longer than model.max_seq_len")
        if self.shortened:
            lines.append(f"{self.shortened:,} questions are read without their beginning: model.max_seq_len")
        return lines


def against_guessing(found: Accuracy, chance: float) -> str:
    """Return a phrase on whether an accuracy differs from guessing, by its 95 % interval."""
    low, high = found.interval
    if low > chance:
        return "better than guessing"
    if high < chance:
        return "worse than guessing"
    return "not distinguishable from guessing"


def measure_choices(
    model: nn.Module,
    vocabulary: Vocabulary,
    questions: Sequence[Question],
    *,
    separator: str,
    documents: bool,
    device: torch.device,
    most_rows: int = MOST_ROWS,
) -> ChoicesFound:
    """Score each choice of each question.

    Args:
        model: On the device; called as `logits, state = model(ids)`.
        vocabulary: The model's vocabulary.
        questions: The questions, at least as many as an accuracy needs.
        separator: Text between a question and a choice.
        documents: Whether `<|sos|>` precedes the question.
        device: The model's device.
        most_rows: Limit of choices scored together.

    Raises:
        ValueError: if too few questions can be scored.
    """
    room = getattr(model, "max_seq_len", None)
    kept: list[Question] = []
    rows: list[_Row] = []
    unknown = too_long = shortened = 0
    for question in questions:
        before = [SOS_ID] if documents else []
        before += vocabulary.encode(question.text, unknown_id=PAD_ID).tolist()
        behind = [vocabulary.encode(separator + choice, unknown_id=PAD_ID).tolist() for choice in question.choices]
        if any(PAD_ID in ids for ids in behind):
            unknown += 1
            continue
        if room is not None and max(map(len, behind)) > room:
            too_long += 1
            continue
        if room is not None and len(before) + max(map(len, behind)) > room + 1:  # the last token is not read
            shortened += 1
            before = before[-(room + 1 - max(map(len, behind))) :]
        rows += [_Row(before, ids) for ids in behind]
        kept.append(question)
    if len(kept) < LEAST_ANSWERS:
        raise ValueError(
            f"{len(kept)} questions can be scored, and an accuracy from fewer than {LEAST_ANSWERS} says nothing: give "
            "more of them, in the script of the training text"
        )
    scores = iter(_log_likelihoods(model, rows, len(vocabulary), device, most_rows))
    right = right_normalised = 0
    for question in kept:
        found = [next(scores) for _ in question.choices]
        a_byte = [score / len(choice.encode()) for score, choice in zip(found, question.choices, strict=True)]
        right += found.index(max(found)) == question.answer
        right_normalised += a_byte.index(max(a_byte)) == question.answer
    chance = sum(1 / len(question.choices) for question in kept) / len(kept)
    likelihood, normalised = Accuracy(right, len(kept)), Accuracy(right_normalised, len(kept))
    return ChoicesFound(likelihood, normalised, chance, unknown, too_long, shortened)


@dataclass(frozen=True)
class _Row:
    """Hold the tokens of a question, and the tokens of a choice, which are scored."""

    before: list[int]
    behind: list[int]

    @property
    def length(self) -> int:
        """Return the number of tokens to read: all but the last one."""
        return len(self.before) + len(self.behind) - 1


def _log_likelihoods(
    model: nn.Module, rows: Sequence[_Row], vocab_size: int, device: torch.device, most_rows: int
) -> list[float]:
    """Return the log-likelihood of each row's choice, in nats; rows of similar length are read together."""
    found = [0.0] * len(rows)
    with evaluating(model):
        for batch in _batches(rows, vocab_size, most_rows):
            longest = max(rows[index].length for index in batch)
            inputs_BT = torch.full((len(batch), longest), PAD_ID)
            targets_BT = torch.full((len(batch), longest), PAD_ID)
            for place, index in enumerate(batch):
                row = rows[index]
                ids = torch.tensor([*row.before, *row.behind])
                inputs_BT[place, : row.length] = ids[:-1]
                targets_BT[place, len(row.before) - 1 : row.length] = ids[len(row.before) :]
            logits_BTV = model(inputs_BT.to(device))[0]
            nats_BT = _nats(logits_BTV, targets_BT.to(device))
            for index, nats in zip(batch, nats_BT.double().sum(1).tolist(), strict=True):
                found[index] = -nats
    return found


def _nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the nats of each target, 0 outside of the choice."""
    logits_BVT = logits_BTV.float().transpose(1, 2)
    return F.cross_entropy(logits_BVT, targets_BT, ignore_index=PAD_ID, reduction="none")


def _batches(rows: Sequence[_Row], vocab_size: int, most_rows: int) -> Iterator[list[int]]:
    """Yield indices of rows to read together, by length; batches of several rows have at most MOST_LOGITS logits."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: rows[index].length):
        num_logits = (len(batch) + 1) * rows[index].length * vocab_size
        if batch and (len(batch) == most_rows or num_logits > MOST_LOGITS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
