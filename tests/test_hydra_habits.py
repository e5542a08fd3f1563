"""What plain Hydra takes is taken here: options in subfolders, any root YAML, its logging groups, or a sentence."""

from pathlib import Path

import pytest
from program import samout

from samout_train.command_line import Request
from samout_train.config import CONF, ConfigError

PACKAGE_LINE = "write `# @package _global_` on the first line, with no byte order mark before it"
TINY = ("data=random", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "trainer=debug", "device=cpu")
FILES = {
    "experiment/sub/foo.yaml": "# @package _global_\nseed: 5\n",
    "experiment/no_line.yaml": "seed: 5\n",
    "experiment/mark.yaml": "\ufeff# @package _global_\nseed: 5\n",
    "experiment/late.yaml": "\n# a remark\n# @package _global_\nseed: 5\n",
    "experiment/crlf.yaml": "# @package _global_\r\nseed: 5\r\n",
    "experiment/tight.yaml": "#@package _global_\nseed: 5\n",
    "experiment/empty.yaml": "",
    "experiment/list.yaml": "- a\n",
    "experiment/no_override.yaml": "# @package _global_\ndefaults:\n  - /model: v1\n",
    "experiment/dotted.yaml": "# @package _global_\nseed: 1\noptimizer.lr: 0.5\n",
    "model/list.yaml": "- a\n- b\n",
    "model/dotted.yaml": "defaults:\n  - v8\nmixer.x: 3\n",
    "list_root.yaml": "- a\n",
    "twice_root.yaml": "defaults:\n  - config\n  - model: v1\n",
    "experiment/tab.yaml": "# @package _global_\n\tseed: 5\n",
    "experiment/other.yml": "# @package _global_\nseed: 5\n",
    "experiment/8.yaml": "# @package _global_\nseed: 5\n",
    "experiment/a.b.yaml": "# @package _global_\nseed: 5\n",
    "experiment/Upper-Dash.yaml": "# @package _global_\nseed: 5\n",
    "experiment/child.yaml": "# @package _global_\ndefaults:\n  - sub/foo\n  - _self_\nprecision: fp32\n",
    "experiment/deep.yaml": "# @package _global_\ndefaults:\n  - override /model: deep/mini\n",
    "experiment/wrong.yaml": "# @package _global_\ndefaults:\n  - override /model: deep/mimi\n",
    "my-config.yaml": "defaults:\n  - config\n  - _self_\nseed: 7\n",
    "roots/my-root.yaml": "# @package _global_\ndefaults:\n  - /config\n  - _self_\nseed: 7\n",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for --config-dir, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "mine" / "model" / "deep").mkdir(parents=True)
    mini = (CONF / "model" / "v8.yaml").read_text("utf-8").replace("hidden_size: 384", "hidden_size: 24")
    (tmp_path / "mine" / "model" / "deep" / "mini.yaml").write_text(mini, "utf-8")
    return tmp_path / "mine"


def mistakes(*words: str) -> list[str]:
    try:
        return Request([*words, "--config-dir=mine"], writes=False).mistakes()
    except ConfigError as error:
        return [str(error)]


@pytest.mark.parametrize(
    "words",
    [
        *(["experiment=" + name] for name in ("sub/foo", "'sub/foo'", "crlf", "tight", "a.b", "Upper-Dash", "child")),
        *(["experiment=" + name] for name in ("deep", "null")),
        ["~experiment"],
        ["model=deep/mini"],
        ["-m", "model=deep/mini,v1", "experiment=sub/foo"],
        *(["--config-name", name] for name in ("my-config", "my-config.yaml", "roots/my-root")),
        *([f"hydra/job_logging={name}"] for name in ("disabled", "stdout", "none", "default")),
        ["hydra/hydra_logging=disabled"],
        ["hydra.verbose=true"],
        ["hydra/launcher=basic"],
    ],
    ids=" ".join,
)
def test_what_hydra_takes_is_taken(mine: Path, words: list[str]) -> None:
    assert mistakes(*words) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["experiment=no_line"], f"(mine/experiment/no_line.yaml line 1): {PACKAGE_LINE}"),
        (["experiment=mark"], PACKAGE_LINE),
        (["experiment=late"], PACKAGE_LINE),
        (["experiment=empty"], PACKAGE_LINE),
        (["experiment=list"], "list.yaml: is a list and no settings: write them as `key: value`"),
        (["-m", "experiment=sub/foo,no_line"], f"(mine/experiment/no_line.yaml line 1): {PACKAGE_LINE}"),
        (["experiment=tab"], "mine/experiment/tab.yaml line 2, column 1: a tab"),
        (["experiment=other"], "ends with .yml, which Hydra does not read: rename it to .yaml"),
        (["experiment=8"], "experiment=8: is read as a number: rename the YAML"),
        (["experiment=sub/fo"], "did you mean experiment=sub/foo?"),
        (["experiment=sub"], "did you mean experiment=sub/foo?"),
        (["model=deep/mimi"], "did you mean model=deep/mini?"),
        (["experiment=wrong"], "did you mean model=deep/mini? (mine/experiment/wrong.yaml line 3)"),
        (["--config-name", "my-confg"], "--config-name my-confg: there is no my-confg.yaml; did you mean my-config?"),
        (["--config-name", "../x"], "--config-name ../x: give the name of a YAML in conf/ or in --config-dir"),
        (["hydra/job_logging=colorlog"], "no such option; there are default, disabled, none, person, stdout"),
        (["hydra/job_logging=null"], "hydra/job_logging=null: is no option: leave it out"),
        (["+experiment=sub/foo"], "write experiment=sub/foo"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_it_does_not_take_is_answered_with_what_to_do(mine: Path, words: list[str], told: str) -> None:
    found = mistakes(*words)
    assert len(found) == 1 and told in found[0], found


def test_a_run_without_hydras_logging_trains_with_options_in_subfolders(mine: Path) -> None:
    words = ["experiment=sub/foo", "model=deep/mini", "--config-dir=mine", "hydra/job_logging=disabled", *TINY]
    done = samout(mine.parent, *words, "run_dir=quiet")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (mine.parent / "quiet" / "summary.json").is_file() and "validation loss" not in done.stdout
    assert not (mine.parent / "quiet" / "samout_train.log").exists()
    assert "seed: 5" in (mine.parent / "quiet" / ".hydra" / "config.yaml").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stdout", "none", "default", "person"])
def test_a_run_trains_with_each_logging_of_hydra(mine: Path, name: str) -> None:
    done = samout(mine.parent, *TINY, f"hydra/job_logging={name}", "run_dir=run")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "validation loss" in done.stdout  # with none, Hydra's own logging still prints
    assert (mine.parent / "run" / "samout_train.log").exists() == (name in ("default", "person"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["experiment=no_override"],
            "mine/experiment/no_override.yaml line 3: its defaults choose model, which is chosen already: write "
            "`- override /model: v1`",
        ),
        (["experiment=no_override", "+data=text"], "+data=text: data is chosen already: write data=text"),
        (["--config-name=twice_root"], "mine/twice_root.yaml line 3: its defaults choose model"),
        (["+model=v1"], "+model=v1: model is chosen already: write model=v1"),
        (
            ["experiment=dotted"],
            "mine/experiment/dotted.yaml line 3: optimizer.lr: YAML takes a key with a dot for one name: nest it: "
            "write `optimizer:`, below it `lr:`",
        ),
        (["model=dotted"], "mine/model/dotted.yaml line 3: mixer.x: YAML takes a key with a dot for one name"),
        (["model=list"], "mine/model/list.yaml: is a list and no settings"),
        (["--config-name=list_root"], "mine/list_root.yaml: is a list and no settings"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("flags", [[], ["--cfg", "job"]], ids=["train", "cfg"])
def test_what_is_wrong_with_a_file_is_told_with_the_file(
    mine: Path, words: list[str], told: str, flags: list[str]
) -> None:
    found = mistakes(*words, *flags)
    assert found and found[0].startswith(told), found


def test_roles_and_what_is_swept_may_have_dots(mine: Path) -> None:
    (mine / "experiment" / "roles.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: jsonl\ndata:\n  roles:\n    a.b: <|user|>\n"
        "hydra:\n  sweeper:\n    params:\n      optimizer.lr: 0.1,0.2\n"
    )
    assert not mistakes("experiment=roles", "--cfg", "job")
