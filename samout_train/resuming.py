"""Going on from a checkpoint."""

import logging
from pathlib import Path
from typing import Any

import torch

from samout_train import processes
from samout_train.checkpoint import CheckpointError, find_checkpoint, newest_checkpoint, read_checkpoint, read_manifest
from samout_train.measuring import go_on_with
from samout_train.ops.linear.choice import chosen_products
from samout_train.trainer import Trainer

log = logging.getLogger(__name__)


def restore(trainer: Trainer, resume: str | None, run_dir: Path) -> tuple[Path | None, dict[str, Any]]:
    """Puts a trainer where the checkpoint that `resume` names left off.

    Returns:
        The checkpoint and its content; (None, {}) where the run starts at step 0.

    Raises:
        ValueError: if there is no such checkpoint, or it is of another model.
        CheckpointError: if what is there is damaged.
    """
    if resume is None:
        return None, {}
    own = resume == "auto"
    path = None
    if processes.is_first():
        path = newest_checkpoint(run_dir, set_aside=True) if own else find_checkpoint(Path(resume))
    path = processes.from_first(path)
    if path is None:
        log.info("resume     no checkpoint in %s yet: starting at step 0", run_dir)
        return None, {}
    content = read_checkpoint(path, whole=not trainer.shared.is_sharded)
    try:
        trainer.load_state_dict(content)
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be used: it is no whole checkpoint ({error!r:.100})") from error
    then = read_manifest(path)
    if own:
        go_on_with(then.get("products"))
    now = made_with(trainer)
    if other := [f"{key} {then[key]}, now {now[key]}" for key in now if then.get(key, now[key]) != now[key]]:
        log.warning("resume     made with %s: the last bits of what follows will differ", "; ".join(other))
    trainer.resumed_from = trainer.resumed_from if own else str(path)
    log.info("resume     %s, after step %d", path, trainer.step_count)
    return path, content


def made_with(trainer: Trainer) -> dict[str, str | int]:
    """What a checkpoint is made with that decides about the last bits of what follows from it."""
    device = trainer.device
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "precision": trainer.precision,
        "products": str(chosen_products()),
    }
