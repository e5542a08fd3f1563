"""The machine under a run."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samout_train.runtime import memory

FAULTS = """
import resource
from samout_train.training.run import build_trainer
trainer = build_trainer("model=v8 model.hidden_size=128 model.num_heads=4 model.num_layers=2 data=random "
    "data.vocab_size=100 data.batch_size=16 data.seq_len=128".split())
for step in range(14):
    if step == 6:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    trainer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**settings: str) -> int:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, env=environment | settings, check=True
    )
    return int(done.stdout)


@pytest.mark.nightly
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_steps_use_the_memory_that_earlier_steps_freed_unless_the_environment_says_else() -> None:
    assert page_faults() < page_faults(MALLOC_ARENA_MAX="8") / 10


@pytest.mark.parametrize(
    ("content", "limit"), [("40000000\n", 40_000_000), ("max\n", None), (f"{2**63 - 4096}\n", None)]
)
def test_the_memory_of_a_container_is_what_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, limit: int | None
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "MEMORY_LIMITS", (tmp_path / "missing",))
    whole = memory.total_memory_bytes(cpu)
    (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(memory, "MEMORY_LIMITS", (tmp_path / "missing", tmp_path / "memory.max"))
    assert memory.total_memory_bytes(cpu) == (limit or whole)
    assert (memory.too_large(41_000_000, cpu) is None) == (limit is None)
