"""A run that begins with the weights of another: which are taken over, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model, build_trainer, train
from samout_train.checkpoint import (
    InitialWeights,
    export_run,
    inspect_path,
    load_initial_weights,
    load_run,
    read_initial_weights,
)
from samout_train.checkpoint.files import has_manifest, write_manifest
from samout_train.config import ConfigError
from samout_train.data import SPECIAL_TOKENS, Characters
from samout_train.models import nats_and_state, published_state
from tests.support.marks import spread

TINY = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "model.dropout=0", "device=cpu"]
ROWS = ["data.vocabulary=characters", "data.seq_len=9", "data.batch_size=4"]
NODE: dict[str, Any] = {"hidden_size": 12}


def tiny(vocab_size: int = 7, hidden_size: int = 12) -> nn.Module:
    return build_model("v8", vocab_size=vocab_size, hidden_size=hidden_size, num_heads=2, num_layers=1)


def text(*characters: str) -> Characters:
    return Characters([*SPECIAL_TOKENS, *characters])


def load(model: nn.Module, path: str | Path, vocabulary: Characters | None = None) -> str:
    return str(load_initial_weights(model, read_initial_weights(path), vocabulary=vocabulary, model_node=NODE))


def equal(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in own)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, model: state,
        lambda state, model: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state, model: {"epoch": 3, "model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        lambda state, model: model,
        lambda state, model: published_state(model),
        lambda state, model: {"net": published_state(model)},
    ],
    ids=["plain", "wrapped", "below a key", "a pickled module", "published", "published, below a key"],
)
def test_weights_of_any_file_are_taken_over(tmp_path: Path, wrap: Any) -> None:
    saved, model = tiny(), tiny()
    torch.save(wrap(saved.state_dict(), saved), tmp_path / "net.pth")
    (tmp_path / "net.json").write_text("{}")  # of another program; a checkpoint's manifest lies there
    assert not equal(model, saved.state_dict())
    assert load(model, tmp_path / "net.pth") == "loaded 12 of 12 tensors, 0 new, 0 unused"
    assert equal(model, saved.state_dict())


def test_a_checkpoint_is_known_by_its_manifest_whatever_its_name(tmp_path: Path) -> None:
    write_manifest(tmp_path / "renamed.pt", {"step": 1})
    (tmp_path / "net.json").write_text('{"step": 1}')
    (tmp_path / "step_00000001.json").write_text("damaged")
    names = ("renamed.pt", "step_00000001.pt", "net.pt", "alone.pt")
    assert [has_manifest(tmp_path / name) for name in names] == [True, True, False, False]


def test_a_file_beside_an_export_is_not_taken_for_it(tmp_path: Path) -> None:
    saved, model = tiny(), tiny()
    torch.save(saved.state_dict(), tmp_path / "mine.pth")
    facts = dict.fromkeys(("step", "vocab_size", "pad_id", "torch", "weights_sha256", "parameters"), 1)
    files = {"model.pth": {"bytes": 1, "sha256": ""}, "vocabulary.json": {"bytes": 1, "sha256": ""}}
    for manifest, own in (
        (json.dumps({"export": 1, "format": "published", "files": files, **facts}), [*files, "export.json"]),
        ("damaged", ["model.pth", "export.json"]),
    ):
        (tmp_path / "export.json").write_text(manifest)
        assert load(model, tmp_path / "mine.pth") == "loaded 12 of 12 tensors, 0 new, 0 unused"
        assert equal(model, saved.state_dict())
        for name in own:
            (tmp_path / name).touch()
            with pytest.raises(ConfigError, match="export it again"):
                read_initial_weights(tmp_path / name)


def test_tensors_that_the_file_lacks_stay_and_those_that_are_unused_are_named(tmp_path: Path) -> None:
    saved, model = tiny(), tiny()
    state, before = saved.state_dict(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = state.pop("head.weight")
    torch.save(state | {"classifier.weight": head}, tmp_path / "net.pth")
    assert load(model, tmp_path / "net.pth") == (
        "loaded 11 of 12 tensors, 1 new, 1 unused; new: head.weight; unused: classifier.weight"
    )
    assert torch.equal(model.state_dict()["head.weight"], before["head.weight"])


def test_appended_tokens_get_new_rows_behind_the_loaded_ones() -> None:
    saved, model = tiny(7), tiny(9)
    weights = InitialWeights("run", {"model": saved.state_dict()}, text("a", "b"))
    before = model.state_dict()["embedding.weight"].clone()
    loaded = load_initial_weights(model, weights, vocabulary=text("a", "b", "c", "\n"), model_node=NODE)
    assert str(loaded) == (
        "loaded 12 of 12 tensors, 0 new, 0 unused; 2 new rows in embedding.weight and head.weight: c, '\\n'"
    )
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(model.state_dict()[name][:7], saved.state_dict()[name])
    assert torch.equal(model.state_dict()["embedding.weight"][7:], before[7:])


def spoiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"head.weight": torch.full_like(state["head.weight"], torch.nan)}


@pytest.mark.parametrize(
    ("content", "vocabulary", "words"),
    spread(
        [
            (
                lambda s: {"a": torch.ones(2)},
                None,
                ["no tensor of it is one of this model", "it has a", "embedding.weight"],
            ),
            (lambda s: {}, None, ["it holds no tensors"]),
            (
                lambda s: tiny(hidden_size=24).state_dict(),
                None,
                ["embedding.weight is 7x24 there and 7x12 in this model"],
            ),
            (lambda s: tiny(9).state_dict(), None, ["give the vocabulary of its 9 ids as data.vocabulary_path"]),
            (spoiled, None, ["head.weight holds NaN"]),
            (lambda s: {"one": s, "ema": tiny().state_dict()}, None, ["holds several models: one, ema"]),
        ],
        2,
    ),
    ids=["nothing matches", "nothing", "a width", "a vocabulary", "not finite", "several"],
)
def test_what_is_of_another_model_is_refused_and_nothing_is_loaded(
    tmp_path: Path, content: Any, vocabulary: Any, words: list[str]
) -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(content(tiny().state_dict()), tmp_path / "net.pth")
    with pytest.raises(ConfigError) as caught:
        load(model, tmp_path / "net.pth")
    assert str(caught.value).startswith(f"init_from={tmp_path / 'net.pth'}: ")
    assert all(word in str(caught.value) for word in words), caught.value
    assert equal(model, before)


def test_the_v1_of_the_public_repository_is_refused_by_its_name(tmp_path: Path) -> None:
    projections = {f"decoder_layers.0.self_attention.head{n}.weight": torch.ones(4, 4) for n in range(3)}
    state = {"em.weight": torch.ones(7, 4), "pos.weight": torch.ones(1024, 4), "down.0.weight": torch.ones(4, 8)}
    torch.save(state | projections, tmp_path / "pretrain_768.pth")
    with pytest.raises(ConfigError, match="weights of the V1 of the public repository"):
        load(tiny(), tmp_path / "pretrain_768.pth")


@pytest.mark.parametrize(
    ("before", "now"),
    [(text("a", "b"), text("b", "a")), (text("a", "b"), text("a")), (text("a"), None)],
    ids=["another order", "fewer", "no text"],
)
def test_another_vocabulary_is_refused(before: Characters, now: Characters | None) -> None:
    weights = InitialWeights("run", {"model": tiny().state_dict()}, before)
    with pytest.raises(ConfigError, match=r"^init_from=run: "):
        load_initial_weights(tiny(), weights, vocabulary=now, model_node=NODE)


def test_settings_of_another_size_are_named(tmp_path: Path) -> None:
    weights = InitialWeights("run", {"model": tiny(hidden_size=24).state_dict()}, None, {"hidden_size": 24})
    with pytest.raises(ConfigError, match=r": set model\.hidden_size=24$"):
        load_initial_weights(tiny(), weights, vocabulary=None, model_node=NODE)


@pytest.mark.slow
def test_a_run_begins_with_weights_alone_and_says_so(tmp_path: Path, small_text: Path) -> None:
    words = [*TINY, *ROWS, "data=text", f"data.path={small_text}", "trainer.max_steps=2"]
    train([*words, f"run_dir={tmp_path / 'first'}"])
    export_run(tmp_path / "first", format="safetensors", out=tmp_path / "export")
    first = load_run(tmp_path / "first")
    more = tmp_path / "more.txt"
    more.write_text(small_text.read_text("utf-8") + "ßß" * 9, "utf-8")
    for init_from, path in (("first", small_text), ("export", more)):
        trainer = build_trainer([*words, f"data.path={path}", f"init_from={tmp_path / init_from}"])
        assert trainer.step_count == 0
        inputs, targets = trainer.source.train.split(trainer.training_step.batches.get(0).ids_RT)
        with torch.no_grad():
            nats, _ = nats_and_state(first.model, inputs, targets, 3)
        if path == small_text:  # with a new token, its logits are new, too
            assert abs(float(trainer.step()) - float(nats) / targets.numel()) <= 1e-6
        else:
            assert trainer.init_from["new_tokens"] == ["ß"]
            assert trainer.source.vocab_size == first.vocab_size + 1
    run_dir = tmp_path / "second"
    train([*words, f"data.path={more}", f"init_from={tmp_path / 'first'}", f"run_dir={run_dir}"])
    summary = json.loads((run_dir / "summary.json").read_text("utf-8"))
    assert summary["init_from"]["path"] == str(tmp_path / "first") and summary["steps"] == 2
    assert dict(inspect_path(run_dir).rows)["begun with"].startswith(f"the weights of {tmp_path / 'first'} ")
    # Continued, it needs the weights no more, and reads its text by its own vocabulary.
    (tmp_path / "first").rename(tmp_path / "gone")
    again = [*words, f"data.path={more}", f"init_from={tmp_path / 'first'}", f"run_dir={run_dir}", "resume=auto"]
    summary, _ = train([*again, "trainer.max_steps=3"])
    assert summary["steps"] == 3 and summary["init_from"]["new_tokens"] == ["ß"]
    assert load_run(run_dir).vocab_size == first.vocab_size + 1


@pytest.mark.slow
def test_a_vocabulary_of_another_kind_is_refused_with_what_to_set(tmp_path: Path, small_text: Path) -> None:
    words = [*TINY, *ROWS, "data=text", f"data.path={small_text}", "trainer=debug"]
    train([*words, "data.vocabulary=bytes", f"run_dir={tmp_path / 'first'}"])
    with pytest.raises(ConfigError, match=r"data\.vocabulary=characters: .*: set data\.vocabulary=bytes$"):
        build_trainer([*words, f"init_from={tmp_path / 'first'}"])
    trainer = build_trainer([*words, "data.vocabulary=bytes", f"init_from={tmp_path / 'first'}"])
    assert trainer.init_from["loaded"] == 12
