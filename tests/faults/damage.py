"""Damage: checkpoints cut short, flipped bits, zeroed pages, all of them, and what a run is continued with."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samout_train.checkpoint import damage, newest_checkpoint
from tests.faults.processes import QUICK, finished
from tests.faults.row import Case, Row


def _run_with_two(case: Case) -> Path:
    """A run that has checkpoints of steps 2 and 3."""
    run_dir = case.folder / "run"
    words = (*case.run, *QUICK, "checkpoint.keep_best=false", f"run_dir={run_dir}")
    finished(*words, "trainer.max_steps=3")
    return run_dir


@contextmanager
def _replaced(path: Path, content: bytes) -> Iterator[None]:
    """With other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def _falls_back(run_dir: Path) -> bool:
    newest = newest_checkpoint(run_dir, set_aside=False)
    return newest is not None and newest.name == "step_00000002.pt"


def cut_short(case: Case) -> str:
    """Cuts the newest checkpoint at random places, and to nothing."""
    run_dir, draw = _run_with_two(case), random.Random(case.seed)
    path = run_dir / "checkpoints" / "step_00000003.pt"
    content = path.read_bytes()
    for number in range(case.count):
        length = draw.randrange(len(content)) if number else 0
        with _replaced(path, content[:length]):
            assert f"has {length} bytes" in str(damage(path)) and _falls_back(run_dir)
    path.write_bytes(content[: len(content) // 2])
    words = (*case.run, *QUICK, "checkpoint.keep_best=false", f"run_dir={run_dir}", "resume=auto")
    printed = finished(*words, "trainer.max_steps=4")
    assert "step_00000003.pt cannot be used: it has" in printed and "step_00000002.pt, after step 2" in printed
    assert (run_dir / "checkpoints" / "step_00000003.pt.corrupt").exists()
    return f"{case.count} of {case.count} found; set aside, and continued from the one before"


def flipped(case: Case) -> str:
    """Flips single bits in tensors and manifest, and fills pages with zeros."""
    run_dir, draw = _run_with_two(case), random.Random(case.seed)
    path = run_dir / "checkpoints" / "step_00000003.pt"
    flips, pages = case.count - case.count // 5, case.count // 5
    silent = 0
    for number in range(flips):
        file = path.with_suffix(".json") if number % 4 == 3 else path
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        with _replaced(file, bytes(content)):
            silent += not _falls_back(run_dir)
    content = path.read_bytes()
    written = [start for start in range(0, len(content), 4096) if any(content[start : start + 4096])]
    for _ in range(pages):
        start = draw.choice(written)
        with _replaced(path, content[:start] + bytes(len(content[start : start + 4096])) + content[start + 4096 :]):
            silent += not _falls_back(run_dir)
    assert damage(path) is None, "what was put back is whole"
    assert not silent, f"{silent} were silent"
    return f"{flips} flipped bits and {pages} zeroed pages: {case.count} of {case.count} found, 0 silent"


def all_damaged(case: Case) -> str:
    """Damages every checkpoint of a run."""
    run_dir = _run_with_two(case)
    logged = (run_dir / "metrics.jsonl").read_bytes()
    paths = sorted((run_dir / "checkpoints").glob("step_*.pt"))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    words = (*case.run, *QUICK, "checkpoint.keep_best=false", f"run_dir={run_dir}", "resume=auto")
    for _ in range(case.count):
        printed = finished(*words, "trainer.max_steps=4", code=1)
        # set aside the first time, as .corrupt
        assert all(re.search(rf"{path.name}(\.corrupt)?: it has", printed) for path in paths), printed
        assert (run_dir / "metrics.jsonl").read_bytes() == logged, "it was started again"
    return f"{case.count} times: exit code 1, {len(paths)} files reported with their reasons, no restart from scratch"


ROWS = [
    Row(4, "newest checkpoint cut short", 10, 50, cut_short),
    Row(5, "flipped bits, zeroed pages", 25, 250, flipped),
    Row(6, "every checkpoint damaged", 1, 3, all_damaged),
]
