"""`python -m samout_train prove_resume steps=20 kills=5`: prove that a killed and resumed run has the same bits."""

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from samout_train.cli.request import Request
from samout_train.cli.verb import verb
from samout_train.config import ConfigError, NonNegative, Positive, key_of
from samout_train.runtime import text_setting

OWN = ("steps", "kills", "run_dir")


@verb
def prove_resume(
    request: Request, *, steps: Annotated[int, Positive], kills: Annotated[int, NonNegative], **train: Any
) -> int:
    """Trains twice, once undisturbed and once killed and resumed, and compares every bit.

    Returns:
        The exit code: 0 both are the same, 1 they are not, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    from samout_train.experiments import TrainingFailedError
    from samout_train.runtime import StopRequestedError

    try:
        return _prove(request, steps, kills, train)
    except TrainingFailedError as error:
        print(error, file=sys.stderr)
        return 1
    except StopRequestedError as stop:
        print(f"{stop}: nothing is proved: repeat the command", file=sys.stderr)
        return stop.exit_code


def _prove(request: Request, steps: int, kills: int, settings: dict[str, Any]) -> int:
    from samout_train.checkpoint import find_checkpoint, locked, read_manifest
    from samout_train.experiments import digests, run_killed
    from samout_train.models import decided
    from samout_train.runtime import StopSignals, choose_device

    if settings["resume"] is not None:
        raise ConfigError("resume: both runs start at step 0: leave it out")
    train = []
    if request.arguments.config_dir:
        train.append(f"--config-dir={request.arguments.config_dir}")
    train += [word for word in request.overrides if key_of(word) not in OWN]
    train += [f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1"]
    train.append(f"checkpoint.every_n_steps={settings['checkpoint']['every_n_steps'] or 'null'}")
    with ExitStack() as kept, StopSignals() as signals:
        if "run_dir" in map(key_of, request.overrides):
            folder = Path(settings["run_dir"])
        else:
            folder = Path(kept.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        kept.enter_context(locked(folder))
        for name in ("undisturbed", "killed"):
            if (folder / name).exists():
                raise ConfigError(f"run_dir={folder}: {name} already exists: give another directory")
        Request.checked([*train, text_setting("run_dir", folder / "undisturbed")])
        found = {}
        for name, num_kills in (("undisturbed", 0), ("killed", kills)):
            print(f"{name}: {steps} steps", file=sys.stderr)
            run_killed(
                train,
                folder / name,
                kills=num_kills,
                seed=settings["seed"],
                device=choose_device(settings["device"]),
                report=lambda line: print(line, file=sys.stderr),
                signals=signals,
            )
            found[name] = digests(folder / name)
            # The second run uses the matrix products that the first one chose, even if no cache can be written.
            products = read_manifest(find_checkpoint(folder / name)).get("products")
            kept.enter_context(decided(products))
    for name, digest_of in found.items():
        for what, digest in digest_of.items():
            print(f"{name:12} {what:10} {digest}")
    if found["undisturbed"] != found["killed"]:
        print("NOT the same")
        return 1
    print("the same, bit for bit")
    return 0
