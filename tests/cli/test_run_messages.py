"""Mistakes about runs that exist and about files of weights: exit code 2, and the message as in messages.json."""

import importlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samout_train import train
from samout_train.data import SPECIAL_TOKENS
from tests.support.marks import spread
from tests.support.messages import MESSAGES, assert_recorded

TINY = ["model=v8", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "device=cpu", "kernels=reference"]
TINY += ["trainer=debug", "trainer.max_steps=2", "data.batch_size=4", "~callbacks.sample"]
FILES = {
    "train.txt": "a text of some words, and more of them. " * 20,
    "same.txt": "a text of some words, and more of them. " * 20,
    "foreign.txt": "жщ" * 300,
    "one.txt": "a",
    "questions.jsonl": json.dumps({"question": "a", "choices": ["b", "c"], "answer": 0}) + "\n",
    "export/export.json": "{}",
}
# The words as typed, and the distinctive words of the message.
MISTAKES = {
    "evaluate run=ids data=random data.seq_len=3": "data.seq_len=3: rows are as long as those",
    "evaluate run=ids data.vocab_size=9": "data.vocab_size=9: no data is chosen: set data=NAME",
    "evaluate run=ids data=random data.vocab_size=9": "has 9 ids, the model",
    "evaluate run=ids data=text data.path=train.txt": "ids that are not text: leave data= out",
    "evaluate run=ids data=choices data.path=questions.jsonl": "data=choices: the run was trained on ids",
    "evaluate run=ids lengths=[3]": "lengths=[3]: the rows of this data do not follow each other",
    "evaluate run=text data=text data.path=one.txt": "one.txt: has 1 token, and a loss needs 2",
    "evaluate run=text data=text data.path=foreign.txt": "tokens can be counted",
    "evaluate run=text data=text data.path=same.txt data.vocabulary=bytes": "read with the vocabulary of the run",
    "evaluate run=text data=choices data.path=questions.jsonl lengths=[4]": "lengths=[4]: questions are read whole",
    "evaluate run=text weights=ema": "has no average of the weights",
    "evaluate run=task": "this task has no test lengths: give lengths=[...]",
    "evaluate run=unbuilt": "does not say how the model was built",
    "chat run=ids": "was not trained on text",
    "chat run=text system=Ж": "system=Ж: ",
    "generate run=text prompt=Ж": "'Ж'",
    "export run=text out=": "out=: is empty: set a new folder",
    "export run=text out=text": "out=text: exists already, and nothing is overwritten",
    "export run=text weights=ema": "has no average of the weights",
    "compare runs=[ids,text] run_dir=compared": "run_dir=compared: holds a comparison of other runs",
    "train init_from=text": "init_from=text: was trained on text, and the ids of this data are not text",
    "train init_from=text data=text data.path=same.txt data.seq_len=8 data.vocabulary_path=voc.pkl": "other vocabulary",
    "train init_from=ids model.hidden_size=16": "init_from=ids: is of another model",
    "train model=counting model.mixer.entries=3": "entries (3) of counting blocks must divide",
    "train model=counting model.mixer.temperature_zero=0.1": "temperature_zero (0.1) of counting blocks",
    "train model=counting model.mixer.entries=16 model.hidden_size=16 kernels=fused": "of at most 8 entries, not 16",
    "train model=maxplus model.mixer.counters=0.95": "counters (0.95) leave no channel",
    "train model=maxplus model.mixer.counters=0.05": "less than half a block of 2: set at least 0.25",
    "train init_from=train.txt": "init_from=train.txt: cannot be used",
    "train init_from=export": "init_from=export: export.json is damaged",
    "train init_from=other.pt": "no tensor of it is one of this model",
    "train init_from=several.pt": "init_from=several.pt: holds several models: a, b",
    "train init_from=infinite.pt": "embedding.weight holds NaN or infinite values",
    "train run_dir=text resume=auto data=text data.path=train.txt data.seq_len=8 trainer.max_steps=4": "is other data",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: tiny runs on ids, on text and on a task, copies that are damaged, and files."""
    folder = tmp_path_factory.mktemp("runs")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, "utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        train([*TINY, "data=random", "run_dir=ids"])
        train([*TINY, "data=text", "data.path=train.txt", "data.seq_len=8", "run_dir=text"])
        train([*TINY, "data=parity", "data.seq_len=8", "data.test_lengths=[]", "run_dir=task"])
        Path("train.txt").write_text("more words of a text, and some of them. " * 20, "utf-8")
        _damage()
        yield folder
    finally:
        os.chdir(before)


def _damage() -> None:
    shutil.copytree("ids", "unbuilt")
    Path("unbuilt/.hydra/config.yaml").write_text("seed: 1\n", "utf-8")
    record = {"command": "samout-train compare", "runs": {"ids": {}}}
    shutil.copytree("ids", "compared/ids")
    Path("compared/comparison.json").write_text(json.dumps(record), "utf-8")
    Path("voc.pkl").write_bytes(pickle.dumps([*SPECIAL_TOKENS, *sorted(set(FILES["same.txt"]), reverse=True)]))
    torch.save({"weight": torch.ones(2)}, "other.pt")
    one = {"embedding.weight": torch.ones(5, 8)}
    torch.save({"a": one, "b": {"embedding.weight": torch.zeros(5, 8)}}, "several.pt")
    torch.save({"embedding.weight": torch.full((5, 8), float("nan"))}, "infinite.pt")


def _files(folder: Path) -> list[Path]:
    """Return the files, without the record of why a run could not be resumed."""
    return [path for path in sorted(folder.rglob("*")) if path.name != "failure.json"]


@pytest.mark.slow
@pytest.mark.parametrize("typed", spread(MISTAKES, 2))
def test_a_mistake_about_a_run_has_exit_code_2_and_the_recorded_message(
    typed: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = typed.split()
    before = _files(folder)
    if name == "train":
        words = [*TINY, "run_dir=new", *words]
    assert getattr(importlib.import_module(f"samout_train.cli.{name}"), name)(words) == 2
    error = capsys.readouterr().err
    assert MISTAKES[typed] in error and "Traceback" not in error
    assert_recorded(f"runs: {typed}", error)
    assert _files(folder) == before, "a refused request leaves nothing behind"


def test_no_message_about_a_run_is_recorded_of_what_is_no_mistake_any_more() -> None:
    recorded = json.loads(MESSAGES.read_text("utf-8"))
    assert {name for name in recorded if name.startswith("runs: ")} == {f"runs: {typed}" for typed in MISTAKES}
