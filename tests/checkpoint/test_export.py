"""Exports: what is written is what the checkpoint holds, other programs read it, and nothing is overwritten."""

import ast
import builtins
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samout_train import build_model, load_exported, load_published, load_vocabulary, train
from samout_train.checkpoint import ExportError, export_run, load_run, load_trained
from samout_train.checkpoint.export import export_damage, once, write_weights
from samout_train.cli import export
from samout_train.cli.generate import generate
from samout_train.data import SPECIAL_TOKENS
from samout_train.models import published_state
from tests.support.marks import mostly_nightly, spread
from tests.support.models import HEADED, NAMES

SIZES = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=2", "device=cpu", "trainer=debug"]
QUICK = ["kernels=reference", "~callbacks.tensorboard", "~callbacks.sample"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of V1, V8 and a transformer on text, and one on ids that are not text."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "text.txt").write_text("the hands of the clock, the sands of time; " * 100, "utf-8")
    data = ["data=text", f"data.path={folder / 'text.txt'}", "data.seq_len=8", "data.batch_size=4"]
    for name in ("v1", "v8", "transformer"):
        words = ["data.vocabulary=bytes"] if name == "transformer" else []
        train([*SIZES, *QUICK, *data, *words, f"model={name}", f"run_dir={folder / name}"])
    random = ["data.num_sequences=8", "data.batch_size=8", "data.seq_len=9"]
    train([*SIZES, *QUICK, *random, f"run_dir={folder / 'random'}"])
    return folder


@pytest.mark.parametrize("variant", ["v1", "v8"])
def test_published_names_and_shapes_are_those_of_the_published_program(variant: str, shared: Path) -> None:
    with np.load(shared / "golden" / f"samout_{variant}_golden.npz") as file:
        weights = {name[7:]: torch.from_numpy(file[name]) for name in file.files if name.startswith("weight/")}
    back = published_state(load_published(weights, num_heads=4))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", spread(["v1", "v8", "transformer", "random"], 4))
def test_safetensors_hold_the_weights_and_can_be_loaded(folder: Path, tmp_path: Path, name: str) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    exported = export_run(folder / name, format="safetensors", out=tmp_path / "out")
    run, back = load_run(folder / name), load_exported(tmp_path / "out")
    model, vocabulary = back
    assert model is back.model and vocabulary is back.vocabulary
    stored = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    wanted = run.model.state_dict()
    assert stored.keys() == wanted.keys() and all(torch.equal(stored[key], wanted[key]) for key in wanted)
    ids = torch.arange(run.vocab_size)[None, :9]
    assert torch.equal(back.model(ids)[0], run.model(ids)[0]) and back.step == 2
    assert exported.files.keys() | {"export.json"} == {path.name for path in (tmp_path / "out").iterdir()}
    if name == "random":
        assert back.vocabulary is None and "vocabulary.json" not in exported.files
    else:
        assert run.vocabulary is not None and back.vocabulary is not None
        assert back.vocabulary.state_dict() == run.vocabulary.state_dict()
        assert load_vocabulary(tmp_path / "out" / "vocabulary.json").state_dict() == run.vocabulary.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(NAMES, {"hybrid", "lstm", "maxplus"}))
def test_every_model_computes_from_its_export_what_its_run_does(tmp_path: Path, name: str) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "text.txt").write_text("the hands of the clock, the sands of time; " * 100, "utf-8")
    data = ["data=text", f"data.path={tmp_path / 'text.txt'}", "data.seq_len=8", "data.batch_size=4"]
    sizes = [word for word in SIZES if name in HEADED or "num_heads" not in word]
    train([*sizes, *QUICK, *data, f"model={name}", f"run_dir={tmp_path / 'run'}"])
    exported = export_run(tmp_path / "run", format="safetensors", out=tmp_path / "out")
    run, back = load_run(tmp_path / "run"), load_exported(tmp_path / "out")
    wanted, found = run.model.state_dict(), back.model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert exported.tensors == len({each.data_ptr() for each in wanted.values()})
    ids = torch.arange(run.vocab_size)[None]
    with torch.no_grad():
        logits, state = run.model(ids)
        assert torch.equal(back.model(ids)[0], logits)
        assert torch.equal(back.model(ids[:, :3], back.model(ids)[1])[0], run.model(ids[:, :3], state)[0])
    assert run.vocabulary is not None and back.vocabulary is not None
    assert back.vocabulary.state_dict() == run.vocabulary.state_dict()
    if name not in ("v1", "v8"):
        with pytest.raises(ValueError, match=r"were published, and this is a .*: set format=safetensors"):
            export_run(tmp_path / "run", format="published", out=tmp_path / "published")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1", "v8"])
def test_the_published_form_gives_the_same_logits_and_vocabulary(folder: Path, tmp_path: Path, name: str) -> None:
    assert export.export([f"run={folder / name}", "format=published", f"out={tmp_path / 'out'}"]) == 0
    run = load_run(folder / name)
    model = load_published(tmp_path / "out" / "model.pth", num_heads=2)
    ids = torch.arange(run.vocab_size)[None]
    assert torch.equal(model(ids)[0], run.model(ids)[0])
    back = load_trained(tmp_path / "out")
    assert torch.equal(back.model(ids)[0], run.model(ids)[0])
    assert (back.line_ends, back.data_node, back.step) == (run.line_ends, run.data_node, run.step)
    with pytest.raises(ValueError, match=r"weights=ema: .*out has no average of the weights"):
        load_trained(tmp_path / "out", weights="ema")
    assert run.vocabulary is not None
    assert load_vocabulary(tmp_path / "out" / "total_voc.pkl").state_dict() == run.vocabulary.state_dict()
    content = pickle.loads((tmp_path / "out" / "total_voc.pkl").read_bytes())
    assert content == {"voc": run.vocabulary.state_dict()["tokens"], "voc0": {}}


@pytest.mark.slow
def test_an_export_continues_a_text_as_its_run_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_run(folder / "v8", format="published", out=tmp_path / "out")
    written = []
    for path in (folder / "v8", tmp_path / "out"):
        assert generate([f"run={path}", "prompt=the ", "max_new_tokens=20", "device=cpu"]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] and written[0].startswith("the ")


@pytest.mark.slow
def test_spelled_characters_stay_spelled(folder: Path, tmp_path: Path) -> None:
    voc = [*SPECIAL_TOKENS, *sorted({*"the hands of the clock, sands of time;"} - {"k"}), "<|pos_0_0|>", "<|pos_0_1|>"]
    (tmp_path / "voc.pkl").write_bytes(pickle.dumps({"voc": voc, "voc0": {"k": ["<|pos_0_1|>", "<|pos_0_0|>"]}}))
    data = ["data=text", f"data.path={folder / 'text.txt'}", "data.seq_len=8", "data.batch_size=4"]
    train([*SIZES, *QUICK, *data, f"data.vocabulary_path={tmp_path / 'voc.pkl'}", f"run_dir={tmp_path / 'run'}"])
    export_run(tmp_path / "run", format="published")
    back = load_vocabulary(tmp_path / "run" / "export_published" / "total_voc.pkl")
    assert back.encode("clock").tolist() == load_vocabulary(tmp_path / "voc.pkl").encode("clock").tolist()


def test_a_tied_matrix_is_stored_once(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    assert "head.weight" not in build_model("v1", vocab_size=7, hidden_size=4, num_heads=1, num_layers=1).state_dict()
    tied = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    tensors, shared = once(tied.state_dict())
    assert list(tensors) == ["embedding.weight"] and shared == {"head.weight": "embedding.weight"}
    with (tmp_path / "model.safetensors").open("wb") as file:
        write_weights(file, tensors, shared, "safetensors")
    with safetensors.safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        assert list(file.keys()) == ["embedding.weight"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run: is missing"),
        (["run=absent"], "absent is not there: give a run directory"),
        (["run=v8", "format=onnx"], "format=onnx: must be safetensors, published"),
        (["run=v8", "fromat=published"], "fromat=published: no such key; did you mean format?"),
        (["run=v8", "out=text.txt"], "out=text.txt: is a file: give a directory"),
        (["run=v8", "out=v1"], "out=v1: exists already, and nothing is overwritten: set another folder"),
        (["run=v8", "out="], "out=: is empty"),
        (["run=v8", "out=text.txt/below"], "out=text.txt/below: text.txt is a file: give a directory"),
        (["run=transformer", "format=published"], "were published, and this is a Transformer: set format=safetensors"),
        (["-m", "run=v8"], "export makes no sweeps"),
    ],
)
def test_a_wrong_request_is_told_with_exit_code_2(
    folder: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert export.export(words) == 2
    out, error = capsys.readouterr()
    assert message in error and len(error.splitlines()) <= 8 and not out
    assert sorted(folder.rglob("*")) == before, "a refused request leaves nothing behind"


def test_the_line_that_loads_an_export_is_python_for_any_path(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'Users\\new "文件"'  # such as C:\Users\new
    assert export.export([f"run={folder / 'random'}", "format=published", f"out={out}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("to load  ")
    (call,) = ast.parse(line).body
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    assert ast.literal_eval(call.value.args[0]) == str(out / "model.pth")


def test_the_run_directory_is_where_it_goes_if_nothing_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(folder)
    checkpoint = "random/checkpoints/step_00000001.pt"
    assert export.export([f"run={checkpoint}", "out=null"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"of       {checkpoint}, after step 1", "to       random/export_safetensors"]
    assert lines[-1] == 'to load  load_exported("random/export_safetensors")' and "read back" in lines[-2]
    assert export.export(["run=random"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_without_the_package_the_message_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert export.export([f"run={folder / 'v8'}", f"out={folder / 'never'}"]) == 2
    assert "pip install 'samout_train[export]'" in capsys.readouterr().err and not (folder / "never").exists()


def test_what_cannot_be_written_or_is_not_read_back_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, write: Any) -> None:
        raise OSError(28, "No space left on device")

    words = [f"run={folder / 'v8'}", "format=published", f"out={tmp_path / 'out'}"]
    with monkeypatch.context() as patched:
        patched.setattr("samout_train.checkpoint.export.replace_file", full)
        assert export.export(words) == 1
    error = capsys.readouterr().err
    assert "cannot be written (No space left on device)" in error and "nothing is left there" in error
    monkeypatch.setattr("samout_train.checkpoint.export.read_weights", lambda path, format: {"em": torch.zeros(3)})
    with pytest.raises(ExportError, match=r"model\.pth read back is not what was written"):
        export_run(folder / "v8", format="published", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_damaged_export_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run(folder / "v8", format="published", out=out)
    whole = (out / "model.pth").read_bytes()
    for content, reason in ((whole[:-1], "has"), (b"x" + whole[1:], "the sha256 of model.pth differs")):
        (out / "model.pth").write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            load_exported(out)
    (out / "model.pth").write_bytes(whole)
    note = json.loads((out / "export.json").read_text())
    for name in ("../model.pth", "absent"):
        changed = note | {"files": {name: note["files"]["model.pth"]}}
        (out / "export.json").write_text(json.dumps(changed))
        assert export_damage(out) == f"{name} is missing"
    (out / "export.json").write_text("{}")
    assert "export.json is damaged" in str(export_damage(out))
    (out / "export.json").unlink()
    assert "so the export was not completed" in str(export_damage(out))
