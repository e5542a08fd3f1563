"""Sweeps: their jobs and directories."""

import unicodedata
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from samout_train.config import CONF, ConfigError
from samout_train.experiments import common_keys, finished, jobs_of, words_of_sweep
from samout_train.experiments.sweep import _job_directory
from samout_train.training import checked_config
from tests.support.program import samout

SMALLER = {
    "recall",
    "recall_64",
    "recall_128",
    "recall_256",
    "recall_512",
}  # what has a smaller form that takes its place in the sweep


def names(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def test_jobs_are_all_combinations_and_what_is_typed_has_priority() -> None:
    swept = {"model": "v1,v8", "seed": "1,2"}
    jobs = jobs_of(["optimizer.lr=1e-3"], swept)
    assert sorted(map(sorted, jobs)) == [
        [f"model={model}", "optimizer.lr=0.001", f"seed={seed}"] for model in ("v1", "v8") for seed in (1, 2)
    ]
    assert jobs_of(["model=lstm", "seed=3"], swept) == [["model=lstm", "seed=3"]]
    with pytest.raises(ConfigError, match="these values make no sweep"):
        jobs_of(["seed=range(0,3,0)"], {})


def test_a_directory_is_readable_where_it_can_be_and_never_that_of_another_job() -> None:
    assert _job_directory("++optimizer.lr=0.001,model=v8") == "model=v8,optimizer.lr=0.001"
    assert _job_directory("") == "job"
    unreadable = [_job_directory(f"data.path={name}") for name in ("a b", "a/b", "a?b")]
    assert len(set(unreadable)) == 3 and all(name.startswith("data.path=a-b-") for name in unreadable)
    long = [_job_directory(f"data.path={'x' * 200}{end}") for end in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 140
    assert _job_directory("a=1,b=2") == _job_directory("b=2,a=1")
    assert _job_directory("x=[1,2,3]") != _job_directory("x=[1,3,2]")


@pytest.mark.parametrize(
    "alike",
    [
        ["data.path=Text", "data.path=text", "data.path=TEXT"],
        ["data.path=e\u0301", "data.path=\u00e9"],
        ["data.path=ß", "data.path=ss"],
        ["a=1", "a=1.", "a=1-", "a=1_"],
        ["x=a b", "x=a-b", "x=a/b", "x=a:b"],
        [f"data.path={'文' * 200}{end}" for end in "ab"],
    ],
    ids=lambda alike: alike[0][:20],
)
def test_names_that_any_file_system_takes_for_one_are_none(alike: list[str]) -> None:
    folded = {unicodedata.normalize("NFC", _job_directory(name)).casefold() for name in alike}
    assert len(folded) == len(alike)
    assert all(len(_job_directory(name).encode()) <= 140 for name in alike)


@pytest.mark.parametrize("overrides", ["con.x=1", "NUL", "com1", "aux.lr=2,b=1", "~x", "-x=1", ".x=1", "x=1."])
def test_a_name_is_no_option_no_device_and_not_hidden(overrides: str) -> None:
    name = _job_directory(overrides)
    assert name[0] not in "-." and name[-1] not in ". "
    assert name.split(".")[0].lower() not in ("con", "nul", "aux", "com1")


def test_names_leave_out_what_all_jobs_have_but_for_what_a_configuration_sweeps_over() -> None:
    typed = ["model=v1,v8", "data=random", "model.hidden_size=12", "optimizer.lr=1e-3"]
    assert common_keys(typed, {}) == ["data", "model.hidden_size", "optimizer.lr"]
    swept = {"model": "v1,v8", "data": "copy,parity", "optimizer.lr": "1e-3,1e-2"}
    assert common_keys(typed, swept) == ["model.hidden_size"]
    words = words_of_sweep(["model=v1,v8", "++model.hidden_size=12", "++optimizer.lr=1e-3"], typed, swept)
    assert words[:3] == ["model=v1,v8", "++model.hidden_size=12", "optimizer.lr=1e-3"]
    assert words[3].endswith("exclude_keys=[model.hidden_size]")
    assert words_of_sweep(["model=v1,v8"], ["model=v1,v8"], {}) == ["model=v1,v8"]


@pytest.mark.slow
def test_a_part_of_what_a_configuration_sweeps_over_lies_where_the_whole_would(tmp_path: Path) -> None:
    words = ["-m", "experiment=capabilities", "trainer=debug", "device=cpu", "model=gru", "data.num_test_sequences=100"]
    first = samout(tmp_path, *words, "data=parity", "optimizer.lr=1e-3")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "outputs" / "sweeps" / "capabilities"
    jobs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert jobs == ["data=parity,model=gru,optimizer.lr=0.001"]
    again = samout(tmp_path, *words, "data=parity,s5", "optimizer.lr=1e-3")
    assert again.returncode == 0 and again.stdout.count("is finished: skipped") == 1, again.stderr
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
    other = samout(tmp_path, *words, "data=s5", "optimizer.lr=1e-3", "model.dropout=0.5")
    assert other.returncode == 2 and "model.dropout=0.5: the run in " in other.stderr
    ends = samout(tmp_path, *words, "data=s5", "optimizer.lr=1e-3", "callbacks.accuracy.solved_evaluations=null")
    assert ends.returncode == 2 and "callbacks.accuracy.solved_evaluations=null: the run in " in ends.stderr


@pytest.mark.slow
def test_a_sweep_over_patterns_trains_the_mixers_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "mine" / "mixer").mkdir(parents=True)
    (tmp_path / "mine" / "mixer" / "small_window.yaml").write_text("defaults:\n  - window_attention\nwindow: 4\n")
    sizes = ["model.hidden_size=12", "model.num_heads=2", "data=random", "data.num_sequences=8", "data.batch_size=8"]
    words = ["--config-dir", "mine", "model=hybrid", "model.pattern=[maxplus,small_window],[gla]"]
    made = samout(tmp_path, "-m", *words, *sizes, "trainer=debug", "device=cpu", "hydra.sweep.dir=swept")
    assert made.returncode == 0 and made.stdout.count("  done  ") == 2, made.stderr
    mixers = []
    for path in sorted((tmp_path / "swept").glob("*/.hydra/config.yaml")):
        mixers.append("small_window" in OmegaConf.load(path).model.mixers)
    assert mixers == [False, True]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"steps": 3}'])
def test_a_job_is_finished_when_its_summary_is_whole(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert finished(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"weights_sha256": "x"}')
    assert finished(tmp_path) == {"weights_sha256": "x"}


def test_capabilities_are_every_model_and_every_task() -> None:
    swept = OmegaConf.load(CONF / "experiment" / "capabilities.yaml").hydra.sweeper.params
    tasks = {name for name in names("data") if "test_" in (CONF / "data" / f"{name}.yaml").read_text()}
    assert set(swept.model.split(",")) == names("model")
    assert set(swept.data.split(",")) == tasks - SMALLER


@pytest.mark.nightly
def test_a_part_of_the_capabilities_is_drawn_by_compare(tmp_path: Path) -> None:
    words = ["-m", "experiment=capabilities", "trainer=debug", "device=cpu", "data.num_test_sequences=100"]
    done = samout(tmp_path, *words, "model=gru,v1", "data=parity,copy", "optimizer.lr=1e-3")
    assert done.returncode == 0, done.stderr
    folder = Path("outputs") / "sweeps" / "capabilities"
    page = samout(tmp_path, "compare", f"runs={folder}", "run_dir=page")
    assert page.returncode == 0, page.stderr
    assert "<h2>Tasks</h2>" in (tmp_path / "page" / "comparison.html").read_text("utf-8")
    again = samout(tmp_path, *words, "model=gru,v1", "data=parity,copy", "optimizer.lr=1e-3")
    assert again.returncode == 0 and again.stdout.count("is finished: skipped") == 4


@pytest.mark.parametrize(
    ("grid", "left_out"),
    [
        ("zoology_recall", {"mingru": ["~model.num_heads"], "lstm": ["~model.num_heads"]}),
        ("zoology_small", {"mingru": ["~model.num_heads", "~model.convolution_size"]}),
    ],
)
def test_every_model_and_width_of_a_recall_grid_can_be_trained(grid: str, left_out: dict[str, list[str]]) -> None:
    swept = OmegaConf.load(CONF / "experiment" / f"{grid}.yaml").hydra.sweeper.params
    for model in (*swept.model.split(","), *left_out):
        for width in swept["model.hidden_size"].split(","):
            words = [f"experiment={grid}", f"model={model}", f"model.hidden_size={width}", *left_out.get(model, [])]
            _, problems = checked_config(words)
            assert not problems
