"""Map modules of earlier layouts, imported or named as `_target_`, to their current names."""

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "samout_train."
# Modules below samout_train: their name before 2026-11, and the current one.
MOVED = {
    "accuracy": "evaluation.accuracy",
    "activation_checkpointing": "models.parallel",
    "atomic": "runtime.files",
    "branches": "evaluation.ablation",
    "callbacks": "training.callbacks",
    "callbacks.accuracy": "training.callbacks.accuracy",
    "callbacks.base": "training.callbacks.base",
    "callbacks.early_stopping": "training.callbacks.early_stopping",
    "callbacks.event_file": "runtime.event_file",
    "callbacks.lengths": "training.callbacks.lengths",
    "callbacks.metrics_file": "training.callbacks.metrics_file",
    "callbacks.predictions": "training.callbacks.samples",
    "callbacks.progress_bar": "training.callbacks.console",
    "callbacks.report": "training.callbacks.console",
    "callbacks.sample": "training.callbacks.samples",
    "callbacks.state_health": "training.callbacks.state_health",
    "callbacks.tensorboard": "training.callbacks.tensorboard",
    "charts": "evaluation.charts",
    "checkpoint": "checkpoint.files",
    "claiming": "checkpoint.run_directory",
    "command_line": "cli.request",
    "commands": "cli",
    "commands.compare": "cli.compare",
    "commands.evaluate": "cli.evaluate",
    "commands.export": "cli.export",
    "commands.generate": "cli.generate",
    "commands.inspect": "cli.inspect",
    "commands.prove_resume": "cli.prove_resume",
    "commands.reproduce": "cli.reproduce",
    "commands.search": "cli.search",
    "commands.sweep": "cli.sweep",
    "commands.tokenize": "cli.tokenize",
    "commands.train": "cli.train",
    "commands.verify": "cli.verify",
    "comparison": "experiments.compare",
    "comparison.chart_kinds": "experiments.compare.charts",
    "comparison.contenders": "experiments.compare.plan",
    "comparison.drawing": "experiments.compare.charts",
    "comparison.intervals": "experiments.compare.intervals",
    "comparison.jobs": "experiments.compare.plan",
    "comparison.labels": "experiments.compare.plan",
    "comparison.making": "experiments.compare.page",
    "comparison.tables": "experiments.compare.tables",
    "compilation": "runtime.device",
    "config": "config.compose",
    "console": "runtime.console",
    "data.bpe": "data.vocabulary.bpe",
    "data.cache": "runtime.home",
    "data.copies": "data.text.copies",
    "data.copy": "data.tasks.copy",
    "data.cuts": "data.text.cuts",
    "data.documents": "data.text.documents",
    "data.folder": "data.text.files",
    "data.has_seen": "data.tasks.has_seen",
    "data.induction": "data.tasks.induction",
    "data.jsonl": "data.text.jsonl",
    "data.labelled_rows": "data.tasks.base",
    "data.needle": "data.tasks.needle",
    "data.parity": "data.tasks.parity",
    "data.part_worker": "data.shards.write",
    "data.parts": "data.shards.parts",
    "data.published_vocabulary": "data.vocabulary.published",
    "data.python_source": "data.text.python_source",
    "data.recall": "data.tasks.recall",
    "data.row_check": "data.check",
    "data.s5": "data.tasks.s5",
    "data.selective_copy": "data.tasks.selective_copy",
    "data.shakespeare": "data.text.shakespeare",
    "data.shard_index": "data.shards.index",
    "data.shard_plan": "data.shards.plan",
    "data.shard_reader": "data.shards.reader",
    "data.shard_rows": "data.shards.rows",
    "data.shard_split": "data.shards.rows",
    "data.shards": "data.shards.source",
    "data.short_text": "data.text.base",
    "data.survey": "data.text.files",
    "data.task": "data.tasks.base",
    "data.text": "data.text.text",
    "data.text_files": "data.text.base",
    "data.text_kind": "data.text.encoding",
    "data.token_cache": "data.text.token_cache",
    "data.token_rows": "data.text.rows",
    "data.tokenizing": "data.shards.write",
    "data.vocabulary": "data.vocabulary.base",
    "data.vocabulary_choice": "data.vocabulary.choice",
    "data.whole": "data.text.whole",
    "data.workers": "data.shards.workers",
    "data_record": "checkpoint.data_digests",
    "decoding": "evaluation.generate",
    "evaluation": "evaluation.evaluator",
    "export_files": "checkpoint.export",
    "exporting": "checkpoint.export",
    "extrapolation": "evaluation.lengths",
    "figures": "runtime.files",
    "file_kind": "runtime.file_kind",
    "fitting": "training.trainer",
    "generation": "evaluation.generate",
    "going_on": "training.limits",
    "golden_curve": "experiments.reproduce",
    "home": "runtime.home",
    "hydra_messages": "config.diagnostics",
    "hydra_parser": "config.hydra",
    "inspection": "checkpoint.inspect",
    "job_bar": "experiments.jobs",
    "joining": "training.run",
    "launch": "runtime.distributed",
    "ledger": "experiments.jobs",
    "literal": "config.compose",
    "loading": "checkpoint.load",
    "log_file": "runtime.log",
    "losses": "models.loss",
    "measuring": "models.products",
    "metrics": "models.cost",
    "micro_steps": "training.step",
    "mismatch": "checkpoint.state",
    "missing_home": "runtime.home",
    "model_room": "training.memory_check",
    "models.attention": "models.transformer",
    "models.convolution": "models.layers",
    "models.embedding": "models.layers",
    "models.feed_forward": "models.layers",
    "models.key_value_cache": "models.state",
    "models.linear": "models.layers",
    "models.lstm_attention": "models.recurrent",
    "models.mixer": "models.interface",
    "models.parts": "models.interface",
    "models.samout_layer": "models.samout",
    "models.samout_v1": "models.samout",
    "models.samout_v8": "models.samout",
    "models.streams": "models.samout",
    "non_finite": "training.non_finite",
    "optim": "training.optimizers",
    "optim.adam": "training.optimizers.adam",
    "optim.adamw": "training.optimizers.adamw",
    "optimizer_check": "training.optimizers.check",
    "overrides": "config.overrides",
    "overview": "cli.main",
    "parallel": "models.parallel",
    "places": "runtime.os_errors",
    "problems": "training.settings",
    "processes": "runtime.distributed",
    "profiling": "training.profiler",
    "progress": "runtime.log",
    "proof": "experiments.prove_resume",
    "ranges": "config.ranges",
    "reports": "training.reports",
    "rescue": "training.trainer",
    "resuming": "checkpoint.manager",
    "run": "training.run",
    "run_directory": "checkpoint.run_directory",
    "runtime": "runtime.device",
    "runtime.launch": "runtime.distributed",
    "sampling": "evaluation.generate",
    "saving": "checkpoint.manager",
    "schedules": "training.schedules",
    "search": "experiments.search",
    "search_path": "runtime.search_path",
    "shards": "checkpoint.shards",
    "shell_words": "runtime.shell",
    "signatures": "config.signature",
    "state_health": "evaluation.state_health",
    "stopping": "runtime.signals",
    "streaming": "evaluation.lengths",
    "sweeps": "experiments.sweep",
    "tensor_file": "runtime.tensor_file",
    "tf32": "runtime.device",
    "threads": "runtime.threads",
    "train_keys": "cli.request",
    "trainer": "training.trainer",
    "training_step": "training.step",
    "verification": "evaluation.verify",
    "verification.row": "evaluation.verify.result",
    "weights": "checkpoint.state",
    "yaml_places": "config.yaml_files",
}
# Earlier names that are now packages, and are therefore imported as usual.
STAYED = {earlier for earlier in MOVED if any(f"{new}.".startswith(f"{earlier}.") for new in MOVED.values())}


def current(path: str) -> str:
    """Return the dotted path of a class or function with the current name of its module.

    Args:
        path: Such as the `_target_` samout_train.schedules.Cosine; a path that was not moved is returned unchanged.
    """
    module, _, name = path.removeprefix(PACKAGE).rpartition(".")
    if path.startswith(PACKAGE) and module in MOVED:
        return f"{PACKAGE}{MOVED[module]}.{name}"
    return path


def current_settings(node: Any) -> Any:
    """Return plain settings with the current name in each `_target_`.

    Args:
        node: Dictionaries, lists and values; keys may have dots, such as {"schedule._target_": ...}.
    """
    if isinstance(node, list):
        return [current_settings(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    settings = {}
    for key, value in node.items():
        if _is_target(key) and isinstance(value, str):
            settings[key] = current(value)
        else:
            settings[key] = current_settings(value)
    return settings


def _is_target(key: Any) -> bool:
    return str(key).rpartition(".")[2] == "_target_"


class _Moved(MetaPathFinder, Loader):
    """Imports a module by its earlier name, with a warning."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find modules that have moved."""
        if _today(fullname) is None:
            return None
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Replace the requested module by the current one."""
        today = _today(module.__name__)
        assert today is not None
        warnings.warn(f"{module.__name__} is {today} now", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(today)


def _today(module: str) -> str | None:
    """Return the current name of a module that has moved; None for all others."""
    if not module.startswith(PACKAGE):
        return None
    parts = module.removeprefix(PACKAGE).split(".")
    for length in range(len(parts), 0, -1):
        earlier = ".".join(parts[:length])
        if earlier in MOVED and earlier not in STAYED:
            return ".".join([PACKAGE + MOVED[earlier], *parts[length:]])
    return None


def take_earlier_names() -> None:
    """Let `import` find the modules of earlier layouts by their earlier names."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())  # before folders are searched, which may have another module of this name
