"""Several processes make the steps of one: losses, gradients and weights on the same global batch."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from samout_train import build_model, build_trainer
from samout_train.checkpoint import CheckpointError, load_run
from samout_train.checkpoint.shards import shapes_of_shards
from samout_train.config import compose_config
from samout_train.data import Batches, MatrixRows
from samout_train.models import ParallelModel, ParallelName, whole_tensor
from samout_train.runtime import distributed as processes
from samout_train.training import NonFiniteError, checked_config, trainer_from
from samout_train.training.optimizers.adam import adam
from samout_train.training.schedules import Constant, Limits
from samout_train.training.step import TrainingStep
from tests.support.marks import mostly_nightly, spread
from tests.support.together import samout_together, together
from tests.test_rules import options, overrides_for

# float32 sums in another order, after six steps of Adam.
TOLERANCE = 1e-5
STEPS = 6
CPU = torch.device("cpu")


def ragged() -> MatrixRows:
    """Sixteen rows of 13 targets, of which the first four have none that counts, and the others ever more."""
    ids_RT = torch.randint(4, 40, (16, 14), generator=torch.Generator().manual_seed(3))
    for row in range(16):
        ids_RT[row, max(1, row - 3) :] = 3
    return MatrixRows(ids_RT)


def steps_made(parallel: ParallelName, accumulate: int, chunk_len: int | None, name: str = "v8") -> dict[str, Any]:
    """Losses, gradients of the last step and final weights."""
    torch.manual_seed(0)
    with processes.joined(CPU):
        net = build_model(name, vocab_size=40, hidden_size=24, num_layers=2, dropout=0.0)
        shared = ParallelModel(net, parallel=parallel, device=CPU, compile=False)
        step = TrainingStep(
            shared=shared,
            optimizer=adam(net, lr=1e-2, betas=(0.9, 0.99), eps=1e-3),
            schedule=Constant(),
            batches=Batches(ragged(), batch_size=8, seed=0, ignore_index=3, device=CPU, overfit_batches=0),
            precision="fp32",
            accumulate=accumulate,
            chunk_len=chunk_len,
            clip_grad_norm=1.0,
            compile=False,
            on_non_finite="stop",
            vocabulary=None,
        )
        losses = [float(step(Limits(STEPS, None).progress(index + 1, 0.0))) for index in range(STEPS)]
        gradients = {
            name: whole_tensor(p.grad).reshape(-1).clone() for name, p in net.named_parameters() if p.grad is not None
        }
        weights = {name: tensor.clone() for name, tensor in shared.weights().items()}
        with shared.unsharded():  # each process alone can use the model, and the first one does
            logits = net.eval()(ragged().ids_RT)[0].detach() if processes.is_first() else torch.zeros(())
        norm, tokens = step.grad_norm(), step.tokens_seen
        after = float(step(Limits(None, 9.0).progress(STEPS + 1, 0.0)))  # and training goes on behind it
    figures = {"losses": [*losses, after], "norm": norm, "tokens": tokens}
    return figures | {"gradients": gradients, "weights": weights, "logits": logits}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one["losses"], other["losses"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(one["norm"], other["norm"], rtol=0, atol=TOLERANCE)
    assert one["tokens"] == other["tokens"]
    for part in ("gradients", "weights"):
        assert one[part].keys() == other[part].keys()
        for name, tensor in one[part].items():
            torch.testing.assert_close(other[part][name], tensor, rtol=0, atol=TOLERANCE, msg=f"{part} {name}")
    torch.testing.assert_close(other["logits"], one["logits"], rtol=0, atol=100 * TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    mostly_nightly(
        [
            *((count, parallel, 1, None) for count in (1, 2, 4) for parallel in ("ddp", "fsdp")),
            *((2, parallel, 2, chunk_len) for parallel in ("ddp", "fsdp") for chunk_len in (None, 5)),
        ],
        {(2, "ddp", 2, 5), (2, "fsdp", 1, None)},
    ),
)
def test_processes_learn_what_one_learns(case: tuple[int, ParallelName, int, int | None]) -> None:
    count, parallel, accumulate, chunk_len = case
    alone = steps_made("ddp", 1, chunk_len)
    others = together(count, steps_made, parallel, accumulate, chunk_len)
    assert_equal(alone, others[0])
    for other in others[1:]:  # bit for bit the same in all processes
        assert other["losses"] == others[0]["losses"]
        assert all(torch.equal(tensor, others[0]["weights"][name]) for name, tensor in other["weights"].items())


def configured(words: list[str], steps: int) -> list[float]:
    """Losses of a trainer that a configuration describes."""
    with processes.joined(CPU):
        trainer = trainer_from(compose_config(words).config)
        return [float(trainer.step()) for _ in range(steps)]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("option", mostly_nightly(options("model"), {"v8"}))
def test_every_model_can_be_shared_out(option: str, parallel: str, small_text: Path, shared: Path) -> None:
    words = [*overrides_for("model", option, small_text, shared), "model.dropout=0", f"trainer.parallel={parallel}"]
    plain = configured([word for word in words if "parallel" not in word], 3)
    first, second = together(2, configured, words, 3)
    assert first == second
    torch.testing.assert_close(first, plain, rtol=0, atol=TOLERANCE)


DROPPED = [
    *("model.embedding_dropout=0.1", "model.mixer_dropout=0.2", "model.ffn_inner_dropout=0.3", "model.ffn_dropout=0.4"),
    *("model.drop_connect=0.25", "model.stochastic_depth=0.5"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_nightly(["maxplus", "v8", "transformer_modern", "hybrid"], {"maxplus"}))
def test_processes_with_shards_drop_what_those_with_copies_drop(name: str) -> None:
    words = [f"model={name}", *RUN, *DROPPED, "kernels=reference", "optimizer.lr=1e-2"]
    copies, shards = (together(2, configured, [*words, f"trainer.parallel={one}"], 4) for one in ("ddp", "fsdp"))
    assert copies[0] == copies[1] and shards[0] == shards[1]
    torch.testing.assert_close(shards[0], copies[0], rtol=0, atol=TOLERANCE)
    assert max(abs(one - other) for one, other in zip(copies[0], configured(words, 4), strict=True)) > 100 * TOLERANCE


@pytest.mark.nightly
def test_fused_kernels_leave_shards_as_they_are() -> None:
    words = ["model=v8", "model.hidden_size=96", "model.num_layers=2", "model.dropout=0", "data=random", "device=cpu"]
    plain = configured(words, 2)
    first, _ = together(2, configured, [*words, "trainer.parallel=fsdp"], 2)
    torch.testing.assert_close(first, plain, rtol=0, atol=TOLERANCE)


RUN = [
    *("model.hidden_size=24", "model.num_heads=4", "model.num_layers=2", "model.dropout=0"),
    *("data=random", "data.batch_size=8", "data.budget_steps=6", "device=cpu"),
]


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text("utf-8"))
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("parallel", mostly_nightly(["ddp", "fsdp"], {"fsdp"}))
def test_a_run_of_two_processes_leaves_one_run(parallel: str, tmp_path: Path) -> None:
    first, second = samout_together(tmp_path, 2, *RUN, f"trainer.parallel={parallel}")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    (run_dir,) = (tmp_path / "outputs" / "v8-random").iterdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
    assert not second.stdout and "run_dir=outputs/v8-random/" in first.stdout + first.stderr
    summary = summary_of(run_dir)
    assert summary["processes"] == 2 and summary["steps"] == 6
    (alone,) = samout_together(tmp_path, 1, *RUN, "run_dir=alone")
    for key in ("train_loss_nats", "val_loss_nats", "best_val_loss_nats"):
        assert summary[key] == pytest.approx(summary_of(tmp_path / "alone")[key], abs=TOLERANCE), alone.stderr
    assert summary["tokens_seen"] == summary_of(tmp_path / "alone")["tokens_seen"]


@pytest.mark.nightly
def test_one_of_the_processes_that_share_the_weights_out_writes_samples(tmp_path: Path, small_text: Path) -> None:
    text = ["data=text", f"data.path={small_text}", "data.seq_len=16", "data.batch_size=2", "device=cpu"]
    few = [
        "trainer.max_steps=2",
        "trainer.eval_every_n_steps=1",
        "trainer.eval_batches=1",
        "trainer.final_eval_batches=1",
    ]
    few += ["callbacks.tensorboard.sample_tokens=4", "callbacks.sample.max_new_tokens=4"]
    done = samout_together(tmp_path, 2, *RUN[:4], *text, *few, "trainer.parallel=fsdp", "run_dir=run")
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]


@pytest.mark.slow
def test_processes_with_other_settings_do_not_begin(tmp_path: Path) -> None:
    both = together(2, with_own_settings, tmp_path)
    assert [code for code, _ in both] == [2, 2]
    for _, told in both:
        assert "process 1 has data.batch_size=4, process 0 has 8" in told
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("metrics.jsonl"))
    assert not (tmp_path / "failure.json").exists(), "the working directory is nobody's run"


def with_own_settings(folder: Path) -> tuple[int, str]:
    import os

    from tests.support.together import _program

    other = ["data.batch_size=4"] if os.environ["RANK"] == "1" else []
    done = _program(folder, (*RUN, *other))
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-m", "model=v1,v8"], "start it once for each run"),
        (["verify", "model=v8"], "verify: does not run distributed"),
        (
            ["data=random", "data.batch_size=7"],
            "data.batch_size (7) must be divisible by accumulate times processes (2)",
        ),
        (["data=random", "device=cuda:0"], "each process needs its own: use device=cuda"),
        (["data=random", "trainer.parallel=fsdp", "trainer.compile=true"], "does not work with trainer.compile=true"),
    ],
)
def test_what_several_processes_cannot_do_is_told_once(words: list[str], told: str, tmp_path: Path) -> None:
    first, second = samout_together(tmp_path, 2, *words)
    assert first.returncode == second.returncode == 2 and not list(tmp_path.rglob("failure.json"))
    assert "cannot be recorded" not in second.stderr
    assert told in first.stderr and first.stderr.count(told) == 1 and "Traceback" not in first.stderr + second.stderr
    assert all(line.startswith("process 1: ") for line in second.stderr.splitlines() if told in line)


def test_what_needs_whole_weights_is_refused_with_shards_before_anything_is_built() -> None:
    _, found = checked_config(["data=random", "trainer.parallel=fsdp", "optimizer=muon", "trainer.ema=1000"])
    assert [str(problem).partition(": ")[0] for problem in found] == ["trainer.ema=1000", "optimizer=muon"]
    assert all("trainer.parallel=fsdp" in problem.text and problem.fix for problem in found)
    _, found = checked_config(["data=random", "optimizer=muon", "trainer.ema=1000"])
    assert not found


@pytest.mark.slow
def test_a_run_that_needs_whole_weights_leaves_nothing_with_shards(tmp_path: Path) -> None:
    words = ["trainer.parallel=fsdp", "optimizer=muon", "trainer.ema=1000", "run_dir=run"]
    first, second = samout_together(tmp_path, 2, *RUN, *words)
    assert first.returncode == second.returncode == 2 and not list(tmp_path.iterdir())
    assert [line.partition(": ")[0] for line in first.stderr.splitlines()] == ["trainer.ema=1000", "optimizer=muon"]
    assert not second.stderr


STAGES = {"ddp": ["ddp"] * 3, "fsdp": ["fsdp"] * 3, "both": ["fsdp", "ddp", "fsdp"]}


@pytest.mark.slow
@pytest.mark.parametrize("stages", mostly_nightly(STAGES, {"both"}))
def test_a_run_goes_on_in_another_number_of_processes(stages: str, tmp_path: Path) -> None:
    counts = [2, 1, 2]
    for count, parallel, steps in zip(counts, STAGES[stages], (2, 4, 6), strict=True):
        words = [f"trainer.max_steps={steps}", f"trainer.parallel={parallel}", "run_dir=run", "resume=auto"]
        done = samout_together(tmp_path, count, *RUN, *words)
        assert [each.returncode for each in done] == [0] * count, [each.stderr for each in done]
    samout_together(tmp_path, 1, *RUN, "trainer.max_steps=6", "run_dir=alone")
    for key in ("train_loss_nats", "val_loss_nats"):
        assert summary_of(tmp_path / "run")[key] == pytest.approx(summary_of(tmp_path / "alone")[key], abs=TOLERANCE)
    weights = [load_run(tmp_path / name).model.state_dict() for name in ("run", "alone")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=10 * TOLERANCE, msg=name)


@pytest.mark.nightly
def test_a_run_of_shards_that_drops_resumes_bit_for_bit(tmp_path: Path) -> None:
    few = ["callbacks.state_health.branches=none", "~callbacks.tensorboard", "trainer.final_eval_batches=1"]
    words = ["model=maxplus", *RUN, *DROPPED, *few, "kernels=reference", "schedule=constant", "trainer.parallel=fsdp"]
    for name, stages in {"whole": (6,), "parts": (3, 6)}.items():
        for steps in stages:
            done = samout_together(tmp_path, 2, *words, f"trainer.max_steps={steps}", f"run_dir={name}", "resume=auto")
            assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    whole, parts = (load_run(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


@pytest.mark.nightly
def test_a_damaged_shard_is_found_before_it_is_opened(tmp_path: Path) -> None:
    samout_together(tmp_path, 2, *RUN, "trainer.parallel=fsdp", "run_dir=run")
    (folder,) = (tmp_path / "run" / "checkpoints").glob("*.shards")
    for name in (".metadata", "__0_0.distcp"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(CheckpointError, match=f"its shard {folder.name}/{name} is damaged"):
            load_run(tmp_path / "run")
        (folder / name).write_bytes(content)
    load_run(tmp_path / "run")


class _Asks:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_shards_that_ask_for_code_do_not_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(_Asks()))
    with pytest.raises(ValueError, match=r"asks for builtins\.print: code in a file is never run"):
        shapes_of_shards(tmp_path)
    assert not capsys.readouterr().out


def steps_with_a_poisoned_process(parallel: str, choice: str, what: str, steps: int) -> dict[str, Any]:
    """In the fourth step, what the second process alone computes is not finite."""
    with processes.joined(CPU):
        trainer = build_trainer([*RUN, f"trainer.parallel={parallel}", f"trainer.on_non_finite={choice}"])
        step, told = trainer.training_step, ""

        def poison(model: torch.nn.Module, ids: Any, output: torch.Tensor) -> torch.Tensor | None:
            if step.step_count != 3 or processes.rank() != 1:
                return None
            if what == "loss":
                return output * float("nan")
            output.register_hook(lambda gradient: gradient * float("inf"))
            return None

        if what == "nothing":
            step.skipped_steps = {4}
        else:
            trainer.model.get_submodule("embedding").register_forward_hook(poison)
        try:
            while step.step_count < steps:
                trainer.step()
        except NonFiniteError as error:
            told = str(error)
        weights = {name: tensor.clone() for name, tensor in step.shared.weights().items()}
    return {"told": told, "made": step.step_count, "skipped": sorted(step.skipped_steps), "weights": weights}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("what", "parallel"),
    spread([("gradient", "fsdp"), ("loss", "ddp"), ("loss", "fsdp"), ("gradient", "ddp")], 4),
)
def test_what_is_not_finite_in_one_process_is_so_in_all(what: str, parallel: str) -> None:
    for choice, steps in (("stop", 3), ("skip", 8)):
        wanted = together(2, steps_with_a_poisoned_process, parallel, choice, "nothing", steps)[0]
        for found in together(2, steps_with_a_poisoned_process, parallel, choice, what, 8):
            assert found["made"] == steps and found["skipped"] == ([4] if choice == "skip" else [])
            assert ("step 4 was not applied" in found["told"]) == (choice == "stop")
            assert found["weights"].keys() == wanted["weights"].keys()
            for name, tensor in found["weights"].items():
                assert tensor.isfinite().all() and torch.equal(tensor, wanted["weights"][name]), name
