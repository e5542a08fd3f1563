"""`python -m samout_train evaluate run=DIR`: loss by length and position, or the accuracy of a task by length."""

import hashlib
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.request import Request
from samout_train.cli.verb import verb_with_own_words
from samout_train.config import ConfigError, DeviceName, Positive, Threads
from samout_train.runtime import in_words, is_full

if TYPE_CHECKING:
    import torch

    from samout_train.checkpoint import LoadedRun
    from samout_train.data import Source, WholeData
    from samout_train.evaluation import Evaluator

ROWS_PER_BATCH = 64  # of a task, at its training length
TIMES = (1, 4, 16, 64)  # default lengths, as multiples of the training length
MOST_TOKENS = 65536  # default of most_tokens for the run's own validation split
CHOICES = "data=choices"
LONGEST_NAME = 60  # characters of settings in a folder's name; longer ones are hashed


@verb_with_own_words("data")
def evaluate(
    request: Request,
    *,
    run: str,
    lengths: list[Annotated[int, Positive]] | None,
    most_tokens: Annotated[int, Positive] | None,
    data: str | None,
    weights: Literal["last", "ema"],
    device: DeviceName,
    kernels: Literal["auto", "reference", "fused"],
    threads: Annotated[int, Threads] | None,
) -> int:
    """Measures the loss beyond the training length, or the accuracy of a task by length.

    Returns:
        The exit code: 0 done, 1 a checkpoint is damaged, 2 the request was wrong, 130 interrupted.
    """
    from samout_train.checkpoint import evaluation_data, load_run
    from samout_train.evaluation import Evaluator
    from samout_train.models import sees_future
    from samout_train.ops import use_kernels
    from samout_train.runtime import use_device
    from samout_train.training import DATA_SETTINGS, data_problems

    of_data, on = request.own_words, use_device(device, threads)
    use_kernels(kernels)
    loaded = load_run(run, weights=weights)
    if CHOICES in of_data:
        return _choices(loaded, request, on)
    name, source, whole = evaluation_data(
        loaded,
        of_data,
        lengths,
        data_problems=data_problems,
        loop_keys=DATA_SETTINGS,
        config_dirs=request.config_dirs,
    )
    if source.chance is None and sees_future(loaded.model):
        raise ConfigError("this model sees the whole sequence, so its loss by position is undefined")
    _require_possible_lengths(source, lengths, whole)
    evaluator = Evaluator(loaded.model.to(on), source, on, "fp32")
    run_dir = loaded.checkpoint.parent.parent
    folder = run_dir / "evaluate" / _place(name, loaded.checkpoint, request.settings, of_data, whole)
    print(f"{loaded.checkpoint}, after step {loaded.step}, on {name}, {on}", flush=True)
    try:
        if source.chance is not None:
            _accuracies(evaluator, {"step": loaded.step, "weights": weights}, folder)
        else:
            about = {}
            if whole is not None:
                about = _measured_whole(evaluator, run_dir, whole)
            _losses(evaluator, request.settings, about, step=loaded.step, folder=folder)
    except OSError as error:
        print(_unwritten(error, folder), file=sys.stderr)
        return 1
    return 0


def _unwritten(error: OSError, folder: Path) -> str:
    """Return the message for results that cannot be written."""
    place = fix = None
    if error.filename is None or Path(error.filename).is_relative_to(folder):
        place = folder
        if not is_full(error):
            fix = "make it writable, or copy the run"
    return in_words(error, place=place, fix=fix)


def _place(
    name: str, checkpoint: Path, settings: dict[str, Any], of_data: Sequence[str], whole: "WholeData | None"
) -> str:
    """Name the folder of results by the data, and by a checkpoint, weights and settings that are not the default."""
    from samout_train.checkpoint import step_files

    parts = [name]
    if checkpoint.name not in [path.name for path in step_files(checkpoint.parent)[-1:]]:
        parts.append(checkpoint.stem)
    if settings["weights"] != "last":
        parts.append(settings["weights"])
    changed = []
    if settings["lengths"] is not None:
        changed += ["lengths", *map(str, settings["lengths"])]
    if settings["most_tokens"] is not None:
        changed += ["most_tokens", str(settings["most_tokens"])]
    if whole is None:
        for word in sorted(of_data):
            if not word.startswith("data="):
                changed.append(word)
    if changed:
        part = "_".join(changed)
        if len(part) > LONGEST_NAME or not re.fullmatch(r"\w+", part, re.ASCII):
            part = hashlib.sha256("\n".join(changed).encode(errors="replace")).hexdigest()[:8]
        parts.append(part)
    return "-".join(parts)


def _accuracies(evaluator: "Evaluator", about: dict[str, Any], folder: Path) -> None:
    from samout_train.evaluation import accuracy_lines, rows_that_fit
    from samout_train.runtime import write_figures

    source = evaluator.source
    if not source.tests:
        raise ConfigError("this task has no test lengths: give lengths=[...]")
    found, figures = {}, {}
    measured, started = [], time.perf_counter()
    most = getattr(evaluator.model, "max_seq_len", None)
    for name, rows in source.tests.items():
        if most is not None and rows.seq_len > most:
            print(f"  {name.replace('_', ' ')} is left out: the model has room for {most:,} tokens (model.max_seq_len)")
            continue
        measured.append(rows)
        found[name] = evaluator.accuracy(rows, rows_that_fit(ROWS_PER_BATCH, source.train, rows))
        figures[name] = found[name].figures()
    _print_speed("read", evaluator, started, [(rows.seq_len, rows.num_windows * rows.seq_len) for rows in measured])
    for line in accuracy_lines(found, source.chance):
        print(f"  {line}")
    folder.mkdir(parents=True, exist_ok=True)
    write_figures(folder / "evaluation.json", {**about, "accuracy": figures, "chance": source.chance})


def _choices(loaded: "LoadedRun", request: Request, device: "torch.device") -> int:
    """Measure the accuracy on multiple-choice questions, print and save it; return the exit code."""
    from samout_train.checkpoint import reads_documents
    from samout_train.config import compose_config, key_of, require_no_problems
    from samout_train.data import Choices
    from samout_train.evaluation import measure_choices
    from samout_train.models import sees_future
    from samout_train.runtime import write_figures
    from samout_train.training import data_problems

    node: dict[str, Any] = compose_config(request.own_words, config_dirs=request.config_dirs).config["data"]
    require_no_problems(data_problems(node, for_training=False))
    if loaded.vocabulary is None:
        raise ConfigError(f"{CHOICES}: the run was trained on ids that are not text: give a run on text")
    if sees_future(loaded.model):
        raise ConfigError(f"{CHOICES}: this model sees the whole sequence, and so each choice: give another run")
    if given := [key for key in ("lengths", "most_tokens") if request.settings[key] is not None]:
        raise ConfigError(f"{given[0]}={request.settings[given[0]]}: questions are read whole: leave it out")
    asked = Choices(path=node["path"], separator=node["separator"], documents=node["documents"], seed=0)
    questions, sha256 = asked.questions()
    documents = asked.documents
    if documents is None:
        documents = reads_documents(loaded)
    stem = re.sub(r"[^\w.-]+", "_", Path(asked.path).name)[:LONGEST_NAME]
    name = f"choices-{stem}-{sha256[:8]}"
    words = [word for word in request.own_words if key_of(word) != "data.path"]  # the name has file and content
    place = _place(name, loaded.checkpoint, request.settings, words, None)
    folder = loaded.checkpoint.parent.parent / "evaluate" / place
    print(f"{loaded.checkpoint}, after step {loaded.step}, on {name}, {device}", flush=True)
    found = measure_choices(
        loaded.model.to(device),
        loaded.vocabulary,
        questions,
        separator=asked.separator,
        documents=documents,
        device=device,
        most_rows=node["batch_size"],
    )
    for line in found.lines():
        print(f"  {line}")
    figures = {"step": loaded.step, "weights": request.settings["weights"]}
    figures |= {"path": asked.path, "sha256": sha256, "separator": asked.separator, "documents": documents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_figures(folder / "evaluation.json", figures | found.figures())
    except OSError as error:
        print(_unwritten(error, folder), file=sys.stderr)
        return 1
    return 0


def _measured_whole(evaluator: "Evaluator", run_dir: Path, whole: "WholeData") -> dict[str, Any]:
    """Measure the loss on all of the data, each row from a fresh state as in training, and print it."""
    from samout_train.config import saved_node
    from samout_train.data import digests_of
    from samout_train.evaluation import in_order, perplexity

    rows = whole.rows
    print(f"  {whole.path}, sha256 {whole.sha256}")
    trained = digests_of(saved_node(run_dir / ".hydra" / "config.yaml", "data"))
    is_training_text = bool(trained & whole.digests)
    if is_training_text:
        print("  the run was trained on this text or a part of it: expect a higher loss on other text")
    started = time.perf_counter()
    found = evaluator.loss(in_order(rows, ROWS_PER_BATCH), -(-rows.num_windows // ROWS_PER_BATCH))
    _print_speed("whole text read", evaluator, started, [(rows.seq_len, rows.num_windows * rows.seq_len)])
    if whole.published is not None:
        print(f"  the published split: {whole.published}")
    bits = ""
    if found.bits_per_byte is not None and found.bits_per_character is not None:
        bits = f", {found.bits_per_byte:.4f} bits per byte, {found.bits_per_character:.4f} bits per character"
    nats = f"{found.loss_nats:.4f} nats a token, perplexity {perplexity(found.loss_nats):.4g}"
    print(f"  {nats}{bits}, over {found.num_targets:,} counted targets, the whole text")
    word_perplexity = None
    if whole.words is not None and not whole.unknown:
        word_perplexity = found.word_perplexity(whole.words)
        print(f"  {word_perplexity:.4g} perplexity per word, of {whole.words:,} words and line ends")
    if whole.unknown:
        print(
            f"  {whole.unknown:,} of {len(whole.tokens):,} tokens ({whole.unknown_share:.2%}) are characters outside "
            "the vocabulary of the run; they are not counted"
        )
    if rows.seq_len < whole.seq_len:
        print(f"  it is shorter than a training row of {whole.seq_len:,}: read as one row of {rows.seq_len:,}")
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


def _require_possible_lengths(source: "Source", given: list[int] | None, whole: "WholeData | None") -> None:
    """Raise ConfigError for lengths other than the training length if the rows of the data are not consecutive."""
    from samout_train.evaluation import stream_of

    trained = source.train.seq_len
    if whole is not None:
        trained = whole.seq_len
    if source.chance is None and given and set(given) != {trained} and stream_of(source.validation) is None:
        raise ConfigError(
            f"lengths={given}: the rows of this data do not follow each other, so they have no other length than "
            f"{trained}: leave it out"
        )


def _print_speed(what: str, evaluator: "Evaluator", started: float, read: Sequence[tuple[int, int]]) -> None:
    """Print how fast a measurement was, start-up of kernels included.

    Args:
        what: What was measured.
        evaluator: The evaluator that measured.
        started: The start of the measurement, from `time.perf_counter`.
        read: Pairs of a row length and the number of tokens read in rows of that length.
    """
    from samout_train.runtime import matmul_rate

    seconds = time.perf_counter() - started
    model: Any = evaluator.model
    num_tokens = sum(tokens for _, tokens in read)
    flops = sum(tokens * model.forward_flops_per_token(length) for length, tokens in read) / seconds
    rate = matmul_rate(evaluator.device, evaluator.precision)
    print(
        f"  {what} at {num_tokens / seconds:,.0f} tokens/s, {flops / 1e12:.3g} TFLOP/s: {flops / rate:.1%} of the "
        f"measured rate of matrix products, {rate / 1e12:.3g} TFLOP/s"
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
    started = time.perf_counter()
    if tokens is None:
        default = MOST_TOKENS
        if about:
            default = rows.num_windows * trained
        found = evaluator.by_position(rows, most_tokens or default, trained_length=trained)
    else:
        lengths = [trained * times for times in TIMES]
        if given is not None:
            lengths = [*given, trained, FAR_TIMES * trained]
        if rows.seq_len < trained:
            lengths.append(rows.seq_len)
        most = most_tokens or about.get("tokens", MOST_TOKENS)
        found = evaluator.by_length(tokens, lengths, most, trained_length=trained)
    _print_speed("windows read", evaluator, started, [(length, found.num_tokens) for length in found.loss_nats])
    if most_tokens is not None and found.num_tokens > most_tokens:
        print(f"  most_tokens={most_tokens}: raised to {found.num_tokens:,}, which the longest window needs")
    for line in extrapolation_table(found):
        print(f"  {line}")
    about = {"weights": settings["weights"], **about}
    write_extrapolation(found, folder.parent.parent.name, folder, step=step, about=about)
    print(f"  {missing_charts() or f'drawn in {folder / PICTURE}'}")
