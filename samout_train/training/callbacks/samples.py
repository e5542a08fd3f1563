"""Log samples of a model: continued text at the end of a run, and predicted labels at each evaluation."""

import logging
from itertools import count
from typing import Annotated, Any

import torch
from tqdm import tqdm

from samout_train.config import NonNegative, Positive, Seed, validated
from samout_train.data import PAD_ID, SOS_ID, Rows
from samout_train.models import evaluating
from samout_train.training.callbacks.base import Callback, RunContext, StepReport
from samout_train.training.callbacks.step_table import STEP_WIDTH

log = logging.getLogger(__name__)


class Sample(Callback):
    """Continues passages of the validation text, or a prompt; does nothing on data without a vocabulary.

    A running maximum trained on short rows degrades on longer ones. The state therefore never covers more than the
    training length: once it does, it is recomputed from the last half.

    Args:
        num_samples: Number of samples. Without a prompt, each begins at a different place of the validation split.
        prompt: Text to continue; None for `prompt_tokens` tokens of the validation split.
        prompt_tokens: Tokens of a prompt from the validation split; at most half of a training row is used.
        max_new_tokens: Tokens to generate for each sample.
        temperature: 0 takes the most probable token.
        top_k: Draw among this many most probable tokens; None for all.
        seed: Seed of the first sample; each further one adds 1.
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
        self.temperature, self.top_k = temperature, top_k

    def check(self, context: RunContext) -> None:
        """Keep the evaluator and encode the prompts, so that a wrong prompt is found before the run.

        Raises:
            ValueError: if the prompt is empty or contains characters that the vocabulary lacks.
        """
        self._evaluator, self._vocabulary = context.evaluator, context.source.vocabulary
        if self._vocabulary is None:
            return
        rows = context.source.validation
        if self.prompt is None:
            num_tokens = min(self.prompt_tokens, max(1, rows.seq_len // 2))
            prompts = prompts_from(rows, self.num_samples, num_tokens, context.source.document_id)
        elif not self.prompt:
            raise ValueError("callbacks.sample.prompt is empty: give a text, or null for the validation text")
        else:
            prompts = [self._vocabulary.encode(self.prompt).tolist()] * self.num_samples
        self._prompts: list[list[int]] = prompts

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log the samples."""
        if self._vocabulary is None:
            return
        seeds = count(self.seed)
        for number, prompt_ids in enumerate(self._prompts, start=1):
            ids = self._evaluator.sample(
                prompt_ids, self.max_new_tokens, temperature=self.temperature, top_k=self.top_k, seeds=seeds
            )
            log.info("sample %d, after the prompt %r:", number, self._vocabulary.decode(prompt_ids))
            log.info("%s\n", self._vocabulary.decode(ids))


class Predictions(Callback):
    """Logs the labels predicted for the first validation row; does nothing on next-token data."""

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
            with evaluating(self._model):
                word = self._word(self._model(self._inputs_RT)[0].argmax(-1))
            otherwise = ""
            if word != self._wanted:
                otherwise = f", not {self._wanted}"
            with tqdm.external_write_mode():
                log.info("%s", f"{report.step:>{STEP_WIDTH},}  says {word}{otherwise}")
        return None

    def _word(self, ids_RT: torch.Tensor) -> str:
        assert self._labels
        return "".join(self._labels[index] for index in ids_RT[0].tolist())


def prompts_from(rows: Rows, num_prompts: int, num_tokens: int, document_id: int | None = None) -> list[list[int]]:
    """Return the beginnings of evenly spaced rows, without padding.

    Args:
        rows: Rows of the validation split.
        num_prompts: Number of rows.
        num_tokens: Length of each; less if its row is shorter.
        document_id: The id that begins a document; a prompt ends before the next one. None if a row is one sequence.
    """
    prompts = []
    for index in range(num_prompts):
        start = index * rows.num_windows // num_prompts
        ids_T = rows.windows(start, start + 1)[0]
        prompt = ids_T[ids_T != PAD_ID][:num_tokens].tolist()
        if document_id in prompt[1:]:
            prompt = prompt[: prompt.index(document_id, 1)]
        prompts.append(prompt or [SOS_ID])
    return prompts
