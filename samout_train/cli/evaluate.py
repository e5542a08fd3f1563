"""`python -m samout_train evaluate run=DIR`: loss by length and by position, or the accuracy of a task by length."""

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.request import Request
from samout_train.cli.verb import verb_with_own_words
from samout_train.config import ConfigError, DeviceName, Positive, Threads
from samout_train.runtime import in_words, is_full

if TYPE_CHECKING:
    from samout_train.data import Source, WholeData
    from samout_train.evaluation import Evaluator

ROWS_PER_BATCH = 64  # of a task, at the length that it was trained at
TIMES = (1, 4, 16, 64)  # of the training length, where no lengths are given
MOST_TOKENS = 65536  # of the run's own validation split at each length, where most_tokens is not given

LONGEST_NAME = 60  # of the part of a folder's name that says how was measured


@verb_with_own_words("data")
def evaluate(
    request: Request,
    *,
    run: str,
    lengths: list[Annotated[int, Positive]] | None,
    most_tokens: Annotated[int, Positive] | None,
    data: str | None,
    device: DeviceName,
    kernels: Literal["auto", "reference", "fused"],
    threads: Annotated[int, Threads] | None,
) -> int:
    """Says what a model loses past the length that it was trained at.

    Returns:
        The exit code: 0 done, 1 a checkpoint is damaged, 2 the request was wrong, 130 interrupted.
    """
    from samout_train.checkpoint import evaluation_data, load_run
    from samout_train.evaluation import Evaluator
    from samout_train.models import sees_future
    from samout_train.ops import use_kernels
    from samout_train.runtime import choose_device, keep_freed_memory, use_threads
    from samout_train.training import DATA_SETTINGS, data_problems

    of_data, on = request.own_words, choose_device(device)
    if on.type == "cpu":
        keep_freed_memory()
    use_kernels(kernels)
    use_threads(threads)
    loaded = load_run(run)
    name, source, whole = evaluation_data(
        loaded,
        of_data,
        lengths,
        data_problems=data_problems,
        loop_keys=DATA_SETTINGS,
        config_dirs=request.config_dirs,
    )
    if source.chance is None and sees_future(loaded.model):
        raise ConfigError("this model sees the whole sequence, so that it has no loss by position to go on with")
    _refuse_lengths(source, lengths, source.train.seq_len if whole is None else whole.seq_len)
    evaluator = Evaluator(loaded.model.to(on), source, on, "fp32")
    run_dir = loaded.checkpoint.parent.parent
    folder = run_dir / "evaluate" / _place(name, loaded.checkpoint, request.settings, of_data, whole)
    print(f"{loaded.checkpoint}, after step {loaded.step}, on {name}, {on}", flush=True)
    try:
        if source.chance is not None:
            _accuracies(evaluator, loaded.step, folder)
        else:
            about = {} if whole is None else _measured_whole(evaluator, run_dir, whole)
            _losses(evaluator, request.settings, about, step=loaded.step, folder=folder)
    except OSError as error:
        place = folder if error.filename is None or Path(error.filename).is_relative_to(folder) else None
        fix = "make it writable, or copy the run" if place and not is_full(error) else None
        print(in_words(error, place=place, fix=fix), file=sys.stderr)
        return 1
    return 0


def _place(
    name: str, checkpoint: Path, settings: dict[str, Any], of_data: Sequence[str], whole: "WholeData | None"
) -> str:
    """Name the folder of results: by the data alone for the newest checkpoint and default settings, else by these."""
    parts = [name]
    if checkpoint.name != max(path.name for path in checkpoint.parent.glob("step_*.pt")):
        parts.append(checkpoint.stem)
    lengths, most_tokens = settings["lengths"], settings["most_tokens"]
    said = [] if lengths is None else ["lengths", *map(str, lengths)]
    said += [] if most_tokens is None else ["most_tokens", str(most_tokens)]
    said += sorted(word for word in of_data if whole is None and not word.startswith("data="))
    if said:
        readable = "_".join(said)
        is_short = len(readable) <= LONGEST_NAME and re.fullmatch(r"\w+", readable, re.ASCII)
        parts.append(readable if is_short else hashlib.sha256("\n".join(said).encode(errors="replace")).hexdigest()[:8])
    return "-".join(parts)


def _accuracies(evaluator: "Evaluator", step: int, folder: Path) -> None:
    from samout_train.evaluation import accuracy_lines, rows_that_fit
    from samout_train.runtime import write_figures

    source = evaluator.source
    if not source.tests:
        raise ConfigError("there is nothing to test at: give lengths=[...]")
    found, most = {}, getattr(evaluator.model, "max_seq_len", None)
    for name, rows in source.tests.items():
        if most is not None and rows.seq_len > most:
            print(f"  {name.replace('_', ' ')} is left out: the model has room for {most:,} tokens (model.max_seq_len)")
            continue
        found[name] = evaluator.accuracy(rows, rows_that_fit(ROWS_PER_BATCH, source.train, rows))
    for line in accuracy_lines(found, source.chance):
        print(f"  {line}")
    folder.mkdir(parents=True, exist_ok=True)
    by_name = {name: one.figures() for name, one in found.items()}
    write_figures(folder / "evaluation.json", {"step": step, "accuracy": by_name, "chance": source.chance})


def _measured_whole(evaluator: "Evaluator", run_dir: Path, whole: "WholeData") -> dict[str, Any]:
    """Measure data from end to end, each row from a fresh state as in training, and print what it is."""
    from samout_train.config import saved_node
    from samout_train.data import digests_of
    from samout_train.evaluation import in_order

    rows = whole.rows
    print(f"  {whole.path}, sha256 {whole.sha256}")
    trained = digests_of(saved_node(run_dir / ".hydra" / "config.yaml", "data"))
    is_training_text = bool(trained & whole.digests)
    if is_training_text:
        print(
            "  this is the text of the run, or contains a file of it: the loss does not say how it does on other text"
        )
    found = evaluator.loss(in_order(rows, ROWS_PER_BATCH), -(-rows.num_windows // ROWS_PER_BATCH))
    if whole.published is not None:
        print(f"  the published split: {whole.published}")
    bits = ""
    if found.bits_per_byte is not None and found.bits_per_character is not None:
        bits = f", {found.bits_per_byte:.4f} bits per byte, {found.bits_per_character:.4f} bits per character"
    print(f"  {found.loss_nats:.4f} nats a token{bits}, over {found.num_targets:,} counted targets: all of it")
    word_perplexity = None
    if whole.words is not None and not whole.unknown:
        word_perplexity = found.word_perplexity(whole.words)
        print(f"  {word_perplexity:.4g} perplexity per word, of {whole.words:,} words and line ends")
    if whole.unknown:
        print(
            f"  {whole.unknown:,} of {len(whole.tokens):,} tokens ({whole.unknown_share:.2%}) are characters that the "
            "vocabulary of the run does not have; they are not counted"
        )
    if rows.seq_len < (trained_length := whole.seq_len):
        print(f"  it is shorter than a training row of {trained_length:,}: read as one row of {rows.seq_len:,}")
    return {
        "path": whole.path,
        "sha256": whole.sha256,
        "tokens": len(whole.tokens),
        "counted_targets": found.num_targets,
        "not_in_vocabulary": whole.unknown,
        "not_in_vocabulary_share": whole.unknown_share,
        "is_training_text": is_training_text,
        "trained_length": whole.seq_len,
        "whole_loss_nats": found.loss_nats,
        "bits_per_byte": found.bits_per_byte,
        "bits_per_character": found.bits_per_character,
        "word_perplexity": word_perplexity,
    }


def _refuse_lengths(source: "Source", given: list[int] | None, trained: int) -> None:
    """Refuse lengths of rows that do not follow each other: these have the one that the model was trained at."""
    from samout_train.evaluation import stream_of

    if source.chance is None and given and set(given) != {trained} and stream_of(source.validation) is None:
        raise ConfigError(
            f"lengths={given}: the rows of this data do not follow each other, so there are none of other lengths "
            f"than {trained}: leave it out"
        )


def _losses(
    evaluator: "Evaluator", settings: dict[str, Any], about: dict[str, Any], *, step: int, folder: Path
) -> None:
    from samout_train.evaluation import (
        FAR_TIMES,
        PICTURE,
        extrapolation_table,
        missing_charts,
        stream_of,
        write_extrapolation,
    )

    rows, given = evaluator.source.validation, settings["lengths"]
    trained = about.get("trained_length", evaluator.source.train.seq_len)
    tokens, most_tokens = stream_of(rows), settings["most_tokens"]
    if tokens is None:
        default = MOST_TOKENS
        if about:
            default = rows.num_windows * trained
        found = evaluator.by_position(rows, most_tokens or default, trained_length=trained)
    else:
        lengths = [trained * times for times in TIMES] if given is None else [*given, trained, FAR_TIMES * trained]
        lengths += [rows.seq_len] if rows.seq_len < trained else []
        found = evaluator.by_length(
            tokens, lengths, most_tokens or about.get("tokens", MOST_TOKENS), trained_length=trained
        )
    if most_tokens is not None and found.num_tokens > most_tokens:
        print(
            f"  most_tokens={most_tokens}: the longest window takes {found.num_tokens:,} tokens, and so many are read"
        )
    for line in extrapolation_table(found):
        print(f"  {line}")
    write_extrapolation(found, folder.parent.parent.name, folder, step=step, about=about)
    print(f"  {missing_charts() or f'drawn in {folder / PICTURE}'}")
