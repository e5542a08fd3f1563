"""A run, assembled: configuration, data, model, loss, optimizer, schedule, callbacks, trainer, run directory."""

import logging
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samout_train.checkpoint import (
    Checkpoints,
    Claim,
    InitialWeights,
    Restored,
    check_start,
    data_record,
    find_checkpoint,
    load_initial_weights,
    made_with,
    new_directory,
    read_checkpoint,
    read_initial_weights,
    saved_steps,
    scalars,
)
from samout_train.config import (
    Composed,
    ConfigError,
    Problem,
    build,
    check_model,
    compose_config,
    key_of,
    list_as_yaml,
    require_no_problems,
)
from samout_train.data import Source, Vocabulary, as_source, extending, row_problems, vocabulary_from
from samout_train.models import choose_products, product_of, tokens_of
from samout_train.ops import Products, use_kernels, use_products
from samout_train.runtime import (
    Launch,
    PrecisionName,
    choose_precision,
    commit,
    distributed,
    ensure_home,
    home_path,
    log_file,
    seed_everything,
    text_setting,
    use_device,
)
from samout_train.training.callbacks.base import Callback, RunContext
from samout_train.training.causality import require_causal
from samout_train.training.limits import once
from samout_train.training.memory_check import step_too_large
from samout_train.training.schedules import schedule_problem
from samout_train.training.settings import DATA_SETTINGS, changes_nothing, checked_config, data_settings
from samout_train.training.trainer import Trainer

OTHER_SEED = 2**20 + 7  # added to the seed for each further process
log = logging.getLogger(__name__)


def build_model(name: str, *, vocab_size: int, pad_id: int | None = 3, **settings: Any) -> nn.Module:
    """Build the model of conf/model/NAME.yaml.

    Args:
        name: A name such as `v1` or `v8`.
        vocab_size: Number of token ids.
        pad_id: Id of the padding; None for no padding.
        **settings: Keys of that YAML, such as `hidden_size=128`.

    Raises:
        ConfigError: if there is no such model or key, or a value is wrong.
    """
    usual = compose_config([f"model={name}"]).config["model"]
    node = usual | settings
    if isinstance(pattern := settings.get("pattern"), list) and all(isinstance(one, str) for one in pattern):
        mixers = compose_config([f"model={name}", f"model.pattern=[{','.join(pattern)}]"]).config["model"].get("mixers")
        node = node | {"mixers": settings.get("mixers", mixers)}  # including mixers that its YAML does not list
    require_no_problems(check_model(node))
    found = []
    for problem in changes_nothing(node):
        key = problem.key.removeprefix("model.")
        if node[key] != usual.get(key):
            found.append(problem)
    require_no_problems(found)
    model: nn.Module = build(node, vocab_size=vocab_size, pad_id=pad_id)
    return model


def build_trainer(overrides: Sequence[str]) -> Trainer:
    """Build a trainer whose `step()` runs one optimizer step exactly as `train` does.

    Args:
        overrides: As on the command line, such as `["model=v8", "data=random"]`.

    Raises:
        ConfigError: if the configuration is wrong.
    """
    composed = _checked(overrides)
    return trainer_from(composed.config, name=str(composed.choices["model"]))


def train(overrides: Sequence[str]) -> tuple[dict[str, Any], nn.Module]:
    """Train as `python -m samout_train` does, with a run directory of its own.

    Args:
        overrides: As on the command line.

    Returns:
        The content of summary.json, and the trained model.

    Raises:
        ConfigError: if the configuration is wrong, or the run directory holds a run already.
    """
    composed, launch = _checked(overrides), Launch.of_environment()
    is_first = launch is None or launch.is_first
    require_no_problems(check_start(composed, is_first=is_first))
    if is_first and "run_dir" in composed.named_by_time:
        composed = composed.lying_in(new_directory(Path(composed.config["run_dir"])))
    claim = Claim(composed, Path(composed.config["run_dir"]))
    with claim.held({"overrides.yaml": list_as_yaml(overrides)}):
        start = prepare(claim, overrides)
        with log_file(claim.run_dir / "samout_train.log") if distributed.is_first() else nullcontext():
            return start()


def prepare(claim: Claim, overrides: Sequence[str]) -> Callable[[], tuple[dict[str, Any], nn.Module]]:
    """Build the trainer, checkpoints and callbacks of a checked configuration, and begin the run.

    Args:
        claim: The run directory and its configuration, held until the run ends.
        overrides: The overrides as typed, for the command that repeats the run.

    Returns:
        A function that trains, and returns the summary and the trained model.

    Raises:
        ValueError: if the data or a checkpoint does not match the configuration.
        CheckpointError: if the run has checkpoints and all are damaged.
    """
    composed, run_dir = claim.composed, claim.run_dir
    config = composed.config
    trainer = trainer_from(config, run_dir=run_dir, name=str(composed.choices["model"]))

    record = _record_of(trainer, config)
    checkpoints: Checkpoints = build(config["checkpoint"], directory=run_dir / "checkpoints", about=record)
    restored = checkpoints.restore(trainer, config["resume"], config["data"])
    if restored:
        _log_schedules(trainer)
    parts: list[str] = []
    states: dict[str, Any] = {}
    if restored and restored.is_own:
        parts = _changed_parts(trainer, restored, record["settings"])
        states = restored.content.get("callbacks", {})
    checkpoints.about = made_with(trainer.device, trainer.precision) | record
    if trainer.init_from:
        checkpoints.about["init_from"] = trainer.init_from
    if parts:
        checkpoints.about["parts"] = parts

    callbacks: dict[str, Callback] = {}
    if distributed.is_first():
        callbacks = {name: build(node) for name, node in config["callbacks"].items()}
    for name, callback in callbacks.items():
        if states.get(name):
            callback.load_state_dict(states[name])
    context = RunContext(
        trainer=trainer,
        callbacks=callbacks,
        run_dir=run_dir,
        model_name=str(composed.choices["model"]),
        data_name=str(composed.choices["data"]),
        config_text=composed.yaml,
        settings=_hyperparameters(composed),
        command=shlex.join(_repeated(overrides, trainer.resumed_from)),
        parts=parts,
        commit=commit(),
        first_step=trainer.step_count,
        reported_step=trainer.reports.reported_step,
    )
    for callback in callbacks.values():
        callback.check(context)
    claim.begin()
    return lambda: (trainer.fit(context, checkpoints), trainer.model)


def trainer_from(config: Mapping[str, Any], *, run_dir: Path | None = None, name: str | None = None) -> Trainer:
    """Build data, model, optimizer, schedule and trainer of a checked configuration.

    Args:
        config: The configuration.
        run_dir: The run directory. If the run resumes there, its weights come from its checkpoint alone.
        name: Name of the model, for messages; by default the name of its class.

    Raises:
        ConfigError: if the parts do not fit together.
        NotCausalError: if the model sees the tokens that it has to predict.
    """
    device, precision = _set_up_process(config)
    weights = _initial_weights(config, run_dir)
    extends = None
    if weights is not None:
        extends = weights.vocabulary
    source = source_from(config, extends=extends)
    settings = data_settings(**_only(config["data"], DATA_SETTINGS))
    if source.train.num_rows < settings["batch_size"]:
        log.warning(
            "data        %d rows are fewer than data.batch_size (%d): a batch holds some more than once",
            source.train.num_rows,
            settings["batch_size"],
        )
    model = build(config["model"], vocab_size=source.vocab_size, pad_id=source.pad_id).to(device)
    require_no_problems(_misfits(model, source))
    init_from = _begin_with(weights, model, source, config["model"])
    on_leak = config.get("on_leak", "refuse")  # a user's root YAML may lack the key
    leak = require_causal(model, source, device, name=name or type(model).__name__, on_leak=on_leak)
    if distributed.rank():  # all processes have the same initial weights, but their own dropout
        seed_everything(config["seed"] + OTHER_SEED * distributed.rank())
    trainer: Trainer = build(
        config["trainer"],
        model=model,
        source=source,
        # Called late: by then the parameters may be shards.
        build_optimizer=lambda model: build(config["optimizer"], model=model),
        schedule=build(config["schedule"]),
        device=device,
        precision=precision,
        seed=config["seed"],
        **settings,
    )
    trainer.init_from, trainer.leak = init_from, leak
    if lacks := step_too_large(trainer.training_step, source.train.seq_len):
        require_no_problems([lacks])
    if wrong := schedule_problem(trainer.training_step.schedule, trainer.limits.progress(1, 0.0)):
        require_no_problems([wrong])
    _measure_products(trainer)
    return trainer


def _set_up_process(config: Mapping[str, Any]) -> tuple[torch.device, PrecisionName]:
    """Set up memory, seeds, kernels and threads for the process; return the device and the precision."""
    device = use_device(config["device"], config.get("threads"))  # a user's root YAML may lack the key
    precision = choose_precision(config["precision"], device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    ensure_home()
    seed_everything(config["seed"])
    use_kernels(config["kernels"])
    return device, precision


def _initial_weights(config: Mapping[str, Any], run_dir: Path | None) -> InitialWeights | None:
    """Read the weights of `init_from`; for a resumed run only the vocabulary of its checkpoint."""
    path = config.get("init_from")  # a user's root YAML may lack the key
    if path is None:
        return None
    resumes = config["resume"] == "auto" and run_dir is not None and bool(saved_steps(run_dir / "checkpoints"))
    if not resumes:
        return read_initial_weights(path)
    assert run_dir is not None
    state = read_checkpoint(find_checkpoint(run_dir))["vocabulary"]
    vocabulary = None
    if state is not None:
        vocabulary = vocabulary_from(state)
    return InitialWeights(path, {}, vocabulary)


def _begin_with(
    weights: InitialWeights | None, model: nn.Module, source: Source, model_node: Mapping[str, Any]
) -> dict[str, Any]:
    """Load the initial weights of a run into its model; return their record for `summary.json`."""
    if weights is None or not weights.by_place:
        return {}
    loaded = load_initial_weights(model, weights, vocabulary=source.vocabulary, model_node=model_node)
    log.info("init_from   %s: %s", weights.path, loaded)
    if weights.vocabulary is None and source.vocabulary is not None:
        log.warning("init_from   the file has no vocabulary: its ids must be those of data.vocabulary_path")
    return {
        "path": str(home_path(weights.path).resolve()),
        "sha256": loaded.sha256,
        "loaded": len(loaded.loaded),
        "new": loaded.new,
        "unused": loaded.unused,
        "new_tokens": loaded.new_tokens,
    }


def source_from(config: Mapping[str, Any], *, extends: Vocabulary | None = None) -> Source:
    """Build the data of a checked configuration.

    Args:
        config: The configuration.
        extends: The vocabulary of the initial weights, used for text if the data names no other.

    Raises:
        ValueError: if the data does not match the configuration.
    """
    node = dict(config["data"])
    for key in DATA_SETTINGS:
        node.pop(key, None)
    name = node.get("vocabulary")
    if extends is not None and name not in (None, extends.name) and node.get("vocabulary_path") is None:
        text = f"the weights of init_from were trained with {extends.name}"
        raise ConfigError(Problem("data.vocabulary", name, text=text, fix=f"set data.vocabulary={extends.name}"))
    with extending(extends):
        source = as_source(build(node, seed=config["seed"]))
    require_no_problems(row_problems(source))
    return source


def _measure_products(trainer: Trainer) -> None:
    """Use the matrix products that are fastest on this machine for a model of this size."""
    step = trainer.training_step
    rows = step.batches.batch_size // step.accumulate // distributed.count()
    shape = product_of(trainer.model, tokens_of(rows, trainer.source.train.seq_len, step.chunk_len))
    decodes = trainer.source.vocabulary is not None
    products = choose_products(shape, device=trainer.device, precision=trainer.precision, decodes=decodes)
    use_products(products)
    if products != Products():
        log.info("products    %s for many rows, %s for few, as first measured here", products.many, products.few)


def _record_of(trainer: Trainer, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record for each checkpoint's manifest: the data, and the settings that affect training."""
    settings = _only(config, ("schedule", "trainer", "optimizer"))
    for key in DATA_SETTINGS:
        settings[f"data.{key}"] = config["data"].get(key)
    return {"data": data_record(trainer.source), "settings": scalars(settings)}


def _log_schedules(trainer: Trainer) -> None:
    """Log the learning rates of the last and the next step, and the temperatures if a mixer is annealed."""
    if trainer.finished():
        return
    step, last = trainer.step_count, _last_learning_rate(trainer)
    rates = f"{last:.4g} at step {step}, {trainer.learning_rate(step + 1):.4g} at step {step + 1}"
    log.info("resume      learning rate %s", rates)
    before = trainer.training_step.temperature
    if before is not None:
        after = trainer.temperature(step + 1)
        log.info("resume      temperature %.4g at step %d, %.4g at step %d", before, step, after, step + 1)


def _last_learning_rate(trainer: Trainer) -> float:
    return float(trainer.training_step.rates()[0])


def _changed_parts(trainer: Trainer, restored: Restored, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that a resumed run changed, one text per resume, without the limits of its length."""
    now = {**made_with(trainer.device, trainer.precision), **settings}
    then = restored.manifest | restored.manifest["settings"]
    keys = [key for key in ("precision", "processes") if then.get(key, now[key]) != now[key]]
    if "schedule._target_" in then:  # earlier versions did not record settings
        for key in sorted(now.keys() | then.keys()):
            decides = key.startswith(("schedule.", "trainer.")) and not key.startswith("trainer.max_")
            if decides and now.get(key) != then.get(key):
                keys.append(key)
    step, last = trainer.step_count, _last_learning_rate(trainer)
    by_steps = trainer.limits.max_seconds is None  # the seconds at which the last rate was taken are not known
    if not keys and step and by_steps and not math.isclose(trainer.learning_rate(step), last, rel_tol=1e-9):
        keys = ["the learning rates"]
    parts = list(restored.manifest.get("parts", []))
    if keys and not trainer.finished():
        parts.append(f"{', '.join(keys)} from step {step + 1} on")
    return parts


def _only(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: settings[key] for key in keys if key in settings}


def _misfits(model: nn.Module, source: Source) -> list[str]:
    """Return why a model does not fit this data: the reasons that only the built model and data show."""
    found = []
    max_seq_len = getattr(model, "max_seq_len", None)
    longest = max(rows.seq_len for rows in (source.train, source.validation, *source.tests.values()))
    if max_seq_len is not None and max_seq_len < longest:
        found.append(
            f"model.max_seq_len ({max_seq_len}): rows of this data, or of its tests, are longer: set it to {longest}"
        )
    if getattr(model, "sees_future", False) and source.labels is None:
        found.append(
            "this model sees the whole sequence, and so the token that it is asked to predict: choose another or train "
            "it to label, as data=hello does"
        )
    return found


def _repeated(overrides: Sequence[str], origin: str | None) -> list[str]:
    """Return the overrides that repeat the run in a new directory, from the same initial checkpoint if it had one."""
    words = [word for word in overrides if key_of(word) not in ("run_dir", "resume")]
    if origin is not None:
        words.append(text_setting("resume", origin))
    return once(words)


def _hyperparameters(composed: Composed) -> dict[str, bool | int | float | str]:
    """Return the hyperparameters: the names of the chosen options, and their scalar settings."""
    groups = ("model", "data", "optimizer", "schedule")
    found: dict[str, bool | int | float | str] = {group: str(composed.choices[group]) for group in groups}
    for key, value in scalars(_only(composed.config, (*groups, "trainer", "seed", "precision"))).items():
        if not key.endswith("._target_"):
            found[key] = value
    return found


def _checked(overrides: Sequence[str]) -> Composed:
    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r}: is one text: give a list of them, such as ['model=v8', 'seed=1']")
    composed, found = checked_config(overrides)
    require_no_problems(found)
    assert composed is not None
    return composed
