"""What plain Hydra takes is taken here: options in subfolders, any root YAML, its logging groups, or a sentence."""

from pathlib import Path

import pytest

from samout_train.cli.request import Request
from samout_train.config import CONF, ConfigError
from tests.support.marks import spread
from tests.support.messages import assert_recorded
from tests.support.program import samout

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
    "experiment/scalar.yaml": "hello\n",
    "experiment/one.yaml": "# @package _global_\n1: 2\n",
    "experiment/true_key.yaml": "# @package _global_\ntrue: 2\n",
    "experiment/null_key.yaml": "# @package _global_\nseed: 1\nnull: 2\n",
    "experiment/one_below.yaml": "# @package _global_\nmodel: {1: 2}\n",
    "experiment/again.yaml": "# @package _global_\ndefaults:\n  - /model: v8\n",
    "experiment/again_below.yaml": "# @package _global_\ndefaults:\n  - again\n  - _self_\nseed: 1\n",
    "experiment/group_list.yaml": "# @package _global_\noptimizer: [1]\n",
    "experiment/group_number.yaml": "# @package _global_\noptimizer: 1\n",
    "experiment/group_name.yaml": "# @package _global_\nmodel: v8\n",
    "experiment/group_null.yaml": "# @package _global_\ndefaults:\n  - override /model: null\n",
    "experiment/betas.yaml": "# @package _global_\noptimizer:\n  betas: {a: 1}\n",
    "experiment/mixer.yaml": "# @package _global_\nmodel: {mixer: [1]}\n",
    "experiment/hydra_key.yaml": "# @package _global_\nhydra: {jb: {name: x}}\n",
    "experiment/hydra_list.yaml": "# @package _global_\nhydra: [1]\n",
    "experiment/hydra_number.yaml": "# @package _global_\nhydra: 1\n",
    "experiment/hydra_value.yaml": "# @package _global_\nhydra: {job: {num: x}}\n",
    "experiment/self.yaml": "# @package _global_\ndefaults:\n  - self\nseed: 1\n",
    "roots/selfless.yaml": "defaults:\n  - /config\n  - self\n",
    "experiment/refers.yaml": "# @package _global_\nseed: ${threads}\nthreads: ${seed}\n",
    "experiment/gobal.yaml": "# @package _gobal_\nseed: 1\n",
    "experiment/quoted.yaml": '# @package _global_\nmodel:\n  hidden_size: "32"\n  tied_head: "yes"\nseed: "1"\n',
    "experiment/variable.yaml": "# @package _global_\nseed: ${oc.env:SEED_OF_TEST}\n",
    "experiment/sampel.yaml": "# @package _global_\ncallbacks: {sampel: {num_samples: 1}}\n",
    "experiment/no_sample.yaml": "# @package _global_\ncallbacks:\n  sample: null\n",
    "optimizer/own.yaml": "lr: 1\n",
    "hydra/launcher/own.yaml": "a: 1\n",
    "hydra/launcher/absent.yaml": "_target_: absent.Launcher\n",
    "hydra/sweeper/own.yaml": "a: 1\n",
    "my-config.yaml": "defaults:\n  - config\n  - _self_\nseed: 7\n",
    "roots/my-root.yaml": "# @package _global_\ndefaults:\n  - /config\n  - _self_\nseed: 7\n",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for --config-dir, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEED_OF_TEST", "3")
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
        Request.checked([*words, "--config-dir=mine"], writes=False)
    except ConfigError as error:
        return list(map(str, error.problems))
    return []


@pytest.mark.parametrize(
    "words",
    spread(
        [
            *(
                ["experiment=" + name]
                for name in ("sub/foo", "'sub/foo'", "crlf", "tight", "a.b", "Upper-Dash", "child")
            ),
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
        3,
    ),
    ids=" ".join,
)
def test_what_hydra_takes_is_taken(mine: Path, words: list[str]) -> None:
    assert mistakes(*words) == []


@pytest.mark.parametrize(
    ("words", "told"),
    spread(
        [
            (["experiment=no_line"], f"(mine/experiment/no_line.yaml line 1): {PACKAGE_LINE}"),
            (["experiment=mark"], PACKAGE_LINE),
            (["experiment=late"], PACKAGE_LINE),
            (["experiment=empty"], f"sets nothing (mine/experiment/empty.yaml): {PACKAGE_LINE}, and below it what"),
            (["experiment=scalar"], "mine/experiment/scalar.yaml: is text instead of settings"),
            (["experiment=tight.yaml"], "leave the file's folder and ending out: experiment=tight"),
            (["experiment=mine/experiment/tight.yaml"], "leave the file's folder and ending out: experiment=tight"),
            (["experiment=one"], "1=2: no such key; there are seed"),
            (["experiment=one", "seed=1"], "(mine/experiment/one.yaml line 2)"),
            (["experiment=true_key"], "true=2: no such key"),
            (["experiment=one_below"], "model.1=2: no such key"),
            (["experiment=group_number"], "optimizer=1: must be settings, one a line below it"),
            (["experiment=group_name"], "model=v8: must be settings"),
            (
                ["experiment=group_name"],
                "`- override /model: v8` under `defaults:` (mine/experiment/group_name.yaml line 2)",
            ),
            (["experiment=group_null"], "model: is missing: choose an option: model=NAME when you start"),
            (["experiment=group_null"], "(mine/experiment/group_null.yaml line 3)"),
            (["optimizer=own"], "optimizer: has no _target_: name the class or function that it builds"),
            (["optimizer=own"], "(mine/optimizer/own.yaml line 1)"),
            (["~model.mixer._target_"], "model.mixer={'_partial_': True}: must be a node with _target_"),
            (["callbacks.sampel.num_samples=1"], "no _target_ for one of your own; did you mean callbacks.sample?"),
            (
                ["experiment=sampel"],
                "did you mean callbacks.sample? (mine/experiment/sampel.yaml line 2)",
            ),
            (
                ["callbacks.sample=null"],
                "must be a callback: to switch it off, write '~callbacks.sample' when you start",
            ),
            (["experiment=no_sample"], "(mine/experiment/no_sample.yaml line 3)"),
            (["seed='1'"], "seed='1': is text: write 1 without quotes"),
            (["model.tied_head=yes"], "model.tied_head='yes': is text: write true"),
            (["optimizer.betas='[0.9,0.99]'"], "is text: write [0.9,0.99] without quotes"),
            (
                ["experiment=variable"],
                "write ${oc.decode:${oc.env:SEED_OF_TEST}} (mine/experiment/variable.yaml line 2)",
            ),
            (["seed=${oc.env:SEED_OF_TEST}"], "write '${oc.decode:${oc.env:SEED_OF_TEST}}', with these quotes"),
            (["optimizer.betas.a=1"], "optimizer.betas is a list: write all of it, optimizer.betas=[...]"),
            (["model.mixer=[1]"], "model.mixer=[1]: cannot take the place of what is there"),
            (["-m", "hydra/launcher=own", "seed=1,2"], "hydra.launcher: has no _target_: name the class of a launcher"),
            (["-m", "hydra/launcher=own", "seed=1,2"], "(mine/hydra/launcher/own.yaml line 1)"),
            (["-m", "hydra/sweeper=own", "seed=1,2"], "hydra.sweeper: has no _target_: name the class of a sweeper"),
            (
                ["-m", "hydra/launcher=absent", "seed=1,2"],
                "hydra.launcher._target_=absent.Launcher: must be a launcher",
            ),
            (["experiment=list"], "list.yaml: is a list instead of settings: write them as `key: value`"),
            (["-m", "experiment=sub/foo,no_line"], f"(mine/experiment/no_line.yaml line 1): {PACKAGE_LINE}"),
            (["experiment=tab"], "mine/experiment/tab.yaml line 2, column 1: a tab"),
            (["experiment=other"], "ends with .yml, which Hydra does not read: rename it to .yaml"),
            (["experiment=8"], "experiment=8: is read as a number: rename the YAML"),
            (["experiment=sub/fo"], "did you mean experiment=sub/foo?"),
            (["experiment=sub"], "did you mean experiment=sub/foo?"),
            (["model=deep/mimi"], "did you mean model=deep/mini?"),
            (["experiment=wrong"], "did you mean model=deep/mini? (mine/experiment/wrong.yaml line 3)"),
            (
                ["--config-name", "my-confg"],
                "--config-name my-confg: there is no my-confg.yaml; did you mean my-config?",
            ),
            (["--config-name", "../x"], "--config-name ../x: give the name of a YAML in conf/ or in --config-dir"),
            (["hydra/job_logging=colorlog"], "no such option; there are default, disabled, none, person, stdout"),
            (["hydra/job_logging=null"], "hydra/job_logging=null: is not an option: leave it out"),
            (["+experiment=sub/foo"], "write experiment=sub/foo"),
        ],
        3,
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_it_does_not_take_is_answered_with_what_to_do(mine: Path, words: list[str], told: str) -> None:
    found = mistakes(*words)
    assert len(found) == 1 and told in str(found[0]), found
    assert_recorded(f"hydra_usage: {' '.join(words)}", str(found[0]))


@pytest.mark.slow
def test_a_run_without_hydras_logging_trains_with_options_in_subfolders(mine: Path) -> None:
    words = ["experiment=sub/foo", "model=deep/mini", "--config-dir=mine", "hydra/job_logging=disabled", *TINY]
    done = samout(mine.parent, *words, "run_dir=quiet")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (mine.parent / "quiet" / "summary.json").is_file() and "val loss" not in done.stdout
    assert not (mine.parent / "quiet" / "samout_train.log").exists()
    assert "seed: 5" in (mine.parent / "quiet" / ".hydra" / "config.yaml").read_text("utf-8")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["stdout", "none", "default", "person"])
def test_a_run_trains_with_each_logging_of_hydra(mine: Path, name: str) -> None:
    done = samout(mine.parent, *TINY, f"hydra/job_logging={name}", "run_dir=run")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "val loss" in done.stdout  # with none, Hydra's own logging still prints
    assert (mine.parent / "run" / "samout_train.log").exists() == (name in ("default", "person"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["experiment=no_override"],
            "mine/experiment/no_override.yaml line 3: its defaults choose model, which is chosen already: write "
            "`- override /model: v1`",
        ),
        (
            ["experiment=again"],
            "mine/experiment/again.yaml line 3: its defaults choose model, which is chosen already: write "
            "`- override /model: v8`",
        ),
        (["experiment=again_below"], "mine/experiment/again.yaml line 3: its defaults choose model"),
        (["experiment=null_key"], "mine/experiment/null_key.yaml line 3: null: is not a key: give it a name"),
        (
            ["experiment=group_list"],
            "optimizer=[1]: must be settings, one a line below it; to choose an option, write ",
        ),
        (["experiment=betas"], "optimizer.betas={'a': 1}: must be a list such as [0.9, 0.99] (mine/experiment/betas"),
        (["experiment=mixer"], "model.mixer=[1]: must be settings, `key: value`, one a line below it (mine/exper"),
        (["experiment=hydra_list"], "hydra=[1]: must be settings, `key: value`, one a line below it (mine/exper"),
        (["experiment=hydra_number"], "hydra=1: must be settings, `key: value`, one a line below it (mine/exper"),
        (["experiment=hydra_key"], "hydra.jb: no such key; did you mean hydra.job?"),
        (["experiment=hydra_value"], "hydra.job.num='x': must be a whole number"),
        (["experiment=self"], "mine/experiment/self.yaml line 3: YAML files include each other in a circle"),
        (["--config-name=roots/selfless"], "mine/roots/selfless.yaml line 3: its defaults name roots/self, which is"),
        (["experiment=refers"], "seed: its ${...} leads back to seed itself: write a value in place of one of them"),
        (
            ["experiment=gobal"],
            "mine/experiment/gobal.yaml line 1: there is no package _gobal_: did you mean _global_?",
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
        (["model=list"], "mine/model/list.yaml: is a list instead of settings"),
        (["--config-name=list_root"], "mine/list_root.yaml: is a list instead of settings"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("flags", spread([[], ["--cfg", "job"]], 2), ids=["train", "cfg"])
def test_what_is_wrong_with_a_file_is_told_with_the_file(
    mine: Path, words: list[str], told: str, flags: list[str]
) -> None:
    found = mistakes(*words, *flags)
    assert found and str(found[0]).startswith(told), found
    assert_recorded(f"hydra_usage: {' '.join([*words, *flags])}", "\n".join(map(str, found)))


@pytest.mark.parametrize(
    ("words", "told"),
    spread(
        [
            (["mo del=3"], "mo del=3: 'mo del' is not a key: use letters"),
            (["model.=3"], "'model.' is not a key"),
            ([".model=3"], "'.model' is not a key"),
            (["=3"], "=3: has no key: write key=value"),
            (["+=3"], "'+' is not a key"),
            (["model.hidden_size=32,"], "cannot be read: it ends with a comma: write model.hidden_size=32"),
            (["my.txt"], "my.txt: is not a setting: write data=text data.path=my.txt"),
            (["data/my.jsonl"], "data/my.jsonl: is not a setting: write data=jsonl data.path=data/my.jsonl"),
            (["texts/my.jsonl"], "texts/my.jsonl: is not a setting: write data=jsonl data.path=texts/my.jsonl"),
            (["step_1.pt"], "step_1.pt: is not a setting: write resume=step_1.pt to start from it"),
            (["mine"], "mine: is not a setting: write data=text data.path=mine"),
            (["mine/experiment/one.yaml"], "a YAML is chosen by its group and name, such as experiment=NAME"),
            (["--info", "data=random"], "--info data=random: --info stands last, or has one of these behind it: all"),
            (["--cfg", "job", "-p", "modell"], "--package modell: no such key; did you mean model?"),
            (["--cfg", "job", "-p", "model.mixr"], "did you mean model.mixer?"),
            (["--cfg", "hydra", "-p", "hydra.jb"], "did you mean hydra.job?"),
        ],
        2,
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_setting_is_told_what_is_one(mine: Path, words: list[str], told: str) -> None:
    found = mistakes(*words)
    assert len(found) == 1 and told in str(found[0]), found
    assert_recorded(f"hydra_usage: {' '.join(words)}", str(found[0]))


@pytest.mark.parametrize("words", [["--cfg", "job", "-p", "model.mixer"], ["--cfg", "all", "-p", "hydra.job"]])
def test_a_part_of_the_settings_that_is_there_is_shown(mine: Path, words: list[str]) -> None:
    assert mistakes(*words) == []


def test_each_quoted_value_of_a_file_is_told_with_its_line(mine: Path) -> None:
    place = "mine/experiment/quoted.yaml line"
    assert [str(mistake) for mistake in mistakes("experiment=quoted")] == [
        f"seed='1': is text: write 1 without quotes ({place} 5)",
        f"model.hidden_size='32': is text: write 32 without quotes ({place} 3)",
        f"model.tied_head='yes': is text: write true ({place} 4)",
    ]


@pytest.mark.slow
def test_information_may_stand_last(mine: Path) -> None:
    done = samout(mine.parent, "data=random", "--info")
    assert done.returncode == 0 and "Config search path" in done.stdout, done.stderr


@pytest.mark.slow
def test_roles_and_what_is_swept_may_have_dots(mine: Path) -> None:
    (mine / "experiment" / "roles.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: jsonl\ndata:\n  roles:\n    a.b: <|user|>\n"
        "hydra:\n  sweeper:\n    params:\n      optimizer.lr: 0.1,0.2\n"
    )
    assert not mistakes("experiment=roles", "--cfg", "job")
