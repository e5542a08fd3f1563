"""inspect: what lies at a path, whether it is whole, and that looking changes nothing."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from samout_train import train
from samout_train.checkpoint import export_run, inspect_path
from samout_train.cli import inspect
from samout_train.data import SPECIAL_TOKENS

SIZES = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "device=cpu", "trainer=debug"]
QUICK = ["kernels=reference", "~callbacks.tensorboard", "~callbacks.sample"]
NEWEST = "run/checkpoints/step_00000002.pt"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "text.txt").write_text("the hands of the clock, the sands of time; " * 100, "utf-8")
    data = ["data=text", f"data.path={folder / 'text.txt'}", "data.seq_len=8", "data.batch_size=4"]
    train([*SIZES, *QUICK, *data, f"run_dir={folder / 'run'}"])
    export_run(folder / "run", format="published", out=folder / "out")
    (folder / "voc.pkl").write_bytes(pickle.dumps([*SPECIAL_TOKENS, "a", "b"]))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which is the working directory."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("path", "what", "rows"),
    [
        ("run", "a run directory", ["resume=auto  takes step_00000002.pt", "finished     yes", "characters, "]),
        ("run/checkpoints", "a run directory", ["resume=auto  takes step_00000002.pt"]),
        (NEWEST, "a checkpoint", ["yes, it agrees with its manifest", f"resume={NEWEST} and a run_dir of its own"]),
        ("out", "an export", ["yes, each file agrees with export.json", "published, by torch"]),
        ("out/vocabulary.json", "an export", ["model.pth, config.yaml, vocabulary.json, total_voc.pkl"]),
        ("out/model.pth", "weights of the published SamOut V8", ["hidden_size 12, num_layers 1"]),
        ("out/total_voc.pkl", "a pickled vocabulary of the published scripts", ["data.vocabulary_path=out/total"]),
        ("voc.pkl", "a pickled vocabulary of the published scripts", ["characters, 7 ids"]),
    ],
)
def test_what_is_whole_is_told_with_exit_code_0(
    folder: Path, path: str, what: str, rows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(folder)
    assert inspect.inspect([f"path={path}"]) == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[0] == f"{path}: {what}" and not error
    for row in rows:
        assert row in out
    starts = {line.index(line.split(maxsplit=1)[1]) for line in out.splitlines()[1:] if "to " not in line[:5]}
    assert len(starts) == 1 and len(out.splitlines()) <= 15, "aligned, and short"
    assert content(folder) == before


def test_sizes_and_parameters_are_those_of_the_model(folder: Path) -> None:
    from samout_train.checkpoint import load_run
    from samout_train.models import num_parameters

    wanted = f"hidden_size 12, num_layers 1, num_heads 2, {num_parameters(load_run('run').model):,} parameters"
    assert wanted in dict(inspect_path("run").rows)["model"]
    assert dict(inspect_path("out").rows)["model"].endswith(" parameters")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("here", "here"),
        (["here", "gone"], "here, gone (not found from this folder)"),
        (["gone"], "gone (not found from this folder)"),
    ],
)
def test_folders_of_shards_that_are_not_found_are_told(folder: Path, given: str | list[str], wanted: str) -> None:
    (folder / "here").mkdir()
    saved = folder / "run/.hydra/config.yaml"
    config = OmegaConf.load(saved)
    config.data = {"_target_": "samout_train.data.shards.source.shards", "paths": given}
    OmegaConf.save(config, saved)
    assert dict(inspect_path("run").rows)["data"] == f"shards, {wanted}"


def damaged_run(folder: Path) -> None:
    (folder / NEWEST).write_bytes(b"")


def set_aside(folder: Path) -> None:
    for path in (folder / "run/checkpoints").glob("step_*"):
        path.rename(path.with_name(path.name + ".corrupt"))


def without_manifest(folder: Path) -> None:
    (folder / NEWEST).with_suffix(".json").unlink()


def without_configuration(folder: Path) -> None:
    (folder / "run/.hydra/config.yaml").unlink()


def broken_configuration(folder: Path) -> None:
    (folder / "run/.hydra/config.yaml").write_text("model: [", "utf-8")


def flipped_export(folder: Path) -> None:
    whole = (folder / "out/model.pth").read_bytes()
    (folder / "out/model.pth").write_bytes(b"x" + whole[1:])


def cut_weights(folder: Path) -> None:
    (folder / "cut.pth").write_bytes((folder / "out/model.pth").read_bytes()[:-100])


def less_weights(folder: Path) -> None:
    weights = torch.load(folder / "out/model.pth", weights_only=True)
    weights.pop("decoder_layers.0.alpha")
    torch.save(weights, folder / "less.pth")


def renamed_checkpoint(folder: Path) -> None:
    shutil.copy(folder / NEWEST, folder / "mine.pt")


@pytest.mark.parametrize(
    ("happens", "path", "rows"),
    [
        (damaged_run, "run", ["step_00000002.pt: it has 0 bytes", "takes step_00000001.pt"]),
        (damaged_run, NEWEST, ["no: it has 0 bytes, the manifest records"]),
        (set_aside, "run", ["set aside", "would stop: no checkpoint is whole"]),
        (without_manifest, "run", ["step_00000002.json, which every complete checkpoint has beside it, is missing"]),
        (without_configuration, "run", ["config.yaml: does not say how the model was built (", "not known"]),
        (broken_configuration, NEWEST, ["config.yaml: does not say how the model was built (run/.hydra/config.yaml l"]),
        (flipped_export, "out", ["no: the sha256 of model.pth differs from that in export.json"]),
        (cut_weights, "cut.pth", ["no: it is cut short or damaged: copy or download it again"]),
        (less_weights, "less.pth", ["no: not a whole SamOut V8 checkpoint: decoder_layers.0.alpha is missing"]),
        (renamed_checkpoint, "mine.pt", ["a checkpoint under another name", "manifest, step_*.json, is not beside"]),
    ],
)
def test_what_is_damaged_is_told_with_exit_code_1(
    folder: Path, happens: Any, path: str, rows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    happens(folder)
    before = content(folder)
    assert inspect.inspect([f"path={path}"]) == 1
    out, error = capsys.readouterr()
    for row in rows:
        assert row in out, out
    assert not error and content(folder) == before, "looking renames nothing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "path: is missing"),
        (["path="], "path=: is empty: give a run directory"),
        (["path=absent"], "absent is not there: give a run directory, a checkpoint"),
        (["path=text.txt"], "text.txt is nothing of this program (no pickle of"),
        (["path=."], ". holds 1 run directories, such as run: give one of them"),
        (["path=empty"], "empty is nothing of this program: give"),
        (["path=other.pth"], "other.pth holds tensors that are nothing of this program: wte is no parameter"),
        (["pth=run"], "pth=run: no such key; did you mean path?"),
    ],
)
def test_what_is_not_ours_is_told_with_exit_code_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"wte": torch.zeros(3)}, "other.pth")
    Path("empty").mkdir()
    assert inspect.inspect(words) == 2
    out, error = capsys.readouterr()
    assert message in error and len(error.splitlines()) <= 2 and not out


def test_python_that_a_configuration_names_is_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("touches.py").write_text("import pathlib; pathlib.Path('ran').touch()", "utf-8")
    monkeypatch.syspath_prepend(str(folder))
    saved = Path("run/.hydra/config.yaml")
    saved.write_text(saved.read_text("utf-8").replace("samout_train.models.samout.SamOut", "touches.Model"), "utf-8")
    assert dict(inspect_path("run").rows)["model"].startswith("Model of ")
    assert not Path("ran").exists()


def test_a_run_without_a_checkpoint_is_whole(folder: Path) -> None:
    shutil.rmtree("run/checkpoints")
    Path("run/summary.json").unlink()
    found = inspect_path("run")
    assert not found.damaged and dict(found.rows)["resume=auto"] == "starts at step 0: there is no checkpoint yet"
    assert dict(found.rows)["finished"].startswith("no")
