"""`python -m samout_train reproduce experiment=NAME`: compare a preset's losses on this machine with recorded ones."""

import datetime
from typing import Annotated, Any

from samout_train.cli.request import Request
from samout_train.cli.verb import verb
from samout_train.config import ConfigError, Positive, key_of
from samout_train.runtime import Bar

OWN = ("steps", "record")
FREE = ("experiment", "device", "precision", "kernels", "data.path", *OWN)


@verb
def reproduce(request: Request, *, steps: Annotated[int, Positive] | None, record: bool, **train: Any) -> int:
    """Trains the first steps of a preset and compares the losses with the recorded curve.

    Returns:
        The exit code: 0 on the curve, 1 off it, 2 the request was wrong, 130 interrupted.
    """
    preset = request.choice("experiment")
    if preset is None:
        raise ConfigError("experiment: is missing: set experiment=NAME, one of conf/experiment")
    words = []
    for word in request.overrides:
        if key_of(word) not in FREE:
            raise ConfigError(f"{word}: changes the recorded preset: leave it out. Only {', '.join(FREE)} can be set")
        if key_of(word) not in OWN:
            words.append(word)
    if not any(word.startswith("precision=") for word in words):
        words.append(f"precision={train['precision']}")
    from samout_train.experiments import HEADER, GoldenCurve, losses_of

    if record:
        return _record(preset, words, steps)
    curve = GoldenCurve.read(preset)
    num_steps = min(steps or curve.ends[-1], curve.ends[-1])
    of = curve.recorded
    print(f"{preset}: recorded on {of['date']}, {of['device']}, torch {of['torch']}, {of['precision']}")
    print(HEADER, flush=True)
    trainer = _trainer(words)
    first_off = None
    for span in curve.compared(losses_of(trainer.step, num_steps)):
        print(span.line(), flush=True)
        if first_off is None and not span.is_on:
            first_off = span.first
    if first_off is not None:
        print(f"OFF the curve from step {first_off} on")
        return 1
    print(f"on the curve, as far as step {span.last}")
    return 0


def _trainer(words: list[str]) -> Any:
    from samout_train.training import build_trainer

    return build_trainer(words)


def _record(preset: str, words: list[str], most_steps: int | None) -> int:
    """Record a curve from three replicas: all threads, one thread, and torch's own operations."""
    import torch

    from samout_train.experiments import GoldenCurve, losses_of
    from samout_train.runtime import commit, device_name

    threads, replicas, names = torch.get_num_threads(), [], []
    try:
        for name, num_threads, more in (
            (f"{threads} threads", threads, []),
            ("1 thread", 1, []),
            ("kernels=reference", threads, ["kernels=reference"]),
        ):
            torch.set_num_threads(num_threads)
            trainer = _trainer([*words, *more])
            steps = trainer.limits.total_steps
            if most_steps is not None:
                steps = min(most_steps, steps)
            losses = losses_of(trainer.step, steps)
            replicas.append(list(Bar(losses, desc=name, total=steps)))
            names.append(name)
    finally:
        torch.set_num_threads(threads)
    recorded = {
        "device": device_name(trainer.device),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "precision": trainer.precision,
        "replicas": names,
    }
    curve = GoldenCurve.of_replicas(preset, replicas, recorded)
    print(f"written to {curve.write()}")
    print(f"{'last step':>9}  {'loss':>8}  {'tolerance':>9}")
    for end, nats, tolerance in zip(curve.ends, curve.loss_nats, curve.tolerance_nats, strict=True):
        print(f"{end:9,}  {nats:8.4f}  {tolerance:9.5f}")
    return 0
