"""Rows of shards: each once an epoch, mixed as asked for, never over the start of a document, and what is refused."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from samout_train import generate_text, train
from samout_train.checkpoint import load_run
from samout_train.cli import evaluate
from samout_train.cli.tokenize import tokenize
from samout_train.data import INDEX, SPECIAL_TOKENS, Batches, Bytes, Source, TokenRows, learned_tokens, row_problems
from samout_train.data.shards import rows as shard_rows
from samout_train.data.shards.index import PLAN, read_index
from samout_train.data.shards.reader import Places, ShardReader
from samout_train.data.shards.rows import BLOCK, AgentRows, DocumentLayout, PackedLayout, ShardRows
from samout_train.data.shards.source import Shards, _quotas, shards
from samout_train.data.text import whole
from samout_train.data.text.rows import PaddedRows
from tests.support.marks import mostly_nightly

CPU = torch.device("cpu")
SOS, PAD = 0, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `a`, `b` and `other` (another vocabulary) are shards, and `a.jsonl` and `b.txt` what they are made from."""
    folder = tmp_path_factory.mktemp("shards")
    lines = [json.dumps({"text": f"{number}: " + "wörter " * (number % 23)}) for number in range(300)]
    (folder / "a.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "b.txt").write_text("one text that goes on and on, " * 400, "utf-8")
    common = ["vocabulary=bytes", "jobs=1"]
    assert tokenize([f"path={folder / 'a.jsonl'}", f"out={folder / 'a'}", "part_bytes=3000", *common]) == 0
    assert tokenize([f"path={folder / 'b.txt'}", f"out={folder / 'b'}", "part_bytes=5000", *common]) == 0
    assert tokenize([f"path={folder / 'b.txt'}", f"out={folder / 'other'}", "vocabulary=characters", "jobs=1"]) == 0
    return folder


def settings(*paths: Path, **changes: Any) -> dict[str, Any]:
    common = {"weights": None, "layout": "packed", "validation_tokens": 1000, "seq_len": 16, "ignore_index": PAD}
    return {"paths": [str(path) for path in paths]} | common | changes


def source(*paths: Path, seed: int = 0, **changes: Any) -> Source:
    given = settings(*paths, **changes)
    assert Shards.problems(given, "data") == []
    return shards(**given, seed=seed)


def tokens_of(folder: Path) -> list[np.ndarray]:
    index = read_index(folder)
    return [np.fromfile(folder / f"{shard.name}.bin", dtype=index.dtype).astype(np.int64) for shard in index.shards]


def whole_epoch(rows: Any, epoch: int = 0) -> torch.Tensor:
    return rows.take(np.arange(rows.num_rows), epoch)


def numbered(lengths: list[int], folder: Path) -> ShardReader:
    """Shards whose ids tell where they lie: 1,000 times the shard, and the place."""
    paths = [folder / f"{number}.bin" for number in range(len(lengths))]
    for number, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        (1000 * (number + 1) + np.arange(length)).astype("<u2").tofile(path)
    return ShardReader(paths, np.dtype("<u2"))


def test_whole_shards_are_counted_as_the_run_learned_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, agent = SPECIAL_TOKENS.index("<|user|>"), SPECIAL_TOKENS.index("<|agent|>")
    ids = [SOS, user, 80, agent, 81, 82, user]
    np.array(ids, "<u2").tofile(tmp_path / "part.bin")
    part = SimpleNamespace(name="part", sha256="a")
    index = SimpleNamespace(vocabulary=Bytes(), dtype=np.dtype("<u2"), shards=[part], total=lambda count: 0)
    monkeypatch.setattr(whole, "read_index", lambda folder: index)
    node = settings(tmp_path, ignore_index=-7) | {"_target_": whole.SHARDS}
    everything, alone = (whole.whole_data(node | {"learn": learn}, Bytes(), seq_len=6) for learn in ("all", "agent"))
    assert everything.rows.windows(0, 1).tolist() == [ids]
    assert alone.rows.windows(0, 1).tolist() == [[*ids[:-1], -7, -7, -7, 81, 82, user]]
    assert everything.name != alone.name and everything.way == "packed"


@pytest.mark.parametrize("lengths", [[6], [50], [23, 5, 6, 53, 11], [0, 12]])
def test_packed_rows_of_an_epoch_do_not_overlap_and_stay_in_their_shard(tmp_path: Path, lengths: list[int]) -> None:
    layout = PackedLayout(lengths, seq_len=5, key=(7,))
    reader = numbered(lengths, tmp_path)
    assert layout.num_rows == sum(max(length > 5, (length - 5) // 5) for length in lengths)
    firsts = set()
    for epoch in range(40):
        indices = np.arange(layout.num_rows)
        ids = reader.read(layout.rows(indices, np.full_like(indices, epoch)), 6)
        assert (np.diff(ids, axis=1) == 1).all(), "rows are of one shard"
        targets = ids[:, 1:].flatten().tolist()
        assert len(set(targets)) == len(targets)
        for shard, length in enumerate(lengths):
            inside = [target % 1000 for target in targets if target // 1000 == shard + 1]
            assert all(0 < place < length for place in inside)
            if inside:
                assert len(inside) > length - 2 * 5 - 1 or length < 11
                firsts.add((shard, min(inside)))
    wanted = {
        shard: min(5, length - 5 * max(1, (length - 5) // 5)) for shard, length in enumerate(lengths) if length > 5
    }
    assert Counter(shard for shard, _ in firsts) == wanted  # other epochs cut at other places, where there is room


def test_windows_cover_every_token_but_the_first_of_a_shard_once(tmp_path: Path) -> None:
    lengths = [23, 1, 0, 6, 11]
    layout = PackedLayout(lengths, seq_len=5, key=(7,))
    ids = numbered(lengths, tmp_path).read(layout.windows(np.arange(layout.num_windows)), 6)
    found = sorted(ids[:, 1:][ids[:, 1:] != PAD].tolist())
    assert found == [1000 * (shard + 1) + place for shard, length in enumerate(lengths) for place in range(1, length)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_documents_are_those_of_padded_rows(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_rows, "COUNTED_TOGETHER", 2 * shard_rows.GROUP)
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 900, 6).tolist()
    documents = [np.flatnonzero(generator.random(length) < 0.3).astype(np.uint32) for length in lengths]
    layout = DocumentLayout(lengths, documents, seq_len=4)
    reader = numbered(lengths, tmp_path)
    wanted = []
    for shard, (length, starts) in enumerate(zip(lengths, documents, strict=True)):
        tokens = 1000 * (shard + 1) + np.arange(length)
        # What goes on from the shard before has no <|sos|> here: one is put before it.
        begins = [-1, *starts.tolist()] if not len(starts) or starts[0] else starts.tolist()
        pairs = np.array(list(zip(begins, [*begins[1:], length], strict=True)))
        whole = sum(int(max(end - start - 2, 0)) for start, end in pairs)
        if whole:
            wanted.append(PaddedRows(tokens, pairs, seq_len=4).windows(0, 10**6).numpy())
    indices = np.arange(layout.num_rows)
    assert np.array_equal(reader.read(layout.windows(indices), 5), np.concatenate(wanted))
    backwards = layout.rows(indices[::-1].copy(), indices)
    assert np.array_equal(reader.read(backwards, 5)[::-1], np.concatenate(wanted))
    assert layout.num_targets == sum(int((rows[:, 1:] != PAD).sum()) for rows in wanted)
    ends = [[*starts, length][1:] for length, starts in zip(lengths, documents, strict=True)]
    assert layout.num_short == sum(
        end - start < 3
        for starts, each in zip(documents, ends, strict=True)
        for start, end in zip(starts, each, strict=True)
    )


@pytest.mark.slow
def test_documents_that_make_no_row_are_in_the_record(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in [*["some words"] * 40, "", "x", "", "yz"]]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, *lines[:40]]), "utf-8")
    out = tmp_path / "shards"
    assert tokenize([f"path={tmp_path / 'a.jsonl'}", f"out={out}", "vocabulary=bytes", "jobs=1"]) == 0
    found = source(out, layout="documents", validation_tokens=50).description["left out"]
    assert found == (
        f"{out}: documents without text: 2; documents of one token, which have no target and make no row: 1"
    )


@pytest.mark.slow
def test_no_row_of_documents_goes_over_the_start_of_one(folders: Path) -> None:
    made = source(folders / "a", layout="documents")
    for rows in (made.train, made.validation):
        ids = rows.windows(0, rows.num_windows)
        assert not (ids == SOS).any()
        text = [made.vocabulary.decode([i for i in row if i != PAD]) for row in ids.tolist()]
        assert sum(piece[:1].isdigit() for piece in text) > 5
    texts = b"".join(bytes(np.clip(row - 5, 0, 255).astype(np.uint8)) for row in tokens_of(folders / "a"))
    assert texts.count(b": ") == 300
    assert "waste" in made.description
    assert row_problems(made) == []


@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_validation_is_the_end_and_begins_with_a_document(folders: Path, layout: str) -> None:
    made = source(folders / "a", layout=layout)
    everything = np.concatenate(tokens_of(folders / "a"))
    number = made.description["validation_tokens"]
    assert isinstance(number, int) and 800 < number <= 1000
    assert made.validation.tokens.tolist() == everything[-number:].tolist()  # type: ignore[attr-defined]
    assert everything[-number] == SOS
    learned = made.train.windows(0, made.train.num_windows)
    least = len(everything) - number - (0 if layout == "documents" else len(read_index(folders / "a").shards))
    counted = int((learned[:, 1:] != PAD).sum())
    assert counted <= len(everything) - number
    if layout == "packed":
        assert counted == least


def test_a_text_of_one_document_is_cut_at_its_tenth(folders: Path) -> None:
    made = source(folders / "b", validation_tokens=10**9)
    assert isinstance(made.validation, TokenRows) and len(made.validation.tokens) == 12_001 // 10


def test_every_row_of_a_source_comes_once_in_each_of_its_epochs(folders: Path) -> None:
    made = source(folders / "a")
    batches = Batches(made.train, batch_size=7, seed=0, ignore_index=PAD, device=CPU, overfit_batches=0)
    num = made.train.num_rows
    stream = torch.cat([batches.on_host(step)[0] for step in range(-(-2 * num // 7))])
    first, second = (stream[start : start + num] for start in (0, num))
    for epoch, ids in enumerate((first, second)):
        assert isinstance(made.train, ShardRows)
        indices = np.arange(num)
        places = made.train.layouts[0].rows(indices, np.full_like(indices, epoch))
        wanted = made.train.reader.read(places, 17)
        assert sorted(ids.tolist()) == sorted(wanted.tolist()) and ids.tolist() != wanted.tolist()
    assert not torch.equal(first, second)
    assert not torch.equal(source(folders / "a", seed=1).train.take(np.arange(9), 0), first[:9])


def test_sources_are_mixed_by_their_weights_and_go_through_epochs_of_their_own(folders: Path, tmp_path: Path) -> None:
    lengths = [5 * 30 + 5, 5 * 4000 + 5]
    layouts = [PackedLayout([length], seq_len=5, key=(0, number)) for number, length in enumerate(lengths)]
    reader = numbered([1, 1], tmp_path)
    rows = ShardRows(layouts, reader, first_shards=[0, 1], quotas=[7001, 2999], seq_len=5, seed=0, largest_id=9)
    stream = np.arange(3 * BLOCK)
    sources, earlier = rows.sources_of(stream)
    for block in range(3):
        inside = sources[block * BLOCK : (block + 1) * BLOCK]
        assert np.bincount(inside).tolist() == [7001, 2999]
    for source_number in (0, 1):
        of_source = earlier[sources == source_number]
        assert of_source.tolist() == list(range(len(of_source)))
    shares = np.convolve(sources == 0, np.ones(100), mode="valid")
    assert shares.min() >= 69 and shares.max() <= 71, "every hundred rows have their share"
    places = [rows._places(chunk) for chunk in range(4)]
    shard = np.concatenate([each.shards for each in places])[: 3 * BLOCK]
    assert shard.tolist() == sources.tolist()
    starts = np.concatenate([each.starts for each in places])[: 3 * BLOCK]
    for source_number, layout in enumerate(layouts):
        of_source = starts[sources == source_number]
        for epoch in range(len(of_source) // layout.num_rows):
            seen = of_source[epoch * layout.num_rows :][: layout.num_rows]
            assert len(set(seen.tolist())) == layout.num_rows


def test_rows_of_a_step_are_the_same_however_they_are_asked_for(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source(folders / "a", folders / "b", weights=[0.3, 0.7])
    whole = whole_epoch(made.train, 2)
    monkeypatch.setattr(shard_rows, "PLACED_TOGETHER", 13)
    again = source(folders / "a", folders / "b", weights=[3, 7])
    for indices in (np.array([5]), np.array([100, 3, 3, 40]), np.arange(50, 90)):
        assert torch.equal(again.train.take(indices, 2), whole[indices])
    batches = Batches(again.train, batch_size=8, seed=0, ignore_index=PAD, device=CPU, overfit_batches=0)
    for step in (30, 2):
        places = batches.places(step)
        rows = torch.cat([again.train.take(np.array([index]), epoch) for epoch, index in places])
        assert torch.equal(batches.on_host(step)[0], rows)
    text = [bytes((row - 5).clip(0, 255).to(torch.uint8).tolist()) for row in whole]
    of_b = sum(b"on" in row or b"text" in row or b"goes" in row for row in text) / len(text)
    assert 0.65 < of_b <= 0.71


def test_quotas_add_up_to_a_block_and_too_small_a_share_is_refused(folders: Path) -> None:
    indices = [read_index(folders / name) for name in ("a", "b", "a")]
    assert _quotas([1, 1, 1], indices) == [3334, 3333, 3333]
    assert _quotas([0.7, 0.3], indices[:2]) == [7000, 3000]
    with pytest.raises(ValueError, match=rf"data.weights: the share of {folders / 'b'} is less than one row in 10,000"):
        _quotas([1, 1e-6, 1], indices)


def test_all_mistakes_are_told_at_once(folders: Path, tmp_path: Path) -> None:
    given = settings(folders / "a", folders / "other", tmp_path, tmp_path / "absent", weights=[1], ignore_index=0)
    found = list(map(str, Shards.problems(given, "data")))
    assert [problem.split(":")[0] for problem in found] == [
        "data.ignore_index=0",
        *["data.paths"] * 3,
        "data.weights=[1]",
    ]
    text = "\n".join(found)
    assert f"{tmp_path} has no {INDEX}, so it is not a folder of shards: make one with" in text
    assert f"{tmp_path / 'absent'} is not there" in text
    assert f"other has another vocabulary (characters, 17 ids) than {folders / 'a'} (bytes, 261 ids)" in text
    assert f"vocabulary_path={folders / 'a' / 'vocabulary.json'}" in text
    for changes, message in (
        ({"weights": [0, 1]}, "each weight must be above 0"),
        ({"seq_len": 5000}, "data.seq_len=5000: a row takes 5,001 tokens of one shard, and the longest of"),
        ({"seq_len": 1200, "validation_tokens": 100}, "data.validation_tokens=100: a row takes 1201 tokens"),
        ({"layout": "documents"}, "b has 1 document: set packed, or use two or more"),
    ):
        (problem,) = map(str, Shards.problems(settings(folders / "a", folders / "b", **changes), "data"))
        assert message in problem
    assert list(map(str, Shards.problems(settings(), "data"))) == ["data.paths: is empty: set folders of shards"]
    assert Shards.problems(settings() | {"paths": str(folders / "a")}, "data") == []


def test_damaged_shards_are_told_with_file_and_sizes(folders: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (folders / "a").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())

    def problem() -> str:
        (found,) = map(str, Shards.problems(settings(copy), "data"))
        assert found.startswith(f"data.paths: {copy}") and "\n" not in found
        return found

    whole = (copy / "00001.bin").read_bytes()
    made = shards(**settings(copy), seed=0)
    (copy / "00001.bin").write_bytes(whole[:-2])
    assert f"00001.bin has {len(whole) - 2:,} bytes, and index.json says {len(whole):,} bytes: repeat" in problem()
    (copy / "00001.bin").write_bytes(whole[:10])
    with pytest.raises(OSError, match=r"00001\.bin ends at byte .* and its index expects .* or more: repeat"):
        whole_epoch(made.train)
    (copy / "00001.bin").unlink()
    assert "00001.bin is not there, and index.json says" in problem()
    (copy / "00001.bin").write_bytes(whole)
    index = json.loads((copy / INDEX).read_text())
    index["shards"][0]["largest_id"] = 261
    (copy / INDEX).write_text(json.dumps(index))
    assert "00000.bin has the id 261, and the vocabulary has 261 ids" in problem()
    (copy / INDEX).write_text(json.dumps(index | {"format": 99}))
    assert "index.json cannot be read (format 99, this program reads 1)" in problem()
    (copy / INDEX).write_text("{")
    assert "index.json cannot be read" in problem()
    (copy / INDEX).unlink()
    assert (copy / PLAN).exists() and "has no index.json, so it is not finished: run its" in problem()


def test_more_shards_than_may_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samout_train.data.shards.reader.MOST_OPEN", 2)
    reader = numbered([9, 9, 9, 9], tmp_path)
    shards_of_rows = np.array([0, 1, 2, 3, 0, 2, 1])
    places = Places(shards_of_rows, np.arange(7), np.full(7, 2))
    wanted = [[1000 * (shard + 1) + row, 1000 * (shard + 1) + row + 1] for row, shard in enumerate(shards_of_rows)]
    assert reader.read(places, 2).tolist() == wanted and len(reader._open) <= 2


def test_a_system_without_preadv_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samout_train.data.shards import reader as shard_reader

    monkeypatch.setattr(shard_reader, "_read_at", shard_reader._seek_and_read)
    places = Places(np.array([0, 0]), np.array([3, 1]), np.array([2, 3]))
    assert numbered([9], tmp_path).read(places, 3).tolist() == [[1003, 1004, PAD], [1001, 1002, 1003]]


def test_few_rows_are_read_before_a_run_and_a_recorded_id_that_is_none_is_told(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, read = source(folders / "a"), []
    monkeypatch.setattr("samout_train.data.check.IDS_TOGETHER", 2 * made.train.seq_len)
    assert isinstance(made.train, ShardRows) and made.train.num_windows > 100
    windows = made.train.windows
    monkeypatch.setattr(made.train, "windows", lambda start, stop: read.append((start, stop)) or windows(start, stop))
    assert row_problems(made) == [] and read == [(0, 2)]  # where a target is counted
    made.train.largest_id = 261
    assert row_problems(made) == ["data: token id 261 in the training split is out of range 0 to 260"]


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `shards` are shards of conversations, some longer than a read, and of one text without an agent."""
    folder = tmp_path_factory.mktemp("talks")
    lines = [{"text": "no talk"}]
    for number in range(60):
        asked, answer = "ab" * (number % 9 + 1), f"{number:02}" + "x" * (number % 5 * 200)
        turns = [("user", asked), ("assistant", answer), ("user", "and?"), ("assistant", "yes")]
        lines.append({"messages": [{"role": role, "content": content} for role, content in turns]})  # type: ignore
    (folder / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    words = ["vocabulary=bytes", "jobs=1", "part_bytes=1000", "close_turns=true"]
    assert tokenize([f"path={folder / 'talks.jsonl'}", f"out={folder / 'shards'}", *words]) == 0
    return folder


def test_of_conversations_what_the_agent_says_is_counted_wherever_a_row_begins(talks: Path) -> None:
    tokens = tokens_of(talks / "shards")
    assert len(tokens) > 9 and all(part[0] == SOS for part in tokens), "no conversation is cut by the end of a shard"
    whole = np.concatenate(tokens)
    learned, begins = learned_tokens(whole), np.cumsum([0, *map(len, tokens)])
    made = source(talks / "shards", learn="agent", validation_tokens=300, seq_len=16)
    assert isinstance(made.train, AgentRows)
    places = made.train.rows.places(np.arange(made.train.num_rows), 1)
    inputs, targets = made.train.split(made.train.take(np.arange(made.train.num_rows), 1))
    for row in range(made.train.num_rows):
        start = begins[places.shards[row]] + places.starts[row]
        assert inputs[row].tolist() == whole[start : start + 16].tolist()
        wanted = np.where(learned[start + 1 : start + 17] == 1, whole[start + 1 : start + 17], PAD)
        assert targets[row].tolist() == wanted.tolist()
    _, targets = made.validation.split(made.validation.windows(0, made.validation.num_windows))
    judged = slice(len(whole) - int(str(made.description["validation_tokens"])) + 1, None)  # the first is no target
    assert targets[targets != PAD].tolist() == whole[judged][learned[judged] == 1].tolist()


def test_of_whole_conversations_each_answer_and_its_end_is_counted_once(talks: Path) -> None:
    made = source(talks / "shards", learn="agent", layout="documents", validation_tokens=300, seq_len=100)
    assert made.vocabulary is not None
    counted = ""
    for rows in (made.train, made.validation):
        _, targets = rows.split(rows.windows(0, rows.num_windows))
        counted += made.vocabulary.decode(targets[targets != PAD].tolist())
    answers = [f"{number:02}" + "x" * (number % 5 * 200) + "<|user|>yes<|user|>" for number in range(60)]
    assert counted == "".join(answers)


@pytest.mark.slow
@pytest.mark.parametrize("layout", mostly_nightly(["packed", "documents"], ["packed"]))
def test_a_run_on_shards_trains_evaluates_generates_and_goes_on_exactly(
    folders: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [folders / "a", folders / "b"] if layout == "packed" else [folders / "a"]
    words = [
        *("model=maxplus", "model.hidden_size=12", "model.num_layers=1", "model.num_heads=2", "device=cpu"),
        *("data=shards", f"data.paths=[{','.join(map(str, paths))}]", f"data.layout={layout}", "data.seq_len=16"),
        *("data.batch_size=4", "schedule=constant"),
    ]
    once, _ = train([*words, "trainer.max_steps=6", f"run_dir={tmp_path / 'once'}"])
    train([*words, "trainer.max_steps=3", f"run_dir={tmp_path / 'twice'}"])
    twice, _ = train([*words, "trainer.max_steps=6", f"run_dir={tmp_path / 'twice'}", "resume=auto"])
    assert once["weights_sha256"] == twice["weights_sha256"]
    assert evaluate.evaluate([f"run={tmp_path / 'once'}", "device=cpu"]) == 0
    assert "nats" in capsys.readouterr().out
    run = load_run(tmp_path / "once")
    assert run.vocabulary is not None and len(run.vocabulary) == 261
    assert "".join(generate_text(run.model, run.vocabulary, "one", max_new_tokens=5))
