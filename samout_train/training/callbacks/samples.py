"""Show what a model says: text that it continues, at the end of a run, and the labels that it gives, as it learns."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Annotated, Any

import torch
from torch import nn
from tqdm import tqdm

from samout_train.config import NonNegative, Positive, Seed, validated
from samout_train.data import PAD_ID, SOS_ID, SPECIAL_TOKENS, Rows
from samout_train.evaluation import generate_tokens
from samout_train.training.callbacks.base import Callback, RunContext, StepReport

log = logging.getLogger(__name__)


class Sample(Callback):
    """Continues pieces of the validation text, or a prompt; where ids are no text there is nothing to show.

    A running maximum that was trained on short rows goes astray in longer ones, so a sample never asks for more than
    a training row: whenever a row is full, the state is made anew from its last half.

    Args:
        num_samples: How many; without a prompt each begins at another place of the validation split.
        prompt: Text to continue; None for `prompt_tokens` tokens of the validation split.
        prompt_tokens: How many these are; half of a training row at the most.
        max_new_tokens: Tokens to make.
        temperature: 0 takes the most probable token.
        top_k: Draw among this many most probable tokens; None for all.
        seed: Decides the draws of the first piece; the others count up from it.
    """

    @validated
    def __init__(
        self,
        *,
        num_samples: Annotated[int, Positive],
        prompt: str | None,
        prompt_tokens: Annotated[int, Positive],
        max_new_tokens: Annotated[int, Positive],
        temperature: Annotated[float, NonNegative],
        top_k: Annotated[int, Positive] | None,
        seed: Annotated[int, Seed],
    ) -> None:
        self.num_samples, self.prompt, self.prompt_tokens = num_samples, prompt, prompt_tokens
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.generate = partial(
            generate_tokens, temperature=temperature, top_k=top_k, banned_ids=range(len(SPECIAL_TOKENS))
        )

    def check(self, context: RunContext) -> None:
        """Keep the model and encode the prompts, so that a wrong one is found before the run.

        Raises:
            ValueError: if the prompt is empty or has what the vocabulary has not.
        """
        self._model, self._vocabulary = context.model, context.source.vocabulary
        if self._vocabulary is None:
            return
        rows = context.source.validation
        self._half_row = max(1, rows.seq_len // 2)
        if self.prompt is None:
            prompts = prompts_from(rows, self.num_samples, min(self.prompt_tokens, self._half_row))
        elif not self.prompt:
            raise ValueError("callbacks.sample.prompt is empty: give a text, or null for the validation text")
        else:
            prompts = [self._vocabulary.encode(self.prompt).tolist()] * self.num_samples
        self._prompts: list[list[int]] = prompts

    def on_end(self, summary: dict[str, Any]) -> None:
        """Write the samples to the log, which a person sees."""
        if self._vocabulary is None:
            return
        seeds = count(self.seed)
        for number, prompt_ids in enumerate(self._prompts, start=1):
            ids = within_rows(self.generate, self._model, prompt_ids, self.max_new_tokens, self._half_row, seeds)
            log.info("sample %d, after the prompt %r:", number, self._vocabulary.decode(prompt_ids))
            log.info("%s\n", self._vocabulary.decode(ids))


class Predictions(Callback):
    """Writes the labels that the model gives the first validation row; on next-token data it does nothing."""

    def on_start(self, context: RunContext) -> None:
        """Keep the row."""
        self._model, self._labels = context.model, context.source.labels
        rows = context.source.validation
        if not self._labels:
            return
        inputs_RT, wanted_RT = rows.split(rows.windows(0, 1))
        self._inputs_RT = inputs_RT.to(context.device)
        self._wanted = self._word(wanted_RT)

    def on_report(self, report: StepReport) -> str | None:
        """Log the predicted word at each evaluation."""
        if self._labels and "val/loss_nats" in report.metrics:
            was_training = self._model.training
            self._model.eval()
            with torch.inference_mode():
                word = self._word(self._model(self._inputs_RT)[0].argmax(-1))
            self._model.train(was_training)
            otherwise = ""
            if word != self._wanted:
                otherwise = f", not {self._wanted}"
            with tqdm.external_write_mode():
                log.info("step %-5d says %s%s", report.step, word, otherwise)
        return None

    def _word(self, ids_RT: torch.Tensor) -> str:
        assert self._labels
        return "".join(self._labels[index] for index in ids_RT[0].tolist())


def prompts_from(rows: Rows, num_prompts: int, num_tokens: int) -> list[list[int]]:
    """Return beginnings of rows at even distances, without padding.

    Args:
        rows: Of the validation split.
        num_prompts: How many.
        num_tokens: Length of each, where its row has so many tokens.
    """
    prompts = []
    for index in range(num_prompts):
        start = index * rows.num_windows // num_prompts
        ids_T = rows.windows(start, start + 1)[0]
        prompts.append(ids_T[ids_T != PAD_ID][:num_tokens].tolist() or [SOS_ID])
    return prompts


def within_rows(
    generate: Callable[..., Iterator[int]],
    model: nn.Module,
    prompt_ids: list[int],
    max_new_tokens: int,
    half_row: int,
    seeds: Iterator[int],
) -> list[int]:
    """Return a prompt and what follows it, never further from where the state began than a training row is long.

    Args:
        generate: As `generate_tokens`, with its choices made.
        model: What continues.
        prompt_ids: What comes before.
        max_new_tokens: Tokens to make.
        half_row: Half of a training row: whenever it is full, the state is made anew from the last half.
        seeds: One for each piece.
    """
    ids, length = list(prompt_ids), len(prompt_ids) + max_new_tokens
    while len(ids) < length:
        room = min(half_row, length - len(ids))
        ids += generate(model, ids[-half_row:], max_new_tokens=room, seed=next(seeds))
    return ids
