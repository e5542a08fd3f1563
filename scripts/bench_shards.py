"""Measure the speed and the memory of reading rows from shards.

Writes shards of random ids into a folder, with a document about every thousand tokens, reads random rows from all of
them as training does, and deletes the shards. The reported memory is resident memory, minus that of the program before
it opens any shard.

    python scripts/bench_shards.py --folder /tmp/bench_shards [--gigabytes 10] [--seconds 5]
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from samout_train.data import INDEX, PAD_ID, PLACE, SOS_ID, SPECIAL_TOKENS, Batches, Bytes, Shard, ShardIndex, dtype_for
from samout_train.data.shards.source import shards
from samout_train.runtime import current_memory_bytes

SHARD_BYTES = 1 << 26
TOKENS_A_DOCUMENT = 1000
BATCH_TOKENS = 1 << 14
LENGTHS = (256, 1024, 4096)
CPU = torch.device("cpu")


def write_shards(folder: Path, gigabytes: float) -> None:
    """Write a folder like that of `tokenize`, except for digests, which a run does not check."""
    vocabulary, dtype = Bytes(), dtype_for(len(Bytes()))
    num_tokens = SHARD_BYTES // dtype.itemsize
    made = []
    for number in range(round(gigabytes * 1e9 / SHARD_BYTES)):
        generator = np.random.default_rng(number)
        ids = generator.integers(len(SPECIAL_TOKENS), len(vocabulary), num_tokens, dtype=np.uint16)
        starts = np.flatnonzero(generator.random(num_tokens // 10, dtype=np.float32) < 10 / TOKENS_A_DOCUMENT) * 10
        starts = np.union1d([0], starts)
        ids[starts] = SOS_ID
        name = f"{number:05d}"
        ids.astype(dtype).tofile(folder / f"{name}.bin")
        starts.astype(PLACE).tofile(folder / f"{name}.documents")
        made.append(
            Shard(
                name=name,
                num_tokens=num_tokens,
                num_documents=len(starts),
                text_bytes=num_tokens - len(starts),
                unknown=0,
                largest_id=int(ids.max()),
                sha256="",
                documents_sha256="",
            )
        )
    index = ShardIndex(folder, dtype, vocabulary.state_dict(), tuple(made), [])
    (folder / INDEX).write_text(json.dumps(index.to_json()), encoding="utf-8")


def measure(folder: Path, layout: str, seq_len: int, seconds: float, before: int) -> str:
    """Read random rows for some seconds; return a line with speed and memory."""
    source = shards(
        paths=str(folder),
        weights=None,
        layout=layout,  # type: ignore[arg-type]
        validation_tokens=1_000_000,
        seq_len=seq_len,
        ignore_index=PAD_ID,
        seed=0,
    )
    batch_size = max(1, BATCH_TOKENS // seq_len)
    batches = Batches(source.train, batch_size=batch_size, seed=0, ignore_index=PAD_ID, device=CPU, overfit_batches=0)
    built = current_memory_bytes()
    step, most, started = 0, built, time.perf_counter()
    while time.perf_counter() - started < seconds:
        batches.on_host(step)
        step += 1
        if step % 100 == 0:
            most = max(most, current_memory_bytes())
    speed = step * batch_size * seq_len / (time.perf_counter() - started) / 1e6
    read = f"{step * batch_size:8,} of {source.train.num_rows:,} rows"
    return (
        f"{layout:10} rows of {seq_len:5}: {speed:6.0f} M tokens/s, {read}; "
        f"resident {(built - before) / 1e6:.0f} MB when opened, {(most - before) / 1e6:.0f} MB at the most"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Makes, measures, removes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="is made, and removed at the end")
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args(words)
    arguments.folder.mkdir(parents=True)  # fails if the folder exists, so that it is not deleted below
    try:
        write_shards(arguments.folder, arguments.gigabytes)
        before = current_memory_bytes()
        print(f"{arguments.gigabytes:g} GB of shards; the program holds {before / 1e6:.0f} MB", flush=True)
        for layout in ("packed", "documents"):
            for seq_len in LENGTHS:
                print(measure(arguments.folder, layout, seq_len, arguments.seconds, before), flush=True)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
