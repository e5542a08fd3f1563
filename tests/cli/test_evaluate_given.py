"""Files that are given to evaluate: read whole, named, kept beside other results, and what is unknown is counted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from samout_train import train
from samout_train.checkpoint import LoadedRun, data_record, evaluation_data, load_run, write_manifest
from samout_train.cli import evaluate
from samout_train.config import build, compose_config
from samout_train.data import SPECIAL_TOKENS, Source, WholeData, as_source
from samout_train.training import DATA_SETTINGS, data_problems

TRAINED = "".join(f"line {number % 17} of it. " for number in range(300))
ROW = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of text, as `run`."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "texts").mkdir()
    (folder / "texts" / "text.txt").write_text(TRAINED, "utf-8")
    words = ["model=v8", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "device=cpu"]
    words += ["data=text", f"data.path={folder / 'texts'}", f"data.seq_len={ROW}", "data.batch_size=4", "trainer=debug"]
    train([*words, f"run_dir={folder / 'run'}", "kernels=reference", "~callbacks.sample"])
    return folder


def untrained(folder: Path, *words: str) -> LoadedRun:
    """A run of data settings whose model was never made, with its data in the manifest."""
    node = compose_config(words).config["data"]
    folder.joinpath("run", ".hydra").mkdir(parents=True)
    folder.joinpath("run", "checkpoints").mkdir()
    (folder / "run" / ".hydra" / "config.yaml").write_text(json.dumps({"seed": 0, "data": node}), "utf-8")
    source = as_source(build({key: node[key] for key in node.keys() - set(DATA_SETTINGS)}, seed=0))
    checkpoint = folder / "run" / "checkpoints" / "step_00000001.pt"
    write_manifest(checkpoint, {"step": 1, "data": data_record(source)})
    model = torch.nn.Identity()
    return LoadedRun(checkpoint, 1, model, source.vocabulary, source.vocab_size, source.pad_id, {}, data_node=node)


def data_for(loaded: LoadedRun, *words: str, problems: Any = data_problems) -> tuple[str, Source, WholeData | None]:
    return evaluation_data(loaded, words, None, data_problems=problems, loop_keys=DATA_SETTINGS)


def test_the_data_of_a_run_is_refused_once_it_has_changed(tmp_path: Path) -> None:
    words = ["data=text", text_at(tmp_path / "text.txt", TRAINED), "data.seq_len=8"]
    loaded = untrained(tmp_path, *words)
    assert data_for(loaded)[0] == "text"
    text_at(tmp_path / "text.txt", TRAINED[::-1])
    with pytest.raises(ValueError, match=r"text\.txt: is other data than .*\nrestore the data of the run, or evaluate"):
        data_for(loaded)
    assert data_for(loaded, *words[:2])[2] is not None, "as data of its own"
    for earlier in ({"step": 1}, {"step": 1, "data": {}}):
        write_manifest(loaded.checkpoint, earlier)
        assert data_for(loaded)[0] == "text"


def test_other_json_lines_are_read_as_the_run_read_its_own_unless_typed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    lines = text_at(tmp_path / "a.jsonl", (json.dumps({"messages": turns}) + "\n") * 9)
    ways = ["data.extra_fields=write", "data.roles.user=<|history|>", "+data.roles.guest=<|user|>"]
    loaded = untrained(tmp_path, "data=jsonl", lines, "data.seq_len=4", "data.vocabulary=bytes", *ways)
    history, seen = SPECIAL_TOKENS.index("<|history|>"), []

    def note(node: dict[str, Any], **choice: Any) -> Any:
        seen.append((node["extra_fields"], node["roles"]["user"], node["roles"].get("guest")))
        return data_problems(node, **choice)

    for words, is_history in (([], True), (["data.extra_fields=count", "data.roles.user=<|user|>"], False)):
        whole = data_for(loaded, "data=jsonl", lines, *words, problems=note)[2]
        assert whole is not None and (history in whole.tokens) == is_history
    assert seen == [("write", "<|history|>", "<|user|>"), ("count", "<|user|>", "<|user|>")]


def test_the_folder_of_results_names_what_is_not_the_default(tmp_path: Path) -> None:
    for name in ("step_00000002.pt", "step_00000009.pt", "step_best.pt"):
        (tmp_path / name).touch()
    settings: dict[str, Any] = {"lengths": None, "most_tokens": None, "weights": "last"}

    def place(checkpoint: str, *words: str, **changes: Any) -> str:
        return evaluate._place("text", tmp_path / checkpoint, settings | changes, words, None)

    assert place("step_00000009.pt") == "text" and place("step_00000002.pt") == "text-step_00000002"
    assert place("step_00000009.pt", weights="ema") == "text-ema"
    assert place("step_00000009.pt", weights="ema", lengths=[8]) == "text-ema-lengths_8"
    assert place("step_best.pt") == "text-step_best"
    assert len({place("step_00000009.pt", *words) for words in ([], ["data.separator="], ["data.documents=true"])}) == 3


def evaluated(folder: Path, *words: str) -> int:
    return evaluate.evaluate([f"run={folder / 'run'}", "device=cpu", "kernels=reference", *words])


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = (folder / "run" / "evaluate").glob("*/evaluation.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def text_at(path: Path, content: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, "utf-8")
    return f"data.path={path}"


def nats_in_rows(folder: Path, content: str) -> tuple[float, int]:
    """Mean over the targets that the vocabulary has, each row from a fresh state, and their number."""
    loaded = load_run(folder / "run")
    assert loaded.vocabulary is not None
    ids = torch.from_numpy(loaded.vocabulary.encode(content, unknown_id=3).astype("int64"))
    nats, count = 0.0, 0
    for start in range(0, len(ids) - 1, ROW):
        row = ids[start : start + ROW + 1]
        with torch.inference_mode():
            logits = loaded.model(row[None, :-1])[0][0]
        nats += float(F.cross_entropy(logits, row[1:], ignore_index=3, reduction="sum"))
        count += int((row[1:] != 3).sum())
    return nats / count, count


@pytest.mark.slow
@pytest.mark.parametrize("content", ["line 3 of it, 50 ЖЖ. " * 30, "line 3", TRAINED[:17]])
def test_a_file_is_read_from_its_first_character_to_its_last(
    folder: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(results(folder))
    assert evaluated(folder, "data=text", text_at(tmp_path / "mine.txt", content)) == 0
    out = capsys.readouterr().out
    (name,) = set(results(folder)) - before
    found, (nats, count) = results(folder)[name], nats_in_rows(folder, content)
    assert found["whole_loss_nats"] == pytest.approx(nats, abs=1e-5) and found["counted_targets"] == count
    assert found["path"] == str(tmp_path / "mine.txt") and found["sha256"] in out and found["path"] in out
    strange = sum(letter not in TRAINED for letter in content)
    assert found["not_in_vocabulary"] == strange and found["tokens"] == len(content)
    assert found["not_in_vocabulary_share"] == strange / len(content)
    assert (f"({strange / len(content):.2%}) are characters" in out) == (strange > 0)
    assert " of the measured rate of matrix products" in out
    assert f"over {count} counted targets" in out and found["loss_nats"] and not found["is_training_text"]


@pytest.mark.nightly
def test_results_lie_beside_each_other_and_the_same_file_replaces_its_own(folder: Path, tmp_path: Path) -> None:
    assert evaluated(folder) == 0
    own = results(folder)["text"]
    before = set(results(folder))
    first, second = (text_at(tmp_path / name / "test.txt", f"line {name} of it. " * 9) for name in "12")
    for path in (first, second, first):
        assert evaluated(folder, "data=text", path) == 0
    new = {name: found for name, found in results(folder).items() if name not in before}
    assert {found["path"] for found in new.values()} == {str(tmp_path / name / "test.txt") for name in "12"}
    assert len(new) == 2 and all(name.startswith("text-test-") for name in new)
    assert results(folder)["text"] == own, "that of the run's own data stays in its place"


@pytest.mark.slow
def test_documents_are_read_whole_in_either_layout_also_one_alone(folder: Path, tmp_path: Path) -> None:
    before = set(results(folder))
    path = text_at(tmp_path / "chat.jsonl", json.dumps({"text": "line 3 of it. " * 20}) + "\n")
    for layout in ("packed", "padded"):
        assert evaluated(folder, "data=jsonl", path, f"data.layout={layout}") == 0
    counted = [found["counted_targets"] for name, found in results(folder).items() if name not in before]
    assert sorted(counted) == [279, 280], "280 characters: behind their mark each is a target, without it all but one"


@pytest.mark.slow
def test_text_of_the_run_is_told_also_among_other_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_at(tmp_path / "more" / "new.txt", "line 1 of it. " * 5)
    assert evaluated(folder, "data=text", f"data.path={tmp_path / 'more'}") == 0
    assert "the run was trained on this text" not in capsys.readouterr().out
    text_at(tmp_path / "more" / "copy.txt", TRAINED)
    assert evaluated(folder, "data=text", f"data.path={tmp_path / 'more'}") == 0
    assert "the run was trained on this text or a part of it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        ("ЖЯ" * 200, [], "none of its 400 tokens can be counted"),
        ("l", [], "has 1 token, and a loss needs 2"),
        ("", [], "has no text: set a file with text"),
        (
            "line 1 of it",
            ["data.vocabulary=bytes"],
            "data.vocabulary=bytes: text is read with the vocabulary of the run",
        ),
        ("line 1 of it", ["data.seq_len=4"], "data.seq_len=4: rows are as long as those"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    folder: Path, tmp_path: Path, content: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(folder, "data=text", text_at(tmp_path / "a.txt", content), *words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_text_that_is_mostly_unknown_is_measured_by_what_is_known(folder: Path, tmp_path: Path) -> None:
    before = set(results(folder))
    path = text_at(tmp_path / "odd.txt", "l" + "Ж" * 50 + "ine")
    assert evaluated(folder, "data=text", path) == 0
    (name,) = set(results(folder)) - before
    assert results(folder)[name]["counted_targets"] == 3 and math.isfinite(results(folder)[name]["whole_loss_nats"])


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_after_the_figures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("samout_train.evaluation.lengths.write_figures", refuse)
    assert evaluated(folder, "data=text", text_at(tmp_path / "a.txt", "line 1 of it. " * 9)) == 1
    out, error = capsys.readouterr()
    assert "counted targets" in out and "Permission denied: make it writable, or copy the run" in error


@pytest.mark.slow
def test_lengths_that_rows_do_not_have_are_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = text_at(tmp_path / "lengths.jsonl", json.dumps({"text": "line 3 of it. " * 20}) + "\n")
    words, before = ["data=jsonl", path, "data.layout=padded"], set(results(folder))
    assert evaluated(folder, *words, "lengths=[16,32]") == 2
    out, error = capsys.readouterr()
    assert error.startswith("lengths=[16, 32]: the rows of this data do not follow each other") and "nats" not in out
    assert set(results(folder)) == before
    assert evaluated(folder, *words, f"lengths=[{ROW}]") == 0
    (name,) = set(results(folder)) - before
    assert list(results(folder)[name]["loss_nats"]) == [str(ROW)]


@pytest.mark.nightly
def test_an_earlier_checkpoint_has_results_of_its_own(folder: Path) -> None:
    assert evaluated(folder) == 0
    plain = results(folder)["text"]
    first, *_, last = sorted((folder / "run" / "checkpoints").glob("step_*.pt"))
    assert evaluate.evaluate([f"run={first}", "device=cpu", "kernels=reference"]) == 0
    assert evaluate.evaluate([f"run={last}", "device=cpu", "kernels=reference"]) == 0
    found = results(folder)
    assert found["text"]["step"] == plain["step"] and found[f"text-{first.stem}"]["step"] < plain["step"]


def test_settings_of_training_are_checked_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated(folder, "data=text", text_at(folder / "more.txt", "line 3 of it"), "data.batch_size=0") == 2
    assert "data.batch_size=0: must be above 0" in capsys.readouterr().err
