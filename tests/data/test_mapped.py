"""Text that is larger than the memory: what is read of the mapped tokens is given back."""

import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samout_train.data import learned_tokens
from samout_train.data.text.learned import mapped_learned_tokens
from samout_train.data.text.mapped import ROWS_TOGETHER, blocks_of, release, rows_at
from samout_train.data.text.rows import TokenRows

MIB = 1 << 20
only_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident memory from /proc")


def mapped(path: Path, tokens: NDArray[Any], mode: Any = "r") -> NDArray[Any]:
    tokens.tofile(path)
    return np.memmap(path, dtype=tokens.dtype, mode=mode)


def file_mib() -> float:
    """Return the resident memory of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:")) / 1024


def test_blocks_are_all_tokens_once(tmp_path: Path) -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    for given in (tokens, mapped(tmp_path / "a.bin", tokens)):
        found = list(blocks_of(given, 300))
        assert [first for first, _ in found] == [0, 300, 600, 900]
        assert np.array_equal(np.concatenate([block for _, block in found]), tokens)


@pytest.mark.parametrize("num_rows", [0, 1, ROWS_TOGETHER, 2 * ROWS_TOGETHER + 1])
def test_rows_of_a_map_are_those_of_an_array(tmp_path: Path, num_rows: int) -> None:
    tokens = np.random.default_rng(0).integers(1 << 16, size=5000).astype(np.uint16)
    places = np.random.default_rng(1).integers(5000, size=(num_rows, 7))
    assert np.array_equal(rows_at(mapped(tmp_path / "a.bin", tokens), places), tokens.astype(np.int64)[places])


def test_changes_to_a_private_map_are_kept(tmp_path: Path) -> None:
    """Giving back its pages would read the file again, without the changes."""
    private = mapped(tmp_path / "a.bin", np.zeros(5000, dtype=np.uint16), mode="c")
    private[7] = 5
    release(private[3:])
    assert private[7] == 5


def test_learned_tokens_of_a_map_are_those_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(12, size=5000).astype(np.uint16)
    wanted = learned_tokens(tokens)
    assert 0 < wanted.sum() < 5000
    monkeypatch.setattr("samout_train.data.text.learned.TOKENS_TOGETHER", 300)
    found = mapped_learned_tokens(mapped(tmp_path / "a.bin", tokens))
    assert np.array_equal(found, wanted) and isinstance(found, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


@only_linux
@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="no way to give pages back")
def test_what_was_read_of_a_map_is_given_back(tmp_path: Path) -> None:
    """64 MiB: in blocks, in shuffled rows and in the rows of an evaluation; at most 16 MiB stay."""
    tokens = mapped(tmp_path / "a.bin", np.zeros(32 * MIB, dtype=np.uint16))
    rows = TokenRows(tokens, seq_len=255, seed=0)
    before = file_mib()
    for _, block in blocks_of(tokens, 1 << 20):
        block.sum()
    order = np.random.default_rng(0).permutation(rows.num_rows)
    for first in range(0, rows.num_rows, 1000):
        rows.take(order[first : first + 1000], 0)
        rows.windows(first, first + 1000)
    assert file_mib() - before < 16
    np.asarray(tokens).sum()
    assert file_mib() - before > 48, "what is not given back is seen"


# VmHWM begins with the program; getrusage's peak has that of the process that started it, too.
SOURCE = """
import re, sys
from pathlib import Path
import numpy as np
from samout_train.config import compose_config
from samout_train.training import source_from
source = source_from(compose_config(sys.argv[1:]).config)
rows = source.train
order = np.random.default_rng(0).integers(rows.num_rows, size=4000)
for first in range(0, len(order), 100):
    rows.split(rows.take(order[first : first + 100], 0))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(source.description["tokens"], int(peak[1]) / 1024)
"""


@only_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["data=jsonl", "data.learn=agent"],
        pytest.param(["data=jsonl", "data.layout=padded"], marks=pytest.mark.nightly),
        pytest.param(["data=text"], marks=pytest.mark.nightly),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, words: list[str]) -> None:
    """32 and 96 MB of conversations, whose ids alone are 64 and 192 MB: less than 32 MiB between their peaks."""
    turns = [{"role": "user", "content": "why " * 200}, {"role": "assistant", "content": "because " * 150}]
    line = json.dumps({"messages": turns}) + "\n"
    peaks = []
    for megabytes in (32, 96):
        path = tmp_path / f"{megabytes}.jsonl"
        path.write_text(line * (megabytes * 1_000_000 // len(line)))
        asked = [*words, f"data.path={path}", "data.vocabulary=bytes"]
        done = subprocess.run([sys.executable, "-c", SOURCE, *asked], capture_output=True, text=True, check=True)
        num_tokens, peak = done.stdout.split()
        assert int(num_tokens) > 0.95 * path.stat().st_size - 100_000
        peaks.append(float(peak))
    assert peaks[1] - peaks[0] < 32
