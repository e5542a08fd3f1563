"""Figures that are not finite, checkpoints of other models, and memory that does not suffice."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samout_train import build_trainer, train
from samout_train.checkpoint import read_checkpoint
from samout_train.training import Callback, MemoryExhaustedError, NonFiniteError, RunContext
from tests.faults.row import Case, Row

FIXED = ("model.dropout=0.1", "data.seq_len=9", "data.num_sequences=24", "data.batch_size=8", "data.vocab_size=32")
STEPS = 8
POISONS, CHOICES = ("loss", "gradient"), ("stop", "skip", "rollback")


class AtStep(Callback):
    """Makes something happen in the forward or backward pass of one batch, whenever it comes.

    Args:
        step: The batch is that of this step, in a run in which nothing happened before.
        what: `loss`: a NaN in it; `gradient`: an infinity in one parameter's; `memory`: there is none left.
    """

    def __init__(self, *, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_start(self, context: RunContext) -> None:
        """Lies in wait."""
        first = next(context.model.parameters())
        self._calls, self._ids, self._poison_gradient = context.first_step, None, False
        first.register_hook(lambda grad: grad.fill_(float("inf")) if self._poison_gradient else None)
        context.model.register_forward_hook(self._after_forward)

    def _after_forward(self, model: torch.nn.Module, args: Any, output: Any) -> Any:
        if not model.training:
            return None
        self._calls += 1
        if self._calls == self.step and self._ids is None:
            self._ids: Tensor | None = args[0].clone()
        meets = self._ids is not None and torch.equal(self._ids, args[0])
        self._poison_gradient = meets and self.what == "gradient"
        if meets and self.what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return (output[0] * float("nan"), output[1]) if meets and self.what == "loss" else None


def happens(step: int, what: str) -> str:
    """The override that lets it happen."""
    return f"+callbacks.at_step={{_target_: {__name__}.AtStep, step: {step}, what: {what}}}"


def not_finite(case: Case) -> str:
    """Row 15: each choice against a run in which the batch was left out from the start."""
    settings = [
        *case.run,
        *FIXED,
        f"trainer.max_steps={STEPS}",
        "checkpoint.every_n_steps=2",
        "checkpoint.keep_last=99",
    ]
    for number in range(case.count):
        # Every choice meets every poison in six.
        step, what, choice = 2 + number % (STEPS - 2), POISONS[number % 2], CHOICES[number % 3]
        wanted = build_trainer(settings)
        wanted.training_step.skipped_steps = {step}
        losses = [float(wanted.step()) for _ in range(STEPS)]
        run_dir = case.folder / str(number)
        try:
            train([*settings, f"run_dir={run_dir}", f"trainer.on_non_finite={choice}", happens(step, what)])
            assert choice != "stop", "the run went on"
        except NonFiniteError as error:
            assert choice == "stop" and f"step {step} was not applied" in str(error), error
        last = _holds_no_nan(run_dir)
        if choice == "stop":
            assert last["step"] == step - 1 and last["skipped_steps"] == []
            continue
        assert last["step"] == STEPS and last["skipped_steps"] == [step]
        _same(last["model"], wanted.model.state_dict())
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        made = [line["step"] for line in lines]
        assert made == list(range(1, STEPS + 1)), f"logged: {made}"
        assert all(line["train/loss_nats"] == losses[line["step"] - 1] for line in lines if line["step"] != step)
    return f"{case.count} of {case.count}: weights as without the batch, no checkpoint with NaN"


def another_model(case: Case) -> str:
    """Row 17: nothing is loaded, and the message has both shapes."""
    small = [*case.run, *FIXED]
    donor = case.folder / "donor"
    train([*small, "trainer.max_steps=1", f"run_dir={donor}"])
    saved = read_checkpoint(donor / "checkpoints" / "step_00000001.pt")
    hidden_size = saved["model"][next(iter(saved["model"]))].shape[-1]
    num_layers = 1 + max(int(name.split(".")[1]) for name in saved["model"] if name.startswith("layers."))
    others = {
        "width": ([f"model.hidden_size={2 * hidden_size}"], (f"x{hidden_size} in", f"x{2 * hidden_size} in the model")),
        "depth": ([f"model.num_layers={num_layers + 1}"], (f"layers.{num_layers}.", "missing in the checkpoint")),
        "tying": (["model=v1"], ("head.weight: ", "missing in the model")),
    }
    for name, (overrides, words) in others.items():
        trainer = build_trainer([*small, *overrides])
        _refused(trainer, saved, words, name)
    moments = saved["optimizer"]["state"][0]
    moments["exp_avg"] = moments["exp_avg"][:, :-1]
    trainer = build_trainer(small)
    _refused(trainer, saved, ("exp_avg of", f"x{hidden_size - 1} in", f"x{hidden_size} in the model"), "optimizer")
    return "width, depth, tying and one moment: both shapes told, nothing loaded"


def out_of_memory(case: Case) -> str:
    """Row 20: the message, and the run goes on in micro-steps half as large."""
    settings = [*case.run, *FIXED, "model.dropout=0", f"trainer.max_steps={STEPS}"]
    whole, _ = train([*settings, f"run_dir={case.folder / 'whole'}"])
    for number in range(case.count):
        step, run_dir = 1 + number % STEPS, case.folder / str(number)
        try:
            train([*settings, f"run_dir={run_dir}", happens(step, "memory")])
            raise AssertionError("the run went on")
        except MemoryExhaustedError as error:
            message = str(error)
        for words in (f"out of memory in step {step}", "8 rows x 9 targets", "trainer.accumulate=2", "peak so far"):
            assert words in message, message
        assert f"the state after step {step - 1}: resume=auto" in message, message
        summary, _ = train([*settings, f"run_dir={run_dir}", "resume=auto", "trainer.accumulate=2"])
        difference = abs(summary["train_loss_nats"] - whole["train_loss_nats"])
        assert difference < 1e-5, f"the loss differs by {difference}"  # float32 adds in another order
    return f"{case.count} of {case.count}: no step lost, equal loss with accumulate=2"


def _holds_no_nan(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for path in sorted((run_dir / "checkpoints").glob("step_*.pt")):
        content = read_checkpoint(path)
        for tensor in _all_tensors(content):
            assert bool(torch.isfinite(tensor).all()), f"{path} holds what is not finite"
    return content


def _all_tensors(node: Any) -> list[Tensor]:
    if isinstance(node, Tensor):
        return [node]
    if isinstance(node, float):
        return [torch.tensor(node)]
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [tensor for part in parts for tensor in _all_tensors(part)]


def _same(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some), "other weights"


def _refused(trainer: Any, saved: dict[str, Any], words: tuple[str, ...], name: str) -> None:
    before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    try:
        trainer.load_state_dict(saved)
    except ValueError as error:
        assert all(word in str(error) for word in words) and len(str(error).splitlines()) <= 10, f"{name}: {error}"
    else:
        raise AssertionError(f"{name}: it was loaded")
    _same(before, trainer.model.state_dict())
    assert not trainer.training_step.optimizer.state and trainer.step_count == 0


ROWS = [
    Row(15, "NaN or Inf in loss or gradient", 3, 48, not_finite),
    Row(17, "a checkpoint of another model", 1, 1, another_model),
    Row(20, "out of memory", 2, 16, out_of_memory),
]
