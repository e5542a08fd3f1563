"""Mistakes typed at the verbs other than train: exit code 2, and the message as recorded in messages.json."""

import importlib
import json
from pathlib import Path

import pytest

from samout_train.cli.main import VERBS
from tests.support.marks import spread
from tests.support.messages import MESSAGES, assert_recorded

# The words as typed, and what the first line of the message begins with.
MISTAKES = {
    "generate": "run: is missing",
    "generate run=absent prompt=a": "absent is not there",
    "generate run= prompt=a": "the path of a run is empty",
    "generate run=r prompt=a tempratur=1": "tempratur=1: no such key",
    "generate run=r prompt=a top_p=2": "top_p=2: must be",
    "generate run=r prompt=a device=1": "device=1: must be",
    "generate run=r,s prompt=a max_new_tokens=1,2": "max_new_tokens=1,2: several values",
    "generate --config-name own run=r prompt=a": "--config-name own: generate has its own",
    "chat": "run: is missing",
    "chat run=absent": "absent is not there",
    "chat run=r top_p=2": "top_p=2: must be",
    "serve": "run: is missing",
    "serve run=absent": "absent is not there",
    "serve run=r port=many": "port=many: must be",
    "evaluate": "run: is missing",
    "evaluate run=absent": "absent is not there",
    "evaluate run=r lengths=[0]": "lengths=[0]: must be",
    "evaluate run=r most_tokens=many": "most_tokens=many: must be",
    "evaluate -m run=r": "-m: evaluate makes no sweeps",
    "compare": "choose what to compare",
    "compare models=[v8] runs=[a]": "choose what to compare",
    "compare models=0": "models=0: must be names",
    "compare modles=[v8]": "modles=[v8]: no such key",
    "compare models=[v8] lr=[0]": "lr=[0]: must be",
    "compare models=[v8] seeds=0": "seeds=0: must be",
    "compare models=[v8] run_dir=file.txt": "run_dir=file.txt: is a file",
    "compare models=[v8] tasks=3": "tasks=3: must be names",
    "compare models=[v8] tasks={parity:{model.dropout:0}}": "tasks: parity: model.dropout=0: is the same",
    "compare models=[v8] sizes=[200k]": "sizes=['200k']: are further amounts",
    "compare models=[v8] match=parameters:1k sizes=[2x]": "sizes=2x: must be an amount",
    "compare models=[[v8]]": "models: ['v8']: must be a name",
    "compare models=[v8,v8]": "models: v8 is there twice",
    "compare models=[{v8:3}]": "models: v8: must be settings in braces",
    "compare models=[{v8:[3]}]": "models: v8: 3: must be an override",
    "compare models=[{v8:{seed:1}}]": "v8: seed=1: is the same for all models",
    "compare models=[{v8:{model.hidden_size:12}}] match=parameters:1k": "v8: model.hidden_size=12: match=",
    "compare models=[v8] model=v1": "model=v1: models=[...] says which",
    "compare models=[v8] model.foo=1": "model.foo=1: no model of this comparison has it",
    "compare models=[v8] lr=[]": "lr: is empty",
    "compare models=[v8] match=words:1": "match=words:1: must be a budget",
    "compare models=[v8] match=seconds:3k": "match=seconds:3k: seconds have no unit",
    "compare models=[v8] match=parameters:0": "match=parameters:0: must be above 0",
    "compare models=[v8] match=parameters:10": "v8: no width",
    "compare models=[v8] choose={lr:[1,2]}": "choose.lr=[1, 2]: must be a setting of",
    "compare models=[v8] choose={optimizer.lr:[1,2]}": "choose.optimizer.lr=[1, 2]: is chosen by lr",
    "compare models=[v8] choose={model.dropout:0}": "choose.model.dropout=0: must be a list",
    "compare models=[v8] choose={model.foo:[0,1]}": "choose.model.foo: no model of this comparison has it",
    "compare models=[v8] tasks=[random]": "tasks=random: has no right answers to count",
    "compare models=[v8] finalists=1": "finalists=1: are chosen by a screening",
    "compare models=[v8] screen_steps=5 always=[v8]": "always=['v8']: without finalists",
    "compare models=[v8] screen_steps=5 finalists=1 always=[v9]": "always=v9: no such model is compared",
    "compare models=[v8] leaders=2": "leaders=2: get no further seeds",
    "compare models=[v8] leader_seeds=9": "leader_seeds=9: are those of the best models",
    "compare runs=[]": "runs: is empty",
    "compare runs=[absent]": "runs=absent: is not there",
    "compare runs=a data=text": "data=text: a page of existing runs",
    "sweep": "dir: is missing",
    "sweep dir=absent": "dir=absent: holds no sweep",
    "sweep dir=. action=stats": "action=stats: must be",
    "sweep dir=. jobs=0": "jobs=0: must be",
    "sweep some/folder": "some/folder: is not a setting",
    "search": "space: is missing",
    "search space=3": "space=3: must be settings of train",
    "search space={run_dir:[a]}": "space: run_dir: is set by the search itself",
    "search space={optimizer.lr:{low:3}}": "space: optimizer.lr={'low': 3}: must be a list, or low and high",
    "search space={optimizer.lrr:[1]}": "space: optimizer.lrr=1: no such key",
    "search space={seed:[1]} trials=0": "trials=0: must be",
    "search space={seed:[1]} resume=auto": "resume: a search resumes",
    "tokenize": "path: is missing",
    "tokenize path=absent out=out": "path=absent: is not there",
    "tokenize path=file.txt out=file.txt": "out=file.txt: is a file",
    "tokenize path=file.txt out=out part_bytes=1MB": "part_bytes=1MB: must be bytes",
    "tokenize path=file.txt out=out vocabulary=words": "vocabulary=words: must be",
    "tokenize path=file.txt out=out job=2": "job=2: no such key",
    "export": "run: is missing",
    "export run=absent": "absent is not there",
    "export run=r format=onnx": "format=onnx: must be",
    "export run=r fromat=published": "fromat=published: no such key",
    "inspect": "path: is missing",
    "inspect path=absent": "absent",
    "inspect file.txt": "file.txt: is not a setting",
    "verify": "choose what to verify",
    "verify model.hidden_size=3": "model.hidden_size=3: no model is chosen",
    "verify --resolve": "--resolve and --package are for --cfg job",
    "verify --run": "--run: is the default",
    "reproduce": "experiment: is missing",
    "reproduce experiment=published_v8 seed=1": "seed=1: changes the recorded preset",
    "prove_resume steps=0": "steps=0: must be",
    "prove_resume resume=auto": "resume: both runs start at step 0",
}


@pytest.mark.parametrize("typed", spread(MISTAKES, 2))
def test_a_mistake_has_exit_code_2_and_the_recorded_message(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").write_text("a text", "utf-8")
    monkeypatch.chdir(tmp_path)
    name, *words = typed.split()
    assert getattr(importlib.import_module(f"samout_train.cli.{name}"), name)(words) == 2
    out, error = capsys.readouterr()
    assert error.startswith(MISTAKES[typed]) and "Traceback" not in error and not out
    assert_recorded(f"verbs: {typed}", error)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"], "a refused request leaves nothing behind"


def test_each_verb_has_mistakes_and_no_message_is_recorded_of_another() -> None:
    assert {typed.split()[0] for typed in MISTAKES} == set(VERBS) - {"train"}
    recorded = json.loads(MESSAGES.read_text("utf-8"))
    assert {name for name in recorded if name.startswith("verbs: ")} == {f"verbs: {typed}" for typed in MISTAKES}
