"""Print the run: a header, a table of steps, a bar on a terminal, and at the end the results and what to type next.

By default a run prints what everyone needs. `callbacks.report.verbose=true` adds figures of the model, its parts and
its state.
"""

import logging
import shlex
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from samout_train.checkpoint import checkpoint_path
from samout_train.config import validated
from samout_train.models import (
    TRAINING_TIMES,
    WORTH_SAYING,
    bfloat16_share,
    estimate_memory_bytes,
    num_parameters,
    parameters_by_part,
    product_of,
    tokens_of,
)
from samout_train.runtime import (
    Bar,
    Others,
    dashboard_command,
    is_terminal,
    other_programs_message,
    program,
    program_file,
    shown_path,
    text_setting,
    typed_line,
)
from samout_train.training.callbacks.base import Callback, RunContext, StepReport
from samout_train.training.callbacks.step_table import StepTable, duration
from samout_train.training.limits import once

STEPS_BEFORE_ESTIMATE = 3
SECONDS_BETWEEN_LINES = 10.0
SHOWN = {
    "train/loss_nats": ("loss", "{:.3f}"),
    "val/loss_nats": ("val", "{:.3f}"),
    "val/ema_loss_nats": ("ema", "{:.3f}"),
    "train/lr": ("lr", "{:.2e}"),
    "time/tokens_per_second": ("tokens/s", "{:,.0f}"),
}
log = logging.getLogger(__name__)


class Report(Callback):
    """Writes to the log, which goes to the console and to samout_train.log.

    Args:
        verbose: Whether this and other callbacks print everything they know about the run. Otherwise the details are
            only in `summary.json` and TensorBoard.
    """

    @validated
    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose

    def on_start(self, context: RunContext) -> None:
        """Log the model, the data, the device and the run directory."""
        self._context = context
        self._table = StepTable(context, every_report=self.verbose)
        self._last_mark: Any = None
        self._made, self._left_out = 0, context.steps_left_out()
        self._spans: list[tuple[Any, Any]] = []
        # Processes of one run would count each other as other programs.
        self._asks_others = context.device.type == "cpu" and context.processes == 1
        self._others: Others | None = None
        for line in _description(context, verbose=self.verbose):
            log.info(line)
        if not context.first_step:
            return
        for limit in context.limits_reached():
            reached = f"{limit.key}={limit.value:.12g}"
            log.info("%s: is reached at step %d. Set %s to resume.", reached, context.first_step, limit.further)

    def on_step(self, step: int) -> None:
        """Look for other programs on the same cores; if verbose, estimate the time left after three steps."""
        self._report_others()
        if self.verbose:
            self._estimate_time(step)

    def on_report(self, report: StepReport) -> None:
        """Log a row of the table of steps."""
        with tqdm.external_write_mode():
            for line in self._table.rows(report):
                log.info("%s", line)

    def _estimate_time(self, step: int) -> None:
        """Log how long the rest will take, after three steps that were not skipped; never wait for CUDA."""
        if self._made < STEPS_BEFORE_ESTIMATE:
            before, self._last_mark = self._last_mark, _mark(self._context.device)
            left_out, self._left_out = self._left_out, self._context.steps_left_out()
            if left_out != self._left_out:
                return
            self._made += 1
            if self._made > 1:  # the first step warms up
                self._spans.append((before, self._last_mark))
        if self._made < STEPS_BEFORE_ESTIMATE or not self._spans or not _reached(self._last_mark):
            return
        # The faster of the other two was disturbed less.
        seconds_per_step = min(_seconds_between(*span) for span in self._spans)
        self._spans = []
        left = []
        if self._context.max_seconds is not None:
            left.append(max(0.0, self._context.max_seconds - self._context.trainer.clock.seconds))
        if self._context.total_steps is not None:
            left.append((self._context.total_steps - step) * seconds_per_step)
        with tqdm.external_write_mode():
            log.info("speed       %.3g s a step: about %s to go", seconds_per_step, duration(min(left)))

    def _report_others(self) -> None:
        if not self._asks_others:
            return
        if self._others is None:  # start after the first step, in which this run's own compilers work
            self._others = Others()
        if (busy := self._others.busy_cores()) is None:
            return
        self._asks_others = False
        if message := other_programs_message(busy, torch.get_num_threads(), self._others.num_cores):
            with tqdm.external_write_mode():
                log.info("cores       %s", message)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log the results, their location, and the commands to type next."""
        for label, value in _results(summary):
            log.info("%-11s %s", label, value)
        checkpoint = checkpoint_path(self._context.run_dir / "checkpoints", summary["steps"])
        log.info("checkpoint  %s", shown_path(checkpoint))
        log.info("run         %s", shown_path(self._context.run_dir))
        # TensorBoard's HParams tab stays empty if the run itself is the --logdir, so show the folder above it.
        log.info("dashboard   %s", dashboard_command(self._context.run_dir.resolve().parent))
        if summary["steps"] > self._context.first_step:  # otherwise this command made none of the steps
            log.info("repeat      %s", typed_line([*self._program(), *shlex.split(self._context.command)]))
            if parts := self._context.parts:
                log.info("            makes all steps with these settings; this run changed %s", "; ".join(parts))
        further = (limit.further for limit in self._context.limits_reached())
        log.info("resume      %s", self._resume_command(further))

    def on_stop(self, reason: str) -> None:
        """Log the command that resumes the run."""
        log.info("%s; the checkpoint is written", reason)
        log.info("run         %s", shown_path(self._context.run_dir))
        log.info("resume      %s", self._resume_command())

    def _resume_command(self, further: Iterable[str] = ()) -> str:
        words = [word for word in shlex.split(self._context.command) if not word.startswith("resume=")]
        run_dir = text_setting("run_dir", shown_path(self._context.run_dir))
        return typed_line([*self._program(), *once([*words, run_dir, "resume=auto", *further])])

    def _program(self) -> list[str]:
        """Return the words that start the program: Python, or torchrun of the same environment."""
        count = self._context.processes
        if count == 1:
            return program()
        return [program_file(), "-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m", "samout_train"]


class ProgressBar(Callback):
    """A tqdm bar on standard error. Without a terminal it is shown only if verbose, and redrawn every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_start(self, context: RunContext) -> None:
        """Keep what the bar needs. It opens at the first step, below the lines that other callbacks print first."""
        self._first_step, self._total_steps = context.first_step, context.total_steps
        self._interval = SECONDS_BETWEEN_LINES
        if is_terminal(sys.stderr):
            self._interval = 0.1
        self._is_shown = context.verbose or is_terminal(sys.stderr)

    def on_step(self, step: int) -> None:
        """Advance the bar."""
        if not self._is_shown:
            return
        if self._bar is None:
            self._bar = Bar(
                total=self._total_steps,
                initial=self._first_step,
                unit="step",
                dynamic_ncols=True,
                mininterval=self._interval,
            )
        self._bar.update(step - self._bar.n)

    def on_report(self, report: StepReport) -> None:
        """Show the figures of the report next to the bar."""
        for tag, (name, style) in SHOWN.items():
            if tag in report.metrics:
                self._shown[name] = style.format(report.metrics[tag])
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Close the bar before other callbacks print; this callback comes first."""
        self.on_close()

    def on_stop(self, reason: str) -> None:
        """Close the bar before other callbacks print."""
        self.on_close()

    def on_close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def _description(context: RunContext, *, verbose: bool) -> list[str]:
    model: Any = context.model
    source = context.source
    rows = context.batch_size // context.accumulate // context.processes
    parameters = f"{num_parameters(model):,}"
    if verbose:
        parameters += ": " + ", ".join(f"{part} {count:,}" for part, count in parameters_by_part(model).items())
    lines = [
        f"model       {context.model_name}",
        f"parameters  {parameters}",
        f"data        {context.data_name}: {_facts(source.description, verbose=verbose)}",
        f"device      {context.device}, in {context.precision}",
    ]
    if verbose:
        lines += _figures(context, rows)
    if context.settings.get("precision") == "auto" and context.device.type == "cpu":
        lines += _hint_at_bfloat16(model, tokens_of(rows, source.train.seq_len, context.chunk_len))
    if context.first_step:
        lines.append(f"resumed     after step {context.first_step:,}")
    lines.append(f"run         {shown_path(context.run_dir)}")
    return lines


def _figures(context: RunContext, rows: int) -> list[str]:
    """Return a line each for the cost of a token, a sequence and a step, for memory, and for the floor of the loss."""
    model: Any = context.model
    seq_len = context.source.train.seq_len
    flops = model.forward_flops_per_token(seq_len)
    num_targets = _num_targets(context)
    lines = [
        f"token       {_count(flops)} FLOPs forward, {_count(TRAINING_TIMES * flops)} in training",
        f"sequence    {model.state_bytes(seq_len):,} bytes of state after {seq_len} tokens",
        f"step        {_step_size(context, num_targets)}",
        f"memory      {_memory(context, rows, num_targets)} at the peak",
    ]
    if context.source.floor_nats is not None:
        lines.append(f"floor       {context.source.floor_nats:.4f} nats: on fresh sequences nothing can be lower")
    return lines


def _facts(description: dict[str, object], *, verbose: bool) -> str:
    facts = []
    for key, value in description.items():
        if key == "sha256" and not verbose:
            continue
        if isinstance(value, list):
            value = len(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        facts.append(f"{key} {value}")
    return ", ".join(facts)


def _step_size(context: RunContext, num_targets: int) -> str:
    seq_len = context.source.train.seq_len
    size = f"{context.batch_size * seq_len:,} tokens in {context.batch_size} rows of {seq_len}"
    if context.accumulate > 1:
        size += f", {context.accumulate} micro-steps"
    if context.processes > 1:
        size += f", {context.processes} processes"
    if context.source.document_id is not None:
        size += ", split where documents begin"
    if context.source.pad_id is None:
        return f"{size}; {num_targets:,} of the first ones are counted"
    ids_RT = context.source.train.windows(0, context.batch_size)
    padding = float((ids_RT == context.source.pad_id).float().mean())
    return f"{size}; {padding:.2%} of the first rows is padding"


def _hint_at_bfloat16(model: Any, num_tokens: int) -> list[str]:
    """Return a line of advice if this machine multiplies faster in bfloat16."""
    shape = product_of(model, num_tokens)
    if shape is None:
        return []
    share = bfloat16_share(shape)
    if share is None or share >= WORTH_SAYING:
        return []
    return [f"precision   fp32; products in bf16 take {share:.2f} of the time here: try precision=bf16"]


def _memory(context: RunContext, rows: int, num_targets: int) -> str:
    if any(isinstance(parameter, DTensor) for parameter in context.model.parameters()):
        return "not known (the model is in shards)"
    seq_len = context.source.train.seq_len
    try:
        needed = _bytes(
            estimate_memory_bytes(
                context.model,
                rows=rows,
                seq_len=min(seq_len, context.chunk_len or seq_len),
                accumulate=context.accumulate,
                precision=context.precision,
                device=context.device,
                most_targets=num_targets,
            )
        )
    except RuntimeError as error:  # a user's model may call an operation without a shape function
        return f"not known ({str(error).splitlines()[0]})"
    return f"about {needed}"


def _num_targets(context: RunContext) -> int:
    """Return the number of counted targets in the first `batch_size` rows of the data."""
    rows = context.source.train
    targets_RT = rows.split(rows.windows(0, context.batch_size))[1]
    return int((targets_RT != context.source.ignore_index).sum())


def _results(summary: dict[str, Any]) -> list[tuple[str, str]]:
    best = (
        f"{_nats(summary['best_val_loss_nats'])} at step {summary['best_val_step']}, of the evaluations during training"
    )
    evaluated = "the whole validation split"
    if "val_batches" in summary:
        evaluated = f"a part of the validation split (trainer.final_eval_batches={summary['val_batches']})"
    rows = [
        ("steps", f"{summary['steps']:,}, {summary['tokens_seen']:,} tokens"),
        ("train loss", _nats(summary["train_loss_nats"])),
        ("val loss", f"{_nats(summary['val_loss_nats'])}, on {evaluated}"),
    ]
    if summary.get("ema_val_loss_nats") is not None:
        rows.append(("average", f"{_nats(summary['ema_val_loss_nats'])}, of the averaged weights (trainer.ema)"))
    rows.append(("best", best))
    if "empty_steps" in summary:
        rows.append(("skipped", f"{summary['empty_steps']:,} steps, whose batches had no counted target"))
    if "floor_nats" in summary:
        rows.append(("floor", f"{_nats(summary['floor_nats'])}: a training loss below it is memorised, not learned"))
    if "bits_per_byte" in summary:
        rows.append(("bits/byte", f"{summary['bits_per_byte']:.4f}"))
    if summary.get("bits_per_character") not in (None, summary.get("bits_per_byte")):
        rows.append(("bits/char", f"{summary['bits_per_character']:.4f}"))
    if "word_perplexity" in summary:
        rows.append(("perplexity", f"{summary['word_perplexity']:.4g} per word"))
    rows += [
        ("speed", f"{summary['tokens_per_second']:,.0f} tokens/s, {duration(summary['train_seconds'])}"),
        ("memory", f"{_bytes(summary['peak_memory_bytes'])} at the peak"),
    ]
    return rows


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _reached(mark: Any) -> bool:
    return isinstance(mark, float) or bool(mark.query())


def _seconds_between(first: Any, second: Any) -> float:
    if isinstance(first, float):
        return float(second - first)
    return float(first.elapsed_time(second)) / 1000


def _nats(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.4f} nats"


def _count(number: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def _bytes(number: float) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.2f} GB"
    return f"{number / 1e6:.0f} MB"
