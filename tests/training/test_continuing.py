"""Continuing by content and as printed: the commands, the limits, the data, the record, the optimizer."""

import json
import logging
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samout_train import build_trainer, train
from samout_train.checkpoint.manager import Restored, made_with
from samout_train.checkpoint.run_directory import has_data_record
from samout_train.config import ConfigError
from samout_train.models import ParallelModel
from samout_train.training import StepReport
from samout_train.training.callbacks.accuracy import TaskAccuracy
from samout_train.training.callbacks.early_stopping import EarlyStopping
from samout_train.training.limits import LimitSettings, Reached, once
from samout_train.training.optimizers.check import checked_optimizer
from samout_train.training.run import _changed_parts
from tests.support.program import samout

MODEL = ["model=v8", "device=cpu", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1"]
RANDOM = ["data=random", "data.seq_len=9", "data.num_sequences=20", "data.batch_size=8", "data.vocab_size=32"]
QUIET = ["trainer.eval_batches=1", "trainer.final_eval_batches=1"]
WORDS = [*MODEL, *RANDOM, *QUIET]
STOPS_EARLY = [
    *("callbacks=early_stopping", "callbacks.early_stopping.min_improvement_nats=100"),
    *("callbacks.early_stopping.patience=1", "trainer.eval_every_n_steps=1"),
]


@pytest.mark.parametrize(
    ("limits", "step", "seconds", "wanted"),
    [
        ({"max_steps": 5}, 5, 1.0, ["trainer.max_steps=10"]),
        ({"max_steps": 5}, 4, 1.0, []),
        ({"max_steps": 2}, 9, 1.0, ["trainer.max_steps=18"]),
        ({"max_epochs": 2}, 5, 1.0, ["trainer.max_epochs=4"]),  # of 20 rows in batches of 8
        ({"max_epochs": 0.01}, 1, 1.0, ["trainer.max_epochs=0.64"]),  # 0.4 epochs are one step
        ({"max_epochs": 2, "max_steps": 5}, 5, 1.0, ["trainer.max_steps=10", "trainer.max_epochs=4"]),
        ({"max_epochs": 2, "max_steps": 9}, 5, 1.0, ["trainer.max_epochs=4"]),
        ({"max_seconds": 3.0}, 7, 3.5, ["trainer.max_seconds=7"]),
        ({"max_seconds": 0.01}, 1, 1.03, ["trainer.max_seconds=2.2"]),
        ({}, 30, 1.0, ["trainer.max_steps=60"]),
        ({}, 29, 1.0, []),
    ],
)
def test_the_limits_that_hold_and_what_assert_goes_on(
    limits: dict[str, Any], step: int, seconds: float, wanted: list[str]
) -> None:
    unset: dict[str, Any] = {"max_steps": None, "max_epochs": None, "max_seconds": None}
    settings = LimitSettings(**(unset | limits), budget_steps=30, num_rows=20, batch_size=8)
    assert [limit.further for limit in settings.reached(step, seconds)] == wanted


def test_a_key_stands_once_with_its_last_value() -> None:
    words = ["--config-dir=a", "+x.a=1", "trainer=debug", "trainer.max_steps=1", "x.a=2", "~callbacks.sample"]
    wanted = ["--config-dir=a", "trainer=debug", "++x.a=2", "~callbacks.sample", "trainer.max_steps=2"]
    assert once([*words, "trainer.max_steps=2"]) == wanted


def printed(err_or_out: str, name: str) -> list[str]:
    """The words of a printed command, behind the program."""
    line = re.findall(rf"^{name} +(.*)$", err_or_out, re.MULTILINE)[-1]
    return shlex.split(line.partition(" -m samout_train ")[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        ["trainer.max_epochs=1"],
        pytest.param(["trainer=debug"], marks=pytest.mark.nightly),
        pytest.param(["data.budget_steps=2"], marks=pytest.mark.nightly),
        pytest.param(["trainer.max_seconds=0.001", "schedule=constant"], marks=pytest.mark.nightly),
        pytest.param([*STOPS_EARLY, "trainer.max_steps=50"], marks=pytest.mark.nightly),
    ],
    ids=lambda limit: limit[0],
)
def test_the_printed_command_goes_on_and_goes_on_again(tmp_path: Path, limit: list[str]) -> None:
    done = samout(tmp_path, *WORDS, *limit, "run_dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads((tmp_path / "run" / "summary.json").read_text())["steps"]]
    for _ in range(2):
        words = printed(done.stdout + done.stderr, "resume")
        assert limit[0] != STOPS_EARLY[0] or any(
            word.startswith("callbacks.early_stopping.patience=") for word in words
        )
        done = samout(tmp_path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        steps.append(json.loads((tmp_path / "run" / "summary.json").read_text())["steps"])
    assert steps[0] < steps[1] < steps[2]


@pytest.mark.slow
def test_a_limit_that_holds_already_is_named_and_the_advice_works(tmp_path: Path) -> None:
    words = [*WORDS, "trainer.max_epochs=1", "run_dir=run"]
    assert samout(tmp_path, *words).returncode == 0
    again = samout(tmp_path, *words, "resume=auto")
    said = "trainer.max_epochs=1: is reached at step 3. Set trainer.max_epochs=2 to resume."
    assert again.returncode == 0 and said in again.stdout + again.stderr
    further = samout(tmp_path, *once([*words, "resume=auto", "trainer.max_epochs=2"]))
    assert further.returncode == 0 and json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 5


@pytest.mark.nightly
def test_repeat_of_a_continued_run_makes_a_run_of_its_own(tmp_path: Path) -> None:
    samout(tmp_path, *WORDS, "trainer.max_steps=1", "run_dir=run")
    done = samout(tmp_path, *WORDS, "trainer.max_steps=1", "run_dir=run", "resume=auto", "trainer.max_steps=2")
    words = printed(done.stdout + done.stderr, "repeat")
    assert words == [*WORDS, "trainer.max_steps=2"]
    again = samout(tmp_path, *words, "run_dir=again")
    assert again.returncode == 0 and json.loads((tmp_path / "again" / "summary.json").read_text())["steps"] == 2


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            ["schedule=cosine"],
            ["schedule=constant"],
            "schedule._target_, schedule.final_share, schedule.warmup_steps from",
        ),
        (["schedule=cosine"], ["schedule=cosine"], "the learning rates from step 2 on"),
        (["schedule=constant"], ["schedule=constant", "precision=bf16"], "precision from step 2 on"),
        (["schedule=constant"], ["schedule=constant"], None),
    ],
)
def test_a_run_in_unlike_parts_says_that_one_command_does_not_repeat_it(
    tmp_path: Path, before: list[str], after: list[str], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    words = [word for word in WORDS if not word.startswith("schedule")]
    for number, part in enumerate([before, after, after], 1):  # in the third as in the second
        caplog.clear()
        with caplog.at_level(logging.INFO):
            train([*words, *part, f"trainer.max_steps={number}", f"run_dir={tmp_path}", "resume=auto"])
        lines = [line for line in caplog.messages if "this run changed" in line]
        assert len(lines) == (number > 1 and said is not None) and all(str(said) in line for line in lines), lines


@pytest.mark.slow
def test_a_limit_below_the_steps_that_are_made_prints_no_command_to_repeat_them(tmp_path: Path) -> None:
    samout(tmp_path, *WORDS, "trainer.max_steps=2", "run_dir=run")
    again = samout(tmp_path, *WORDS, "trainer.max_steps=1", "run_dir=run", "resume=auto")
    told = again.stdout + again.stderr
    assert again.returncode == 0 and "trainer.max_steps=1: is reached at step 2" in told and "\nrepeat" not in told


@pytest.mark.slow
def test_auto_needs_the_directory_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"resume=auto: continues the run in run_dir, .*: give run_dir="):
        train([*WORDS, "trainer=debug", "resume=auto"])
    refused = samout(tmp_path, *WORDS, "trainer=debug", "resume=auto")
    assert refused.returncode == 2 and "give run_dir=... of the run too" in refused.stderr
    swept = samout(tmp_path, *WORDS, "trainer=debug", "resume=auto", "-m", "seed=0,1")
    assert swept.returncode == 2 and "give hydra.sweep.dir=... of the run too" in swept.stderr
    timed = samout(tmp_path, *WORDS, "resume=auto", "run_dir=runs/${now:%H-%M-%S}")
    assert timed.returncode == 2 and not list(tmp_path.iterdir())


TEXT = ["data=text", "data.vocabulary=bytes", "data.seq_len=8", "data.batch_size=4", "trainer=debug", *MODEL]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on a folder of two files, and one on a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"all the text of {name}. " * 20)
    shutil.copy("texts/a.txt", "one.txt")
    train([*TEXT, "data.path=texts", "run_dir=folder"])
    train([*TEXT, "data.path=one.txt", "run_dir=file"])
    return tmp_path


def assert_goes_on(run_dir: str, *words: str) -> None:
    before = json.loads(Path(run_dir, "summary.json").read_text())["steps"]
    summary, _ = train([*TEXT, f"run_dir={run_dir}", "resume=auto", f"trainer.max_steps={before + 1}", *words])
    assert summary["steps"] == before + 1


@pytest.mark.nightly
def test_the_same_text_is_continued_on_wherever_it_lies(texts: Path) -> None:
    (texts / "link.txt").symlink_to(texts / "one.txt")
    (texts / "elsewhere").symlink_to(texts / "texts")
    shutil.copy("one.txt", "moved.txt")
    for path in (f"{texts}/one.txt", "./texts/../one.txt", "~/one.txt", "link.txt", "moved.txt"):
        assert_goes_on("file", f"data.path={path}")
    assert_goes_on("folder", "data.path=elsewhere")
    shutil.move("texts", "moved")
    assert_goes_on("folder", "data.path=moved", "data.pattern=*.txt")


@pytest.mark.slow
def test_other_data_is_refused_in_every_form(texts: Path) -> None:
    shutil.copy("one.txt", "kept.txt")
    (texts / "one.txt").write_text("all the text of A. " * 20)
    said = r"data.path=one.txt: is other data than the run learns from: .*bytes, .* sha256 .*; the run has .*sha256"
    with pytest.raises(ValueError, match=said):
        assert_goes_on("file", "data.path=one.txt")
    with pytest.raises(ValueError, match="is other data"):  # one text after <|sos|> is another stream
        (texts / "lone").mkdir()
        shutil.copy("kept.txt", "lone/one.txt")
        assert_goes_on("file", "data.path=lone")
    with pytest.raises(ValueError, match=r"b.txt: no such file; the run has 380 bytes"):
        assert_goes_on("folder", "data.path=texts", "data.pattern=a*")
    (texts / "texts" / "a.txt").rename("texts/z.txt")  # the same files in another order
    with pytest.raises(ValueError, match=r"(?s)a.txt: no such file; the run has .*z.txt: 380 bytes"):
        assert_goes_on("folder", "data.path=texts")
    with pytest.raises(ConfigError, match=r"data\.vocabulary=characters"):
        assert_goes_on("folder", "data.path=texts", "data.vocabulary=characters")


@pytest.mark.slow
def test_a_run_that_is_asked_for_with_other_data_has_not_failed(texts: Path) -> None:
    (texts / "one.txt").write_text("all the text of A. " * 20)
    words = [*TEXT, "data.path=one.txt", "trainer.max_steps=9"]
    refused = samout(texts, *words, "run_dir=file", "resume=auto")
    assert refused.returncode == 2 and "is other data than the run learns from" in refused.stderr, refused.stderr
    assert not (texts / "file" / "failure.json").exists()


@pytest.mark.nightly
def test_without_a_record_a_run_is_continued_by_path(texts: Path) -> None:
    for path in Path("file/checkpoints").glob("step_*.json"):
        manifest = json.loads(path.read_text())
        assert len(manifest["data"]["sha256"]) == 64
    from samout_train.checkpoint import read_manifest, write_manifest

    for path in Path("file/checkpoints").glob("step_*.pt"):
        write_manifest(path, {k: v for k, v in read_manifest(path).items() if k not in ("data", "settings")})
    shutil.copy("one.txt", "moved.txt")
    with pytest.raises(ConfigError, match=r"data.path=moved.txt: the run in file has one.txt"):
        assert_goes_on("file", "data.path=moved.txt")
    assert_goes_on("file", f"data.path={texts}/one.txt")


def with_empty_steps(path: Path, number: int) -> None:
    """As if steps of the run had had no counted target."""
    from samout_train.checkpoint import read_checkpoint, read_manifest, serialised, write_checkpoint

    content, about = read_checkpoint(path) | {"empty_steps": number}, read_manifest(path)
    path.unlink()
    own = ("step", "bytes", "sha256", "manifest_sha256")
    write_checkpoint(path.parent, 4, serialised(content), {k: v for k, v in about.items() if k not in own})


@pytest.mark.slow
def test_a_run_from_anothers_checkpoint_has_a_record_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(name: str, *words: str) -> dict[str, Any]:
        summary, _ = train([*WORDS, "callbacks=early_stopping", f"run_dir={tmp_path / name}", *words])
        return summary

    run("first", "trainer.max_steps=4", "trainer.eval_every_n_steps=1")
    path = tmp_path / "first" / "checkpoints" / "step_00000004.pt"
    with_empty_steps(path, 3)
    caplog.set_level(logging.INFO)
    second = run("second", f"resume={path}", "trainer.max_steps=6", "optimizer.lr=0.01", "trainer.eval_every_n_steps=6")
    assert second["best_val_step"] == 6 and second["resumed_from"] == str(path)
    from samout_train.checkpoint import find_checkpoint, read_checkpoint

    content = read_checkpoint(find_checkpoint(tmp_path / "second"))
    assert content["empty_steps"] == 0
    assert content["callbacks"]["early_stopping"]["best_nats"] == second["best_val_loss_nats"]
    assert content["reports"]["tokens_before"] == read_checkpoint(path)["tokens_seen"] > 0
    assert second["tokens_per_second"] * second["train_seconds"] == pytest.approx(
        second["tokens_seen"] - content["reports"]["tokens_before"]
    )
    said = caplog.text
    assert "a new run, with its weights, optimizer, steps and random states, and a new record" in said
    assert re.search(r"changed: .*optimizer.lr 0.0\d+, now 0.01", said)
    assert re.search(r"learning rate \S+ at step 4, \S+ at step 5", said)
    repeated = shlex.split(re.findall(r"repeat +(.*)", said)[-1])
    assert [word for word in repeated if word.startswith("resume=")] == [f"resume={path}"]


@pytest.mark.slow
def test_seconds_of_another_run_do_not_count(tmp_path: Path) -> None:
    train([*WORDS, "trainer.max_steps=2", f"run_dir={tmp_path / 'first'}"])
    limit = ["trainer.max_seconds=1000", "schedule=constant", "trainer.max_steps=3"]
    summary, _ = train([*WORDS, *limit, f"run_dir={tmp_path / 'second'}", f"resume={tmp_path / 'first'}/"])
    first = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["train_seconds"] < 10 * first["train_seconds"]
    from samout_train.checkpoint import find_checkpoint, read_checkpoint

    assert read_checkpoint(find_checkpoint(tmp_path / "second"))["train_seconds"] == pytest.approx(
        summary["train_seconds"], rel=0.2
    )


@pytest.mark.slow
def test_another_optimizer_is_refused_though_its_groups_agree(tmp_path: Path) -> None:
    train([*WORDS, "trainer=debug", f"run_dir={tmp_path / 'first'}"])
    other = [
        f"optimizer._target_={__name__}.momentum",
        f"resume={tmp_path / 'first'}",
        f"run_dir={tmp_path / 'second'}",
    ]
    with pytest.raises(
        ValueError, match=r"optimizer._target_=.*momentum: .* was made with samout_train.training.optimizers.adam"
    ):
        train([*WORDS, "trainer.max_steps=3", *other])


def momentum(model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


class Two(torch.optim.Optimizer):
    """Momentum for matrices and AdamW for the rest, each with a state of its own."""

    def __init__(self, model: nn.Module, lr: float = 1e-3, **_: Any) -> None:
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        self.first = torch.optim.SGD(matrices, lr=lr, momentum=0.9)
        self.second = torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=lr)
        self.state, self.defaults = {}, {}  # type: ignore[assignment]
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # type: ignore[assignment]

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.first.param_groups + self.second.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.first.step()
        self.second.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.first.zero_grad(set_to_none)
        self.second.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"two": [self.first.state_dict(), (self.second.state_dict(), None)]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        first, (second, _) = state_dict["two"]
        self.first.load_state_dict(first)
        self.second.load_state_dict(second)


def two(model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return Two(model, lr)


@pytest.mark.slow
def test_an_optimizer_made_of_two_is_continued_to_the_same_bits(tmp_path: Path) -> None:
    words = [*WORDS, f"optimizer._target_={__name__}.two"]
    whole, _ = train([*words, "trainer.max_steps=4", "schedule=constant", f"run_dir={tmp_path / 'whole'}"])
    for steps in (2, 4):
        limit = [f"trainer.max_steps={steps}", "schedule=constant", "resume=auto"]
        summary, _ = train([*words, *limit, f"run_dir={tmp_path / 'run'}"])
    assert summary["weights_sha256"] == whole["weights_sha256"]


class Averaging(torch.optim.SGD):
    """Counts in a group, as optimizers without a schedule do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["lr"] = group["lr"] / (group.get("k", 0) + 1)
            group["k"] = group.get("k", 0) + 1
        super().step()


class Stale(Two):
    """Joins the groups once: those of before are not those that steps read after loading."""

    def __init__(self, model: nn.Module, lr: float = 1e-3) -> None:
        super().__init__(model, lr)
        self.groups = self.first.param_groups + self.second.param_groups

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return getattr(self, "groups", [])


class Silent(torch.optim.SGD):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Raising(torch.optim.SGD):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise KeyError("muon")


class Numpy(torch.optim.SGD):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"scale": np.float64(2)}


class Forgetful(torch.optim.SGD):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


class NoGroups(Two):
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return []


class Twice(Two):
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.first.param_groups * 2 + self.second.param_groups


def with_momentum(kind: type[torch.optim.SGD]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: kind(model.parameters(), lr=0.1, momentum=0.9)


def network() -> ParallelModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    return ParallelModel(net, parallel="ddp", device=torch.device("cpu"), compile=False)


@pytest.mark.parametrize("build", [Two, with_momentum(Averaging), with_momentum(torch.optim.SGD)])
def test_an_optimizer_that_can_be_continued_is_left_as_it_was_built(
    build: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    shared = network()
    before, random = [p.clone() for p in shared.model.parameters()], torch.get_rng_state()
    optimizer, stateful = checked_optimizer(build, shared)
    after = list(shared.model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(random, torch.get_rng_state()) and all(p.grad is None for p in after)
    assert not any(optimizer.state.values()) and stateful == ({"k"} if isinstance(optimizer, Averaging) else set())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (Stale, "let param_groups be those that step"),
        (with_momentum(Silent), "Silent cannot be continued: the step after"),
        (with_momentum(Forgetful), "Forgetful cannot be continued: the step after"),
        (with_momentum(Raising), r"load_state_dict\(\) with what state_dict\(\) gave fails .*muon"),
        (with_momentum(Numpy), r"a checkpoint cannot hold the state_dict\(\) of Numpy: .*numpy"),
        (NoGroups, "NoGroups has no param_groups"),
        (Twice, "in more than one group, and would be updated twice a step: 0.weight. Put each"),
    ],
)
def test_an_optimizer_that_cannot_be_continued_is_refused_before_step_1(
    build: Callable[[nn.Module], torch.optim.Optimizer], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        checked_optimizer(build, network())


def test_parameters_that_no_group_has_are_named(caplog: pytest.LogCaptureFixture) -> None:
    shared = network()
    shared.model[1].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    checked_optimizer(lambda net: torch.optim.SGD([p for p in net.parameters() if p.ndim > 1], lr=0.1), shared)
    assert "in none of its groups, and are never learned: 0.bias, 1.weight. Put" in caplog.text


def test_a_patience_that_has_ended_a_run_is_a_limit() -> None:
    callback = EarlyStopping(patience=2, min_improvement_nats=0.0)
    stops = [callback.on_report(StepReport(step=step, metrics={"val/loss_nats": 1.0})) for step in range(3)]
    assert [stop is None for stop in stops] == [True, True, False]
    assert callback.limit_reached() == Reached("patience", 2, "patience=4")
    further = EarlyStopping(patience=4, min_improvement_nats=0.0)
    further.load_state_dict(callback.state_dict())
    assert further.limit_reached() is None
    assert further.on_report(StepReport(step=3, metrics={"val/loss_nats": 1.0})) is None


def test_a_task_that_was_solved_is_a_limit() -> None:
    callback = TaskAccuracy(solved_evaluations=2)
    stops = [callback.on_report(StepReport(step=step, metrics={"val/accuracy": 1.0})) for step in range(2)]
    assert stops[0] is None and stops[1] is not None
    assert callback.limit_reached() == Reached("solved_evaluations", 2, "solved_evaluations=4")
    assert TaskAccuracy(solved_evaluations=3).limit_reached() is None
    assert TaskAccuracy(solved_evaluations=None).limit_reached() is None


def test_a_run_that_time_limits_has_not_changed_its_rates_by_going_on() -> None:
    sizes = ["model=v8", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "data.batch_size=2"]
    trainer = build_trainer(["data=random", "device=cpu", *sizes, "schedule=wsd", "trainer.max_seconds=1000"])
    trainer.clock.set(900.0)  # in the decay
    trainer.step()
    trainer.clock.set(900.5)
    settings = {"schedule._target_": "wsd"}
    restored = Restored({}, {**made_with(trainer.device, trainer.precision), "settings": settings}, True)
    assert _changed_parts(trainer, restored, settings) == []


def test_data_is_compared_where_each_checkpoint_records_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert not has_data_record(tmp_path)
    (tmp_path / "checkpoints" / "step_00000002.json").write_text('{"data": {"sha256": "a"}}')
    assert has_data_record(tmp_path)
    (tmp_path / "checkpoints" / "step_00000001.json").write_text(
        '{"step": 1}'
    )  # which is taken if the other is damaged
    assert not has_data_record(tmp_path)
