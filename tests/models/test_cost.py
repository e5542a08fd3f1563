"""Estimated memory against the measured peak, in a process of its own."""

import subprocess
import sys

import pytest
import torch

from samout_train import build_model
from samout_train.models import estimate_memory_bytes

CODE = """
import torch
from samout_train import build_trainer
from samout_train.models.cost import estimate_memory_bytes
from samout_train.runtime import peak_memory_bytes, reset_peak_memory
torch.set_num_threads(1)
trainer = build_trainer({overrides!r})
rows = trainer.training_step.batches.batch_size // trainer.training_step.accumulate
estimate = estimate_memory_bytes(
    trainer.model, rows=rows, seq_len=trainer.source.train.seq_len, accumulate=trainer.training_step.accumulate,
    precision=trainer.precision, device=trainer.device)
reset_peak_memory(trainer.device)
for _ in range(3):
    trainer.step()
print(estimate, peak_memory_bytes(trainer.device))
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process is read from /proc")
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=v8", "model.hidden_size=128", "model.num_heads=4", "data.seq_len=64", "data.batch_size=12"],
        *(
            pytest.param(overrides, marks=pytest.mark.nightly)
            for overrides in (
                ["model=v8"],
                ["model=v8", "precision=bf16", "data.batch_size=50"],
                ["model=v1"],
                ["model=v8", "trainer.accumulate=4"],
                ["model=v8", "data.vocab_size=8000", "data.batch_size=30"],
            )
        ),
    ],
    ids=" ".join,
)
def test_estimated_memory_is_within_a_quarter_of_the_measured_peak(overrides: list[str]) -> None:
    code = CODE.format(overrides=[*overrides, "data=random", "device=cpu"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    estimate, measured = map(int, done.stdout.split())
    assert estimate == pytest.approx(measured, rel=0.25), f"estimated {estimate:,}, measured {measured:,}"


def test_a_model_with_buffers_and_frozen_parameters_can_be_estimated() -> None:
    model = build_model("v8", vocab_size=9, hidden_size=12, num_heads=2, num_layers=1)
    model.register_buffer("table", torch.zeros(1000, dtype=torch.bfloat16))
    model.get_parameter("layers.0.alpha").requires_grad = False
    estimate = estimate_memory_bytes(
        model, rows=2, seq_len=5, accumulate=1, precision="fp32", device=torch.device("cpu")
    )
    assert estimate > 0
