"""Sweeps in two stages: which jobs there are, what is chosen, and the table."""

from pathlib import Path
from typing import Any

import pytest

from samout_train.config import CONF, ConfigError, compose_config
from samout_train.experiments import Stages, first_stage
from samout_train.experiments.staged import mean_and_spread
from samout_train.training import checked_config
from tests.support.program import samout

FORMS = {"a": ["model=v1"], "b": ["model=v8", "seed=7"], "c": [], "d": ["model=gru"]}


def stages(**settings: Any) -> Stages:
    given = {"forms": FORMS, "rates": [1e-3, 3e-3, 1e-2], "finalists": 1, "always": ["d"], "seeds": [1, 2]}
    return Stages(**{**given, "longer": ["data.budget_steps=9"], **settings})


def ran(job_losses: dict[tuple[str, float], float | None], of: Stages) -> dict[Any, Any]:
    return {
        job: None
        if (loss := job_losses.get((job.form, job.rate))) is None
        else {"val_loss_nats": loss, "parameters": 1234, "train_seconds": 5.0, "steps": 3}
        for job in of.screening()
    }


LOSSES = {
    **{("a", 1e-3): 2.0, ("a", 3e-3): 1.5, ("a", 1e-2): 1.8},
    **{("b", 1e-3): 1.6, ("b", 3e-3): None, ("b", 1e-2): 1.4},
    **{("d", 1e-3): 2.5, ("d", 3e-3): 2.4, ("d", 1e-2): 2.6},
}


def test_the_first_stage_is_every_form_with_every_rate() -> None:
    jobs = stages().screening()
    assert [(job.form, job.rate, job.seed) for job in jobs][:4] == [
        *(("a", rate, None) for rate in (1e-3, 3e-3, 1e-2)),
        ("b", 1e-3, None),
    ]
    assert len(jobs) == 12 and jobs[4].overrides == ("model=v8", "seed=7", "optimizer.lr=0.003")
    assert {job.form for job in stages(only=["c"], always=[]).screening()} == {"c"}


def test_the_second_stage_is_the_best_and_those_that_are_always_there_with_other_seeds() -> None:
    of = stages()
    finals = of.finals(ran(LOSSES, of))
    assert [(job.form, job.rate, job.seed) for job in finals] == [
        ("b", 1e-2, 1),
        ("b", 1e-2, 2),
        ("d", 3e-3, 1),
        ("d", 3e-3, 2),
    ]
    assert finals[1].overrides == ("model=v8", "seed=7", "optimizer.lr=0.01", "data.budget_steps=9", "seed=2")
    assert {job.form for job in stages(finalists=9).finals(ran(LOSSES, of))} == {"a", "b", "d"}  # c never ended


def test_the_table_says_what_was_chosen_what_failed_and_the_spread() -> None:
    of = stages()
    screened = ran(LOSSES, of)
    final = {
        job: {"val_loss_nats": nats, "parameters": 1234, "train_seconds": seconds, "steps": 9}
        for job, nats, seconds in zip(of.finals(screened), (1.25, 1.35, 2.0, 2.0), (8.0, 12.0, 7.0, 7.0), strict=True)
    }
    assert of.markdown(screened, final).splitlines() == [
        "| form | parameters | best rate | lr 0.001 | lr 0.003 | lr 0.01 | 9 steps, seeds 1, 2 | seconds |",
        "|---|---|---|---|---|---|---|---|",
        "| a | 1,234 | 0.003 | 2.000 | 1.500 | 1.800 |  |  |",
        "| b | 1,234 | 0.01 (edge) | 1.600 | failed | 1.400 | 1.300 ± 0.071 | 10 |",
        "| c |  |  | failed | failed | failed |  |  |",
        "| d | 1,234 | 0.003 | 2.500 | 2.400 | 2.600 | 2.000 ± 0.000 | 7 |",
    ]
    assert of.points(final) == {"b": [1.25, 1.35], "d": [2.0, 2.0]}
    assert mean_and_spread([]) == "" and mean_and_spread([1.5]) == "1.500"


def test_what_is_wrong_with_stages_is_told_before_anything_runs() -> None:
    given = {"forms": FORMS, "rates": [1e-3], "finalists": 1, "always": [], "seeds": [1], "longer": []}
    assert first_stage(["device=cpu"], given)[0] == ["device=cpu", "model=v1", "optimizer.lr=0.001"]
    for change, message in (
        ({"always": ["e"]}, "hydra.sweeper.always: e: no such form; there are a, b, c, d"),
        ({"rate": 1}, "hydra.sweeper.rate=1: no such key; did you mean hydra.sweeper.rates"),
        ({"finalists": -1}, "hydra.sweeper.finalists=-1: must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            first_stage([], given | change)
    with pytest.raises(ConfigError, match="seed=1,2: this experiment sweeps over forms and rates by itself"):
        first_stage(["seed=1,2"], given)


@pytest.mark.nightly
def test_every_form_of_an_ablation_can_be_built() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        experiment = f"experiment={path.stem}"
        if (given := compose_config([experiment]).stages) is None:
            continue
        for job in Stages(**given | {"rates": [1e-3]}).screening():
            _, found = checked_config([experiment, *job.overrides], typed=False)
            assert not found, job.form


@pytest.mark.nightly
def test_a_staged_sweep_that_is_started_again_does_what_is_left(tmp_path: Path, shared: Path) -> None:
    text = shared / "data" / "tinyshakespeare.txt"
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    # the second form sets a key that its YAML has not, but the signature has
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - maxplus_ablation\n"
        "hydra: {sweep: {dir: forms}, sweeper: {always: [], rates: [1e-3, 1e-2], only: [maxplus, often], "
        "forms: {often: [data.log_every_n_steps=1]}}}\n"
    )
    words = ["-m", "--config-dir", "mine", "experiment=own", "trainer=debug", "device=cpu", f"data.path={text}"]
    first = samout(tmp_path, *words, "hydra.sweeper.finalists=0")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "forms"
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 4
    again = samout(tmp_path, *words, "hydra.sweeper.finalists=1", "hydra.sweeper.seeds=[5,6]")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished: left as it is") == 4
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 6
    table = (folder / "forms.md").read_text()
    assert "seeds 5, 6" in table and table.count(" ± ") == 1 and (folder / "forms.png").stat().st_size > 1000
    other = samout(tmp_path, *words, "optimizer.lr=1,2")
    assert other.returncode == 2 and "sweeps over forms and rates by itself" in other.stderr
