"""Show a person the run: a bar as it goes, and the log.

The log has the model's figures before step 1, the time it will take, and the results at the end.
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
    program,
    program_file,
    shown_path,
    text_setting,
    told_others,
    typed_line,
)
from samout_train.training.callbacks.base import Callback, RunContext, StepReport
from samout_train.training.limits import once

STEPS_BEFORE_ESTIMATE = 3
SECONDS_BETWEEN_LINES = 10.0
SHOWN = {
    "train/loss_nats": ("loss", "{:.3f}"),
    "val/loss_nats": ("val", "{:.3f}"),
    "train/lr": ("lr", "{:.2e}"),
    "time/tokens_per_second": ("tokens/s", "{:,.0f}"),
}
log = logging.getLogger(__name__)


class Report(Callback):
    """Writes to the log, which goes to the console and to samout_train.log."""

    def on_start(self, context: RunContext) -> None:
        """Log the model and the data in figures."""
        self._context = context
        self._last_mark: Any = None
        self._made, self._left_out = 0, context.steps_left_out()
        self._spans: list[tuple[Any, Any]] = []
        # Processes of one run are others to each other.
        self._asks_others = context.device.type == "cpu" and context.processes == 1
        self._others: Others | None = None
        for line in _description(context):
            log.info(line)
        if not context.first_step:
            return
        for limit in context.limits_reached():
            said = f"{limit.key}={limit.value:.12g}"
            log.info("%s: is reached at step %d: set %s to go on", said, context.first_step, limit.further)

    def on_step(self, step: int) -> None:
        """Log, after three steps that learned, what time the rest will take; on CUDA without waiting for the device."""
        self._tell_others()
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
        # Of the others the faster one is the less disturbed.
        seconds_per_step = min(_seconds_between(*span) for span in self._spans)
        self._spans = []
        left = []
        if self._context.max_seconds is not None:
            left.append(self._context.max_seconds)
        if self._context.total_steps is not None:
            left.append((self._context.total_steps - step) * seconds_per_step)
        with tqdm.external_write_mode():
            log.info("%.3g s a step: about %s to go at this speed", seconds_per_step, _duration(min(left)))

    def _tell_others(self) -> None:
        if not self._asks_others:
            return
        if self._others is None:  # not before the first step, in which compilers of this run are at work
            self._others = Others()
        if (busy := self._others.busy_cores()) is None:
            return
        self._asks_others = False
        if told := told_others(busy, torch.get_num_threads(), self._others.num_cores):
            with tqdm.external_write_mode():
                log.info("cores       %s", told)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log the results, where they lie, and what to type next."""
        run_dir = shown_path(self._context.run_dir)
        for name, value in _results(summary):
            log.info("  %-22s %s", name, value)
        log.info("run        %s", run_dir)
        # TensorBoard finds no figures for its HParams in a run that is itself the --logdir: the folder above is shown.
        log.info("dashboard  %s", dashboard_command(self._context.run_dir.resolve().parent))
        if (
            summary["steps"] > self._context.first_step
        ):  # else a limit had been reached before, and these are not its words
            log.info("repeat     %s", typed_line([*self._program(), *shlex.split(self._context.command)]))
            if parts := self._context.parts:
                log.info("           makes all its steps in one way; this run changed %s", "; ".join(parts))
        log.info("continue   %s", self._continue_command(limit.further for limit in self._context.limits_reached()))

    def on_stop(self, reason: str) -> None:
        """Log what continues the run."""
        log.info("%s, and the checkpoint is written", reason)
        log.info("run        %s", shown_path(self._context.run_dir))
        log.info("continue   %s", self._continue_command())

    def _continue_command(self, further: Iterable[str] = ()) -> str:
        words = [word for word in shlex.split(self._context.command) if not word.startswith("resume=")]
        run_dir = text_setting("run_dir", shown_path(self._context.run_dir))
        return typed_line([*self._program(), *once([*words, run_dir, "resume=auto", *further])])

    def _program(self) -> list[str]:
        """Return what starts it: Python, or torchrun, which the same environment has."""
        count = self._context.processes
        if count == 1:
            return program()
        return [program_file(), "-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m", "samout_train"]


class ProgressBar(Callback):
    """A tqdm bar on standard error; where that is no terminal, it is written anew every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_start(self, context: RunContext) -> None:
        """Keep what the bar needs; it opens with the first step, below what others print before it."""
        self._first_step, self._total_steps = context.first_step, context.total_steps

    def on_step(self, step: int) -> None:
        """Move it on."""
        if self._bar is None:
            interval = SECONDS_BETWEEN_LINES
            if is_terminal(sys.stderr):
                interval = 0.1
            self._bar = Bar(
                total=self._total_steps,
                initial=self._first_step,
                unit="step",
                dynamic_ncols=True,
                mininterval=interval,
            )
        self._bar.update(step - self._bar.n)

    def on_report(self, report: StepReport) -> None:
        """Show what the step says."""
        for tag, (name, style) in SHOWN.items():
            if tag in report.metrics:
                self._shown[name] = style.format(report.metrics[tag])
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Close the bar, before others print: it is the first callback."""
        self.on_close()

    def on_stop(self, reason: str) -> None:
        """Close the bar, before others print."""
        self.on_close()

    def on_close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def _description(context: RunContext) -> list[str]:
    model: Any = context.model
    source = context.source
    parts = ", ".join(f"{part} {count:,}" for part, count in parameters_by_part(model).items())
    seq_len = source.train.seq_len
    flops = model.forward_flops_per_token(seq_len)
    rows = context.batch_size // context.accumulate // context.processes
    num_targets = _num_targets(context)
    lines = [
        f"data        {_facts(source.description)}",
        f"parameters  {num_parameters(model):,}: {parts}",
        f"a token     {_count(flops)} FLOPs forward, {_count(TRAINING_TIMES * flops)} in training",
        f"a sequence  {model.state_bytes(seq_len):,} bytes of state after {seq_len} tokens",
        f"a step      {_step_size(context, num_targets)}",
        f"memory      {_memory(context, rows, num_targets)} at the peak, on {context.device} in {context.precision}",
    ]
    if context.settings.get("precision") == "auto" and context.device.type == "cpu":
        lines += _hint_at_bfloat16(model, tokens_of(rows, seq_len, context.chunk_len))
    if source.floor_nats is not None:
        lines.append(f"floor       {source.floor_nats:.4f} nats: on fresh sequences nothing can be lower")
    if context.first_step:
        lines.append(f"continuing  from step {context.first_step}")
    return lines


def _facts(description: dict[str, object]) -> str:
    facts = []
    for key, value in description.items():
        if isinstance(value, list):
            value = len(value)
        facts.append(f"{key} {value}")
    return ", ".join(facts)


def _step_size(context: RunContext, num_targets: int) -> str:
    seq_len = context.source.train.seq_len
    size = f"{context.batch_size * seq_len:,} tokens in {context.batch_size} rows of {seq_len}"
    if context.accumulate > 1:
        size += f", {context.accumulate} micro-steps"
    if context.processes > 1:
        size += f", {context.processes} processes"
    if context.source.pad_id is None:
        return f"{size}; {num_targets:,} of the first ones are counted"
    ids_RT = context.source.train.windows(0, context.batch_size)
    padding = float((ids_RT == context.source.pad_id).float().mean())
    return f"{size}; {padding:.2%} of the first rows is padding"


def _hint_at_bfloat16(model: Any, num_tokens: int) -> list[str]:
    """Return a line that says so where this machine multiplies faster in bfloat16."""
    shape = product_of(model, num_tokens)
    if shape is None:
        return []
    share = bfloat16_share(shape)
    if share is None or share >= WORTH_SAYING:
        return []
    took = f"measured here, products of this model's size take {share:.2f} of the time in bf16"
    return [f"precision   fp32; {took}: try precision=bf16"]


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
    except (RuntimeError, NotImplementedError) as error:  # a model of the user's may do what has no shape function
        return f"not known ({str(error).splitlines()[0]})"
    return f"about {needed}"


def _num_targets(context: RunContext) -> int:
    """Return the counted targets of as many rows as a step has."""
    rows = context.source.train
    targets_RT = rows.split(rows.windows(0, context.batch_size))[1]
    return int((targets_RT != context.source.ignore_index).sum())


def _results(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("parameters", f"{summary['parameters']:,}"),
        ("steps", f"{summary['steps']:,}, {summary['tokens_seen']:,} tokens"),
        ("train loss", _nats(summary["train_loss_nats"])),
        ("validation loss", _nats(summary["val_loss_nats"])),
        ("best validation loss", f"{_nats(summary['best_val_loss_nats'])} at step {summary['best_val_step']}"),
    ]
    if "empty_steps" in summary:
        rows.append(("left out", f"{summary['empty_steps']:,} steps, whose batches had no counted target"))
    if "floor_nats" in summary:
        rows.append(("floor", f"{_nats(summary['floor_nats'])}: a training loss below it is memorised, not learned"))
    if "bits_per_byte" in summary:
        rows.append(("bits per byte", f"{summary['bits_per_byte']:.4f}"))
    if summary.get("bits_per_character") not in (None, summary.get("bits_per_byte")):
        rows.append(("bits per character", f"{summary['bits_per_character']:.4f}"))
    if "word_perplexity" in summary:
        rows.append(("perplexity per word", f"{summary['word_perplexity']:.4g}"))
    rows += [
        ("speed", f"{summary['tokens_per_second']:,.0f} tokens/s, {_duration(summary['train_seconds'])}"),
        ("peak memory", _bytes(summary["peak_memory_bytes"])),
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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s"


def _count(number: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def _bytes(number: float) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.2f} GB"
    return f"{number / 1e6:.0f} MB"
