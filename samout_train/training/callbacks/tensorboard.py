"""Write for TensorBoard: scalars, the configuration as text, and hparams, all in the run's own event file."""

import logging
from itertools import count
from typing import Annotated, Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars, histogram, hparams, text

from samout_train.config import NonNegative, Positive, validated
from samout_train.runtime import EventFile
from samout_train.training.callbacks.base import Callback, RunContext, StepReport
from samout_train.training.callbacks.samples import prompts_from

log = logging.getLogger(__name__)
LAYOUT = {
    "samout_train": {
        "loss (nats a token)": ["Multiline", ["train/loss_nats", "val/loss_nats"]],
        "learning rate": ["Multiline", ["train/lr"]],
        "tokens a second": ["Multiline", ["time/tokens_per_second"]],
        "norm of the state after the last token of a row": ["Multiline", ["val_state/norm/.*"]],
        "loss by length, at the end": ["Multiline", ["val_length/loss_nats/.*"]],
    }
}
BINS = 30  # of a histogram
# Keys of summary.json by which the hparams tab compares runs.
RESULTS = ("best_val_loss_nats", "val_loss_nats", "tokens_per_second", "parameters")
METRICS = ["val/loss_nats", "train/loss_nats"]


class TensorBoard(Callback):
    """Writes the event file. If it cannot be written, as on a full disk, one warning is logged and training continues.

    hparams consist of three summaries. The second (this run's values) is written at the start, the third (its end) at
    the end. The first, which declares the experiment's columns, is omitted: written into one run, it would hide the
    columns that only other runs have.

    Args:
        sample_tokens: Tokens of the sample in the text tab at each evaluation, for models trained on text; 0 for none.
        temperature: Of the sample; 0 takes the most probable token.
        top_k: The sample draws among this many most probable tokens; None for all.
        histogram_values: Number of evenly spread weights of each parameter in its histogram at the end; 0 for no
            histograms. A million take 33 ms.
    """

    @validated
    def __init__(
        self,
        *,
        sample_tokens: Annotated[int, NonNegative],
        temperature: Annotated[float, NonNegative],
        top_k: Annotated[int, Positive] | None,
        histogram_values: Annotated[int, NonNegative],
    ) -> None:
        self.sample_tokens, self.histogram_values = sample_tokens, histogram_values
        self.temperature, self.top_k = temperature, top_k
        self._file: EventFile | None = None
        self._has_warned = False

    def on_start(self, context: RunContext) -> None:
        """Open the event file; hide points of earlier files that a resumed run writes again."""
        purge_step = None
        if any(context.run_dir.glob("events.out.tfevents.*")):
            purge_step = context.reported_step + 1
        self._file = EventFile(context.run_dir, purge_step=purge_step)
        values = dict(context.settings)
        for key, value in values.items():
            if isinstance(value, bool):
                values[key] = str(value)
        _, start, self._end = hparams(values, dict.fromkeys(METRICS, 0.0))
        self._evaluator, self._vocabulary = context.evaluator, context.source.vocabulary
        rows = context.source.validation
        (self._prompt_ids,) = prompts_from(rows, 1, max(1, rows.seq_len // 2), context.source.document_id)
        self._add(start)
        self._add(text("config", _code(context.config_text)), context.first_step)
        self._add(text("commit", context.commit or "not known"), context.first_step)
        self._add(text("data", _described(context.source.description)), context.first_step)
        self._add(custom_scalars(LAYOUT))

    def on_report(self, report: StepReport) -> None:
        """Write the scalars as one event, and a sample after an evaluation."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in report.metrics.items()]
        self._add(Summary(value=values), report.step)
        if self._vocabulary is not None and self.sample_tokens and "val/loss_nats" in report.metrics:
            ids = self._evaluator.sample(
                self._prompt_ids, self.sample_tokens, temperature=self.temperature, top_k=self.top_k, seeds=count()
            )
            self._add(text("sample", _code(self._vocabulary.decode(ids))), report.step)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Write the results and histograms of the weights, and mark the run as finished for the hparams tab."""
        step = summary["steps"]
        values = []
        for name in RESULTS:
            if summary.get(name) is not None:
                values.append(Summary.Value(tag=f"hparam/{name}", simple_value=float(summary[name])))
        self._add(Summary(value=values), step)
        if self.histogram_values:
            self._add_weights(step)
        self._add(self._end)

    def _add_weights(self, step: int) -> None:
        for name, parameter in self._evaluator.model.named_parameters():
            weights = parameter.detach().flatten()
            some = weights[:: max(1, weights.numel() // self.histogram_values)].float().cpu().clone()
            if some.isfinite().all():
                self._add(histogram(f"weights/{name}", some.numpy(), BINS), step)

    def on_close(self) -> None:
        """Close the event file."""
        if self._file is not None:
            self._file.close()

    def _add(self, summary: Summary, step: int | None = None) -> None:
        assert self._file is not None
        try:
            self._file.add(summary, step)
        except OSError as error:
            if not self._has_warned:
                log.warning("TensorBoard's events cannot be written (%s): training continues", error.strerror)
            self._has_warned = True


def _code(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def _described(description: dict[str, object]) -> str:
    lines = []
    for key, value in description.items():
        if isinstance(value, list):
            lines.append(f"{key}: {len(value)}")
            for entry in value:
                lines.append("  " + " ".join(map(str, entry.values())))
        else:
            lines.append(f"{key}: {value}")
    return _code("\n".join(lines))
