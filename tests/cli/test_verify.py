"""verify as it is typed: what it verifies, at which sizes, and what it answers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samout_train import train
from samout_train.checkpoint import load_run
from samout_train.cli.verify import verify as main
from samout_train.config import CONF
from samout_train.evaluation.verify import CheckResult, ModelUnderTest, trained_models_under_test, verify
from tests.support.marks import mostly_nightly
from tests.support.program import samout

CPU = torch.device("cpu")
SIZES = ["model.hidden_size=12", "model.num_layers=1", "model.num_heads=2"]
TEXT = ["data=text", "data.seq_len=16", "data.batch_size=4"]
RUNS = {
    "hello_cell": ["experiment=hello_cell"],
    "hello_rnn": ["experiment=hello_rnn"],
    "hello_embedding": ["experiment=hello_embedding"],
    "hello_encoder": ["data=hello", "model=transformer", "model.causal=false", *SIZES],
    "published_v1": ["experiment=published_v1", *SIZES],
    "published_v8": ["experiment=published_v8", *SIZES],
    "short_cache": [*TEXT, "model=transformer", "model.positions=learned", "model.max_seq_len=40", *SIZES],
    "one_token_more": [*TEXT, "model=lstm_attention", "model.max_seq_len=17", *SIZES[:2], "model.dropout=0.1"],
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", mostly_nightly(RUNS, {"short_cache"}))
def test_a_run_that_trains_is_verified_to_the_end(name: str, tmp_path: Path, small_text: Path) -> None:
    path = [f"data.path={small_text}"] if "data=text" in RUNS[name] else []
    train([*RUNS[name], *path, "trainer=debug", "device=cpu", f"run_dir={tmp_path / 'run'}"])
    loaded = load_run(tmp_path / "run")
    subject, tiny = trained_models_under_test(
        loaded.model_node, loaded.model.state_dict(), vocab_size=loaded.vocab_size, pad_id=loaded.pad_id
    )
    few = replace(subject, most_tokens=min(subject.most_tokens or 64, 64))
    rows = list(verify(few, tiny, device=CPU, compiles=False))
    assert [row for row in rows if not row.passed] == []
    assert (len(rows) == 11) == (name == "hello_encoder"), "an encoder sees the future"


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ModelUnderTest, ModelUnderTest]]:
    """What would be verified, each model by one check, which fails where its class is called RNN."""
    asked: list[tuple[ModelUnderTest, ModelUnderTest]] = []

    def quick(subject: ModelUnderTest, tiny: ModelUnderTest, *, device: torch.device) -> Iterator[CheckResult]:
        asked.append((subject, tiny))
        yield CheckResult("it is called otherwise", float(type(subject.model(CPU)).__name__ == "RNN"), 0.0)

    monkeypatch.setattr("samout_train.evaluation.verify.verify", quick)
    return asked


@pytest.mark.slow
def test_sizes_are_those_that_were_typed_and_defaults_elsewhere(verified: Any, capsys: Any) -> None:
    for words, wanted in (
        ([], "hidden_size 48, num_layers 3, num_heads 4"),
        (["model.hidden_size=64"], "hidden_size 64, num_layers 3, num_heads 4"),
        (
            ["model.hidden_size=96", "model.num_layers=1", "model.num_heads=6"],
            "hidden_size 96, num_layers 1, num_heads 6",
        ),
    ):
        assert main(["model=v8", "device=cpu", *words]) == 0
        assert capsys.readouterr().out.startswith(f"v8: {wanted}, 37 ids, dropout 0, on cpu\n")
        model = verified[-1][0].build()
        assert f"hidden_size {model.embedding.embedding_dim}, num_layers {len(model.layers)}" in wanted
        assert verified[-1][1].build().embedding.embedding_dim == 16
    assert main(["model=v8", "model.hidden_size=50"]) == 2
    assert "model.hidden_size (50) must be divisible by model.num_heads (4): try 48 or 52" in capsys.readouterr().err
    assert main(["model=transformer", "model.max_seq_len=3"]) == 2
    assert "max_seq_len (3) is too short to verify" in capsys.readouterr().err


def test_the_title_names_the_pattern_that_is_verified(verified: Any, capsys: Any) -> None:
    assert main(["model=hybrid", "model.pattern=[maxplus,maxplus,maxplus,attention]"]) == 0
    assert "num_layers 3, num_heads 4, pattern [maxplus,attention], 37 ids" in capsys.readouterr().out
    assert main(["model=hybrid", "model.pattern=[maxplus,attention]", "model.num_layers=1"]) == 0
    assert "num_layers 1, num_heads 4, pattern [maxplus,attention], 37 ids" in capsys.readouterr().out


def test_without_a_head_the_width_is_that_of_the_ids(verified: Any, capsys: Any) -> None:
    assert main(["model=gru", "model.head=none", "model.embedding=one_hot"]) == 0
    assert "hidden_size 37" in capsys.readouterr().out
    subject, tiny = verified[-1]
    assert subject.build().head is None and tiny.build().head is not None


@pytest.mark.slow
def test_one_model_that_fails_does_not_keep_the_others_from_being_verified(
    verified: Any, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "myrnn.py").write_text(
        "from samout_train.models.samout import SamOut\n\n\nclass RNN(SamOut):\n    pass\n", "utf-8"
    )
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "a.yaml").write_text("defaults:\n  - v8\n_target_: myrnn.RNN\n", "utf-8")
    assert main(["--config-dir", str(tmp_path / "mine"), "models=all"]) == 1
    printed = capsys.readouterr().out
    own = len(list((CONF / "model").glob("*.yaml")))
    assert len(verified) == own + 1 and printed.count("FAIL") == 1 and printed.count("PASS") == own
    assert printed.splitlines()[0].startswith("a: ") and "  NOT ALL HELD, " in printed


@pytest.mark.nightly
def test_a_table_is_printed_with_every_row(tmp_path: Path) -> None:
    done = samout(tmp_path, "verify", "model=lstm_attention", "model.max_seq_len=64", *SIZES[:2], "device=cpu")
    assert done.returncode == 0 and done.stdout.count("PASS") == 33 and "FAIL" not in done.stdout, done.stdout
    assert " operations in 1 graph, " in done.stdout, "the LSTM is in it"


@pytest.mark.nightly
def test_exit_code_1_says_that_a_check_failed(tmp_path: Path) -> None:
    (tmp_path / "peeks.py").write_text(
        "from samout_train.models.samout import MaxStateSuper\n\n\n"
        "class Peeks(MaxStateSuper):\n    def forward(self, x, state):\n"
        "        return super().forward(x + x.roll(-1, 1), state)\n"
    )
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "peeks.yaml").write_text("defaults:\n  - v8\nmixer:\n  _target_: peeks.Peeks\n")
    words = [
        sys.executable,
        "-m",
        "samout_train",
        "verify",
        "--config-dir",
        "mine",
        "model=peeks",
        *SIZES,
        "device=cpu",
    ]
    environment = os.environ | {"CXX": "/nonexistent"}  # torch looks once in a process
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    failed = [line for line in done.stdout.splitlines() if "FAIL" in line]
    assert done.returncode == 1 and "causality: a token changes nothing before it" in failed[0], done.stderr
    (compiled,) = (line for line in done.stdout.splitlines() if "compiled as eager" in line)
    assert "PASS" in compiled and "aot_eager, since there is no C++ compiler" in compiled


@pytest.mark.nightly
def test_every_model_and_a_run_hold(tmp_path: Path, small_text: Path) -> None:
    train([*TEXT, f"data.path={small_text}", *SIZES, "trainer=debug", "device=cpu", f"run_dir={tmp_path / 'run'}"])
    for words in (["models=all"], ["run=run"]):
        done = subprocess.run(
            [sys.executable, "-m", "samout_train", "verify", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
