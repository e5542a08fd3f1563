"""Going on from a checkpoint."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from samout_train.checkpoint import (
    CheckpointError,
    data_record,
    find_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    read_manifest,
    refuse_other_data,
    scalars,
)
from samout_train.config import current_settings
from samout_train.models import go_on_with
from samout_train.ops import chosen_products
from samout_train.runtime import distributed
from samout_train.training.settings import DATA_SETTINGS
from samout_train.training.trainer import Trainer

OPTIMIZER = "optimizer._target_"
log = logging.getLogger(__name__)


def restore(
    trainer: Trainer, config: Mapping[str, Any], run_dir: Path, record: Mapping[str, Any]
) -> tuple[Path | None, dict[str, Any]]:
    """Puts a trainer where the checkpoint that `resume` names left off.

    Args:
        trainer: As it was built.
        config: The configuration.
        run_dir: Where the run lies.
        record: Of `record_of`.

    Returns:
        The checkpoint and its content; (None, {}) where the run starts at step 0.

    Raises:
        ValueError: if there is no such checkpoint, or it is of another model, optimizer or, in one run, other data.
        CheckpointError: if what is there is damaged.
    """
    resume = config["resume"]
    if resume is None:
        return None, {}
    own = resume == "auto"
    path = None
    if distributed.is_first():
        path = newest_checkpoint(run_dir, set_aside=True) if own else find_checkpoint(Path(resume))
    path = distributed.from_first(path)
    if path is None:
        log.info("resume     no checkpoint in %s yet: starting at step 0", run_dir)
        return None, {}
    content = read_checkpoint(path, whole=not trainer.shared.is_sharded)
    then = read_manifest(path)
    settings, before = record["settings"], current_settings(then.get("settings", {}))
    if own:
        refuse_other_data(record["data"], then.get("data"), config["data"])
    elif (kind := before.get(OPTIMIZER)) not in (None, settings[OPTIMIZER]):
        raise ValueError(f"{OPTIMIZER}={settings[OPTIMIZER]}: {path} was made with {kind}: choose that optimizer")
    try:
        if own:
            trainer.load_state_dict(content)
        else:
            trainer.begin_from(content, str(path))
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be used: it is no whole checkpoint ({error!r:.100})") from error
    if own:
        go_on_with(then.get("products"))
    now = made_with(trainer)
    if other := [f"{key} {then[key]}, now {now[key]}" for key in now if then.get(key, now[key]) != now[key]]:
        log.warning("resume     made with %s: the last bits of what follows will differ", "; ".join(other))
    anew = "" if own else ": a new run, with its weights, optimizer, steps and random states; the record begins anew"
    log.info("resume     %s, after step %d%s", path, trainer.step_count, anew)
    _tell_changes(trainer, settings, before)
    if own:
        content["parts"] = [*then.get("parts", []), *_other_part(trainer, now | settings, then | before)]
    return path, content


def _other_part(trainer: Trainer, now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Return what the steps to come have other than those made; what ends a run early or late is not in it."""
    keys = [key for key in ("precision", "processes") if then.get(key, now[key]) != now[key]]
    if "schedule._target_" in then:  # an earlier version did not record its settings
        decide = {key for key in now.keys() | then.keys() if key.startswith(("schedule.", "trainer."))}
        keys += sorted(k for k in decide if not k.startswith("trainer.max_") and now.get(k) != then.get(k))
    step, last = trainer.step_count, float(trainer.training_step.optimizer.param_groups[0]["lr"])
    if not keys and step and not math.isclose(trainer.learning_rate(step), last, rel_tol=1e-9):
        keys = ["the learning rates"]
    return [f"{', '.join(keys)} from step {step + 1} on"] if keys and not trainer.finished() else []


def record_of(trainer: Trainer, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the manifest of each checkpoint says of the data and of the settings that decide a run's course.

    Args:
        trainer: What is saved.
        config: The configuration.
    """
    data = {f"data.{key}": config["data"].get(key) for key in DATA_SETTINGS}
    settings = scalars({key: config[key] for key in ("schedule", "trainer", "optimizer")} | data)
    return {"data": data_record(trainer.source), "settings": settings}


def _tell_changes(trainer: Trainer, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Says what of a run's course is other than before, and both learning rates."""
    changed = [
        f"{key} {then.get(key, 'null')}, now {now.get(key, 'null')}"
        for key in sorted(then.keys() | now.keys())
        if then and then.get(key) != now.get(key)
    ]
    if changed:
        log.info("resume     changed: %s", "; ".join(changed))
    if trainer.finished():
        return
    step, last = trainer.step_count, float(trainer.training_step.optimizer.param_groups[0]["lr"])
    rates = f"{last:.4g} at step {step}, {trainer.learning_rate(step + 1):.4g} at step {step + 1}"
    log.info("resume     learning rate %s", rates)


def made_with(trainer: Trainer) -> dict[str, str | int]:
    """What a checkpoint is made with that decides about the last bits of what follows from it."""
    device = trainer.device
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": distributed.count(),
        "precision": trainer.precision,
        "products": str(chosen_products()),
    }
