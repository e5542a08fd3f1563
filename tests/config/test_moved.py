"""What earlier layouts called their modules still finds them."""

import importlib
import sys
from pathlib import Path

import pytest

import samout_train
from samout_train.config import current_settings
from samout_train.config.moved import MOVED, STAYED, current


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a package that the module was in
@pytest.mark.parametrize("earlier", sorted(MOVED.keys() - STAYED))
def test_a_module_is_found_by_its_earlier_name_with_a_warning(earlier: str) -> None:
    for name in [name for name in sys.modules if name == f"samout_train.{earlier}"]:
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=f"samout_train.{earlier} is samout_train.{MOVED[earlier]} now"):
        found = importlib.import_module(f"samout_train.{earlier}")
    assert found is importlib.import_module(f"samout_train.{MOVED[earlier]}")


@pytest.mark.parametrize("earlier", sorted(STAYED))
def test_what_a_module_had_is_found_in_the_package_of_its_name(earlier: str) -> None:
    today = importlib.import_module(f"samout_train.{MOVED[earlier]}")
    package = importlib.import_module(f"samout_train.{earlier}")
    parts = {path.stem for path in Path(str(package.__file__)).parent.glob("*.py")}
    own = {name for name, value in vars(today).items() if getattr(value, "__module__", None) == today.__name__}
    names = {name for name in own if not name.startswith("_")} - parts
    assert names
    assert {name for name in names if getattr(package, name, None) is not getattr(today, name)} == set()


def test_targets_of_earlier_runs_are_called_as_today() -> None:
    assert current("samout_train.optim.adamw.adamw") == "samout_train.training.optimizers.adamw.adamw"
    assert current("samout_train.data.text.text") == "samout_train.data.text.text.text"
    unmoved = ["samout_train.data.text.text.text", "samout_train.models.samout.SamOut", "mine.Part", "torch.nn.ReLU"]
    assert [current(path) for path in unmoved] == unmoved
    before = {
        "model": {"mixer": {"_target_": "samout_train.schedules.Cosine"}},
        "x": [{"_target_": "mine.Part"}],
        "y": 1,
    }
    now = current_settings(before)
    assert now["model"]["mixer"]["_target_"] == "samout_train.training.schedules.Cosine" and now["x"] == before["x"]
    dotted = current_settings(
        {"schedule._target_": "samout_train.schedules.Cosine", "name": "samout_train.schedules.Cosine"}
    )
    assert dotted["schedule._target_"] == "samout_train.training.schedules.Cosine"
    assert dotted["name"] == "samout_train.schedules.Cosine"


@pytest.mark.parametrize("name", sorted(samout_train.__all__))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_public_name_is_there(name: str) -> None:
    importlib.import_module("samout_train.data.task")  # a module of before, whose name a public one has
    assert getattr(getattr(samout_train, name), "__name__", name) == name
