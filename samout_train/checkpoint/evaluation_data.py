"""Find the data to evaluate a run on: its own, or other data with its vocabulary, in rows of its training length."""

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from samout_train.checkpoint.data_digests import data_record, require_same_data
from samout_train.checkpoint.files import read_manifest
from samout_train.checkpoint.load import LoadedRun
from samout_train.config import (
    ConfigError,
    Problem,
    build,
    compose_config,
    key_of,
    require_no_problems,
    saved_node,
    saved_seed,
)
from samout_train.data import Source, WholeData, as_source, reads_whole, whole_data
from samout_train.runtime import home_path

Node = dict[str, Any]
OF_DOCUMENTS = ("jsonl", "shards", "python_source", "tinystories")
ROWS_OF_ONE_DOCUMENT = ("padded", "documents")
OF_MESSAGES = ("roles", "extra_fields")  # how JSON Lines become text
OTHER_DATA = "restore the data of the run, or evaluate this as other data, with data=NAME and data.path=PATH"
Check = Callable[..., list[Problem]]


def evaluation_data(
    loaded: LoadedRun,
    of_data: Sequence[str],
    lengths: list[int] | None,
    *,
    data_problems: Check,
    loop_keys: Collection[str],
    config_dirs: Sequence[str] = (),
) -> tuple[str, Source, WholeData | None]:
    """Return the data to evaluate on, with the run's vocabulary and in rows of its training length.

    Args:
        loaded: The run.
        of_data: Overrides of `data`; empty for the data of the run.
        lengths: Lengths of a task's tests; None for the lengths of its configuration.
        data_problems: Checks the settings of data, such as `samout_train.training.data_problems`.
        loop_keys: Settings of data that are not arguments of its source, such as `batch_size`.
        config_dirs: Further absolute folders with YAML files.

    Returns:
        (name, source, whole): `whole` is the content of given files, which is every split of the source; else None.

    Raises:
        ConfigError: if the overrides are wrong, or the data does not fit the model.
        ValueError: if the data of the run is not what it was trained on any more.
    """
    saved = loaded.checkpoint.parent.parent / ".hydra" / "config.yaml"
    node = saved_node(saved, "data")
    trained_length = node.get("seq_len")
    name = str(node["_target_"]).rpartition(".")[2]
    as_trained = {"line_ends": loaded.line_ends, "reset_at_documents": bool(node.get("reset_at_documents"))}
    if of_data:
        if refused := [word for word in of_data if word.startswith("data.seq_len=")]:
            raise ConfigError(f"{refused[0]}: rows are as long as those that the model was trained on: leave it out")
        if not any(word.startswith("data=") for word in of_data):
            raise ConfigError(f"{of_data[0]}: no data is chosen: set data=NAME, too")
        composed, trained = compose_config(of_data, config_dirs=config_dirs), node
        name, node = str(composed.choices["data"]), composed.config["data"]
        if node["_target_"] == trained["_target_"]:
            as_trained |= {key: trained[key] for key in OF_MESSAGES if key in trained}
        if trained_length is not None and "seq_len" in node:
            node |= {"seq_len": trained_length}
        _read_as_trained(node, as_trained, {_data_key(word) for word in of_data})
        if reads_whole(node):
            return _given(loaded, of_data, name, node, trained_length, data_problems)
    if lengths is not None:
        for key in ("test_lengths", "test_distances"):
            if key in node:
                node[key] = lengths
    source = _source(loaded, node, saved_seed(saved), data_problems, loop_keys)
    if source.vocab_size != loaded.vocab_size:
        raise ConfigError(
            f"data={name}: has {source.vocab_size} ids, the model {loaded.vocab_size}: set data of the kind that it "
            "was trained on"
        )
    if not of_data and (record := read_manifest(loaded.checkpoint).get("data")):  # none for data without a digest
        require_same_data(data_record(source), record, node, fix=OTHER_DATA)
    return name, source, None


def _source(loaded: LoadedRun, node: Node, seed: int, data_problems: Check, loop_keys: Collection[str]) -> Source:
    """Build the source of checked settings, with the run's vocabulary if it is text."""
    with tempfile.TemporaryDirectory() as folder:
        if loaded.vocabulary is not None and "vocabulary_path" in node:
            path = Path(folder, "vocabulary.json")
            path.write_bytes(json.dumps(loaded.vocabulary.state_dict()).encode())
            node = {**node, "vocabulary": loaded.vocabulary.name, "vocabulary_path": str(path)}
        require_no_problems(data_problems(node))
        settings: dict[str, Any] = {key: value for key, value in node.items() if key not in loop_keys}
        return as_source(build(settings, seed=seed))


def _read_as_trained(node: Node, as_trained: Node, typed: Collection[str]) -> None:
    """Read other data as the run read its own, except for what was typed, also if only some roles were."""
    for key in (as_trained.keys() & node) - set(typed):
        value = as_trained[key]
        if isinstance(value, dict):
            value = {name: one for name, one in (node[key] | value).items() if f"{key}.{name}" not in typed}
            value |= {name: one for name, one in node[key].items() if f"{key}.{name}" in typed}
        node[key] = value


def _data_key(word: str) -> str:
    return str(key_of(word)).removeprefix("data.")


def reads_documents(loaded: LoadedRun) -> bool:
    """Return whether `<|sos|>` preceded the documents of a run's text; rows of a single document leave it out."""
    node = saved_node(loaded.checkpoint.parent.parent / ".hydra" / "config.yaml", "data")
    if node.get("layout") in ROWS_OF_ONE_DOCUMENT:
        return False
    source = str(node["_target_"]).rpartition(".")[2]
    return source in OF_DOCUMENTS or (source == "text" and home_path(node["path"]).is_dir())


def _given(
    loaded: LoadedRun, of_data: Sequence[str], name: str, node: Node, trained_length: int | None, data_problems: Check
) -> tuple[str, Source, WholeData]:
    """Read given files from end to end with the run's vocabulary."""
    if loaded.vocabulary is None:
        raise ConfigError(
            f"data={name}: the run was trained on {loaded.vocab_size} ids that are not text: leave data= out, or set "
            "data of the kind that it was trained on"
        )
    if refused := [word for word in of_data if word.lstrip("+").startswith("data.vocab")]:
        raise ConfigError(f"{refused[0]}: text is read with the vocabulary of the run: leave it out")
    require_no_problems(data_problems(node, for_training=False))
    whole = whole_data(node, loaded.vocabulary, seq_len=trained_length or int(node["seq_len"]))
    source = whole.source(loaded.vocabulary, ignore_index=node["ignore_index"], line_ends=node.get("line_ends", "keep"))
    return f"{name}-{whole.name}", source, whole
