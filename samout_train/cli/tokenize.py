"""`python -m samout_train tokenize path=FOLDER out=FOLDER pattern='**/*.txt'`: turn files into shards of token ids."""

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from samout_train.cli.request import Request
from samout_train.cli.verb import verb
from samout_train.config import Positive
from samout_train.data import BytePairSize, LineEnds, VocabularyName
from samout_train.runtime import (
    available_cores,
    home_path,
    in_words,
    list_setting,
    place_problem,
    program_file,
    typed_line,
)

if TYPE_CHECKING:
    from samout_train.data import ShardPlan, Tokenized

T = TypeVar("T")
UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
NAMED = 3
SMALLEST_PART = 50  # keeps a mistyped part_bytes from making a shard of every few bytes
LARGEST_PART = 1 << 30  # at most two tokens per byte, and positions are 32-bit


@verb
def tokenize(
    request: Request,
    *,
    path: str,
    out: str,
    pattern: str,
    vocabulary: VocabularyName,
    vocab_size: Annotated[int, BytePairSize],
    vocabulary_path: str | None,
    vocabulary_bytes: int | str,
    roles: dict[str, str],
    jobs: Annotated[int, Positive] | None,
    part_bytes: int | str,
    line_ends: LineEnds,
    close_turns: bool,
) -> int:
    """Tokenizes many files into shards of ids, for data=shards.

    Returns:
        The exit code: 0 done, 1 shards cannot be written or a process died, 2 the request or a file was wrong, 130 and
        143 stopped by a signal.
    """
    from samout_train.data import WorkerDiedError, tokenize_files
    from samout_train.runtime import StopRequestedError

    plan, num_jobs = _plan(request.settings), jobs or available_cores()
    try:
        _print(tokenize_files(plan, jobs=num_jobs), num_jobs, plan.left_out)
    except StopRequestedError as stop:
        print(f"{stop}: repeat the same command to resume", file=sys.stderr)
        return stop.exit_code
    except WorkerDiedError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        place = None
        if not error.filename:
            place = plan.out
        print(f"{in_words(error, place=place)}. Then repeat the same command to resume.", file=sys.stderr)
        return 1
    return 0


def _plan(settings: dict[str, Any]) -> "ShardPlan":
    from samout_train.data import JsonlReader, ShardPlan, find, vocabulary_of

    found: list[str] = []
    if problem := place_problem(home_path(settings["out"])):
        found.append(f"out={settings['out']}: {problem}")
    part_bytes = _attempt(found, lambda: _bytes("part_bytes", settings["part_bytes"], SMALLEST_PART, LARGEST_PART))
    vocabulary_bytes = _attempt(found, lambda: _bytes("vocabulary_bytes", settings["vocabulary_bytes"], 1, sys.maxsize))
    choice = _attempt(found, lambda: vocabulary_of(settings))
    roles = _attempt(found, lambda: JsonlReader.of(settings["roles"]).roles)
    files = _attempt(found, lambda: find(settings["path"], settings["pattern"]))
    if found or part_bytes is None or vocabulary_bytes is None or choice is None or roles is None or files is None:
        raise ValueError("\n".join(found))
    return ShardPlan(
        root=files.root,
        paths=files.files,
        out=home_path(settings["out"]),
        choice=choice,
        roles=dict(roles),
        part_bytes=part_bytes,
        vocabulary_bytes=vocabulary_bytes,
        line_ends=settings["line_ends"],
        close_turns=settings["close_turns"],
        left_out=files.left_out_in_words(),
    )


def _attempt(found: list[str], make: Callable[[], T]) -> T | None:
    try:
        return make()
    except ValueError as error:
        found.append(str(error))
        return None


def _bytes(name: str, given: int | str, least: int, most: int) -> int:
    match = re.fullmatch(r"(\d+) ?(B|[KMG]iB|)", str(given))
    num_bytes = 0
    if match:
        num_bytes = int(match[1]) * UNITS[match[2]]
    if not least <= num_bytes <= most:
        raise ValueError(f"{name}={given}: must be bytes from {least} to {most}, such as 1000000 or 64MiB")
    return num_bytes


def _print(done: "Tokenized", jobs: int, left_out: str) -> None:
    index = done.index
    num_tokens = index.total(lambda shard: shard.num_tokens)
    num_documents = index.total(lambda shard: shard.num_documents)
    text_bytes = index.total(lambda shard: shard.text_bytes)
    unknown = index.total(lambda shard: shard.unknown)
    if done.num_damaged is not None:
        verified = f"{len(index.shards) - done.num_damaged} of {len(index.shards)} shards match their sha256"
        if done.num_damaged:
            verified += "; the others were damaged and are written again"
        print(f"verified    {verified}")
    file_bytes = sum(int(str(file["bytes"])) for file in index.files)
    print(f"files       {len(index.files):,}, {file_bytes / 1e6:,.1f} MB")
    parts = list(index.left_out)
    if left_out:
        parts.insert(0, left_out)
    if parts:
        print(f"left out    {'; '.join(parts)}")
    print(f"vocabulary  {index.vocabulary.name}, {len(index.vocabulary):,} ids")
    print(f"tokens      {num_tokens:,} in {num_documents:,} documents, {text_bytes / num_tokens:.3f} bytes a token")
    if unknown:
        print(f"unknown     {unknown:,} ({unknown / num_tokens:.2%}) are not in the vocabulary and become padding")
    size = num_tokens * index.dtype.itemsize / 1e6
    print(f"shards      {len(index.shards)} of {index.dtype.name} in {index.folder}, {size:,.1f} MB")
    if done.uncut:
        names = ", ".join(done.uncut[:NAMED]) + ", ..." * (len(done.uncut) > NAMED)
        print(f"not cut     {names}: compressed text is read from its start, so a file of it is one shard")
    if done.num_made:
        speed = done.read_bytes / 1e6 / done.seconds
        print(f"speed       {speed:,.1f} MB/s in {done.seconds:,.1f} s, {min(jobs, done.num_made)} processes")
    paths = list_setting("data.paths", [str(index.folder)])
    print(f"train       {typed_line([program_file(), '-m', 'samout_train', 'data=shards', paths])}")
