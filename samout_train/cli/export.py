"""`python -m samout_train export run=DIR format=safetensors|published out=DIR`: write weights for other programs."""

import json
import sys
from typing import TYPE_CHECKING, Literal

from samout_train.cli.verb import verb

if TYPE_CHECKING:
    from samout_train.checkpoint import Exported


@verb
def export(
    *, run: str, format: Literal["safetensors", "published"], weights: Literal["last", "ema"], out: str | None
) -> int:
    """Writes a run's weights for other programs, with configuration and vocabulary beside them.

    Returns:
        The exit code: 0 done, 1 a checkpoint is damaged or the export cannot be written, 2 the request was wrong.
    """
    from samout_train.checkpoint import ExportError, export_run

    try:
        exported = export_run(run, format=format, weights=weights, out=out)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 1
    _print(exported, format)
    return 0


def _print(exported: "Exported", format: str) -> None:
    from samout_train.checkpoint import VOCABULARY, WEIGHTS

    run, folder = exported.run, exported.folder
    numbers = sum(tensor.numel() for tensor in run.model.parameters())
    notes = {WEIGHTS[format]: f"{exported.tensors} tensors, {numbers:,} numbers"}
    if run.vocabulary is not None:
        notes[VOCABULARY] = f"{run.vocabulary.name}, {run.vocab_size} ids"
    print(f"of       {run.checkpoint}, after step {run.step}")
    print(f"to       {folder}")
    for name, size in exported.files.items():
        print(f"  {name:<18} {size:>13,} bytes  {notes.get(name, '')}".rstrip())
    if run.vocabulary is None:
        print("  no vocabulary: the run was not trained on text")
    equal, load = "weights", f"load_exported({json.dumps(str(folder), ensure_ascii=False)})"
    if format == "published":
        equal = "weights and logits"
        path = json.dumps(str(folder / WEIGHTS[format]), ensure_ascii=False)  # Python reads it as JSON does
        load = f"load_published({path}, num_heads={run.model_node['num_heads']})"
    print(f"checked  read back, {equal} equal; sha256 of the weights {exported.sha256[:16]}...")
    print(f"to load  {load}")
