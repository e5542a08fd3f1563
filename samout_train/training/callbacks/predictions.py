"""What a labelling model says, as it learns."""

import logging

import torch
from tqdm import tqdm

from samout_train.training.callbacks.base import Callback, RunContext, StepReport

log = logging.getLogger(__name__)


class Predictions(Callback):
    """Writes the labels that the model gives the first validation row; on next-token data it does nothing."""

    def on_start(self, context: RunContext) -> None:
        """Keeps the row."""
        self._model, self._labels = context.model, context.source.labels
        rows = context.source.validation
        if not self._labels:
            return
        self._inputs_RT, wanted_RT = (part.to(context.device) for part in rows.split(rows.windows(0, 1)))
        self._wanted = self._word(wanted_RT)

    def on_report(self, report: StepReport) -> str | None:
        """At each evaluation, the predicted word."""
        if self._labels and "val/loss_nats" in report.metrics:
            was_training = self._model.training
            self._model.eval()
            with torch.inference_mode():
                word = self._word(self._model(self._inputs_RT)[0].argmax(-1))
            self._model.train(was_training)
            with tqdm.external_write_mode():
                log.info(
                    "step %-5d says %s%s", report.step, word, "" if word == self._wanted else f", not {self._wanted}"
                )
        return None

    def _word(self, ids_RT: torch.Tensor) -> str:
        assert self._labels
        return "".join(self._labels[index] for index in ids_RT[0].tolist())
