"""Checkpoints: complete or not believed, the newest that is whole, the last few and the best."""

import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samout_train.checkpoint import (
    CheckpointError,
    Checkpoints,
    check_resume,
    damage,
    find_checkpoint,
    locked,
    newest_checkpoint,
    read_checkpoint,
    recorded_data,
    saved_steps,
)
from samout_train.checkpoint.run_directory import has_data_record
from samout_train.experiments.jobs import has_checkpoint


def checkpoints(run_dir: Path, **changes: Any) -> Checkpoints:
    settings = {"every_n_steps": 10, "every_n_seconds": None, "keep_last": 2, "keep_best": True} | changes
    return Checkpoints(directory=run_dir / "checkpoints", about={"threads": 2}, **settings)


def save(made: Checkpoints, *steps: int, best_step: int | None = None) -> list[Path]:
    for step in steps:
        made.save({"weight": torch.full((50,), float(step))}, step=step, best_step=best_step)
        made.finish(step, best_step)
    return [made.directory / f"step_{step:08d}.pt" for step in steps]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    (path,) = save(checkpoints(tmp_path), 7)
    assert path.name == "step_00000007.pt" and damage(path) is None
    assert torch.equal(read_checkpoint(path)["weight"], torch.full((50,), 7.0))
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["step"] == 7 and manifest["bytes"] == path.stat().st_size and len(manifest["sha256"]) == 64


def test_a_best_step_that_is_found_after_its_save_is_named(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    save(made, 3, best_step=3)
    save(made, 6, best_step=3)
    resumed = checkpoints(tmp_path)
    resumed.last_step = 6
    resumed.finish(6, 6)
    assert json.loads((made.directory / "index.json").read_text()) == {"last": 6, "best": 6}


def test_saves_are_due_at_the_interval_and_for_a_new_best(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    assert [step for step in range(1, 31) if made.due(step, is_best=step == 14)] == [10, 14, 20, 30]
    save(made, 20)
    assert not made.due(20, is_best=True)
    assert not checkpoints(tmp_path, keep_best=False).due(14, is_best=True)
    assert checkpoints(tmp_path, every_n_steps=None, every_n_seconds=1e-9).due(3, is_best=False)
    assert not checkpoints(tmp_path, every_n_steps=None, every_n_seconds=1e9).due(3, is_best=False)


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    for step in (1, 2, 3, 4, 5):
        save(made, step, best_step=min(step, 2))
    names = sorted(path.name for path in made.directory.glob("step_*.pt"))
    assert names == ["step_00000002.pt", "step_00000004.pt", "step_00000005.pt"]
    assert json.loads((made.directory / "index.json").read_text()) == {"last": 5, "best": 2}
    assert len(list(made.directory.iterdir())) == 2 * 3 + 1


def test_files_of_other_names_are_the_users(tmp_path: Path) -> None:
    made = checkpoints(tmp_path, keep_last=1, keep_best=False)
    (first,) = save(made, 99_999_999)
    names = ["step_100000000 - Copy", "step_best", "step_0000000100000000", "step_3"]
    for name in names:
        for ending in (".pt", ".pt.corrupt", ".json", ".shards"):
            (made.directory / f"{name}{ending}").write_text("{}")
    assert newest_checkpoint(tmp_path, set_aside=True) == first, "none of them is set aside"
    assert recorded_data(tmp_path) == {} and not has_data_record(tmp_path)
    made.save({}, step=100_000_000, best_step=None)
    made.finish(100_000_000, None)
    newest = made.directory / "step_100000000.pt"
    assert newest_checkpoint(tmp_path, set_aside=True) == newest and saved_steps(made.directory) == [100_000_000]
    assert json.loads((made.directory / "index.json").read_text())["last"] == 100_000_000
    with locked(tmp_path):
        pass
    assert all((made.directory / f"{name}.shards").exists() for name in names)
    newest.unlink()
    newest.with_suffix(".json").unlink()
    assert not has_checkpoint(tmp_path) and newest_checkpoint(tmp_path, set_aside=True) is None
    composed: Any = SimpleNamespace(config={"resume": str(tmp_path), "init_from": None})
    (problem,) = check_resume(composed)
    assert "holds no checkpoint" in str(problem)
    newest.with_name(f"{newest.name}.corrupt").touch()
    assert has_checkpoint(tmp_path)


def test_temporary_files_left_behind_are_removed_and_never_read(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000009.pt.123.tmp").write_bytes(b"half")
    (tmp_path / "mine.tmp").write_bytes(b"kept")
    assert newest_checkpoint(tmp_path, set_aside=True) is None
    with locked(tmp_path):
        assert not list(made.directory.iterdir()) and (tmp_path / "mine.tmp").exists()


@pytest.mark.parametrize(
    ("hurt", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "has 100 bytes"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: path.write_bytes(flipped(path.read_bytes())), "sha256 differs"),
        (lambda path: path.with_suffix(".json").unlink(), "step_00000002.json, which every complete"),
        (lambda path: path.with_suffix(".json").write_text('{"bytes": 3'), "step_00000002.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, hurt: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(checkpoints(tmp_path), 1, 2)
    hurt(newer)
    assert newest_checkpoint(tmp_path, set_aside=False) == older and newer.exists()
    assert newest_checkpoint(tmp_path, set_aside=True) == older
    assert reason in caplog.text and newer.with_name("step_00000002.pt.corrupt").exists() and not newer.exists()


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_when_all_are_damaged_each_is_listed(tmp_path: Path) -> None:
    for path in save(checkpoints(tmp_path), 1, 2):
        path.write_bytes(b"x")
    for _ in range(2):  # also when they were set aside earlier
        with pytest.raises(CheckpointError, match=r"(?s)(step_0000000[12].*has 1 bytes.*){2}"):
            newest_checkpoint(tmp_path, set_aside=True)


def test_a_save_after_damage_never_deletes_what_it_wrote(tmp_path: Path) -> None:
    _, newer = save(checkpoints(tmp_path), 500, 1000)
    newer.write_bytes(b"x")
    assert newest_checkpoint(tmp_path, set_aside=True) is not None
    (written,) = save(checkpoints(tmp_path, keep_last=1), 750)
    assert newest_checkpoint(tmp_path, set_aside=True) == written
    assert sorted(path.name for path in written.parent.iterdir()) == [
        "index.json",
        "step_00000750.json",
        "step_00000750.pt",
        "step_00001000.json.corrupt",
        "step_00001000.pt.corrupt",
    ]


def test_a_run_its_checkpoints_or_a_file_can_be_named(tmp_path: Path) -> None:
    older, newer = save(checkpoints(tmp_path), 1, 2)
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path / "checkpoints") == newer
    assert find_checkpoint(older) == older
    with pytest.raises(ValueError, match="is not there"):
        find_checkpoint(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "empty")
    older.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="has 1 bytes"):
        find_checkpoint(older)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of format"):
        read_checkpoint(tmp_path / "other.pt")


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = checkpoints(tmp_path, keep_last=1)
    save(made, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuses)
        save(made, 2)
    assert "an old checkpoint" in caplog.text and "could not be deleted (no)" in caplog.text
    assert all(damage(made.directory / f"step_{step:08d}.pt") is None for step in (1, 2))
    save(made, 3)
    assert [path.name for path in made.directory.glob("step_*.pt")] == ["step_00000003.pt"]


def refuses(path: Path, missing_ok: bool = False) -> None:
    if path.suffix != ".tmp":
        raise OSError("no")


def test_what_reads_back_as_something_else_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = checkpoints(tmp_path)
    save(made, 1)
    monkeypatch.setattr("samout_train.checkpoint.files.sha256_of", lambda path: "another")
    made.save({"weight": torch.zeros(50)}, step=2, best_step=None)
    made.wait()
    assert made.last_step == 1 and "read back differs from what was written" in caplog.text
    with pytest.raises(CheckpointError, match="the checkpoint of step 1 is kept"):
        made.finish(2, None)
    assert not list(made.directory.glob("*.tmp")) and not (made.directory / "step_00000002.pt").exists()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, contents = threading.Event(), []

    def slowly(directory: Path, step: int, content: memoryview, about: dict[str, Any]) -> None:
        may_write.wait(60)
        contents.append(bytes(content))

    monkeypatch.setattr("samout_train.checkpoint.manager.write_checkpoint", slowly)
    made, state = checkpoints(tmp_path), {"weight": torch.zeros(50)}
    made.save(state, step=1, best_step=None)
    state["weight"] += 1
    assert made.last_step is None and not made.due(1, is_best=True)
    may_write.set()
    made.finish(1, None)
    assert not torch.load(io.BytesIO(contents[0]), weights_only=True)["weight"].any(), "a copy was written"
